"""Kernels that choose the masked features of a cell (paper, section 2.2)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scbioformers.core._random import hash_uniform


@njit(cache=True, nogil=True)
def mask_sizes(n: int, n_features: int, ratio: float, nonzero_share: float, paper: bool) -> tuple[int, int]:
    """Return the numbers of expressed features and of zeros to mask in a cell with ``n`` expressed features.

    :class:`~scbioformers.Masking` describes both rules. At least one expressed feature stays visible.
    """
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
    present: NDArray[np.bool_],
    ratio: float,
    nonzero_share: float,
    paper: bool,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int32]]:
    """Choose the masked entries of CSR rows, and the masked zeros among the features that are present.

    See :meth:`~scbioformers.Masking.choose` for parameters and results. In each row the features with the lowest random
    numbers are masked, separately for expressed features and zeros.
    """
    n_features, n_present = present.size, int(present.sum())
    masked = np.zeros(indices.size, dtype=np.bool_)
    zero_indptr = np.zeros(rows.size + 1, dtype=np.int64)
    for i in range(rows.size):
        zero_indptr[i + 1] = (
            zero_indptr[i] + mask_sizes(indptr[i + 1] - indptr[i], n_present, ratio, nonzero_share, paper)[1]
        )
    zeros = np.empty(zero_indptr[-1], dtype=np.int32)
    keys = np.empty(n_features)
    no_zero = ~present  # features that are expressed in the cell or absent from the data
    for i in range(rows.size):
        start, stop = indptr[i], indptr[i + 1]
        n_nonzero, n_zero = mask_sizes(stop - start, n_present, ratio, nonzero_share, paper)
        for j in range(n_features):
            keys[j] = hash_uniform(seed, epoch, rows[i], j)
        entry_keys = keys[indices[start:stop]]
        if n_nonzero > 0:
            threshold = np.partition(entry_keys, n_nonzero - 1)[n_nonzero - 1]
            masked[start:stop] = entry_keys <= threshold
        if n_zero > 0:
            no_zero[indices[start:stop]] = True
            threshold = np.partition(keys[~no_zero], n_zero - 1)[n_zero - 1]
            at = zero_indptr[i]
            for j in range(n_features):
                if not no_zero[j] and keys[j] <= threshold:
                    zeros[at] = j
                    at += 1
            no_zero[indices[start:stop]] = False
    return masked, zero_indptr, zeros
