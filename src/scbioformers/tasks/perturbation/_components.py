"""Components from which effects are predicted: targets x components x genes, in log1p units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Names of the components, in order.
COMPONENTS = ("mean", "shared", "similar", "response", "terms", "coexpression", "network")
POWER = 2.0  # power of the similarity, so that a few similar targets have more weight than many dissimilar ones
DOUBT = 0.2  # summed similarity (to this power) at which the component of similar targets is shrunk to half
RESPONSE_DOUBT = 0.3  # sum of squared changes, in standard deviations, at which a slope is shrunk to half
_SIGN = {"knockout": -1.0, "activation": 1.0, "drug": 0.0}


@dataclass(frozen=True)
class TargetData:
    """Data on K targets and M genes, without effects. For each target, its own perturbed cells are not used."""

    own: NDArray[np.int64]
    """(K,), position of each target among the genes, -1 if it is not measured."""
    features: Array
    """(K, F), features of the targets, scaled to unit length. 0 for targets without features."""
    gene_features: Array
    """(M, F), features of the genes."""
    correlations: Array
    """(K, M), correlations of each target with all genes, reduced by their error. 0 if the target is not measured."""
    control_sd: Array
    """(M,), standard deviation in control cells."""
    network: Array
    """(K, M), effects predicted by the network with the external token. 0 where it cannot predict them."""
    kind: str
    """Kind of perturbation."""

    def take(self, rows: NDArray[np.int64]) -> TargetData:
        """The data on some of the targets."""
        return TargetData(
            self.own[rows],
            self.features[rows],
            self.gene_features,
            self.correlations[rows],
            self.control_sd,
            self.network[rows],
            self.kind,
        )

    def own_mask(self) -> NDArray[np.bool_]:
        """(K, M), True at the gene of each target."""
        genes = np.arange(len(self.control_sd))
        mask: NDArray[np.bool_] = np.asarray(np.equal.outer(self.own, genes), dtype=bool)
        return mask


def similarity(a: TargetData, b: TargetData) -> Array:
    """(Ka, Kb) in [0, 1]: cosine of the features, or co-expression if a target has no features."""
    by_features = a.features @ b.features.T
    described = [np.abs(k.features).sum(axis=1) > 0 for k in (a, b)]
    lacking = ~np.logical_and.outer(*described)
    together = np.where(b.own >= 0, a.correlations[:, np.maximum(b.own, 0)], 0)
    return np.clip(np.where(lacking, together, by_features), 0, 1)


def signal(effects: Array, se: Array) -> Array:
    """(K,), mean square of the effects minus the mean square of their standard errors, at least 0."""
    found: Array = np.maximum((effects**2).mean(axis=1) - (se**2).mean(axis=1), 0)
    return found


def components(
    target_data: TargetData, training: TargetData, effects: Array, se: Array, itself: NDArray[np.bool_] | None = None
) -> Array:
    """Components for K targets, computed from the effects of T training targets.

    Parameters
    ----------
    target_data
        Data on the K targets.
    training
        Data on the training targets.
    effects, se
        (T, M), effects of the training targets and their standard errors.
    itself
        (K, T), True where a training target is the same as the target. Its effects are not used.

    Returns
    -------
    (K, n_components, M). At the gene of the target, all components except the first are 0.
    """
    keep: Array = np.ones((len(target_data.own), len(training.own)))
    if itself is not None:
        keep[itself] = 0
    mean = keep @ effects / np.maximum(keep.sum(axis=1, keepdims=True), 1)
    seen = ~training.own_mask()
    masked: Array = np.where(seen, effects, 0.0)
    strength = signal(masked, se)
    precision = seen / (se**2 + strength[:, None] + 1e-9)
    shared: Array = keep @ (precision * masked) / np.maximum(keep @ precision, 1e-12)
    weight = keep * similarity(target_data, training) ** POWER
    weight = weight / (weight.sum(axis=1, keepdims=True) + DOUBT)
    weight = weight * (strength / np.maximum(strength + (se**2).mean(axis=1), 1e-12))
    similar = weight @ masked - (weight @ seen) * shared
    sign = _SIGN[target_data.kind]
    response = sign * _response(target_data, masked, seen.astype(np.float64), se, shared, keep)
    terms = sign * np.clip(target_data.features @ target_data.gene_features.T, 0, 1) * target_data.control_sd
    coexpression = sign * target_data.correlations * target_data.control_sd
    pieces = np.stack([mean, shared, similar, response, terms, coexpression, target_data.network * (sign != 0)], axis=1)
    pieces[:, 1:] *= ~target_data.own_mask()[:, None]
    return pieces


def _response(target_data: TargetData, masked: Array, seen: Array, se: Array, shared: Array, keep: Array) -> Array:
    """Slope of each gene on the gene of the target over the training perturbations, times one standard deviation.

    If a training perturbation lowers the expression of the target, a knock-out of the target is expected to have a
    similar effect.
    """
    scale = np.maximum(target_data.control_sd, 1e-9)
    at, measured = np.maximum(target_data.own, 0), target_data.own >= 0
    moved = (masked / scale)[:, at].T * keep * measured[:, None]  # (K, T)
    noise = (se / scale)[:, at].T ** 2 * keep
    moved = np.sign(moved) * np.sqrt(np.maximum(moved**2 - noise, 0))
    slope = moved / ((moved**2).sum(axis=1) + RESPONSE_DOUBT)[:, None]
    found: Array = slope @ masked - (slope @ seen) * shared
    return found


def _unit(rows: Array) -> Array:
    found: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def unit_rows(rows: Array) -> Array:
    """Scale rows to length 1. Rows of zeros do not change."""
    return _unit(np.nan_to_num(np.asarray(rows, np.float64)))
