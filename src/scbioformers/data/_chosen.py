"""Some cells of a source as a source of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scbioformers.data._block import Block
from scbioformers.data._source import BlockSource


class ChosenCells(BlockSource):
    """The given rows of a source, in ascending order. They are read when they are needed.

    Examples
    --------
    >>> import anndata as ad
    >>> from scbioformers.data import AnnDataSource
    >>> cells = ChosenCells(AnnDataSource(ad.AnnData(np.diag([1.0, 2.0, 3.0, 4.0]))), np.array([0, 2, 3]))
    >>> [block.counts.data.tolist() for block in cells.blocks(2)]
    [[1.0, 3.0], [4.0]]
    """

    def __init__(self, source: BlockSource, rows: NDArray[np.int64]) -> None:
        self.n_obs, self.n_features = len(rows), source.n_features
        self._source, self._rows = source, rows

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive). `stop` may be beyond the end of the data."""
        start, stop = self._bounds(start, stop)
        return replace(self._source.rows(self._rows[start:stop]), start=start)
