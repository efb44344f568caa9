"""Recovery of counts from log1p of normalised counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scbioformers.core import DataError


def recover_counts(log_normalized: Any, max_counts: float = np.inf) -> sparse.csr_matrix:
    """Undo log1p and the scaling of each cell. The smallest non-zero value of a cell is taken as one count.

    Parameters
    ----------
    log_normalized
        (N, M), log1p of counts that were scaled in each cell. Not modified.
    max_counts
        Largest total of a cell that is accepted.

    Returns
    -------
    float32 CSR (N, M), whole numbers.

    Raises
    ------
    DataError
        If there are negative values, or a cell has more than ``max_counts`` counts: then the values are no log1p.

    Examples
    --------
    >>> recover_counts(np.log1p([[0.0, 2.5, 5.0], [4.0, 4.0, 0.0]])).toarray().tolist()
    [[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]]
    """
    counts = sparse.csr_matrix(log_normalized, dtype=np.float64, copy=True)
    counts.eliminate_zeros()
    if counts.nnz and counts.data.min() < 0:
        raise DataError("X has negative values. Expected log1p of normalised counts.")
    values, sizes = np.expm1(counts.data), np.diff(counts.indptr)
    filled = np.flatnonzero(sizes)
    unit = np.ones(counts.shape[0])
    if filled.size:
        unit[filled] = np.minimum.reduceat(values, counts.indptr[filled])
    counts.data = np.rint(values / np.repeat(unit, sizes))
    total = np.asarray(counts.sum(axis=1)).ravel()
    if (total > max_counts).any():
        raise DataError(f"{int((total > max_counts).sum())} cells have more than {max_counts:g} counts. Is X log1p?")
    return counts.astype(np.float32)
