"""Which cells of a query a cell reads, with which weights, and what it reads of them.

The weight of the reference r in cell c is

    w_cr ∝ exp(-d_cr² / (t D)),

where d is the distance in principal components of log counts, D the mean d² of a cell and its fifteenth neighbour, and
t = 1. A cell reads neither itself nor a reference that equals it at every feature that is known of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core import LowRankProfile, MaskedRows, Profiles, hash_pairs, log1p_rows
from scbioformers.data import Block
from scbioformers.model import BioFormer

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
Rows = NDArray[np.int64]

N_COMPONENTS, NEIGHBOUR = 10, 15
TEMPERATURE = 1.0  # t; the highest of 0.1, 0.3 and 1 was chosen in all trials (experiment 90)
_SCALE_CELLS = 512  # references from which D is computed
_LABEL_STREAM = 0x1ABE1


@dataclass(frozen=True, eq=False)
class References:
    """R cells that are read, in an order that does not depend on the order of the data."""

    cells: Block
    """The cells. Values that are not known are 0."""
    rows: Rows
    """(R,), row of each in the source."""
    rank: Rows
    """(R,), place of each in the order of all cells."""
    hidden: csr_matrix | None
    """(R, M), non-zero at values that are not known. None if all are known."""
    size: Array
    """(R,), depth over the mean depth of the training cells."""
    rate: Array32
    """(R, M), counts at the mean depth that the network expects in each."""

    def take(self, rows: Rows) -> References:
        """Some of the references."""
        hidden = None if self.hidden is None else self.hidden[rows]
        parts = self.rows[rows], self.rank[rows], hidden, self.size[rows], self.rate[rows]
        return References(self.cells.take(rows), *parts)


@dataclass(frozen=True, eq=False)
class Attended:
    """What n cells read of the references."""

    weights: Array
    """(n, R), with a sum of 1, or of 0 in a cell without a reference."""
    column: Rows
    """(M,), column of each feature in the arrays below. -1 if it is not read."""
    counts: Array32
    """(n, C), weighted counts of the references, times the effective number of references, 1 / Σ w²."""
    exposure: Array32
    """(n, C), weighted depth over the mean depth, where the feature is known, times this number."""
    expected: Array32
    """(n, C), weighted counts that the network expects in the references, times this number."""


class Reader:
    """The references, as they are read by cells in which at least the features ``columns`` are masked.

    The values of these features have no influence on the weights. They alone are read, or all features if there are
    none.
    """

    def __init__(self, model: BioFormer, references: References, columns: Rows) -> None:
        cells = references.cells
        self._model, self._references = model, references
        self._read_columns = columns if columns.size else np.arange(len(cells.present))
        self._compared = cells.present.copy()
        self._compared[columns] = False
        mask = masked_in_all(cells.counts.shape, columns, references.hidden)
        visible, depth = self._visible(cells, mask)
        self._labels = self._label(visible)
        self._hidden = self._only_compared(mask)
        self._space = self._fit_space(visible, depth)
        self._places = self._place(visible, depth, mask)
        some = np.arange(min(_SCALE_CELLS, len(depth)))
        self._scale = _neighbour_distance(self._distance(cells.take(some), references.rank[some], mask[some]))
        at = self._read_columns
        self._counts = cells.counts[:, at].toarray().astype(np.float32)
        known = np.ones(self._counts.shape, np.float32)
        if references.hidden is not None:
            known -= references.hidden[:, at].toarray().astype(np.float32)
        self._exposure = known * references.size[:, None].astype(np.float32)
        self._expected = self._exposure * references.rate[:, at]

    def read(self, cells: Block, rank: Rows, mask: csr_matrix) -> Attended:
        """What n cells with these ranks (n,) read. ``mask`` (n, M) is masked in them, the features above included."""
        distance = self._distance(cells, rank, mask)
        nearest = distance.min(axis=1, keepdims=True)
        some = np.isfinite(nearest)
        departure = distance - np.where(some, nearest, 0.0)
        weights = np.exp(-departure / (TEMPERATURE * self._scale)) if self._scale > 0 else 1.0 * (departure <= 0)
        weights /= np.where(some, weights.sum(axis=1, keepdims=True), 1.0)
        number = 1.0 / np.where(some, (weights**2).sum(axis=1, keepdims=True), 1.0)
        read = (weights * number).astype(np.float32)
        column = np.full(len(self._compared), -1)
        column[self._read_columns] = np.arange(self._read_columns.size)
        return Attended(weights, column, read @ self._counts, read @ self._exposure, read @ self._expected)

    def _visible(self, cells: Block, mask: csr_matrix) -> tuple[csr_matrix, Array]:
        """(n, M) visible counts, and the depth (n,) of the whole cells that is estimated from them."""
        visible = csr_matrix(cells.counts - cells.counts.multiply(mask))
        visible.eliminate_zeros()
        return visible, self._model.first_tokenizer.whole_depth(cells, mask if mask.nnz else None)

    def _profile(self, visible: csr_matrix, depth: Array) -> csr_matrix:
        return log1p_rows(visible, depth, float(self._model.binning.mean_depth or 1.0))

    def _fit_space(self, visible: csr_matrix, depth: Array) -> LowRankProfile:
        """Principal components of the references. Values that are not known are set to the mean of their feature."""
        profile, hidden, at = self._profile(visible, depth), self._hidden.astype(np.float64), self._compared
        known = np.maximum(profile.shape[0] - np.asarray(hidden.sum(axis=0)).ravel(), 1)
        hidden.data *= (np.asarray(profile.sum(axis=0)).ravel() / known)[hidden.indices]
        part = Profiles(csr_matrix(profile + hidden)[:, at], np.ones(at.sum(), bool))
        mean_depth = float(self._model.binning.mean_depth or 1.0)
        space = LowRankProfile.of_profiles([part], mean_depth, n_components=N_COMPONENTS)
        mean, loadings = np.zeros(len(at), np.float32), np.zeros((len(at), space.loadings.shape[1]), np.float32)
        mean[at], loadings[at] = space.mean, space.loadings
        return LowRankProfile(space.mean_depth, mean, loadings, space.noise)

    def _place(self, visible: csr_matrix, depth: Array, mask: csr_matrix) -> Array:
        """(n, K) coordinates on orthonormal components, expected from the visible features."""
        indptr, features = mask.indptr, mask.indices.astype(np.int64)
        rows = MaskedRows(visible, depth, np.repeat(np.arange(len(depth)), np.diff(indptr)), features)
        size = np.sqrt((self._space.loadings.astype(np.float64) ** 2).sum(axis=0))
        return np.asarray(self._space.scores(rows, depth) * size)

    def _distance(self, cells: Block, rank: Rows, mask: csr_matrix) -> Array:
        """(n, R) squared distances to the references, infinite to those that a cell must not read."""
        visible, depth = self._visible(cells, mask)
        x, y = self._place(visible, depth, mask), self._places
        distance = np.maximum((x**2).sum(axis=1)[:, None] - 2 * x @ y.T + (y**2).sum(axis=1), 0.0)
        own = rank[:, None] == self._references.rank
        distance[own | self._equal(self._label(visible), self._only_compared(mask))] = np.inf
        return distance

    def _equal(self, labels: csr_matrix, hidden: csr_matrix) -> NDArray[np.bool_]:
        """(n, R), whether a reference has the same value as a cell at every feature that is known of both."""
        ones = np.ones(labels.shape[1], np.int64)
        own, others = (labels @ ones)[:, None], (self._labels @ ones)[None]
        if hidden.nnz or self._hidden.nnz:
            own = own - (labels @ self._hidden.T).toarray()
            others = others - (hidden @ self._labels.T).toarray()
        return np.asarray(own == others)

    def _label(self, visible: csr_matrix) -> csr_matrix:
        """(n, M), a number for each value of a compared feature. Two cells are equal if the sums of these are."""
        numbers = hash_pairs(_LABEL_STREAM, np.arange(visible.shape[1])).view(np.int64) | 1
        data = visible.data.astype(np.float32).view(np.int32).astype(np.int64)  # sums of integers are exact
        data = data * (numbers * self._compared)[visible.indices]
        return csr_matrix((data, visible.indices, visible.indptr), shape=visible.shape)

    def _only_compared(self, mask: csr_matrix) -> csr_matrix:
        """(n, M) int64, 1 at masked values of compared features."""
        kept = mask.astype(np.int64)  # a copy
        kept.data = self._compared[kept.indices].astype(np.int64)
        kept.eliminate_zeros()
        return kept


def masked_in_all(shape: tuple[int, int], columns: Rows, hidden: csr_matrix | None = None) -> csr_matrix:
    """(n, M) bool, True at these columns in all cells, and at ``hidden``."""
    indices, indptr = np.tile(columns, shape[0]), np.arange(shape[0] + 1) * columns.size
    mask = csr_matrix((np.ones(indices.size, bool), indices, indptr), shape=shape)
    return mask if hidden is None else csr_matrix((mask + hidden).astype(bool))


def _neighbour_distance(distance: Array) -> float:
    """Mean of the squared distance to the fifteenth neighbour, 0 if there is none."""
    k = min(NEIGHBOUR, distance.shape[1]) - 1
    found = np.partition(distance, k, axis=1)[:, k]
    found = found[np.isfinite(found)]
    return float(found.mean()) if found.size else 0.0
