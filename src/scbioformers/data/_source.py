"""Sources: one way to read blocks of count rows, whatever holds them (memory, h5ad file, zarr, dask)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError

logger = logging.getLogger(__name__)

CHUNK_SIZE = 4096  # rows of one block: some MB of counts, large enough to hide the cost of a read


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of a :class:`Source`, in arrays of their own."""

    start: int
    """Row of the data at which the block starts."""
    counts: sp.csr_matrix
    """float32 CSR matrix (n, n_molecules): sorted indices, no duplicates, no stored zeros."""
    depth: NDArray[np.float64]
    """(n,) sum of each row over *all* columns of the data, modelled or not, in counts."""
    fields: NDArray[np.int32]
    """(n, n_fields) category codes of the registered obs fields."""
    absent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Molecules that the data does not measure: their zeros mean nothing."""

    def take(self, rows: NDArray[np.int64]) -> Block:
        """Those rows, in that order, as a block of their own."""
        return Block(0, self.counts[rows], self.depth[rows], self.fields[rows], self.absent)

    def scaled(self, molecules: NDArray[np.int64], factor: float) -> Block:
        """The same cells, in each of them the count of one molecule (n,) times a factor; -1 for none."""
        counts = self.counts.copy()
        counts.data[counts.indices == np.repeat(molecules, np.diff(counts.indptr))] *= factor
        counts.eliminate_zeros()
        return replace(self, counts=counts)


def concatenate(blocks: Sequence[Block]) -> Block:
    """The cells of several blocks as one."""
    counts = sp.vstack([block.counts for block in blocks], format="csr")
    depth, fields = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("depth", "fields"))
    return Block(0, counts, depth, fields, blocks[0].absent)


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers; anndata 0.13 also lists X among them, under None."""
    return [key for key in adata.layers if key is not None]


def get_matrix(adata: AnnData, layer: str | None = None) -> Any:
    """Return ``adata.X`` or ``adata.layers[layer]`` as it is stored, without copying or converting.

    Raises
    ------
    DataError
        If `adata` is not an AnnData, is a view of a backed one, or its ``X`` is None.
    MissingKeyError
        If there is no such layer.
    """
    if not isinstance(adata, AnnData):
        hint = " Pass one of its modalities, e.g. mdata['rna']." if type(adata).__name__ == "MuData" else ""
        raise DataError(f"Expected an AnnData, found {type(adata).__module__}.{type(adata).__name__}.{hint}")
    if adata.isbacked and adata.is_view:
        raise DataError("This is a view of a backed AnnData, expected one that can be read. Call `.to_memory()` first.")
    layers = layer_names(adata)
    if layer is None:
        if adata.X is None:
            hint = f"pass one of these as `layer=`: {layers}" if layers else "set adata.X to the raw counts"
            raise DataError(f"adata.X is None (and adata.raw is never used silently): {hint}.")
        return adata.X
    if layer not in adata.layers:
        raise MissingKeyError(f"Did not find adata.layers[{layer!r}]. Layers there: {layers}; `layer=None` is adata.X.")
    return adata.layers[layer]


