"""The order in which training uses cells: chunks of consecutive rows, which are shuffled within a buffer."""

from __future__ import annotations

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
class Buffer:
    """Ranges of rows to read, and the batches that are made from them."""

    ranges: tuple[tuple[int, int], ...]
    """``(start, stop)`` of each chunk, in ascending order."""
    batches: tuple[NDArray[np.int64], ...]
    """For each global batch, the draws that belong to this rank: the row plus ``n_obs`` for each earlier draw of it."""


@dataclass(frozen=True)
class Sampler:
    """Chooses the cells of each batch. If all cells fit into one buffer, they are shuffled completely.

    An epoch has as many cells as there are. If they are of several data sets, each set has a part of them that is
    proportional to a power of its size. So the cells of small sets are drawn more often, and a set is never drowned.

    Every rank gets the same number of batches, and they have the same size. The global batches do not depend on the
    number of ranks. The only cells left out are those beyond the largest multiple of ``world_size`` in a batch.

    Examples
    --------
    >>> import numpy as np
    >>> sampler = Sampler(np.ones(10, bool), batch_size=4, seed=0)
    >>> [len(rows) for buffer in sampler.epoch(0) for rows in buffer.batches]
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

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk_size", "buffer_chunks", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Sampler.{name} must be at least 1, found {getattr(self, name)}.")
        if self.batch_size % self.world_size or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"The global batch of {self.batch_size} cells must divide among {self.world_size} processes, rank "
                f"{self.rank} of 0 to {self.world_size - 1}. Change `batch_size` or the number of devices."
            )

    def epoch(self, epoch: int) -> Iterator[Buffer]:
        """The buffers of an epoch."""
        for chunks in self._buffers(epoch):
            draws = np.concatenate([self._draws(chunk, epoch) for chunk in chunks])
            if draws.size:
                ranges = sorted({(chunk.start, chunk.stop) for chunk in chunks})
                yield Buffer(tuple(ranges), self._batches(draws, epoch))

    def n_batches(self, epoch: int = 0) -> int:
        """Number of batches in an epoch."""
        sizes = (sum(chunk.n_rows for chunk in chunks) for chunks in self._buffers(epoch))
        return sum(self._count(size) for size in sizes if size)

    def _buffers(self, epoch: int) -> Iterator[list[Chunk]]:
        chunks = self._chunks(epoch)
        order = np.argsort(uniform(self.seed ^ _CHUNK_STREAM, epoch, np.arange(len(chunks))), kind="stable")
        for first in range(0, len(chunks), self.buffer_chunks):
            yield [chunks[i] for i in np.sort(order[first : first + self.buffer_chunks])]

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
        """Number of batches in a buffer. It is 0 if the buffer has fewer cells than there are ranks."""
        return max(1, n_rows // self.batch_size) if n_rows >= self.world_size else 0

    def _batches(self, rows: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], ...]:
        if not (n_batches := self._count(len(rows))):
            return ()
        rows = rows[np.argsort(uniform(self.seed ^ _ROW_STREAM, epoch, rows), kind="stable")]
        batches = np.array_split(rows, n_batches)
        share = [len(batch) // self.world_size for batch in batches]
        return tuple(batch[self.rank * n : (self.rank + 1) * n] for batch, n in zip(batches, share, strict=True))
