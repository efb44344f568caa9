"""Which single targets are left out together, in every cross-validation over targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_FOLDS = 12
N_GROUPS = 4


def fold_of(n: int) -> NDArray[np.int64]:
    """The fold of each target: as many as targets, at most 12."""
    return np.arange(n) % max(min(n, MAX_FOLDS), 1)


def group_of(n: int) -> NDArray[np.int64]:
    """The group of folds of each target, for what is too slow to be fitted again for every two folds."""
    return fold_of(n) % N_GROUPS


def n_trainings(n: int) -> int:
    """Fits that leave out each group of n targets, and each two groups."""
    n_groups = min(n, N_GROUPS)
    return n_groups * (n_groups + 1) // 2
