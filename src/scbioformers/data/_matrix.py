"""The matrix of an AnnData in memory or on disk, and the conversion of its rows to canonical CSR."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset

from scbioformers.core import BioformersError, DataError, MissingKeyError, ReadError, not_anndata

# what h5py, zarr, dask and codecs raise
_READ_ERRORS = (OSError, ValueError, RuntimeError, LookupError, TypeError, EOFError, zlib.error)
_MIN_MISSING = 3  # values of a cell; fewer may all be of the first gene, stored as duplicates


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers. anndata 0.13 also lists X as the layer None, which is left out."""
    return [key for key in adata.layers if key is not None]


def layer_key(adata: AnnData, layer: str | None) -> str | None:
    """Return the layer that an argument means: None for ``X``, which is also called ``"X"`` unless a layer is.

    Examples
    --------
    >>> layer_key(AnnData(np.ones((1, 1)), layers={"counts": np.ones((1, 1))}), "X") is None
    True
    """
    return None if layer == "X" and "X" not in getattr(adata, "layers", ()) else layer


def get_matrix(adata: AnnData, layer: str | None = None) -> Any:
    """Return ``adata.X`` or ``adata.layers[layer]`` as it is stored, without copying or converting.

    ``layer="X"`` means ``adata.X``, unless a layer has this name.

    Raises
    ------
    DataError
        If `adata` is not an AnnData, is a view of a backed AnnData, or has an ``X`` that is None.
    MissingKeyError
        If there is no such layer.
    """
    if not isinstance(adata, AnnData):
        raise not_anndata(adata)
    if adata.isbacked and adata.is_view:
        raise DataError("This is a view of a backed AnnData, expected one that can be read. Call `.to_memory()` first.")
    layers, layer = layer_names(adata), layer_key(adata, layer)
    if layer is None:
        if adata.X is None:
            hint = f"Pass one of these layers as `layer=`: {layers}" if layers else "Set adata.X to the raw counts"
            raise DataError(f"adata.X is None (and adata.raw is never used silently), expected a matrix. {hint}.")
        return adata.X
    if layer not in adata.layers:
        raise MissingKeyError(
            f"Did not find adata.layers[{layer!r}]. Existing layers: {layers}. `layer='X'` reads adata.X."
        )
    return adata.layers[layer]


def reads_disk(matrix: Any) -> bool:
    """Whether rows of a matrix are read from disk. A matrix stored by columns is read into memory as a whole."""
    return not (sp.issparse(matrix) or isinstance(matrix, np.ndarray | CSCDataset))


def read_rows(matrix: Any, start: int, stop: int) -> Any:
    """Rows `start` (inclusive) to `stop` (exclusive) of a matrix in memory or on disk.

    Raises
    ------
    ReadError
        If a file is damaged, has fewer rows than before, or has vanished.
    """
    if not reads_disk(matrix):
        return matrix[start:stop]
    try:
        rows = matrix[start:stop]
    except BioformersError:
        raise
    except _READ_ERRORS as error:
        raise _unread(matrix, start, stop, f"{type(error).__name__}: {error}") from error
    folder = getattr(getattr(_stored(matrix), "store", None), "root", None)
    if isinstance(folder, Path) and not folder.exists():  # zarr reads what is missing as zeros
        raise _unread(matrix, start, stop, "the folder does not exist any more")
    if rows.shape[0] != stop - start:
        raise _unread(matrix, start, stop, f"expected {stop - start} rows, found {rows.shape[0]}")
    if sp.issparse(rows) and rows.format == "csr" and (missing := _missing(_stored(matrix), rows)):
        raise _unread(matrix, start, stop, f"a part of the {missing} is missing")
    return rows


def _stored(matrix: Any) -> Any:
    """The array of h5py or zarr, or the group of a sparse matrix."""
    return getattr(matrix, "group", matrix)


def _missing(stored: Any, rows: sp.csr_matrix) -> str | None:
    """Which array of a sparse matrix has cells of zeros alone, as zarr reads a chunk whose file is missing.

    All values of a cell may be stored zeros, so those are missing only if there are fewer files than chunks.
    """
    starts = rows.indptr[:-1][np.diff(rows.indptr) >= _MIN_MISSING]
    if not starts.size:
        return None
    if (np.maximum.reduceat(rows.indices, starts) == 0).any():
        return "indices"
    if rows.data.all() or np.logical_or.reduceat(rows.data != 0, starts).all():
        return None
    values = stored["data"]
    return "values" if isinstance(values, zarr.Array) and values.nchunks_initialized < values.nchunks else None


def _unread(matrix: Any, start: int, stop: int, found: str) -> ReadError:
    stored = _stored(matrix)
    file = getattr(getattr(stored, "file", None), "filename", None) or getattr(stored, "store_path", None)
    return ReadError(
        f"Rows {start} to {stop - 1} of {str(file or type(matrix).__name__)!r} cannot be read ({found}). It is "
        "damaged, or was changed or removed after it was opened. Restore it and open it anew, or leave out these cells."
    )


def check_numbers(matrix: Any) -> None:
    """Raise :class:`DataError` unless the dtype of `matrix` is bool, integer or real."""
    dtype = np.dtype(matrix.dtype)
    if dtype.kind not in "biuf":
        raise DataError(f"Expected a matrix of numbers, found dtype {dtype}. Convert it, or pass another `layer=`.")


def to_csr(rows: Any) -> sp.csr_matrix:
    """Convert rows of any type to CSR. The result may share arrays with the input, but not flags such as sortedness."""
    if hasattr(rows, "compute"):  # dask
        rows = rows.compute()
    if not sp.issparse(rows):
        rows = np.asarray(rows)
        rows = sp.csr_matrix(rows.astype(np.float32) if rows.dtype == np.float16 else rows)  # no float16 in scipy
    full = rows.tocsr()
    return sp.csr_matrix((full.data, full.indices, full.indptr), shape=full.shape)


def canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sort indices, sum duplicates and remove stored zeros. The input is copied if a change is needed."""
    if not matrix.has_canonical_format:
        matrix = matrix.astype(np.float64)  # a copy; sums of small integers or bools would overflow
        matrix.sum_duplicates()
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    return matrix
