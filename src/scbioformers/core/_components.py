"""Principal components of sparse profiles, in which features may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, svds
from sklearn.utils.extmath import svd_flip

Array = NDArray[np.float64]
MIN_SIZE = 1e-9  # of a singular value, relative to the highest; lower ones are rounding errors


@dataclass(frozen=True)
class Profiles:
    """Profiles of cells that were measured together."""

    values: csr_matrix
    """(n, M), values of the cells."""
    present: NDArray[np.bool_]
    """(M,), whether each feature was measured. The values of the others are not used; they must be 0."""


def measured_mean(parts: Sequence[Profiles]) -> Array:
    """(M,), mean of each feature over the cells in which it was measured. 0 if there are none."""
    total = np.sum([np.asarray(part.values.sum(axis=0), np.float64).ravel() for part in parts], axis=0)
    number = np.sum([part.values.shape[0] * part.present for part in parts], axis=0)
    return np.asarray(total / np.maximum(number, 1))


def principal_components(parts: Sequence[Profiles], n_components: int, seed: int) -> tuple[Array, Array, Array]:
    """Principal components of the cells of all parts. A missing value is replaced by the mean of the feature.

    The matrix is never made dense: the mean is subtracted within the products of ARPACK.

    Parameters
    ----------
    parts
        Profiles of N cells in all.
    n_components
        Maximum number of components, K. It is limited by the number of cells and features.
    seed
        Seed of the start vector.

    Returns
    -------
    Components (M, K) in descending order, the variance along each of them (K,), and the mean of the features (M,).
    Directions in which the cells do not differ are left out, so K is 0 if all cells are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> cells = csr_matrix(np.array([[0.0, 0, 1], [2, 0, 1], [4, 0, 1]]))
    >>> components, variance, mean = principal_components([Profiles(cells, np.ones(3, bool))], 1, seed=0)
    >>> np.abs(components).round(6).ravel().tolist(), variance.round(6).tolist(), mean.tolist()
    ([1.0, 0.0, 0.0], [4.0], [2.0, 0.0, 1.0])
    """
    mean = measured_mean(parts)
    n_cells, n_features = sum(part.values.shape[0] for part in parts), len(mean)
    k = min(n_components, n_cells - 1, n_features - 1)
    # among cells that are all equal, components are rounding errors, and ARPACK may fail
    if k < 1 or not _differ(parts, mean):
        return np.zeros((n_features, 0)), np.zeros(0), mean
    means = [np.where(part.present, mean, 0.0) for part in parts]
    ends = np.cumsum([part.values.shape[0] for part in parts])[:-1]

    def times(x: Array) -> Array:
        x = x.ravel()  # ARPACK passes vectors of shape (M,) and (M, 1)
        return np.concatenate([part.values @ x - own @ x for part, own in zip(parts, means, strict=True)])

    def transposed_times(y: Array) -> Array:
        pieces = zip(parts, means, np.split(y.ravel(), ends), strict=True)
        return np.sum([part.values.T @ piece - own * piece.sum() for part, own, piece in pieces], axis=0)

    centred = LinearOperator((n_cells, n_features), matvec=times, rmatvec=transposed_times, dtype=np.float64)
    v0 = np.random.RandomState(seed % 2**32).uniform(-1, 1, min(n_cells, n_features))
    left, sizes, right = svds(centred, k=k, tol=0.0, v0=v0)
    order = np.argsort(-sizes, kind="stable")
    # directions in which the cells do not differ are drawn at random by ARPACK, without a seed
    order = order[sizes[order] > MIN_SIZE * sizes.max()]
    left, right = svd_flip(left[:, order], right[order], u_based_decision=False)
    return np.ascontiguousarray(right.T), sizes[order] ** 2 / (n_cells - 1), mean


def _differ(parts: Sequence[Profiles], mean: Array) -> bool:
    """Whether any measured value differs from the mean of its feature by more than rounding."""
    highest, lowest = np.full((2, len(mean)), -np.inf)
    lowest = -lowest
    for part in parts:
        if part.values.shape[0]:
            at = part.present
            highest[at] = np.maximum(highest[at], part.values.max(axis=0).toarray().ravel()[at])
            lowest[at] = np.minimum(lowest[at], part.values.min(axis=0).toarray().ravel()[at])
    return bool((highest > lowest).any())
