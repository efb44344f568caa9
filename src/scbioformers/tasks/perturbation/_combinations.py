"""Effects of combinations of targets: the sum of the single effects minus their overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scbioformers.tasks.perturbation._components import Array

_PRIOR = 0.05  # strength of the prior that effects are additive, relative to the data


def overlap(effects: Array) -> Array:
    """(M,), overlap of the effects (K, M) of several targets: for each sign, the sum without the largest effect.

    Examples
    --------
    >>> overlap(np.array([[1.0, -1.0, 2.0], [0.5, -3.0, -1.0]]))
    array([ 0.5, -1. ,  0. ])
    """
    up, down = np.maximum(effects, 0), np.maximum(-effects, 0)
    found: Array = (up.sum(axis=0) - up.max(axis=0)) - (down.sum(axis=0) - down.max(axis=0))
    return found


def fit_combination(singles: Sequence[Array], observed: Sequence[Array]) -> tuple[float, float]:
    """Weights of the sum and of the overlap, fitted by ridge regression that shrinks towards the plain sum (1, 0).

    ``singles`` contains the effects (K, M) of the single targets of each combination. ``observed`` contains the effect
    (M,) of each combination.
    """
    if not observed:
        return 1.0, 0.0
    sums = np.concatenate([each.sum(axis=0) for each in singles])
    overlaps = np.concatenate([overlap(each) for each in singles])
    design = np.column_stack([sums, -overlaps])
    ridge = _PRIOR * (design**2).sum(axis=0) + 1e-9
    rest = np.concatenate(list(observed)) - sums
    found = np.linalg.solve(design.T @ design + np.diag(ridge), design.T @ rest) + np.array([1.0, 0.0])
    return float(np.clip(found[0], 0, 1.5)), float(np.clip(found[1], 0, 1))
