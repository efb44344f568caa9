"""The matrix of an AnnData, whatever holds it, and rows of it in one canonical form."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scbioformers.core import DataError, MissingKeyError


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
