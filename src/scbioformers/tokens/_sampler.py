"""The order in which training uses cells: chunks of consecutive rows, which are shuffled within a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, uniform

_CHUNK_STREAM, _ROW_STREAM = 0x5EED, 0xC311


@dataclass(frozen=True)
class Buffer:
    """Ranges of rows to read, and the batches that are made from them."""

    ranges: tuple[tuple[int, int], ...]
    """``(start, stop)`` of each chunk, in the order in which they are read."""
    batches: tuple[NDArray[np.int64], ...]
    """For each global batch, the rows that belong to this rank."""


@dataclass(frozen=True)
class Sampler:
    """Chooses the cells of each batch. If all cells fit into one buffer, they are shuffled completely.

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
        """The buffers of an epoch. Each chunk of the data is in exactly one buffer."""
        for ranges in self._ranges(epoch):
            rows = np.concatenate([start + np.flatnonzero(self.rows[start:stop]) for start, stop in ranges])
            if rows.size:
                yield Buffer(ranges, self._batches(rows, epoch))

    def n_batches(self, epoch: int = 0) -> int:
        """Number of batches in an epoch."""
        sizes = (sum(int(self.rows[start:stop].sum()) for start, stop in ranges) for ranges in self._ranges(epoch))
        return sum(self._count(size) for size in sizes if size)

    def _ranges(self, epoch: int) -> Iterator[tuple[tuple[int, int], ...]]:
        n_chunks = -(-len(self.rows) // self.chunk_size)
        order = np.argsort(uniform(self.seed ^ _CHUNK_STREAM, epoch, np.arange(n_chunks)), kind="stable")
        for first in range(0, n_chunks, self.buffer_chunks):
            starts = np.sort(order[first : first + self.buffer_chunks]) * self.chunk_size
            yield tuple((int(start), int(min(start + self.chunk_size, len(self.rows)))) for start in starts)

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