class Source:
    """Rows of counts with their depth and fields, in memory or on disk. The data is never written.

    What is in memory is converted once, when the source is made: to float32 CSR of the modelled molecules. What is on
    disk (backed h5ad, zarr, dask) is read and converted block by block.

    Parameters
    ----------
    adata
        The data: ``X`` or a layer as any dense or sparse matrix of numbers, backed or not.
    layer
        Layer to read; None reads ``X``.
    molecules
        int (n_molecules,): column of each modelled molecule, -1 for one that this data lacks (it reads as zeros).
        None models all columns.
    fields
        int32 (n_obs, n_fields): category codes to hand out with the rows.

    Raises
    ------
    DataError
        If the matrix cannot be read (see :func:`get_matrix`) or does not hold numbers.
    MissingKeyError
        If there is no such layer.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> source = Source(ad.AnnData(np.array([[1.0, 0, 3], [0, 2, 5]])), molecules=np.array([2, -1]))
    >>> block = source.read(0, 2)
    >>> block.counts.toarray().tolist(), block.depth.tolist()
    ([[3.0, 0.0], [5.0, 0.0]], [4.0, 7.0])
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        molecules: ArrayLike | None = None,
        fields: ArrayLike | None = None,
    ) -> None:
        matrix = get_matrix(adata, layer)
        self.n_obs: int = adata.n_obs
        self._columns = None if molecules is None else _check_columns(molecules, adata.n_vars)
        self.n_molecules: int = adata.n_vars if self._columns is None else len(self._columns)
        self.absent = np.flatnonzero(self._columns < 0) if self._columns is not None else np.zeros(0, np.int64)
        self._fields = np.zeros((self.n_obs, 0), np.int32) if fields is None else np.asarray(fields, np.int32)
        if self._fields.ndim != 2 or len(self._fields) != self.n_obs:
            raise ConfigError(f"`fields` must have the shape ({self.n_obs}, n_fields), found {self._fields.shape}.")
        check_numbers(matrix)
        if isinstance(matrix, CSCDataset):
            # rows of a column-major file touch every byte of it: one full read beats one for each block
            logger.info("The backed matrix is stored by columns (CSC): read into memory once.")
            matrix = matrix.to_memory()
        self._stored: Any = None  # set if rows are read from disk
        self._counts: sp.csr_matrix | None = None  # set if everything is in memory
        self._depth: NDArray[np.float64] | None = None
        if sp.issparse(matrix):
            self._counts, self._depth = _convert(matrix, self._columns, self.n_molecules)
        elif isinstance(matrix, np.ndarray):
            # in pieces, since scipy builds the coordinates of all non-zeros of a dense matrix
            starts = range(0, max(self.n_obs, 1), CHUNK_SIZE)
            parts = [_convert(matrix[i : i + CHUNK_SIZE], self._columns, self.n_molecules) for i in starts]
            self._counts = sp.vstack([counts for counts, _ in parts], format="csr")
            self._depth = np.concatenate([depth for _, depth in parts])
        else:
            logger.info(
                "Reading %s in blocks of rows: the file is not written, results stay in memory", type(matrix).__name__
            )
            self._stored = matrix

    def __repr__(self) -> str:
        where = "memory" if self._stored is None else type(self._stored).__name__
        return f"Source({self.n_obs} cells x {self.n_molecules} molecules, {where})"

    @property
    def n_fields(self) -> int:
        """Number of obs fields that come with each row."""
        return int(self._fields.shape[1])

    @property
    def nbytes_estimate(self) -> int:
        """Bytes that all blocks take together: exact in memory, extrapolated from the first block on disk."""
        counts = self._counts if self._counts is not None else self.read(0, CHUNK_SIZE).counts
        size: int = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
        n_read: int = counts.shape[0]
        return size * self.n_obs // max(n_read, 1) + 8 * self.n_obs + int(self._fields.nbytes)

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive, cut at the end of the data)."""
        if not 0 <= start <= stop:
            raise ConfigError(f"Expected 0 <= start <= stop, found start={start}, stop={stop}.")
        start, stop = min(start, self.n_obs), min(stop, self.n_obs)
        if self._counts is None or self._depth is None:
            counts, depth = _convert(self._stored[start:stop], self._columns, self.n_molecules)
        else:
            indptr = self._counts.indptr[start : stop + 1]
            entries = slice(indptr[0], indptr[-1])
            counts = _canonical_csr(
                self._counts.data[entries].copy(),
                self._counts.indices[entries].copy(),
                indptr - indptr[0],
                self.n_molecules,
            )
            depth = self._depth[start:stop].copy()
        return Block(start, counts, depth, self._fields[start:stop].copy(), self.absent)

    def blocks(self, chunk_size: int = CHUNK_SIZE) -> Iterator[Block]:
        """Iterate over all rows in order, `chunk_size` at a time."""
        if chunk_size < 1:
            raise ConfigError(f"`chunk_size` must be at least 1, found {chunk_size}.")
        for start in range(0, self.n_obs, chunk_size):
            yield self.read(start, start + chunk_size)

    def take(self, rows: NDArray[np.int64]) -> Source:
        """Some rows, rising, as a source of their own in memory; their depth stays that of all columns."""
        parts = []
        for block in self.blocks():
            first, last = np.searchsorted(rows, [block.start, block.start + len(block.depth)])
            parts.append(block.take(rows[first:last] - block.start))
        found = copy(self)
        found.n_obs, found._stored, found._fields = len(rows), None, self._fields[rows]
        found._counts = sp.vstack([part.counts for part in parts], format="csr")
        found._depth = np.concatenate([part.depth for part in parts])
        return found


