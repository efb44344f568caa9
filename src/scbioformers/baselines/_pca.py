"""Embeddings without a model: log-normalised expression and its principal components."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.decomposition import PCA

from scbioformers.core import ConfigError, DataError, check_arguments, check_shapes, log1p_rows

Matrix: TypeAlias = "NDArray[Any] | sparse.spmatrix | sparse.sparray"


def log1p_normalize(counts: Matrix, *, depth: ArrayLike | None = None, target_sum: float | None = None) -> Matrix:
    """Scale every cell to the same total and take log(1 + x), as ``sc.pp.normalize_total`` and ``sc.pp.log1p`` do.

    Applied to the highly variable genes, this is the baseline "raw HVG".

    Parameters
    ----------
    counts
        Counts, cells x genes, dense or sparse. Not modified.
    depth
        Total counts of each cell, shape (n_cells,). By default the row sums of `counts`. Pass the totals over the whole
        transcriptome if `counts` has only a selection of genes.
    target_sum
        Total of a cell after scaling, in counts. By default the median depth of the cells with counts.

    Returns
    -------
    Float32 matrix of the shape of `counts`: CSR for sparse input, else an array. A cell of depth 0 has only
    zeros.

    Raises
    ------
    DataError
        If `depth` does not have one finite, non-negative number per cell.

    Examples
    --------
    >>> import numpy as np
    >>> from scbioformers.metrics import log1p_normalize
    >>> np.expm1(log1p_normalize(np.array([[1, 3], [0, 0]]), target_sum=8.0)).round(3)
    array([[2., 6.],
           [0., 0.]], dtype=float32)
    """
    check_arguments(log1p_normalize, locals())
    check_shapes(counts=(counts, "NM"))
    if depth is None or np.shape(depth) == (counts.shape[0], 1):  # sums of a sparse matrix are a matrix
        depth = np.asarray(counts.sum(axis=1) if depth is None else depth).ravel()
    check_shapes(counts=(counts, "NM"), depth=(depth, "N"))
    totals = np.asarray(depth, dtype=np.float64)
    if not np.all(np.isfinite(totals) & (totals >= 0)):
        raise DataError("`depth` must be finite and not negative: pass the total raw counts of each cell.")
    if target_sum is None:
        target_sum = float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0
    rows = log1p_rows(sparse.csr_matrix(counts), totals, target_sum).astype(np.float32)
    return rows if sparse.issparse(counts) else rows.toarray()


def pca(X: Matrix, n_components: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Principal component scores of a matrix. Columns are centred but not scaled, as in ``sc.pp.pca``.

    Parameters
    ----------
    X
        Cells x genes, dense or sparse. Sparse input is centred implicitly and stays sparse.
    n_components
        Number of components, below the number of cells and below the number of genes.
    seed
        Seed of the start vector of the solver (ARPACK). The result does not depend on it beyond rounding.

    Returns
    -------
    Float32 array of shape (n_cells, n_components), columns in the order of decreasing variance.

    Raises
    ------
    ConfigError
        If `n_components` is not from 1 to min(n_cells, n_genes) - 1.

    Examples
    --------
    >>> import numpy as np
    >>> from scbioformers.metrics import pca
    >>> pca(np.random.default_rng(0).normal(size=(30, 8)), 3).shape
    (30, 3)
    """
    check_arguments(pca, locals())
    check_shapes(X=(X, "NM"))
    limit = min(X.shape) - 1
    if not 1 <= n_components <= limit:
        raise ConfigError(
            f"n_components={n_components} is outside 1…{limit}, the range for {X.shape[0]} cells x {X.shape[1]} genes."
        )
    matrix = X if sparse.issparse(X) else np.asarray(X)
    if not np.issubdtype(matrix.dtype, np.floating):  # otherwise sparse integers would be copied as float64
        matrix = matrix.astype(np.float32)
    scores = PCA(n_components=n_components, svd_solver="arpack", random_state=seed).fit_transform(matrix)
    return np.asarray(scores, dtype=np.float32)


def pca_log1p(
    counts: Matrix, n_components: int = 50, seed: int = 0, *, depth: ArrayLike | None = None
) -> NDArray[np.float32]:
    """Principal component scores of log-normalised counts, the standard embedding of single-cell data.

    Parameters
    ----------
    counts
        Counts, cells x genes, dense or sparse.
    n_components, seed
        See :func:`pca`.
    depth
        See :func:`log1p_normalize`.

    Returns
    -------
    Float32 array of shape (n_cells, n_components).

    Raises
    ------
    DataError, ConfigError
        As :func:`log1p_normalize` and :func:`pca`.

    Examples
    --------
    >>> import numpy as np
    >>> from scbioformers.metrics import pca_log1p
    >>> pca_log1p(np.random.default_rng(0).poisson(1.0, size=(30, 8)), 3).shape
    (30, 3)
    """
    check_arguments(pca_log1p, locals())
    return pca(log1p_normalize(counts, depth=depth), n_components, seed)


def pca_binned(bins: Matrix, n_components: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Principal component scores of a binned layer, an embedding of the bins without a model.

    Parameters
    ----------
    bins
        Bins, cells x genes, dense or sparse, e.g. ``adata.layers["bin_value"]``.
    n_components, seed
        See :func:`pca`.

    Returns
    -------
    Float32 array of shape (n_cells, n_components).

    Raises
    ------
    ConfigError
        As :func:`pca`.

    Examples
    --------
    >>> import numpy as np
    >>> from scbioformers.metrics import pca_binned
    >>> pca_binned(np.random.default_rng(0).integers(0, 9, size=(30, 8)), 3).shape
    (30, 3)
    """
    check_arguments(pca_binned, locals())
    return pca(bins, n_components, seed)
