"""The order in which training reads cells: contiguous chunks, shuffled inside a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, uniform

_CHUNK_STREAM, _ROW_STREAM = 0x5EED, 0xC311


@dataclass(frozen=True)
class Buffer:
    """Ranges of rows to read, and the batches to make of them."""

    ranges: tuple[tuple[int, int], ...]
    """``(start, stop)`` of each chunk, in the order in which they are read."""
    batches: tuple[NDArray[np.int64], ...]
    """Rows of this rank's share of each global batch."""


@dataclass(frozen=True)
class Sampler:
    """Decides which cells make a batch. A data set within one buffer is shuffled perfectly.

    Every rank gets the same number of equally large batches, and the global batches do not depend on the number of
    ranks; no cell is left out but the few that keep a batch from being divisible by ``world_size``.

    Examples
    --------
    >>> import numpy as np
    >>> sampler = Sampler(np.ones(10, bool), batch_size=4, seed=0)
    >>> [len(rows) for buffer in sampler.epoch(0) for rows in buffer.batches]
    [5, 5]
    """

    rows: NDArray[np.bool_]
    """bool (n_obs,), the cells to read."""
    batch_size: int
    """Cells in a global batch, at least; fewer only if the buffer holds fewer."""
    seed: int
    chunk_size: int = 4096
    buffer_chunks: int = 16
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunk_size", "buffer_chunks", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Sampler.{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size % self.world_size or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"The global batch of {self.batch_size} cells must divide among {self.world_size} processes, "
                f"rank {self.rank} being one of them."
            )

    def epoch(self, epoch: int) -> Iterator[Buffer]:
        """The buffers of an epoch; each chunk of the data is in exactly one of them."""
        for ranges in self._ranges(epoch):
            rows = np.concatenate([start + np.flatnonzero(self.rows[start:stop]) for start, stop in ranges])
            if rows.size:
                yield Buffer(ranges, self._batches(rows, epoch))

    def n_batches(self, epoch: int = 0) -> int:
        """Batches that :meth:`epoch` yields."""
        sizes = (sum(int(self.rows[start:stop].sum()) for start, stop in ranges) for ranges in self._ranges(epoch))
        return sum(self._count(size) for size in sizes if size)

    def _ranges(self, epoch: int) -> Iterator[tuple[tuple[int, int], ...]]:
        n_chunks = -(-len(self.rows) // self.chunk_size)
        order = np.argsort(uniform(self.seed ^ _CHUNK_STREAM, epoch, np.arange(n_chunks)), kind="stable")
        for first in range(0, n_chunks, self.buffer_chunks):
            starts = np.sort(order[first : first + self.buffer_chunks]) * self.chunk_size
            yield tuple((int(start), int(min(start + self.chunk_size, len(self.rows)))) for start in starts)

    def _count(self, n_rows: int) -> int:
        """Batches of a buffer; none if it holds fewer cells than there are ranks."""
        return max(1, n_rows // self.batch_size) if n_rows >= self.world_size else 0

    def _batches(self, rows: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], ...]:
        if not (n_batches := self._count(len(rows))):
            return ()
        rows = rows[np.argsort(uniform(self.seed ^ _ROW_STREAM, epoch, rows), kind="stable")]
        batches = np.array_split(rows, n_batches)
        share = [len(batch) // self.world_size for batch in batches]
        return tuple(batch[self.rank * n : (self.rank + 1) * n] for batch, n in zip(batches, share, strict=True))