def _check_columns(molecules: ArrayLike, n_vars: int) -> NDArray[np.int64]:
    columns = np.asarray(molecules)
    if columns.ndim != 1 or (columns.size and columns.dtype.kind not in "iu"):
        raise ConfigError(f"`molecules` must be a 1-D integer array, found {columns.dtype} {columns.shape}.")
    if columns.size and not (columns.min() >= -1 and columns.max() < n_vars):
        raise ConfigError(f"`molecules` must lie in -1..{n_vars - 1}, found {columns.min()}..{columns.max()}.")
    return columns.astype(np.int64)


def check_numbers(matrix: Any) -> None:
    """Raise :class:`DataError` unless the dtype of `matrix` is bool, integer or real."""
    dtype = np.dtype(matrix.dtype)
    if dtype.kind not in "biuf":
        raise DataError(f"Expected a matrix of numbers, found dtype {dtype}.")


def to_csr(rows: Any) -> sp.csr_matrix:
    """Wrap or convert rows of any kind as CSR. May share arrays with the input, but never its flags."""
    if hasattr(rows, "compute"):  # dask
        rows = rows.compute()
    if not sp.issparse(rows):
        rows = np.asarray(rows)
        rows = sp.csr_matrix(rows.astype(np.float32) if rows.dtype == np.float16 else rows)  # scipy knows no float16
    full = rows.tocsr()
    return sp.csr_matrix((full.data, full.indices, full.indptr), shape=full.shape)


def canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sort indices, add up duplicates and drop stored zeros, on a copy if there is anything to do."""
    if not matrix.has_canonical_format:
        matrix = matrix.astype(np.float64)  # a copy; in float64 since sums of small integers and bools would overflow
        matrix.sum_duplicates()
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    return matrix


def _convert(
    rows: Any, columns: NDArray[np.int64] | None, n_molecules: int
) -> tuple[sp.csr_matrix, NDArray[np.float64]]:
    """Turn rows of any kind into canonical float32 CSR of the molecules, and the depth of the full rows."""
    full = to_csr(rows)
    depth = _row_sums(full)
    if columns is not None:
        present = np.flatnonzero(columns >= 0)
        part = full[:, columns[present]]
        full = sp.csr_matrix((part.data, present[part.indices], part.indptr), shape=(full.shape[0], n_molecules))
    # again after the cast: float64 values below 1e-45 are zeros in float32
    full = canonical(canonical(full).astype(np.float32, copy=False))
    return _canonical_csr(full.data, full.indices, full.indptr, n_molecules), depth


def _canonical_csr(data: Any, indices: Any, indptr: Any, n_columns: int) -> sp.csr_matrix:
    counts = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
    counts.has_canonical_format = True  # known to hold; spares scipy a pass over the entries
    return counts


def _row_sums(matrix: sp.csr_matrix) -> NDArray[np.float64]:
    """Sum rows in float64 (scipy sums float32 in float32), some rows at a time to keep the cast copy small."""
    sums = np.zeros(matrix.shape[0])
    for start in range(0, matrix.shape[0], CHUNK_SIZE):
        indptr = matrix.indptr[start : start + CHUNK_SIZE + 1]
        filled = np.flatnonzero(np.diff(indptr))
        if len(filled):
            data = matrix.data[indptr[0] : indptr[-1]]
            sums[start + filled] = np.add.reduceat(data, indptr[filled] - indptr[0], dtype=np.float64)
    return sums
