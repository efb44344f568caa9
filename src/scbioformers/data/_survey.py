"""One pass over the cells of a fit: what must be known of them before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import uniform, validation_rows
from scbioformers.data._block import Block, concatenate
from scbioformers.data._source import BlockSource
from scbioformers.data._statistics import Statistics, StatisticsTally

MAX_SAMPLE = 50_000  # cells for components and histograms
MANY_CELLS = 100_000  # above this number, validation cells are runs of consecutive rows
RUN_ROWS = 1024  # rows of a run
MAX_RUNS = 16  # 16,384 validation cells, one buffer of the sampler; more would cost more than they tell
_SPLIT_STREAM, _SAMPLE_STREAM = 0x5B117, 0x5A3B1E
_SAMPLE_SLACK = 8192  # cells by which the sample may be too large before it is reduced


@dataclass(frozen=True, eq=False)
class Survey:
    """What a fit must know of its cells before the first step. Memory: two bytes for each cell, and the sample."""

    training: NDArray[np.bool_]
    """(N,) cells to train on. A cell without a modelled count is in neither of the two."""
    validation: NDArray[np.bool_]
    """(N,) cells that are held out for validation."""
    statistics: Statistics
    """Statistics of the training cells."""
    sample: list[Block]
    """At most 50,000 training cells, chosen at random: one block for each data set that has any."""
    cells_sha256: str
    """SHA-256 of the depth, the number of expressed features and the codes of obs of every cell, in order."""


class SurveyTally:
    """Collects a :class:`Survey` from blocks of cells that are added in order.

    Parameters
    ----------
    source
        The cells.
    fraction
        Share of the cells to hold out.
    seed
        Seed of the split and of the sample.
    """

    def __init__(self, source: BlockSource, fraction: float, seed: int) -> None:
        self._source, self._fraction, self._seed = source, fraction, seed
        self._many = source.n_obs > MANY_CELLS
        self._filled = np.zeros(source.n_obs, bool)
        self._validation = np.zeros(source.n_obs, bool)
        if self._many and fraction > 0:
            for start, stop in validation_runs(source.starts, fraction, seed):
                self._validation[start:stop] = True
        self._n_filled = 0
        self._digest = hashlib.sha256()
        self._start_again()

    def _start_again(self) -> None:
        self._statistics = StatisticsTally(self._source.n_features)
        self._sample = _Sample(MAX_SAMPLE, self._seed)

    def add(self, block: Block) -> None:
        """Add the block that follows the former one."""
        here = slice(block.start, block.start + len(block.depth))
        of_parts = [x for part in block.modalities for x in (part.depth, np.diff(part.counts.indptr))]
        self._digest.update(np.column_stack([*of_parts, block.fields]).astype(np.float64).tobytes())
        filled = block.n_expressed > 0
        self._filled[here] = filled
        if self._many:
            self._validation[here] &= filled
        else:  # the draw of a cell belongs to its number among the cells that have counts
            numbers = self._n_filled + np.arange(np.count_nonzero(filled))
            self._validation[here][filled] = uniform(self._seed ^ _SPLIT_STREAM, numbers) < self._fraction
            self._n_filled += len(numbers)
        self._count(block, filled & ~self._validation[here])

    def _count(self, block: Block, training: NDArray[np.bool_]) -> None:
        self._statistics.add(block, training)
        self._sample.add(block, training, int(np.searchsorted(self._source.starts, block.start, side="right")))

    def result(self) -> Survey:
        """The survey, after all blocks were added."""
        right = self._validation if self._many else _split(self._filled, self._fraction, self._seed)
        if self._many and not (self._filled & ~right).any():
            right = np.zeros_like(right)
        if not np.array_equal(right, self._validation):  # few cells, of which none or all would have been held out
            self._start_again()
            for block in self._source.blocks():
                here = slice(block.start, block.start + len(block.depth))
                self._count(block, self._filled[here] & ~right[here])
        sample = self._sample.result()
        return Survey(self._filled & ~right, right, self._statistics.result(), sample, self._digest.hexdigest())


def survey(source: BlockSource, fraction: float, seed: int, *also: Callable[[Block], None]) -> Survey:
    """Read all cells once, in order. Each block is also passed to the functions ``also``."""
    tally = SurveyTally(source, fraction, seed)
    for block in source.blocks():
        tally.add(block)
        for other in also:
            other(block)
    return tally.result()


def validation_runs(starts: tuple[int, ...], fraction: float, seed: int) -> list[tuple[int, int]]:
    """Ranges of 1,024 consecutive rows to hold out, ``fraction`` of all rows but at most 16 ranges.

    The ranges of all data sets are divided into as many groups of neighbours as ranges are needed, and one of each
    group is drawn. So files that are sorted are represented in all their parts.

    Parameters
    ----------
    starts
        First row of each data set, and the number of rows. A range has cells of one data set.

    Examples
    --------
    >>> runs = validation_runs((0, 200_000), 0.05, seed=0)
    >>> len(runs), runs[0][0] < 20_480, {stop - start for start, stop in runs}
    (10, True, {1024})
    """
    edges = [np.arange(start, stop, RUN_ROWS) for start, stop in pairwise(starts)]
    first = np.concatenate(edges)
    last = np.minimum(first + RUN_ROWS, np.repeat(starts[1:], [len(each) for each in edges]))
    n_runs = int(np.clip(round(fraction * starts[-1] / RUN_ROWS), 1, MAX_RUNS))
    bounds = np.linspace(0, len(first), n_runs + 1).astype(np.int64)
    drawn = uniform(seed ^ _SPLIT_STREAM, np.arange(n_runs))
    chosen = bounds[:-1] + (drawn * np.diff(bounds)).astype(np.int64)
    return list(zip(first[chosen].tolist(), last[chosen].tolist(), strict=True))


def _split(filled: NDArray[np.bool_], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Cells to hold out if there are at most 100,000: each by a draw of its own."""
    rows = np.flatnonzero(filled)
    validation = np.zeros(filled.size, dtype=bool)
    if fraction > 0 and rows.size > 1:
        validation[rows] = validation_rows(rows.size, fraction, seed ^ _SPLIT_STREAM)
    return validation


