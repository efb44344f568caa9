"""Folds of the cross-validation over single targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_FOLDS = 12
N_GROUPS = 4


def fold_of(n: int) -> NDArray[np.int64]:
    """The fold of each of n targets. There are as many folds as targets, but at most 12."""
    return np.arange(n) % max(min(n, MAX_FOLDS), 1)


def group_of(n: int) -> NDArray[np.int64]:
    """The group of folds of each target. Groups are used where fitting once for each pair of folds is too slow."""
    return fold_of(n) % N_GROUPS


def n_trainings(n: int) -> int:
    """Number of fits for n targets if every group and every pair of groups is left out once."""
    n_groups = min(n, N_GROUPS)
    return n_groups * (n_groups + 1) // 2
