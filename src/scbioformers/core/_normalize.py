"""Log-normalisation: log1p of counts that are scaled to a common depth."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray


def log1p_rows(counts: sp.csr_matrix, depth: NDArray[np.floating], target: float) -> sp.csr_matrix:
    """Scale every row to the depth ``target`` and take log(1 + x). Zeros stay zeros.

    Parameters
    ----------
    counts
        CSR (N, M). Not modified.
    depth
        (N,), total counts of each cell. A row of depth 0 becomes 0.
    target
        Total of a cell after scaling, in counts.

    Returns
    -------
    float64 CSR (N, M), with the sparsity structure of ``counts``.

    Examples
    --------
    >>> rows = log1p_rows(sp.csr_matrix([[1.0, 3.0], [0.0, 2.0]]), np.array([4.0, 2.0]), 8.0)
    >>> np.expm1(rows.toarray()).round(6).tolist()
    [[2.0, 6.0], [0.0, 8.0]]
    """
    depth = np.asarray(depth, np.float64)
    scale = np.divide(target, depth, out=np.zeros_like(depth), where=depth > 0)
    data = np.log1p(counts.data.astype(np.float64) * np.repeat(scale, np.diff(counts.indptr)))
    return sp.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
