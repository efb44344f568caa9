"""The order in which training uses cells: chunks of consecutive rows, which are shuffled within a buffer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, uniform

_CHUNK_STREAM, _ROW_STREAM, _PART_STREAM = 0x5EED, 0xC311, 0x9A27


@dataclass(frozen=True)
class Chunk:
    """A range of consecutive rows of one data set, some of which are used."""

    start: int
    """First row."""
    stop: int
    """Row after the last one."""
    n_rows: int
    """Number of cells to use."""
    n_drawn: int
    """How often these rows were drawn before in this epoch."""


@dataclass(frozen=True)
class Part:
    """The cells of a global batch that one worker of one process prepares."""

    draws: NDArray[np.int64]
    """The row of each cell plus ``n_obs`` for each earlier draw of it. A worker may have none."""
    weight: float
    """Number of cells that the process has, relative to the mean of all processes.

    It is 0 if it has none. Then one cell stands in, so that all processes make the same steps.
    """


@dataclass(frozen=True)
class Buffer:
    """Ranges of rows to read, and the parts of batches that are made from them."""

    ranges: tuple[tuple[int, int], ...]
    """``(start, stop)`` of each chunk of which this worker has cells, in ascending order."""
    batches: tuple[Part, ...]
    """The part of each global batch."""


@dataclass(frozen=True)
class Sampler:
    """Chooses the cells of each batch, and which of them each process and each of its workers prepares.

    An epoch has as many cells as there are. If they are of several data sets, each set has a part of them that is
    proportional to a power of its size. So the cells of small sets are drawn more often, and a set is never drowned.

    The global batches depend neither on the number of processes nor on that of workers, and each process has a part
    of each of them. Up to ``chunk_size * buffer_chunks`` rows, all cells are shuffled, and each batch is divided. With
    more rows, chunks are put together at random to buffers. A batch has the same share of each chunk of a buffer, and a
    process has chunks of its own. So a chunk is read once in an epoch, whatever the number of processes.

    Examples
    --------
    >>> import numpy as np
    >>> sampler = Sampler(np.ones(10, bool), batch_size=4, seed=0)
    >>> [len(part.draws) for buffer in sampler.epoch(0) for part in buffer.batches]
    [5, 5]
    """

    rows: NDArray[np.bool_]
    """bool (n_obs,), the cells to use."""
    batch_size: int
    """Minimum number of cells in a global batch. A batch is smaller only if the buffer has fewer cells."""
    seed: int
    """Seed of the order of chunks and cells."""
    starts: tuple[int, ...] | None = None
    """First row of each data set, and the number of rows. None if there is one data set."""
    power: float = 1.0
    """Power of the size of a data set. With 1, each cell is drawn once in an epoch."""
    chunk_size: int = 4096
    """Number of consecutive rows in a chunk."""
    buffer_chunks: int = 16
    """Number of chunks in a buffer."""
    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""
    worker: int = 0
    """Number of this worker of the process."""
    n_workers: int = 1
    """Number of workers of each process."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk_size", "buffer_chunks", "world_size", "n_workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Sampler.{name} must be at least 1, found {getattr(self, name)}.")
        for name, n in (("rank", self.world_size), ("worker", self.n_workers)):
            if not 0 <= getattr(self, name) < n:
                raise ConfigError(f"Sampler.{name} must lie in 0 to {n - 1}, found {getattr(self, name)}.")

    @property
    def is_large(self) -> bool:
        """Whether there are more rows than a buffer has, so that each process reads chunks of its own."""
        return len(self.rows) > self.chunk_size * self.buffer_chunks

    def epoch(self, epoch: int) -> Iterator[Buffer]:
        """The buffers of an epoch."""
        for chunks in self._buffers(epoch):
            groups = [self._draws(chunk, epoch) for chunk in chunks]
            groups = groups if self.is_large else [np.concatenate(groups)]
            parts = tuple(self._part(batch, groups) for batch in self._batches(groups, epoch))
            wanted = np.sort(np.concatenate([part.draws for part in parts]) % len(self.rows))
            ranges = sorted({(chunk.start, chunk.stop) for chunk in chunks})
            inside = np.diff(np.searchsorted(wanted, ranges)).ravel()
            yield Buffer(tuple(each for each, n in zip(ranges, inside, strict=True) if n), parts)

    def n_batches(self, epoch: int = 0) -> int:
        """Number of batches in an epoch."""
        return sum(self._count(sum(chunk.n_rows for chunk in chunks)) for chunks in self._buffers(epoch))

    def _buffers(self, epoch: int) -> Iterator[list[Chunk]]:
        """The chunks of each buffer, in the order of the rows. Chunks without a cell to use are not read."""
        chunks = [chunk for chunk in self._chunks(epoch) if chunk.n_rows]
        order = np.argsort(uniform(self.seed ^ _CHUNK_STREAM, epoch, np.arange(len(chunks))), kind="stable")
        starts = range(0, len(chunks), self.buffer_chunks)
        # with many chunks, buffers of equal size: a small last one would have batches of few chunks
        buffers = np.array_split(order, len(starts)) if self.is_large and chunks else np.split(order, starts[1:])
        for own in buffers:
            if own.size:
                yield [chunks[i] for i in np.sort(own)]

    def _chunks(self, epoch: int) -> list[Chunk]:
        """All chunks of an epoch: of each data set all cells as often as they are drawn, and then a part of them."""
        starts = self.starts or (0, len(self.rows))
        found: list[Chunk] = []
        ranges = list(pairwise(starts))
        sizes = np.array([self.rows[start:stop].sum() for start, stop in ranges], dtype=float)
        weights = np.where(sizes > 0, np.maximum(sizes, 1.0) ** self.power, 0.0)
        wanted = np.rint(sizes.sum() * weights / max(weights.sum(), 1.0)).astype(np.int64)
        for (start, stop), n_wanted in zip(ranges, wanted.tolist(), strict=True):
            edges = [*range(start, stop, self.chunk_size), stop]
            whole = [Chunk(a, b, int(self.rows[a:b].sum()), 0) for a, b in pairwise(edges)]
            n_drawn = 0
            while n_wanted > 0:
                drawn = self._draw_chunks(whole, n_wanted, n_drawn, epoch)
                n_wanted -= sum(chunk.n_rows for chunk in drawn)
                found += drawn
                n_drawn += 1
        return found

    def _draw_chunks(self, whole: list[Chunk], n_wanted: int, n_drawn: int, epoch: int) -> list[Chunk]:
        """At most ``n_wanted`` cells of the chunks of a data set: whole chunks at random, then a part of the last."""
        kept = [replace(chunk, n_drawn=n_drawn) for chunk in whole]
        if sum(chunk.n_rows for chunk in whole) <= n_wanted:
            return kept
        order = np.argsort(uniform(self.seed ^ _PART_STREAM, epoch, [chunk.start for chunk in whole]), kind="stable")
        before = np.cumsum([0, *(kept[i].n_rows for i in order)])
        some = [
            replace(kept[i], n_rows=min(kept[i].n_rows, n_wanted - int(n)))
            for i, n in zip(order, before, strict=False)
            if n < n_wanted
        ]
        return sorted(some, key=lambda chunk: chunk.start)

    def _draws(self, chunk: Chunk, epoch: int) -> NDArray[np.int64]:
        rows = chunk.start + np.flatnonzero(self.rows[chunk.start : chunk.stop])
        if chunk.n_rows < rows.size:
            keys = uniform(self.seed ^ _PART_STREAM, epoch, rows)
            rows = np.sort(rows[np.argsort(keys, kind="stable")[: chunk.n_rows]])
        return rows + chunk.n_drawn * len(self.rows)

    def _count(self, n_rows: int) -> int:
        """Number of batches in a buffer."""
        return max(1, n_rows // self.batch_size)

    def _batches(self, groups: list[NDArray[np.int64]], epoch: int) -> Iterator[list[NDArray[np.int64]]]:
        """The draws of each global batch, by group. The batches have equal parts of each group, up to one cell.

        So the cells of a group are shuffled, and then take their places between those of the other groups.
        """
        keys = [uniform(self.seed ^ _ROW_STREAM, epoch, own) for own in groups]
        draws = np.concatenate([own[np.argsort(key, kind="stable")] for own, key in zip(groups, keys, strict=True)])
        group = np.repeat(np.arange(len(groups)), [len(own) for own in groups])
        places = [(np.arange(len(own)) + i / len(groups)) / len(own) for i, own in enumerate(groups)]
        order = np.argsort(np.concatenate(places), kind="stable")
        data_set = np.searchsorted(self.starts or (0,), draws % len(self.rows), side="right")
        for cells in np.array_split(order, self._count(len(draws))):
            # in the order in which the data sets are converted, so that consecutive parts can be joined again
            own = np.sort(cells)
            own = own[np.argsort(data_set[own], kind="stable")]
            yield np.split(draws[own], np.searchsorted(group[own], np.arange(1, len(groups))))

    def _part(self, batch: list[NDArray[np.int64]], groups: list[NDArray[np.int64]]) -> Part:
        """What this worker prepares of a batch."""
        of_rank = _share(batch, self.rank, self.world_size)
        n_own = sum(map(len, of_rank))
        if not n_own:  # a cell of a chunk that this process reads anyway
            of_rank = [groups[self.rank * len(groups) // self.world_size][:1]]
        of_worker = _share(of_rank, self.worker, self.n_workers)
        return Part(np.concatenate(of_worker), self.world_size * n_own / sum(map(len, batch)))


def _share(groups: list[NDArray[np.int64]], number: int, n: int) -> list[NDArray[np.int64]]:
    """Part ``number`` of ``n``: whole groups, or a part of one group if there are fewer groups. Parts are consecutive.

    Examples
    --------
    >>> import numpy as np
    >>> groups = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
    >>> [np.concatenate(_share(groups, i, 2)).tolist() for i in range(2)]
    [[1, 2, 3], [4, 5, 6]]
    >>> [np.concatenate(_share(groups, i, 4)).tolist() for i in range(4)]
    [[1, 2], [3], [4], [5, 6]]
    """
    n_groups = len(groups)
    if n <= n_groups:
        return groups[number * n_groups // n : (number + 1) * n_groups // n]
    group = number * n_groups // n
    first, stop = (math.ceil(i * n / n_groups) for i in (group, group + 1))  # the parts that share the group
    return [np.array_split(groups[group], stop - first)[number - first]]
