"""Quantile bins: for each feature, the edges between its bins, and the mean of the values in each bin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from scbioformers.core._bin_kernels import as_float, check_integer
from scbioformers.core._errors import DataError


@dataclass(frozen=True, eq=False)
class QuantileBins:
    """Edges and means of the quantile bins of M features, frozen on training cells. Equal contents are equal objects.

    The bin of a training value ``x`` is ``ceil(n_bins * k / n)``. Here ``n`` is the number of training values of the
    feature, and ``k`` is the number of those that are at most ``x``. So equal values have equal bins, and the highest
    value of each feature is in the last bin. An edge is in the middle between the values of two neighbouring bins. Bin
    0 has no edge. It is for the value 0 where zeros are not ranked.

    Examples
    --------
    >>> QuantileBins.fit([np.array([1.0, 2, 2, 7]), np.array([5.0, 5])], n_bins=2).edges
    array([[ 1.5],
           [-inf]], dtype=float32)
    >>> bins = QuantileBins.fit([np.array([1.0, 2, 4, 7])], n_bins=2)
    >>> bins.edges, bins.means
    (array([[3.]], dtype=float32), array([[0. , 1.5, 5.5]], dtype=float32))
    >>> bins.apply([0, 2.9, 3.1, 100], features=[0, 0, 0, 0])
    array([0, 1, 2, 2], dtype=int16)
    """

    edges: NDArray[np.float32]
    """(M, n_bins - 1), ascending. The bin of a value is 1 + the number of edges of its feature that are below it."""
    means: NDArray[np.float32]
    """(M, n_bins + 1), mean of the training values in each bin. A bin without values has that of the next bin."""

    def __post_init__(self) -> None:
        n, n_bins = len(self.means), self.means.shape[-1] - 1
        if self.means.ndim != 2 or n_bins < 1 or self.edges.shape != (n, n_bins - 1):
            raise DataError(
                f"Quantile bins need edges (M, n_bins - 1) and means (M, n_bins + 1), found {self.edges.shape} and "
                f"{self.means.shape}."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantileBins):
            return NotImplemented
        return np.array_equal(self.edges, other.edges) and np.array_equal(self.means, other.means)

    def __hash__(self) -> int:
        return hash((self.edges.shape, self.edges.tobytes(), self.means.tobytes()))

    def __repr__(self) -> str:
        return f"QuantileBins({len(self.means)} features, {self.n_bins} bins)"

    @property
    def n_bins(self) -> int:
        """Number of bins, without bin 0."""
        return self.means.shape[1] - 1

    @classmethod
    def fit(cls, columns: Iterable[NDArray[np.floating]], n_bins: int) -> QuantileBins:
        """Bins of the training values of each feature, one array for each, without those that go to bin 0."""
        check_integer("n_bins", n_bins, 1)
        fitted = [_fit_feature(np.asarray(values, np.float32), n_bins) for values in columns]
        edges, means = (np.array([each[i] for each in fitted], np.float32) for i in range(2))
        return cls(edges.reshape(len(fitted), n_bins - 1), means.reshape(len(fitted), n_bins + 1))

    def apply(self, values: ArrayLike, features: ArrayLike, *, rank_zeros: bool = False) -> NDArray[np.int16]:
        """Bins of values (n,) of ``features`` (n,), int16 (n,).

        A zero gets bin 0, unless ``rank_zeros``. NaN gets bin 0.
        """
        data, positions = as_float(values), np.asarray(features, np.int64)
        known = not positions.size or 0 <= positions.min() <= positions.max() < len(self)
        if data.shape != positions.shape or not known:
            raise DataError(
                f"Quantile bins need one of their {len(self)} features for each value, found values {data.shape} and "
                f"features {positions.shape}{'' if known else f' from {positions.min()} to {positions.max()}'}."
            )
        out = np.empty(data.size, np.int16)
        _bin_entries(data, positions, self.edges, rank_zeros, out)
        return out

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """(M, n_bins + 1), mean of each bin as a share of the distance from the lowest to the highest of its feature.

        They keep the shape of the distribution. The numbers of the bins would spread the values evenly, also where most
        of them are noise around the same value.
        """
        means = self.means.astype(np.float64)
        low, high = means.min(axis=1, keepdims=True), means.max(axis=1, keepdims=True)
        return (means - low) / np.maximum(high - low, 1e-9)

    def __len__(self) -> int:
        """Number of features, M."""
        return len(self.means)

    def append(self, others: QuantileBins) -> QuantileBins:
        """The bins of these features and of others after them."""
        return QuantileBins(np.concatenate([self.edges, others.edges]), np.concatenate([self.means, others.means]))


def _fit_feature(values: NDArray[np.float32], n_bins: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Edges (n_bins - 1,) and means (n_bins + 1,) of one feature. Without values, every value is above all edges."""
    ranked, n = np.sort(values), values.size
    edges, means = np.full(n_bins - 1, -np.inf, np.float32), np.zeros(n_bins + 1)
    if not n:
        return edges, means
    bins = -(-n_bins * np.searchsorted(ranked, ranked, side="right") // n)
    n_up_to = np.searchsorted(bins, np.arange(1, n_bins), side="right")  # values in bins 1 to k, before edge k
    below, above = ranked[np.maximum(n_up_to, 1) - 1], ranked[n_up_to]
    middle = ((below.astype(np.float64) + above) / 2).astype(np.float32)
    # the middle of two neighbouring float32 numbers may be rounded to the upper one
    edges = np.where(n_up_to > 0, np.where(middle < above, middle, below), edges)
    filled = np.unique(bins)
    sums, numbers = np.bincount(bins, ranked, n_bins + 1), np.bincount(bins, minlength=n_bins + 1)
    means[1:] = (sums[filled] / numbers[filled])[np.searchsorted(filled, np.arange(1, n_bins + 1))]
    return edges, means


@njit(cache=True, nogil=True)
def _bin_entries(values, features, edges, rank_zeros, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        x, row = values[i], edges[features[i]]
        if np.isnan(x) or (x == 0 and not rank_zeros):
            out[i] = 0
            continue
        low, high = 0, row.size  # the number of edges below x, by bisection
        while low < high:
            middle = (low + high) // 2
            if row[middle] < x:
                low = middle + 1
            else:
                high = middle
        out[i] = low + 1
