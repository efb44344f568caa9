"""How much each piece counts: few, non-negative, shrunk weights, chosen by how well the pieces predict other targets.

A target counts by the direction of its effect, not by its size, so that one strong target does not speak for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from scbioformers.tasks.perturbation._components import COMPONENTS, Array, TargetData, components, signal
from scbioformers.tasks.perturbation._correlations import Correlations
from scbioformers.tasks.perturbation._folds import N_GROUPS, fold_of

PENALTY = 0.1  # on squared departures from the prior, of pieces in units of their mean size
# what is believed before: the common part and that of similar targets as they are, a little of co-expression
PRIOR = np.array([0.0, 1.0, 2.0, 0.25, 0.0, 0.2, 0.0])
BASE_WEIGHT = 0.3  # of a target without any signal, beside those that have it
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FEWEST = 4  # targets with which weights can be chosen at all


@dataclass(frozen=True)
class Stack:
    """Weights of the pieces, and the training targets that they were fitted on."""

    weights: Array
    """(n_components,)."""
    training: TargetData
    effects: Array
    """(T, M)."""
    se: Array
    """(T, M)."""
    strength: float = 1.0
    """Share of the way from the training mean to the weighted pieces."""

    def predict(self, knowledge: TargetData, itself: NDArray[np.bool_] | None = None) -> Array:
        """(K, M), effects off the target itself, shrunk towards the training mean."""
        pieces = components(knowledge, self.training, self.effects, self.se, itself)
        full = np.einsum("c,kcm->km", self.weights, pieces)
        found: Array = pieces[:, 0] + self.strength * (full - pieces[:, 0])
        return found


def fit_weights(training: TargetData, effects: Array, se: Array) -> Stack:
    """Choose the weights by how predicted and observed effects correlate, each target predicted from the others."""
    weights = np.eye(len(COMPONENTS))[0]
    n = len(effects)
    if n < FEWEST:
        return Stack(weights, training, effects, se)
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
    # the size is that of the effects: least squares over all targets
    scale = (product @ weights).sum() / max(fitted.sum(), 1e-12)
    return Stack(weights * max(scale, 0.0), training, effects, se)


def _maximise(gram: Array, product: Array, counts: Array, units: Array, empty: NDArray[np.bool_]) -> Array:
    """Non-negative weights with the highest mean correlation, less the penalty."""
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
    bounds = [(0.0, 0.0) if nothing else (0.0, None) for nothing in empty]
    starts = [prior + 0.05, np.full(k, 0.3), *(0.05 + 0.7 * np.eye(k))]
    found = [minimize(loss, start * ~empty, jac=True, bounds=bounds, method="L-BFGS-B") for start in starts]
    best: Array = min(found, key=lambda result: float(result.fun)).x / units
    return best


def out_of_fold(
    training: TargetData, effects: Array, se: Array, correlations: Correlations, network: Array
) -> tuple[Array, Array]:
    """Predictions (T, M) of every target from weights and effects of the other folds, and the mean of those effects.

    Correlations of all targets, also of those that the weights are fitted to, are taken without the cells of the fold,
    and so is ``network`` (n_groups, T, M), what the network answers when a group of folds is left out too: what a
    target is scored on, its own perturbed cells, never enters its prediction.
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
    """The step from the training mean that predicts left-out targets best, 0 if none is better."""
    counts = BASE_WEIGHT + signal(effects, se) / np.maximum((effects**2).mean(axis=1), 1e-12)
    scores = [
        np.average(correlations(mean + s * (full - mean), effects, training.own_mask()), weights=counts)
        for s in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]


def correlations(predicted: Array, observed: Array, mask: NDArray[np.bool_]) -> Array:
    """(K,), Pearson over the genes that are not masked; 0 where one side is constant."""
    found = np.zeros(len(predicted))
    for i, (p, y, masked) in enumerate(zip(predicted, observed, mask, strict=True)):
        a, b = p[~masked] - p[~masked].mean(), y[~masked] - y[~masked].mean()
        size = np.linalg.norm(a) * np.linalg.norm(b)
        found[i] = a @ b / size if size > 1e-12 else 0.0
    return found
