"""Weights of the components. They are non-negative, shrunk, and fitted to predict targets from the other targets.

The fit maximises correlations, which do not depend on the size of an effect. So a single target with strong effects
does not dominate the fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from scbioformers.tasks.perturbation._components import COMPONENTS, Array, TargetData, components, signal
from scbioformers.tasks.perturbation._correlations import Correlations
from scbioformers.tasks.perturbation._folds import N_GROUPS, fold_of

PENALTY = 0.1  # on squared deviations from the prior weights, in units of the mean size of each component
# prior weights of the components: mainly the shared effect and the effects of similar targets
PRIOR = np.array([0.0, 1.0, 2.0, 0.25, 0.0, 0.2, 0.0])
BASE_WEIGHT = 0.3  # weight of a target without signal; a target with a strong signal has the weight 1 + BASE_WEIGHT
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# limit of the size of a component, relative to its largest size in the training targets: the weight of a component that
# is nearly empty there may be in the hundreds, and such a component may be full for another target
MAX_SIZE = 2.0
FEWEST = 4  # minimum number of targets for which weights are fitted


@dataclass(frozen=True)
class Stack:
    """Weighted components, with the T training targets from which they are computed."""

    weights: Array
    """(n_components,), weights of the components."""
    training: TargetData
    """Data on the training targets."""
    effects: Array
    """(T, M), effects of the training targets."""
    se: Array
    """(T, M), standard errors of the effects."""
    largest: Array
    """(n_components,), largest norm of each component over the training targets, for which the weights were fitted."""
    strength: float = 1.0
    """Factor in [0, 1] of the deviation of the weighted components from the mean training effect."""

    def predict(self, target_data: TargetData, itself: NDArray[np.bool_] | None = None) -> Array:
        """(K, M), predicted effects on genes other than the target, shrunk towards the mean training effect."""
        pieces = components(target_data, self.training, self.effects, self.se, itself)
        size = np.linalg.norm(pieces, axis=2)
        pieces *= np.minimum(1, MAX_SIZE * self.largest / np.maximum(size, 1e-12))[:, :, None]
        full = np.einsum("c,kcm->km", self.weights, pieces)
        found: Array = pieces[:, 0] + self.strength * (full - pieces[:, 0])
        return found


def fit_weights(training: TargetData, effects: Array, se: Array) -> Stack:
    """Fit the weights, so that the predictions of each target from the others correlate with its observed effects."""
    weights = np.eye(len(COMPONENTS))[0]
    n = len(effects)
    if n < FEWEST:
        return Stack(weights, training, effects, se, np.full(len(COMPONENTS), np.inf))
    pieces = components(training, training, effects, se, np.eye(n, dtype=bool))
    grams, products, sizes = [], [], []
    for own, piece, effect in zip(training.own_mask(), pieces, effects, strict=True):
        a, y = piece[:, ~own], effect[~own]
        a, y = a - a.mean(axis=1, keepdims=True), y - y.mean()
        grams.append(a @ a.T)
        products.append(a @ y)
        sizes.append(np.linalg.norm(y))
    gram, product, size = np.array(grams), np.array(products), np.maximum(sizes, 1e-12)
    square = np.maximum((effects**2).mean(axis=1), 1e-12)
    counts = BASE_WEIGHT + signal(effects, se) / square
    units = np.sqrt(np.maximum(np.einsum("kcc->c", gram) / n, 1e-18))
    empty = np.einsum("kcc->c", gram) <= 1e-12
    weights = _maximise(gram, product / size[:, None], counts / counts.sum(), units, empty)
    fitted = np.einsum("kcd,c,d->k", gram, weights, weights)
    # the correlation does not determine the scale of the weights, so it is fitted by least squares over all targets
    scale = (product @ weights).sum() / max(fitted.sum(), 1e-12)
    return Stack(weights * max(scale, 0.0), training, effects, se, np.linalg.norm(pieces, axis=2).max(axis=0))


def _maximise(gram: Array, product: Array, counts: Array, units: Array, empty: NDArray[np.bool_]) -> Array:
    """Non-negative weights that maximise the mean correlation minus the penalty."""
    prior = PRIOR * units
    prior = prior / max(float(prior.max()), 1e-12)

    def loss(x: Array) -> tuple[float, Array]:
        w = x / units
        inner = np.einsum("kcd,d->kc", gram, w)
        length = np.sqrt(inner @ w + 1e-9)
        correlation = product @ w / length
        slope = product / length[:, None] - (correlation / length**2)[:, None] * inner
        off = x - prior
        return float(PENALTY * off @ off - counts @ correlation), 2 * PENALTY * off - (counts @ slope) / units

    k = len(units)
    bounds = [(0.0, 0.0) if is_empty else (0.0, None) for is_empty in empty]
    starts = [prior + 0.05, np.full(k, 0.3), *(0.05 + 0.7 * np.eye(k))]
    found = [minimize(loss, start * ~empty, jac=True, bounds=bounds, method="L-BFGS-B") for start in starts]
    best: Array = min(found, key=lambda result: float(result.fun)).x / units
    return best


def out_of_fold(
    training: TargetData, effects: Array, se: Array, correlations: Correlations, network: Array
) -> tuple[Array, Array]:
    """Out-of-fold predictions (T, M) of every target, and mean effects (T, M) of the other folds.

    Weights and components are fitted to the other folds. The correlations of all targets are computed without the cells
    of the fold. ``network`` (n_groups, T, M) contains the predictions of the network without each group of folds. So
    the perturbed cells of a target, on which it is scored, are never used for its prediction.
    """
    full, mean = np.zeros_like(effects), np.zeros_like(effects)
    folds = fold_of(len(effects))
    for fold in np.unique(folds):
        left_out, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        without = correlations.of_targets(without=[int(fold)])
        known = replace(training, correlations=without, network=network[fold % N_GROUPS])
        stack = fit_weights(known.take(rest), effects[rest], se[rest])
        full[left_out] = stack.predict(known.take(left_out))
        mean[left_out] = effects[rest].mean(axis=0)
    return full, mean


def choose_strength(full: Array, mean: Array, training: TargetData, effects: Array, se: Array) -> float:
    """Choose the strength with the best out-of-fold predictions. It is 0 if the mean training effect is as good."""
    counts = BASE_WEIGHT + signal(effects, se) / np.maximum((effects**2).mean(axis=1), 1e-12)
    scores = [
        np.average(correlations(mean + s * (full - mean), effects, training.own_mask()), weights=counts)
        for s in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]


def correlations(predicted: Array, observed: Array, mask: NDArray[np.bool_]) -> Array:
    """(K,), Pearson correlation over the genes that are not in ``mask``. 0 if one of the two is constant."""
    found = np.zeros(len(predicted))
    for i, (p, y, masked) in enumerate(zip(predicted, observed, mask, strict=True)):
        a, b = p[~masked] - p[~masked].mean(), y[~masked] - y[~masked].mean()
        size = np.linalg.norm(a) * np.linalg.norm(b)
        found[i] = a @ b / size if size > 1e-12 else 0.0
    return found
