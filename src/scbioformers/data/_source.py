"""Sources, which read blocks of rows from memory, h5ad files, zarr or dask with the same methods."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError
from scbioformers.data._block import Block, concatenate
from scbioformers.data._depth import TOTALS, DepthRule
from scbioformers.data._matrix import canonical, check_numbers, get_matrix, read_rows, to_csr

logger = logging.getLogger(__name__)

CHUNK_SIZE = 4096  # rows per block: a few MB of counts, so the overhead of a read is small
SOME_CHUNKS = 16  # blocks from which a median over many cells is taken


class BlockSource(Protocol):
    """Cells that are read in blocks of rows. The data are never changed.

    A subclass must define ``n_obs``, ``n_features`` and ``read``. The other methods use these.
    """

    n_obs: int
    """Number of cells, N."""
    n_features: int
    """Number of modelled features, M. If there are several modalities, those of the first one."""

    @property
    def starts(self) -> tuple[int, ...]:
        """First row of each data set in the source, and the number of rows.

        A block never has cells of two data sets, because they measure different features.
        """
        return (0, self.n_obs)

    @abstractmethod
    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive). `stop` may be beyond the end of the data."""
        ...

    def blocks(self, chunk_size: int = CHUNK_SIZE) -> Iterator[Block]:
        """Iterate over all rows in order, `chunk_size` at a time."""
        if chunk_size < 1:
            raise ConfigError(f"`chunk_size` must be at least 1, found {chunk_size}.")
        for start in range(0, self.n_obs, chunk_size):
            yield self.read(start, start + chunk_size)

    def some_blocks(self) -> Iterator[Block]:
        """Iterate over all rows if there are at most 65,536, else over 16 ranges of 4,096 in equal distances."""
        if self.n_obs <= SOME_CHUNKS * CHUNK_SIZE:
            yield from self.blocks()
            return
        for start in np.linspace(0, self.n_obs - CHUNK_SIZE, SOME_CHUNKS).astype(int).tolist():
            yield self.read(start, start + CHUNK_SIZE)

    def rows(self, rows: NDArray[np.int64]) -> Block:
        """Read the given rows, which must be in ascending order, as one block."""
        edges = [*range(0, self.n_obs, CHUNK_SIZE), self.n_obs]
        parts = []
        for first, last in pairwise(np.searchsorted(rows, edges)):
            if first < last:
                start = int(rows[first])
                parts.append(self.read(start, int(rows[last - 1]) + 1).take(rows[first:last] - start))
        return concatenate(parts or [self.read(0, 1).take(rows)])

    def parts(self, rows: NDArray[np.int64]) -> list[Block]:
        """Read the given rows, which must be in ascending order, as one block for each data set that has any."""
        return [self.rows(rows)]

    def _bounds(self, start: int, stop: int) -> tuple[int, int]:
        if not 0 <= start <= stop:
            raise ConfigError(f"Rows must satisfy 0 <= start <= stop, found start={start}, stop={stop}.")
        return min(start, self.n_obs), min(stop, self.n_obs)


class MemorySource(BlockSource):
    """The cells of one block as a source.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> source = AnnDataSource(ad.AnnData(np.array([[1.0, 0, 3], [0, 2, 5], [4, 0, 0]])))
    >>> MemorySource(source.rows(np.array([0, 2]))).read(1, 2).counts.toarray().tolist()
    [[4.0, 0.0, 0.0]]
    """

    def __init__(self, block: Block) -> None:
        self.n_obs, self.n_features = block.counts.shape
        self._block = block

    def __repr__(self) -> str:
        return f"MemorySource({self.n_obs} cells x {self.n_features} features)"

    def read(self, start: int, stop: int) -> Block:
        """Copy rows `start` (inclusive) to `stop` (exclusive). `stop` may be beyond the end of the data."""
        start, stop = self._bounds(start, stop)
        whole = self._block
        indptr = whole.counts.indptr[start : stop + 1]
        entries = slice(indptr[0], indptr[-1])
        counts = _canonical_csr(
            whole.counts.data[entries].copy(),
            whole.counts.indices[entries].copy(),
            indptr - indptr[0],
            self.n_features,
        )
        return replace(
            whole,
            start=start,
            counts=counts,
            total=whole.total[start:stop].copy(),
            fields=whole.fields[start:stop].copy(),
            measured=whole.measured[start:stop].copy(),
            others=tuple(MemorySource(other).read(start, stop) for other in whole.others),
        )


