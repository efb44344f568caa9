"""Several modalities of the same cells as one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError
from scbioformers.data._block import Block
from scbioformers.data._source import AnnDataSource, BlockSource


class ModalitiesSource(BlockSource):
    """Cells that are measured in one or several modalities. Each modality is read by a source of its own.

    Parameters
    ----------
    sources
        The source of each modality.
    rows
        For each modality, int64 (n_obs,): the row of each cell in its source, -1 if the cell was not measured in it.
    fields
        float32 (n_obs, n_fields): codes of the obs fields, which are those of the cell in all modalities.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> from scbioformers.data import AnnDataSource
    >>> rna, prot = ad.AnnData(np.array([[1.0, 0], [2, 3]])), ad.AnnData(np.array([[7.0]]))
    >>> rows, fields = [np.array([0, 1]), np.array([-1, 0])], np.zeros((2, 0), np.float32)
    >>> block = ModalitiesSource([AnnDataSource(rna), AnnDataSource(prot)], rows, fields).read(0, 2)
    >>> [(each.counts.toarray().tolist(), each.measured.tolist()) for each in block.modalities]
    [([[1.0, 0.0], [2.0, 3.0]], [True, True]), ([[0.0], [7.0]], [False, True])]
    """

    def __init__(
        self, sources: Sequence[BlockSource], rows: Sequence[NDArray[np.int64]], fields: NDArray[np.float32]
    ) -> None:
        self.sources, self._rows, self._fields = tuple(sources), tuple(rows), fields
        self.n_obs, self.n_features = len(fields), self.sources[0].n_features
        if len(self.sources) != len(self._rows) or any(len(each) != self.n_obs for each in self._rows):
            raise ConfigError("Each modality needs a source, and a row for each cell.")

    def __repr__(self) -> str:
        sizes = " + ".join(str(source.n_features) for source in self.sources)
        return f"ModalitiesSource({self.n_obs} cells x {sizes} features)"

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive). `stop` may be beyond the end of the data."""
        start, stop = self._bounds(start, stop)
        fields = self._fields[start:stop]
        blocks = [
            replace(_read(source, rows[start:stop]), start=start, fields=fields.copy())
            for source, rows in zip(self.sources, self._rows, strict=True)
        ]
        return replace(blocks[0], others=tuple(blocks[1:]))


def unmeasured(n_features: int) -> BlockSource:
    """Source of a modality in which no cell was measured: the row of every cell is -1."""
    return AnnDataSource(AnnData(sp.csr_matrix((1, n_features), dtype=np.float32)))


def _read(source: BlockSource, rows: NDArray[np.int64]) -> Block:
    """The given rows in the given order, as a block. Rows of -1 are empty and not measured."""
    first, n = (int(rows[0]) if len(rows) else 0), len(rows)
    if n and first >= 0 and np.array_equal(rows, np.arange(first, first + n)):
        return source.read(first, first + n)
    measured = rows >= 0
    order = np.argsort(rows[measured], kind="stable")
    block = source.rows(rows[measured][order]).take(np.argsort(order, kind="stable"))
    sizes, total = np.zeros(n, np.int64), np.zeros(n)
    sizes[measured], total[measured] = np.diff(block.counts.indptr), block.total
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    counts = sp.csr_matrix((block.counts.data, block.counts.indices, indptr), shape=(n, source.n_features))
    return replace(block, counts=counts, total=total, fields=np.zeros((n, 0), np.float32), measured=measured)
