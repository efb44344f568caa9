"""A memory of the query: a model of other data reads what similar cells of the query showed, without a fit.

The network is not changed, and the model keeps no cells. Each cell reads references, which are cells of the query
(:mod:`scbioformers.tasks._query_memory_reader`), and a head (:mod:`scbioformers.tasks._query_memory_head`) changes the
predictions by what it reads.

No masked value has an influence on its own prediction. Weights are those of features that are not masked. The
references are two halves. A head is fitted to masked values of one half, whose cells read each other alone, and is used
for the cells of the other half.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core import SPECIALS, DataError, tqdm
from scbioformers.data import Block, BlockSource
from scbioformers.model import BioFormer, predict_with_rates
from scbioformers.nn import Batch
from scbioformers.tasks._imputation_evidence import LOW_DEPTH
from scbioformers.tasks._query_memory_head import bin_log_levels, fit_head, head_inputs, tilted
from scbioformers.tasks._query_memory_reader import TEMPERATURE, Attended, Reader, References, masked_in_all

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Array32 = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_REFERENCES, MIN_CELLS = 4096, 100
N_STORED = 15  # references of a cell whose weights are stored
N_HEAD_CELLS, N_HEAD_VALUES = 200, 100_000  # of each half, to which a head is fitted: about this many values
SHARES = (0.0, 0.03, 0.1, 0.3, 1.0)  # how much an attended count weighs, compared with a count of the cell itself


@dataclass(frozen=True, eq=False)
class QueryMemory:
    """What the cells of a query, or some of them, read."""

    model: BioFormer
    references: References
    n_obs: int
    """Number of all cells of the query."""
    rank: Rows
    """(N,), place of each cell in an order that depends on the names of the cells alone."""
    heads: Array
    """(2, 10, 2), weights of the head for cells of even and of odd rank."""
    share: float
    """How much an attended count weighs in :meth:`prior`, compared with a count of the cell itself."""
    bits: tuple[float, float]
    """Mean negative log-likelihood of the masked values of the fit, without and with the head of the other half."""
    readers: dict[bytes, Reader] = field(default_factory=dict)
    """Readers by the features that are masked in all cells."""

    def take(self, rows: Rows) -> QueryMemory:
        """The memory for a source of these rows."""
        return replace(self, rank=self.rank[rows])

    def read(self, cells: Block, mask: csr_matrix | None = None, columns: Rows | None = None) -> Attended:
        """What the cells of a block read, if ``columns`` are masked in all cells, and ``mask`` (n, M) in these."""
        columns = np.zeros(0, np.int64) if columns is None else columns
        name = columns.tobytes()
        if name not in self.readers:
            self.readers[name] = Reader(self.model, self.references, columns)
        mask = masked_in_all(cells.counts.shape, columns) if mask is None else mask
        return self.readers[name].read(cells, self._rank(cells), mask)

    def tilt(self, cells: Block, attended: Attended, batch: Batch, probabilities: Array32, rates: Array32) -> Array32:
        """Predictions (B, H, V) of a batch of these cells, changed by the head."""
        values = _Values.of(cells, attended, batch, probabilities, rates)
        weights = self.heads[self._rank(cells)[values.row] % 2]
        changed = probabilities.copy()
        changed[values.at] = tilted(values.probabilities, values.inputs, weights, bin_log_levels(self.model.binning))
        return changed

    def prior(self, attended: Attended, rate: Array, dispersion: Array, rows: Rows) -> Array:
        """Counts (B, M) that are expected in some cells of a block, given those of the network (B, M) and what is read.

        The prediction of the network is a gamma distribution with the inverse dispersion (M,) as its shape. With the
        share s, it is updated by attended counts: rate · (shape + s · attended) / (shape + s · expected).
        """
        read, expected = (x[rows].astype(np.float64) for x in (attended.counts, attended.expected))
        return np.asarray(rate * (dispersion + self.share * read) / (dispersion + self.share * expected))

    def strongest(self, weights: Array) -> csr_matrix:
        """(n, n_obs), weights (n, R) of the fifteen references with the highest ones."""
        n, k = len(weights), min(N_STORED, weights.shape[1])
        at = np.sort(np.argpartition(-weights, k - 1, axis=1)[:, :k], axis=1)
        data, rows = np.take_along_axis(weights, at, axis=1), self.references.rows[at]
        kept = csr_matrix((data.ravel(), rows.ravel(), np.arange(n + 1) * k), shape=(n, self.n_obs), dtype=np.float32)
        kept.eliminate_zeros()
        kept.sort_indices()
        return kept

    def params(self) -> dict[str, Any]:
        """What is stored of it beside a result."""
        return {
            "memory": "query",
            "n_references": len(self.references.rows),
            "temperature": TEMPERATURE,
            "share": self.share,
            "head": self.heads.tolist(),
            "head_bits": list(self.bits),
        }

    def _rank(self, cells: Block) -> Rows:
        return self.rank[cells.start : cells.start + len(cells.depth)]


def fit_query_memory(
    model: BioFormer,
    source: BlockSource,
    names: Iterable[str],
    folds: Sequence[Rows],
    *,
    hidden: csr_matrix | None = None,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> QueryMemory:
    """Choose the references among the cells of a source, and fit the heads to masked values of them.

    Parameters
    ----------
    source
        N cells with the features of the model.
    names
        (N,), names of the cells. They alone say which cells are references.
    folds
        Features that are masked together.
    hidden
        (N, M), non-zero at values of the source that are not measured.

    Raises
    ------
    DataError
        If there are fewer than 100 cells.
    """
    if source.n_obs < MIN_CELLS:
        raise DataError(
            f"`memory='query'` reads similar cells, and needs at least {MIN_CELLS} cells, found {source.n_obs}. Leave "
            "out `memory=`: the model then predicts each cell by itself."
        )
    rank = rank_cells(names)
    references = _read_references(model, source, rank, hidden, batch_size, progress_bar)
    halves = [references.take(np.flatnonzero(references.rank % 2 == half)) for half in (0, 1)]
    measured = [_mask_values(model, half, folds, batch_size) for half in halves]
    levels = bin_log_levels(model.binning)
    fitted = [fit_head(each.probabilities, each.inputs, each.bins, levels) for each in measured]
    heads = np.stack(fitted[::-1])  # each is for the cells of the other half
    bits = _bits(measured, None, levels), _bits(measured, heads, levels)
    logger.info(
        "Each cell reads %d of the %d cells as references. A masked value has %.4f bits with them, and %.4f without.",
        len(references.rows),
        source.n_obs,
        *bits[::-1],
    )
    return QueryMemory(model, references, source.n_obs, rank, heads, _choose_share(measured), bits)


def rank_cells(names: Iterable[str]) -> Rows:
    """(N,), place of each cell in a random order that is a function of its name. Cells of one name keep their order."""
    hashes = [int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=7).digest(), "big") for name in names]
    return np.argsort(np.argsort(hashes, kind="stable"), kind="stable")


@dataclass(frozen=True, eq=False)
class _Values:
    """H masked values of cells of a block, of features that are read of the references."""

    at: tuple[Rows, Rows]
    """(H,) cell in its batch, and place among its masked values."""
    row: Rows
    """(H,), cell in its block."""
    feature: Rows
    """(H,), masked feature."""
    probabilities: Array
    """(H, V), predicted probabilities of the bins."""
    inputs: Array
    """(H, 10), see :func:`head_inputs`."""
    rate: Array
    """(H,), count at the mean depth that the network expects."""
    counts: Array
    """(H,), attended counts."""
    expected: Array
    """(H,), attended counts that the network expects."""

    @classmethod
    def of(cls, cells: Block, attended: Attended, batch: Batch, probabilities: Array32, rates: Array32) -> _Values:
        """Those of a batch of predictions (B, H, V) and rates (B, M)."""
        ids = batch.masked_ids.cpu().numpy()
        cell, at = np.nonzero(ids)
        feature = ids[cell, at] - len(SPECIALS)
        is_read = attended.column[feature] >= 0
        cell, at, feature = cell[is_read], at[is_read], feature[is_read]
        row, column = batch.rows.cpu().numpy()[cell] - cells.start, attended.column[feature]
        counts, exposure, expected = (
            x[row, column].astype(np.float64) for x in (attended.counts, attended.exposure, attended.expected)
        )
        p, rate = probabilities[cell, at].astype(np.float64), rates[cell, feature].astype(np.float64)
        log_depth = batch.log_depth.cpu().numpy().astype(np.float64)[cell]
        inputs = head_inputs(p, np.log(np.maximum(rate, 1e-12)), log_depth, counts, exposure, expected)
        return cls((cell, at), row, feature, p, inputs, rate, counts, expected)


@dataclass(frozen=True, eq=False)
class _Measured:
    """H values that were measured and masked, to which a head is fitted."""

    probabilities: Array
    inputs: Array
    bins: Rows
    prior: Array
    """(H, 5): measured count, expected count, attended counts, those that the network expects, inverse dispersion."""


def _read_references(
    model: BioFormer, source: BlockSource, rank: Rows, hidden: csr_matrix | None, batch_size: int, progress_bar: bool
) -> References:
    """The first cells by rank, and the rates that the network expects in them."""
    rows = np.flatnonzero(rank < MAX_REFERENCES)
    cells = source.rows(rows)
    mask = csr_matrix(cells.counts.shape, dtype=bool) if hidden is None else hidden[rows].astype(bool)
    rate = np.empty(cells.counts.shape, np.float32)
    with tqdm(total=len(rows), desc="Reading references", unit="cell", disable=not progress_bar) as bar:
        for batch, _, rates in predict_with_rates(model, cells, mask, batch_size):
            rate[batch.rows.cpu().numpy() - cells.start] = rates
            bar.update(len(batch))
    depth = model.first_tokenizer.whole_depth(cells, None if hidden is None else mask)
    size = depth / float(model.binning.mean_depth or 1.0)
    references = References(cells, rows, rank[rows], None if hidden is None else mask, size, rate)
    return references.take(np.argsort(rank[rows]))


def _mask_values(model: BioFormer, references: References, folds: Sequence[Rows], batch_size: int) -> _Measured:
    """Mask features of some references in turn, and predict them. These cells read the given references alone."""
    usable = (references.size >= LOW_DEPTH) & (np.diff(references.cells.counts.indptr) > 0)
    some = np.flatnonzero(usable)[:N_HEAD_CELLS]
    n_values = max(some.size * sum(fold.size for fold in folds) / max(len(folds), 1), 1)
    n_passes = min(max(round(N_HEAD_VALUES / n_values), 1), len(folds))  # of each cell
    dispersion = _dispersion(model)
    parts: list[tuple[NDArray[Any], ...]] = []
    for i, columns in enumerate(folds):
        at = some[(np.arange(some.size) + i) % len(folds) < n_passes]
        if not at.size:
            continue
        part = references.take(at)
        mask = masked_in_all(part.cells.counts.shape, columns, part.hidden)
        attended = Reader(model, references, columns).read(part.cells, part.rank, mask)
        unknown = np.zeros(mask.shape, bool) if part.hidden is None else part.hidden.toarray()
        for batch, probabilities, rates in predict_with_rates(model, part.cells, mask, batch_size):
            values = _Values.of(part.cells, attended, batch, probabilities, rates)
            bins = batch.target_bins.cpu().numpy()[values.at]
            size = batch.size_factor.cpu().numpy().astype(np.float64)[values.at[0]]
            counts = np.asarray(part.cells.counts[values.row, values.feature], np.float64).ravel()
            shape = dispersion[values.feature]
            prior = np.column_stack([counts, values.rate * size, values.counts, values.expected, shape])
            known = ~unknown[values.row, values.feature]
            parts.append((values.probabilities[known], values.inputs[known], bins[known], prior[known]))
    if not parts:
        raise DataError(
            "`memory='query'` found no cells with at least 5 % of the mean depth of the training cells. Its head "
            "cannot be fitted. Leave out `memory=`: the model then predicts each cell by itself."
        )
    return _Measured(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _choose_share(measured: Sequence[_Measured]) -> float:
    """The share of the lowest Poisson loss of masked counts."""
    count, mean, read, expected, shape = np.concatenate([each.prior for each in measured]).T
    losses = []
    for share in SHARES:
        given = mean * (shape + share * read) / (shape + share * expected)
        losses.append(float((given - count * np.log(np.maximum(given, 1e-12))).sum()))
    return SHARES[int(np.argmin(losses))]


def _dispersion(model: BioFormer) -> Array:
    """(M,), inverse dispersion of each feature, the mean of the members."""
    found = [network.log_dispersion.detach().exp().cpu().double().numpy() for network in model.members]
    return np.asarray(np.mean(found, axis=0))


def _bits(measured: Sequence[_Measured], heads: Array | None, levels: Array) -> float:
    """Mean negative log-likelihood of the measured bins, in bits, with a head for each part or without."""
    total = 0.0
    for i, each in enumerate(measured):
        p = each.probabilities if heads is None else tilted(each.probabilities, each.inputs, heads[i], levels)
        total -= float(np.log2(np.maximum(p[np.arange(each.bins.size), each.bins], 1e-12)).sum())
    return total / max(sum(each.bins.size for each in measured), 1)
