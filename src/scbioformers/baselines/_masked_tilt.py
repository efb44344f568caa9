"""Histograms of genes, tilted by features of the cell: one multinomial logistic regression for all genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scbioformers.baselines._masked_features import Array

_EFFECT_RIDGE, _WEIGHT_RIDGE = 5.0, 1.0
_MAX_STEPS, _TOLERANCE = 30, 1e-6  # the tolerance is in nats per entry


@dataclass(frozen=True)
class Tilt:
    """Exponential tilt: log p(bin) = offset + effects[depth group] + basis @ weights.T @ features, normalised."""

    edges: Array
    """(G - 1,) depths that separate the G depth groups."""
    effects: Array
    """(G, V) effect of each depth group on each bin."""
    weights: Array
    """(F, R) weights of the features on the basis."""
    basis: Array
    """(V, R) basis functions of the bins."""

    @classmethod
    def fit(
        cls, offset: Array, depth: Array, features: Array, bins: NDArray[np.int64], basis: Array, n_groups: int = 64
    ) -> Tilt:
        """Fit to n entries by penalised maximum likelihood.

        The shapes are offset (n, V), depth (n,), features (n, F), bins (n,) and basis (V, R).
        """
        edges = np.quantile(depth, np.arange(1, n_groups) / n_groups)
        group = np.searchsorted(edges, depth)
        members = [np.flatnonzero(group == g) for g in range(n_groups)]
        parts = [(offset[m], features[m], bins[m]) for m in members]
        effects, weights = np.zeros((n_groups, basis.shape[0])), np.zeros((features.shape[1], basis.shape[1]))
        value = _loss(parts, effects, weights, basis)
        for _ in range(_MAX_STEPS):
            effect_step, weight_step = _newton_step(parts, effects, weights, basis)
            size = 1.0
            while True:
                trial = effects - size * effect_step, weights - size * weight_step
                lower = _loss(parts, *trial, basis)
                if lower <= value or size < 1e-3:
                    break
                size /= 2
            if value - lower < _TOLERANCE * max(bins.size, 1):
                break
            (effects, weights), value = trial, lower
        return cls(edges, effects, weights, basis)

    def logits(self, offset: Array, depth: Array, features: Array) -> Array:
        """(n, V) logits, not normalised."""
        return offset + self.effects[np.searchsorted(self.edges, depth)] + features @ self.weights @ self.basis.T


_Part = tuple[Array, Array, NDArray[np.int64]]


def _log_p(part: _Part, effect: Array, weights: Array, basis: Array) -> Array:
    logits = part[0] + effect + part[1] @ weights @ basis.T
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _loss(parts: list[_Part], effects: Array, weights: Array, basis: Array) -> float:
    penalty = 0.5 * (_EFFECT_RIDGE * (effects**2).sum() + _WEIGHT_RIDGE * (weights**2).sum())
    for part, effect in zip(parts, effects, strict=True):
        penalty -= _log_p(part, effect, weights, basis)[np.arange(part[2].size), part[2]].sum()
    return float(penalty)


def _newton_step(parts: list[_Part], effects: Array, weights: Array, basis: Array) -> tuple[Array, Array]:
    """Return the Newton steps of the effects (G, V) and the weights (F, R).

    The step of the weights is solved by the Schur complement, then those of the effects of each group given it.
    """
    n_weights, n_basis = weights.shape[0], basis.shape[1]
    gradient, hessian = _WEIGHT_RIDGE * weights.ravel(), _WEIGHT_RIDGE * np.eye(weights.size)
    solved = []
    for part, effect in zip(parts, effects, strict=True):
        X, bins = part[1:]
        p = np.exp(_log_p(part, effect, weights, basis))
        error = p.copy()
        error[np.arange(bins.size), bins] -= 1
        expected = p @ basis
        gradient = gradient + (X.T @ (error @ basis)).ravel()
        cross = np.empty((basis.shape[0], n_weights, n_basis))
        own = np.empty((n_weights, n_basis, n_weights, n_basis))
        for r in range(n_basis):
            deviation = p * (basis[:, r] - expected[:, r, None])
            cross[:, :, r] = deviation.T @ X
            for s, covariance in enumerate((deviation @ basis).T):
                own[:, r, :, s] = X.T @ (X * covariance[:, None])
        crossed = cross.reshape(basis.shape[0], -1)
        hessian += own.reshape(weights.size, weights.size)
        block = np.diag(p.sum(axis=0) + _EFFECT_RIDGE) - p.T @ p
        right = np.column_stack([error.sum(axis=0) + _EFFECT_RIDGE * effect, crossed])
        solution = np.linalg.solve(block, right)
        gradient = gradient - crossed.T @ solution[:, 0]
        hessian -= crossed.T @ solution[:, 1:]
        solved.append(solution)
    step = np.asarray(np.linalg.solve(hessian, gradient), np.float64)
    return np.stack([s[:, 0] - s[:, 1:] @ step for s in solved]), step.reshape(weights.shape)
