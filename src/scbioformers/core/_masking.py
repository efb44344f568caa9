"""Which features are masked from the model: kernels (paper, section 2.2)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scbioformers.core._random import hash_uniform


@njit(cache=True, nogil=True)
def mask_sizes(n: int, n_features: int, ratio: float, nonzero_share: float, paper: bool) -> tuple[int, int]:
    """SPEC of both rules, with at least one expressed feature left visible."""
    if paper:
        nonzero = min(int(np.floor(nonzero_share * ratio * n_features + 0.5)), n // 2)
        zero = int(np.floor((1.0 - nonzero_share) * ratio * n_features + 0.5))
    else:
        nonzero = min(max(int(np.floor(ratio * n + 0.5)), 1), max(n - 1, 0))
        zero = int(np.floor(nonzero * (1.0 - nonzero_share) / nonzero_share + 0.5))
    return nonzero, min(zero, n_features - n)


@njit(cache=True, nogil=True)
def choose_masked(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    rows: NDArray[np.int64],
    n_features: int,
    ratio: float,
    nonzero_share: float,
    paper: bool,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int32]]:
    masked = np.zeros(indices.size, dtype=np.bool_)
    zero_indptr = np.zeros(rows.size + 1, dtype=np.int64)
    for i in range(rows.size):
        zero_indptr[i + 1] = (
            zero_indptr[i] + mask_sizes(indptr[i + 1] - indptr[i], n_features, ratio, nonzero_share, paper)[1]
        )
    zeros = np.empty(zero_indptr[-1], dtype=np.int32)
    keys = np.empty(n_features)
    expressed = np.zeros(n_features, dtype=np.bool_)
    for i in range(rows.size):
        start, stop = indptr[i], indptr[i + 1]
        n_nonzero, n_zero = mask_sizes(stop - start, n_features, ratio, nonzero_share, paper)
        for j in range(n_features):
            keys[j] = hash_uniform(seed, epoch, rows[i], j)
        entry_keys = keys[indices[start:stop]]
        if n_nonzero > 0:
            threshold = np.partition(entry_keys, n_nonzero - 1)[n_nonzero - 1]
            masked[start:stop] = entry_keys <= threshold
        if n_zero > 0:
            expressed[indices[start:stop]] = True
            threshold = np.partition(keys[~expressed], n_zero - 1)[n_zero - 1]
            at = zero_indptr[i]
            for j in range(n_features):
                if not expressed[j] and keys[j] <= threshold:
                    zeros[at] = j
                    at += 1
            expressed[indices[start:stop]] = False
    return masked, zero_indptr, zeros
