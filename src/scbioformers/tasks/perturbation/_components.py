"""What speaks for an effect of a target on a gene, each piece by itself: targets x pieces x genes, in log1p units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The pieces, in order.
COMPONENTS = ("mean", "shared", "similar", "response", "terms", "coexpression", "network")
POWER = 2.0  # of the similarity, so that a few close targets outweigh many distant ones
DOUBT = 0.2  # similarity at which the similar targets count half
RESPONSE_DOUBT = 0.3  # sum of squared moves, in standard deviations, at which a slope counts half
_SIGN = {"knockout": -1.0, "activation": 1.0, "drug": 0.0}


@dataclass(frozen=True)
class TargetData:
    """What is known of K named targets and the M genes beyond effects; none has seen a cell of its own perturbation."""

    own: NDArray[np.int64]
    """(K,), the target's own place among the genes, -1 where it is not measured."""
    features: Array
    """(K, F), of unit length, 0 where there are none."""
    gene_features: Array
    """(M, F)."""
    correlations: Array
    """(K, M), of each measured target with the genes, lowered by their error; 0 for the others."""
    control_sd: Array
    """(M,), standard deviation in control cells."""
    network: Array
    """(K, M), change of the profile that the network predicts, the target carrying its token; 0 where it has none."""
    kind: str
    """What was done."""

    def take(self, rows: NDArray[np.int64]) -> TargetData:
        """Of some targets only."""
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
        """(K, M), True at the target itself."""
        genes = np.arange(len(self.control_sd))
        mask: NDArray[np.bool_] = np.asarray(np.equal.outer(self.own, genes), dtype=bool)
        return mask


def similarity(a: TargetData, b: TargetData) -> Array:
    """(Ka, Kb) in [0, 1]: cosine of the features, or co-expression where a target has none."""
    by_features = a.features @ b.features.T
    described = [np.abs(k.features).sum(axis=1) > 0 for k in (a, b)]
    lacking = ~np.logical_and.outer(*described)
    together = np.where(b.own >= 0, a.correlations[:, np.maximum(b.own, 0)], 0)
    return np.clip(np.where(lacking, together, by_features), 0, 1)


def signal(effects: Array, se: Array) -> Array:
    """(K,), mean square of the effects beyond their noise."""
    found: Array = np.maximum((effects**2).mean(axis=1) - (se**2).mean(axis=1), 0)
    return found


def components(
    knowledge: TargetData, training: TargetData, effects: Array, se: Array, itself: NDArray[np.bool_] | None = None
) -> Array:
    """Pieces for K targets, from the effects of T training targets.

    Parameters
    ----------
    knowledge
        Of the targets.
    training
        Of the training targets.
    effects, se
        (T, M), of the training targets.
    itself
        (K, T), which training target is the very one and must not be looked at.

    Returns
    -------
    (K, n_components, M), 0 at the target itself in all but the first.
    """
    keep: Array = np.ones((len(knowledge.own), len(training.own)))
    if itself is not None:
        keep[itself] = 0
    mean = keep @ effects / np.maximum(keep.sum(axis=1, keepdims=True), 1)
    seen = ~training.own_mask()
    masked: Array = np.where(seen, effects, 0.0)
    strength = signal(masked, se)
    precision = seen / (se**2 + strength[:, None] + 1e-9)
    shared: Array = keep @ (precision * masked) / np.maximum(keep @ precision, 1e-12)
    weight = keep * similarity(knowledge, training) ** POWER
    weight = weight / (weight.sum(axis=1, keepdims=True) + DOUBT)
    weight = weight * (strength / np.maximum(strength + (se**2).mean(axis=1), 1e-12))
    similar = weight @ masked - (weight @ seen) * shared
    sign = _SIGN[knowledge.kind]
    response = sign * _response(knowledge, masked, seen.astype(np.float64), se, shared, keep)
    terms = sign * np.clip(knowledge.features @ knowledge.gene_features.T, 0, 1) * knowledge.control_sd
    coexpression = sign * knowledge.correlations * knowledge.control_sd
    pieces = np.stack([mean, shared, similar, response, terms, coexpression, knowledge.network * (sign != 0)], axis=1)
    pieces[:, 1:] *= ~knowledge.own_mask()[:, None]
    return pieces


def _response(knowledge: TargetData, masked: Array, seen: Array, se: Array, shared: Array, keep: Array) -> Array:
    """How the genes move with the target over the training perturbations: slopes, times one standard deviation.

    Where the loss of a training target lowers the gene of this one, the loss of this one should do some of the same.
    """
    scale = np.maximum(knowledge.control_sd, 1e-9)
    at, measured = np.maximum(knowledge.own, 0), knowledge.own >= 0
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
    """Rows of length 1; rows of zeros stay."""
    return _unit(np.nan_to_num(np.asarray(rows, np.float64)))
