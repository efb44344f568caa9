"""Several data sets as one source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError
from scbioformers.data._block import Block
from scbioformers.data._source import CHUNK_SIZE, BlockSource


class JoinedSource(BlockSource):
    """The cells of several sources, one source after the other. Each block has cells of one source only.

    The sources have the same features in the same order. Which of them a source measures is said by its blocks.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> from scbioformers.data import AnnDataSource
    >>> adata = ad.AnnData(np.array([[1.0, 0, 3], [0, 2, 5]]))
    >>> source = JoinedSource([AnnDataSource(adata), AnnDataSource(adata, columns=np.array([2, 0, -1]))])
    >>> source.starts, [block.present.tolist() for block in source.blocks()]
    ((0, 2, 4), [[True, True, True], [True, True, False]])
    """

    def __init__(self, sources: Sequence[BlockSource]) -> None:
        sizes = {source.n_features for source in sources}
        if len(sizes) != 1:
            raise ConfigError(f"Joined sources must have the same features, found {sorted(sizes)} features.")
        self.sources = tuple(sources)
        self.n_features = sizes.pop()
        self.n_obs = sum(source.n_obs for source in sources)

    def __repr__(self) -> str:
        return f"JoinedSource({len(self.sources)} sources, {self.n_obs} cells x {self.n_features} features)"

    @property
    def starts(self) -> tuple[int, ...]:
        """First row of each source, and the number of rows."""
        return (0, *np.cumsum([source.n_obs for source in self.sources]).tolist())

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive), which must be of one source."""
        start, stop = self._bounds(start, stop)
        at = min(int(np.searchsorted(self.starts, start, side="right")), len(self.sources)) - 1
        first, end = self.starts[at : at + 2]
        if stop > end:
            raise ConfigError(f"Rows {start} to {stop} are of several sources; the first one ends at {end}.")
        return replace(self.sources[at].read(start - first, stop - first), start=start)

    def blocks(self, chunk_size: int = CHUNK_SIZE) -> Iterator[Block]:
        """Iterate over all rows in order, at most `chunk_size` at a time."""
        for first, source in zip(self.starts, self.sources, strict=False):
            for block in source.blocks(chunk_size):
                yield replace(block, start=first + block.start)

    def parts(self, rows: NDArray[np.int64]) -> list[Block]:
        """Read the given rows, which must be in ascending order, as one block for each source that has any."""
        found = []
        for source, first, end in zip(self.sources, self.starts, self.starts[1:], strict=False):
            own = rows[(rows >= first) & (rows < end)] - first
            if own.size:
                found += source.parts(own)
        return found

    def rows(self, rows: NDArray[np.int64]) -> Block:
        """Read rows of one source as one block."""
        found = self.parts(rows)
        if len(found) != 1:
            raise ConfigError(f"The rows are of {len(found)} sources; `parts` reads one block for each.")
        return found[0]
