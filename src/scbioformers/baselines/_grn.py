"""Baselines of gene regulatory networks: from expression (cells x genes) to edge weights (targets x regulators).

Regulators are given as columns of the expression; by default all columns are regulators. Self-loops have weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import rankdata
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

from scbioformers.core import ConfigError, DataError, check_arguments, check_shapes, tqdm

Array = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64] | sparse.csc_matrix
Expression: TypeAlias = ArrayLike | sparse.spmatrix | sparse.sparray
Columns: TypeAlias = ArrayLike | Sequence[str]  # names give an error that says how to get the numbers
FORESTS = {"extra_trees": ExtraTreesRegressor, "random_forest": RandomForestRegressor}
EXPRESSIONS = ("product", "target", "regulator")


def pearson_edges(X: Expression, regulators: Columns | None = None) -> Array:
    """Pearson correlation of every gene with every regulator.

    Parameters
    ----------
    X
        (n_cells, n_genes), log-normalised expression, dense or sparse. Sparse input stays sparse.
    regulators
        Column numbers of the regulators; by default all columns.

    Returns
    -------
    float64 (n_genes, n_regulators), signed; 0 for genes that do not vary.

    Raises
    ------
    DataError
        If the expression is not finite, or `regulators` are not distinct column numbers.

    Examples
    --------
    >>> pearson_edges([[1.0, 2.0, 0.0], [2.0, 4.0, -1.0], [3.0, 6.0, -2.0]], [0]).round(3)
    array([[ 0.],
           [ 1.],
           [-1.]])
    """
    check_arguments(pearson_edges, locals())
    matrix, columns = _read(X, regulators)
    return _correlations(matrix, columns)


def spearman_edges(X: Expression, regulators: Columns | None = None) -> Array:
    """Spearman correlation of every gene with every regulator. Tied cells get their mean rank.

    Parameters
    ----------
    X
        (n_cells, n_genes), expression, dense or sparse. Sparse input stays sparse.
    regulators
        Column numbers of the regulators; by default all columns.

    Returns
    -------
    float64 (n_genes, n_regulators), signed; 0 for genes that do not vary.

    Raises
    ------
    DataError
        If the expression is not finite, or `regulators` are not distinct column numbers.

    Examples
    --------
    >>> spearman_edges([[1.0, 9.0], [2.0, 10.0], [3.0, 99.0]], [0]).round(3)
    array([[0.],
           [1.]])
    """
    check_arguments(spearman_edges, locals())
    matrix, columns = _read(X, regulators)
    if isinstance(matrix, np.ndarray):
        return _correlations(rankdata(matrix, axis=0), columns)
    ranks = matrix.copy()
    for gene in range(matrix.shape[1]):
        values = matrix.data[matrix.indptr[gene] : matrix.indptr[gene + 1]]
        n_zeros, n_negative = matrix.shape[0] - len(values), int((values < 0).sum())
        # a correlation does not change with a shift: ranks minus the rank of the zeros are as sparse as the values
        rank = rankdata(values) + n_zeros * (values > 0) - (n_negative + (n_zeros + 1) / 2)
        ranks.data[matrix.indptr[gene] : matrix.indptr[gene + 1]] = rank
    return _correlations(ranks, columns)


def genie3_edges(
    X: Expression,
    regulators: Columns | None = None,
    *,
    targets: Columns | None = None,
    forest: str = "extra_trees",
    n_trees: int = 100,
    n_jobs: int = 1,
    seed: int = 0,
    progress_bar: bool = False,
) -> Array:
    """GENIE3: variance of each gene that each regulator explains, in trees on all regulators (Huynh-Thu et al. 2010).

    Genes are scaled to unit variance, so that weights of different genes can be ranked together. At each split, a tree
    tries a number of regulators equal to the square root of their total number.

    Parameters
    ----------
    X
        (n_cells, n_genes), log-normalised expression, dense or sparse.
    regulators
        Column numbers of the regulators; by default all columns.
    targets
        Column numbers of the genes to explain; by default all columns. The weights of other genes are 0.
    forest
        Kind of trees: ``"extra_trees"`` (random thresholds, faster) or ``"random_forest"`` (as published).
    n_trees
        Number of trees for each gene.
    n_jobs
        Number of threads. The result does not depend on it.
    seed
        Seed of the trees. The random state of a gene depends on the seed and its column number.
    progress_bar
        Show a progress bar.

    Returns
    -------
    float64 (n_genes, n_regulators), not negative.

    Raises
    ------
    ConfigError
        If `forest` is unknown, or `n_trees` or `n_jobs` is below 1.
    DataError
        If the expression is not finite, or `regulators` or `targets` are not distinct column numbers.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> X[:, 2] = X[:, 0]
    >>> weights = genie3_edges(X, [0, 1], n_trees=10)
    >>> bool(weights[2, 0] > weights[2, 1])
    True
    """
    check_arguments(genie3_edges, locals())
    if forest not in FORESTS:
        raise ConfigError(f"`forest` must be one of {tuple(FORESTS)}, found {forest!r}.")
    if min(n_trees, n_jobs) < 1:
        raise ConfigError(f"`n_trees` and `n_jobs` must be at least 1, found {n_trees} and {n_jobs}.")
    matrix, columns = _read(X, regulators)
    inputs = np.asarray(_dense(matrix[:, columns]), np.float32)

    def explain(gene: int) -> Array:
        importances = np.zeros(len(columns))
        others = np.flatnonzero(columns != gene)
        y = _dense(matrix[:, [gene]]).ravel()
        if len(others) and np.ptp(y) > 0:  # rounding can give equal values a deviation above 0
            model = FORESTS[forest](n_trees, max_features="sqrt", random_state=np.random.RandomState([seed, gene]))
            model.fit(inputs[:, others], y / y.std())
            # without this argument, importances sum to 1 for each gene, even if little variance is explained
            trees = [tree.tree_.compute_feature_importances(normalize=False) for tree in model.estimators_]
            importances[others] = np.mean(trees, axis=0)
        return importances

    explained = np.arange(matrix.shape[1]) if targets is None else _columns(targets, matrix.shape[1])
    weights = np.zeros((matrix.shape[1], len(columns)))
    with ThreadPoolExecutor(n_jobs) as pool:
        rows = pool.map(explain, explained)
        bar = tqdm(rows, total=len(explained), desc="Growing trees", unit="gene", disable=not progress_bar)
        for gene, row in zip(explained, bar, strict=True):
            weights[gene] = row
    return weights


def expression_edges(X: Expression, regulators: Columns | None = None, *, of: str = "product") -> Array:
    """Edge weights from mean expression alone, without information about pairs of genes.

    Parameters
    ----------
    X
        (n_cells, n_genes), not negative, dense or sparse.
    regulators
        Column numbers of the regulators; by default all columns.
    of
        Mean to use: that of the ``"target"``, that of the ``"regulator"``, or the ``"product"`` of both.

    Returns
    -------
    float64 (n_genes, n_regulators).

    Raises
    ------
    ConfigError
        If `of` is not one of the three.
    DataError
        If the expression is not finite, or `regulators` are not distinct column numbers.

    Examples
    --------
    >>> expression_edges([[1.0, 2.0], [3.0, 4.0]])
    array([[0., 6.],
           [6., 0.]])
    >>> expression_edges([[1.0, 2.0], [3.0, 4.0]], of="target")
    array([[0., 2.],
           [3., 0.]])
    """
    check_arguments(expression_edges, locals())
    if of not in EXPRESSIONS:
        raise ConfigError(f"`of` must be one of {EXPRESSIONS}, found {of!r}.")
    matrix, columns = _read(X, regulators)
    mean = np.asarray(matrix.mean(axis=0), np.float64).ravel()
    target, regulator = np.ones_like(mean) if of == "regulator" else mean, mean[columns]
    return _without_self_loops(np.outer(target, np.ones_like(regulator) if of == "target" else regulator), columns)


def _read(X: Expression, regulators: Columns | None) -> tuple[Matrix, NDArray[np.int64]]:
    check_shapes(X=(X, "NM"))
    matrix: Matrix
    if sparse.issparse(X):
        matrix = sparse.csc_matrix(X, dtype=np.float64, copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        values = matrix.data
    else:
        matrix = values = np.asarray(X, np.float64)
    if 0 in matrix.shape:
        raise DataError(f"`X` has the shape {matrix.shape}. Pass at least one cell and one gene.")
    if not np.isfinite(values).all():
        raise DataError(f"{int((~np.isfinite(values)).sum())} values of the expression are not finite.")
    all_columns = np.arange(matrix.shape[1])
    return matrix, all_columns if regulators is None else _columns(regulators, matrix.shape[1])


def _columns(numbers: Columns, n_genes: int) -> NDArray[np.int64]:
    columns = np.asarray(numbers)
    if columns.ndim != 1 or columns.dtype.kind not in "iu" or len(np.unique(columns)) != len(columns):
        raise DataError(
            "Regulators and targets must be distinct column numbers. Get them by `var_names.get_indexer(names)`."
        )
    if not len(columns) or columns.min() < 0 or columns.max() >= n_genes:
        raise DataError(
            f"Regulators and targets must be columns between 0 and {n_genes - 1}, found {columns.tolist()[:5]}."
        )
    return columns.astype(np.int64)


def _correlations(matrix: Matrix, columns: NDArray[np.int64]) -> Array:
    n = matrix.shape[0]
    mean = np.asarray(matrix.mean(axis=0), np.float64).ravel()
    if isinstance(matrix, np.ndarray):
        centred = matrix - mean
        product, square = centred.T @ centred[:, columns], (centred**2).sum(axis=0)
    else:
        product = _dense(matrix.T @ matrix[:, columns]) - n * np.outer(mean, mean[columns])
        square = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel() - n * mean**2
    # rounding can give a constant gene a variance slightly above 0
    norm = np.sqrt(np.where(square > 1e-12 * n * (1 + mean**2), square, np.inf))
    return _without_self_loops(np.clip(product / np.outer(norm, norm[columns]), -1, 1), columns)


def _without_self_loops(weights: Array, columns: NDArray[np.int64]) -> Array:
    weights[columns, np.arange(len(columns))] = 0
    return weights


def _dense(matrix: Matrix) -> Array:
    return matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix.toarray(), np.float64)
