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
from scbioformers.baselines._masked_features import Array, Components, DepthModel, log_histogram, value_basis
from scbioformers.baselines._masked_tilt import Tilt
from scbioformers.core import ConfigError, check_arguments

T = TypeVar("T")

_RANKS, _NEIGHBORS, _NEIGHBOR_RANK = (3, 5, 10, 20, 40), (15, 30, 60, 120), 10
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
        self.depth = DepthModel.fit(train)
        self.histogram = log_histogram(train)
        self.components = Components.fit(train)

    @abstractmethod
    def levels(self, k: int, cells: MaskedCells, rows: NDArray[np.int64] | None = None) -> Array:
        """(H,) expected log levels of the masked entries. For training cells, ``rows`` are their training rows."""

    def fit(self, k: int) -> Tilt:
        """Fit the tilt, whose weights all genes share."""
        cells, rows = self.train.sample(_MAX_ENTRIES)
        features = _level_features(self.levels(k, cells, rows), self.components.mean[cells.genes])
        depth, basis = self.depth.estimate(cells)[cells.cells], value_basis(self.train.binning)
        return Tilt.fit(self.histogram[cells.genes], depth, features, cells.bins, basis)

    def logits(self, tilt: Tilt, depth: Array, genes: NDArray[np.int64], levels: Array) -> Array:
        """(n, V) logits of entries, given the depths of their cells and their expected levels."""
        features = _level_features(levels, self.components.mean[genes])
        return tilt.logits(self.histogram[genes], depth, features)

    def predict(self, k: int, cells: MaskedCells) -> Array:
        """(H, V) log probabilities."""
        depth = self.depth.estimate(cells)[cells.cells]
        return log_softmax(self.logits(self.fit(k), depth, cells.genes, self.levels(k, cells)), axis=1)


class LowRank(_LevelBaseline):
    """Expected levels from the k leading components."""

    def levels(self, k: int, cells: MaskedCells, rows: NDArray[np.int64] | None = None) -> Array:
        scores, loadings = self.components.scores(k, cells, self.depth.estimate(cells)), self.components.loadings(k)[0]
        change = np.einsum("nk,nk->n", scores[cells.cells], loadings[cells.genes])
        return self.components.mean[cells.genes] + change


class Neighbors(_LevelBaseline):
    """Expected levels: mean of the k nearest training cells, in the space of the leading components."""

    def levels(self, k: int, cells: MaskedCells, rows: NDArray[np.int64] | None = None) -> Array:
        rank = min(_NEIGHBOR_RANK, self.components.variance.size)
        scale = np.sqrt((self.components.loadings(rank)[0] ** 2).sum(axis=0))
        queries = self.components.scores(rank, cells, self.depth.estimate(cells)) * scale
        whole = self.components.whole_scores(rank, self.train.counts, self.train.depth) * scale
        profiles = self.components.profiles(self.train.counts, self.train.depth)
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
    if not 1 <= rank <= model.components.variance.size:
        raise ConfigError(f"rank={rank} is outside 1…{model.components.variance.size}.")
    return model.predict(rank, test).astype(np.float32)


def best_rank(model: LowRank, validation: MaskedCells) -> int:
    """Return the rank with the best predictions for held-out cells."""
    usable = [k for k in _RANKS if k <= model.components.variance.size] or [1]
    return best(usable, lambda k: model.predict(k, validation), validation)
