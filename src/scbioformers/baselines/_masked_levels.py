"""Baselines that predict a masked entry from its expected level given the profile: low rank and nearest neighbours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from scbioformers.baselines._masked_cells import MaskedCells, TrainingCells
from scbioformers.baselines._masked_features import (
    Array,
    estimate_depth,
    fit_depth,
    log_histogram,
    masked_rows,
    value_basis,
)
from scbioformers.baselines._masked_tilt import Tilt
from scbioformers.core import ConfigError, LowRankProfile, MaskedRows, check_arguments, log1p_rows

T = TypeVar("T")

_RANKS, _NEIGHBORS, _NEIGHBOR_RANK, _MAX_RANK = (3, 5, 10, 20, 40), (15, 30, 60, 120), 10, 40
_MAX_ENTRIES = 250_000  # enough to fit the weights that all genes share
_CHUNK = 1024
_LEVEL_FLOOR = 0.02  # lower limit of log1p levels, for the square root and the logarithm


def best(candidates: Sequence[T], predict: Callable[[T], NDArray[Any]], validation: MaskedCells) -> T:
    """Return the candidate whose predictions give the validation bins the highest likelihood."""
    entries = np.arange(validation.bins.size)
    return max(candidates, key=lambda candidate: float(predict(candidate)[entries, validation.bins].mean()))


def _level_features(expected: Array, mean: Array) -> Array:
    """(n, 5) features of the expected log level of entries and the mean log level of their genes, on several scales."""
    change = expected - mean
    level, usual = np.maximum(expected, _LEVEL_FLOOR), np.maximum(mean, _LEVEL_FLOOR)
    return np.column_stack([change, change**2, change * mean, np.sqrt(level) - np.sqrt(usual), np.log(level / usual)])


class _LevelBaseline(ABC):
    """Histogram of each gene, tilted by the depth of the cell and the expected level given its profile."""

    def __init__(self, train: TrainingCells) -> None:
        self.train = train
        self.depth_model = fit_depth(train)
        self.histogram = log_histogram(train)
        self.mean_depth = float(train.binning.mean_depth or 1.0)
        self.profile = LowRankProfile.fit(train.counts, train.depth, self.mean_depth, n_components=_MAX_RANK)
        self.mean_level = self.profile.mean.astype(np.float64)

    @abstractmethod
    def levels(self, k: int, cells: MaskedCells, rows: NDArray[np.int64] | None = None) -> Array:
        """(H,) expected log levels of the masked entries. For training cells, ``rows`` are their training rows."""

    @property
    def max_rank(self) -> int:
        """Number of available components."""
        return self.profile.loadings.shape[1]

    def depth(self, cells: MaskedCells) -> Array:
        """(N,) estimated depth."""
        return estimate_depth(self.depth_model, cells)[0]

    def fit(self, k: int) -> Tilt:
        """Fit the tilt, whose weights all genes share."""
        cells, rows = self.train.sample(_MAX_ENTRIES)
        features = _level_features(self.levels(k, cells, rows), self.mean_level[cells.genes])
        depth, basis = self.depth(cells)[cells.cells], value_basis(self.train.binning)
        return Tilt.fit(self.histogram[cells.genes], depth, features, cells.bins, basis)

    def logits(self, tilt: Tilt, depth: Array, genes: NDArray[np.int64], levels: Array) -> Array:
        """(n, V) logits of entries, given the depths of their cells and their expected levels."""
        features = _level_features(levels, self.mean_level[genes])
        return tilt.logits(self.histogram[genes], depth, features)

    def predict(self, k: int, cells: MaskedCells) -> Array:
        """(H, V) log probabilities."""
        depth = self.depth(cells)[cells.cells]
        return log_softmax(self.logits(self.fit(k), depth, cells.genes, self.levels(k, cells)), axis=1)


class LowRank(_LevelBaseline):
    """Expected levels from the k leading components."""

    def levels(self, k: int, cells: MaskedCells, rows: NDArray[np.int64] | None = None) -> Array:
        profile, masked = self.profile.leading(k), masked_rows(cells)
        return profile.levels(masked, profile.scores(masked, self.depth(cells)))


class Neighbors(_LevelBaseline):
    """Expected levels: mean of the k nearest training cells, in the space of the leading components."""

    def __init__(self, train: TrainingCells) -> None:
        super().__init__(train)
        self.space = self.profile.leading(_NEIGHBOR_RANK)
        none = np.empty(0, np.int64)
        self.whole = self._position(MaskedRows(train.counts, train.depth, none, none), train.depth)

    def _position(self, cells: MaskedRows, depth: Array) -> Array:
        """(N, K) coordinates of the cells on orthonormal components."""
        return self.space.scores(cells, depth) * np.sqrt((self.space.loadings.astype(np.float64) ** 2).sum(axis=0))

    def levels(self, k: int, cells: MaskedCells, rows: NDArray[np.int64] | None = None) -> Array:
        queries, whole = self._position(masked_rows(cells), self.depth(cells)), self.whole
        profiles = log1p_rows(self.train.counts, self.train.depth, self.mean_depth)
        bounds = np.searchsorted(cells.cells, np.arange(cells.depth.size + 1))
        out = np.empty(cells.bins.size)
        for start in range(0, cells.depth.size, _CHUNK):
            stop = min(start + _CHUNK, cells.depth.size)
            distance = (whole**2).sum(axis=1) - 2 * queries[start:stop] @ whole.T
            if rows is not None:
                distance[np.arange(stop - start), rows[start:stop]] = np.inf
            nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
            mean = np.zeros((stop - start, whole.shape[0]))
            np.put_along_axis(mean, nearest, 1 / k, axis=1)
            entries = slice(bounds[start], bounds[stop])
            levels = (csr_matrix(mean) @ profiles).toarray()
            out[entries] = levels[cells.cells[entries] - start, cells.genes[entries]]
        return out


def knn_smoothing(train: TrainingCells, test: MaskedCells, *, n_neighbors: int | None = None) -> NDArray[np.float32]:
    """Predict from the nearest training cells.

    The histogram of the gene is tilted by a multinomial logistic regression whose weights all genes share. Its
    predictors are the mean log-normalised level of the gene among the neighbours and the depth of the cell.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.
    n_neighbors
        Number of neighbours; by default the best of 15, 30, 60 and 120 on held-out training cells.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    ConfigError
        If `n_neighbors` is below 1, or not below the number of training cells.
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(knn_smoothing, locals())
    train.check_genes(test)
    if n_neighbors is None:
        fit, validation = train.split()
        model = Neighbors(fit)
        usable = [k for k in _NEIGHBORS if k < fit.depth.size] or [1]
        n_neighbors = best(usable, lambda k: model.predict(k, validation), validation)
    if not 1 <= n_neighbors < train.depth.size:
        raise ConfigError(f"n_neighbors={n_neighbors} is outside 1…{train.depth.size - 1}, the range for these cells.")
    return Neighbors(train).predict(n_neighbors, test).astype(np.float32)


def low_rank(train: TrainingCells, test: MaskedCells, *, rank: int | None = None) -> NDArray[np.float32]:
    """Predict from a probabilistic PCA (Tipping and Bishop 1999) of the log-normalised profiles.

    The histogram of the gene is tilted by a multinomial logistic regression whose weights all genes share. Its
    predictors are the expected level of the gene given the visible entries and the depth of the cell.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.
    rank
        Number of components; by default the best of 3, 5, 10, 20 and 40 on held-out training cells.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    ConfigError
        If `rank` is below 1 or above the number of available components.
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(low_rank, locals())
    train.check_genes(test)
    if rank is None:
        fit, validation = train.split()
        rank = best_rank(LowRank(fit), validation)
    model = LowRank(train)
    if not 1 <= rank <= model.max_rank:
        raise ConfigError(f"rank={rank} is outside 1…{model.max_rank}.")
    return model.predict(rank, test).astype(np.float32)


def best_rank(model: LowRank, validation: MaskedCells) -> int:
    """Return the rank with the best predictions for held-out cells."""
    usable = [k for k in _RANKS if k <= model.max_rank] or [1]
    return best(usable, lambda k: model.predict(k, validation), validation)