class AnnDataSource(BlockSource):
    """Rows of an AnnData with their depth and fields, in memory or on disk.

    Data in memory are converted to a float32 CSR matrix of the modelled features once, when the source is created.
    Data on disk (backed h5ad, zarr, dask) are read and converted block by block.

    Parameters
    ----------
    adata
        The data. ``X`` or the layer may be any dense or sparse matrix of numbers, backed or not.
    layer
        Layer to read. None reads ``X``.
    columns
        int (n_features,): column of each modelled feature. It is -1 for a feature that is not measured, whose values
        are read as zeros. None uses all columns.
    fields
        float32 (n_obs, n_fields): category codes that are returned with the rows.
    rule
        How the depth of a cell follows from its counts. By default it is the sum over all columns.

    Raises
    ------
    DataError
        If the matrix cannot be read (see :func:`get_matrix`) or does not hold numbers.
    MissingKeyError
        If there is no such layer.
    ReadError
        When rows are read, if their file is damaged, was changed or has vanished.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> source = AnnDataSource(ad.AnnData(np.array([[1.0, 0, 3], [0, 2, 5]])), columns=np.array([2, -1]))
    >>> block = source.read(0, 2)
    >>> block.counts.toarray().tolist(), block.depth.tolist(), block.present.tolist()
    ([[3.0, 0.0], [5.0, 0.0]], [4.0, 7.0], [True, False])
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        columns: ArrayLike | None = None,
        fields: ArrayLike | None = None,
        rule: DepthRule = TOTALS,
    ) -> None:
        matrix = get_matrix(adata, layer)
        self.n_obs = adata.n_obs
        self._columns = None if columns is None else _check_columns(columns, adata.n_vars)
        self.n_features = adata.n_vars if self._columns is None else len(self._columns)
        self.present = np.ones(self.n_features, bool) if self._columns is None else self._columns >= 0
        self.rule = rule
        self._fields = np.zeros((self.n_obs, 0), np.float32) if fields is None else np.asarray(fields, np.float32)
        if self._fields.ndim != 2 or len(self._fields) != self.n_obs:
            raise ConfigError(f"`fields` must have the shape ({self.n_obs}, n_fields), found {self._fields.shape}.")
        check_numbers(matrix)
        if isinstance(matrix, CSCDataset):
            # to read rows of a CSC file, the whole file must be read
            logger.info("The backed matrix is stored by columns (CSC), so it is read into memory once.")
            matrix = matrix.to_memory()
        self._stored: Any = None  # the matrix, if rows are read from disk
        self._memory: MemorySource | None = None  # the converted cells, if they are in memory
        if sp.issparse(matrix):
            self._memory = self._convert_all([matrix])
        elif isinstance(matrix, np.ndarray):
            # in chunks, because scipy creates the coordinates of all non-zeros of a dense matrix
            self._memory = self._convert_all(
                [matrix[i : i + CHUNK_SIZE] for i in range(0, max(self.n_obs, 1), CHUNK_SIZE)]
            )
        else:
            self._stored = matrix

    def _convert_all(self, parts: Sequence[Any]) -> MemorySource:
        converted = [self._convert(part) for part in parts]
        counts = converted[0][0] if len(parts) == 1 else sp.vstack([counts for counts, _ in converted], format="csr")
        total = np.concatenate([total for _, total in converted])
        return MemorySource(Block(0, counts, total, self._fields, self.present, self.rule))

    def __repr__(self) -> str:
        where = "memory" if self._stored is None else type(self._stored).__name__
        return f"AnnDataSource({self.n_obs} cells x {self.n_features} features, {where})"

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive). `stop` may be beyond the end of the data."""
        if self._memory is not None:
            return self._memory.read(start, stop)
        start, stop = self._bounds(start, stop)
        return self.block(start, read_rows(self._stored, start, stop))

    @property
    def on_disk(self) -> bool:
        """Whether rows are read from disk."""
        return self._memory is None

    def block(self, start: int, rows: Any) -> Block:
        """The block of rows that were read from the matrix, from row `start` on."""
        counts, total = self._convert(rows)
        return Block(start, counts, total, self._fields[start : start + len(total)].copy(), self.present, self.rule)

    def _convert(self, rows: Any) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
        """Convert rows of any type to canonical float32 CSR of the features, and compute the total of each row."""
        full = to_csr(rows)
        total = _row_sums(full)
        if self._columns is not None:
            present = np.flatnonzero(self._columns >= 0)
            part = full[:, self._columns[present]]
            full = sp.csr_matrix((part.data, present[part.indices], part.indptr), (full.shape[0], self.n_features))
        if self.rule.modelled_only:
            total = _row_sums(full)
        # repeated after the cast, because float64 values below 1e-45 become zeros in float32
        full = canonical(canonical(full).astype(np.float32, copy=False))
        return _canonical_csr(full.data, full.indices, full.indptr, self.n_features), total


def _check_columns(given: ArrayLike, n_vars: int) -> NDArray[np.int64]:
    columns = np.asarray(given)
    if columns.ndim != 1 or (columns.size and columns.dtype.kind not in "iu"):
        raise ConfigError(f"`columns` must be a 1-D integer array, found {columns.dtype} {columns.shape}.")
    if columns.size and not (columns.min() >= -1 and columns.max() < n_vars):
        raise ConfigError(f"`columns` must lie in -1..{n_vars - 1}, found {columns.min()}..{columns.max()}.")
    return columns.astype(np.int64)


def _canonical_csr(data: Any, indices: Any, indptr: Any, n_columns: int) -> sp.csr_matrix:
    counts = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
    counts.has_canonical_format = True  # already checked, so scipy need not check it again
    return counts


def _row_sums(matrix: sp.csr_matrix) -> NDArray[np.float64]:
    """Sum rows in float64, in chunks to save memory. scipy would sum float32 values in float32."""
    sums = np.zeros(matrix.shape[0])
    for start in range(0, matrix.shape[0], CHUNK_SIZE):
        indptr = matrix.indptr[start : start + CHUNK_SIZE + 1]
        filled = np.flatnonzero(np.diff(indptr))
        if len(filled):
            data = matrix.data[indptr[0] : indptr[-1]]
            sums[start + filled] = np.add.reduceat(data, indptr[filled] - indptr[0], dtype=np.float64)
    return sums