class _Sample:
    """The cells with the ``size`` smallest random numbers, of those added so far."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed, self._limit = size, seed ^ _SAMPLE_STREAM, np.inf
        self._parts: list[tuple[int, Block, NDArray[np.float64]]] = []  # data set, cells, their random numbers
        self._n = 0

    def add(self, block: Block, rows: NDArray[np.bool_], data_set: int) -> None:
        numbers = uniform(self._seed, block.start + np.arange(len(rows)))
        self._keep(block, np.flatnonzero(rows & (numbers <= self._limit)), numbers, data_set)
        if self._n > self._size + _SAMPLE_SLACK:
            self._reduce()

    def _keep(self, block: Block, kept: NDArray[np.int64], numbers: NDArray[np.float64], data_set: int) -> None:
        if kept.size:
            whole = kept.size == len(numbers)
            self._parts.append((data_set, block if whole else block.take(kept), numbers[kept]))
            self._n += kept.size

    def _reduce(self) -> None:
        everything = np.concatenate([numbers for *_, numbers in self._parts])
        self._limit = np.partition(everything, self._size - 1)[self._size - 1]
        parts, self._parts, self._n = self._parts, [], 0
        for data_set, block, numbers in parts:
            self._keep(block, np.flatnonzero(numbers <= self._limit), numbers, data_set)

    def result(self) -> list[Block]:
        if self._n > self._size:
            self._reduce()
        sets = sorted({data_set for data_set, *_ in self._parts})
        return [concatenate([part for own, part, _ in self._parts if own == each]) for each in sets]
