"""Several targets at once: the sum of their effects, less where they say the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scbioformers.tasks.perturbation._components import Array

_PRIOR = 0.05  # strength of the belief that effects add up, as a share of the data


def overlap(effects: Array) -> Array:
    """(M,), what a sum over targets (K, M) counts more than once: all but the largest effect of each sign.

    Examples
    --------
    >>> overlap(np.array([[1.0, -1.0, 2.0], [0.5, -3.0, -1.0]]))
    array([ 0.5, -1. ,  0. ])
    """
    up, down = np.maximum(effects, 0), np.maximum(-effects, 0)
    found: Array = (up.sum(axis=0) - up.max(axis=0)) - (down.sum(axis=0) - down.max(axis=0))
    return found


def fit_combination(singles: Sequence[Array], observed: Sequence[Array]) -> tuple[float, float]:
    """Weights of the sum and of the overlap by ridge regression towards a plain sum, (1, 0).

    ``singles`` holds the effects (K, M) of the targets of each combination, ``observed`` the effects (M,) of all.
    """
    if not observed:
        return 1.0, 0.0
    sums = np.concatenate([each.sum(axis=0) for each in singles])
    twice = np.concatenate([overlap(each) for each in singles])
    design = np.column_stack([sums, -twice])
    ridge = _PRIOR * (design**2).sum(axis=0) + 1e-9
    rest = np.concatenate(list(observed)) - sums
    found = np.linalg.solve(design.T @ design + np.diag(ridge), design.T @ rest) + np.array([1.0, 0.0])
    return float(np.clip(found[0], 0, 1.5)), float(np.clip(found[1], 0, 1))
