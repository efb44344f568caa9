"""The object that a result is written to: the data themselves, or a copy in memory."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scbioformers.core import DataError

Data = TypeVar("Data")


def actual(adata: Data) -> Data:
    """Return `adata` itself. A view is first converted to an actual AnnData, in place and without a warning.

    Raises
    ------
    DataError
        If `adata` is a view of a backed AnnData, or a view of a MuData.
    """
    if not getattr(adata, "is_view", False):
        return adata
    if not isinstance(adata, AnnData):
        raise DataError("This is a view of a MuData, which cannot take results. Call `.copy()` on it first.")
    if adata.isbacked:
        raise DataError("This is a view of a backed AnnData, which cannot take results. Call `.to_memory()` first.")
    adata._init_as_actual(adata.copy())  # as in scanpy; anndata has no public method without a warning
    return adata


def target(adata: Data, copy: bool) -> Data:
    """Return the object to write results to: `adata` itself, or a copy (in memory if `adata` is backed).

    Raises
    ------
    DataError
        If `adata` is a view that :func:`actual` refuses, or a backed MuData that is to be copied.
    """
    if not copy:
        return actual(adata)
    data: Any = adata
    if data.isbacked and isinstance(adata, MuData):
        raise DataError(
            "This is a backed MuData, which `copy=True` cannot copy. Leave it out: results stay in memory, and the "
            f"file is not written. Or pass the MuData that `mudata.read_h5mu({str(data.file.filename)!r})` reads."
        )
    if data.isbacked:
        return _load(data)
    with warnings.catch_warnings():
        if isinstance(adata, MuData):
            # of names that modalities share, and mudata 0.3 of its next release: the user has seen both
            warnings.simplefilter("ignore")
        copied: Data = data.copy()
    return copied


def _load(adata: AnnData) -> Any:
    """A copy in memory. ``adata.to_memory()`` of anndata 0.12 closes the file, which is still to be read."""
    slots: dict[str, Any] = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "varm", "obsp", "varp")}
    slots["layers"] = {name: values for name, values in adata.layers.items() if name is not None}  # X in anndata 0.13
    if adata.raw is not None:
        slots["raw"] = {"X": _values(adata.raw.X), "var": adata.raw.var, "varm": dict(adata.raw.varm)}
    loaded = AnnData(obs=adata.obs, var=adata.var, **slots).copy()
    loaded.X = _values(adata.X)
    return loaded


def _values(matrix: Any) -> Any:
    """The values of a matrix on disk."""
    if matrix is None or sp.issparse(matrix) or isinstance(matrix, np.ndarray):
        return matrix
    return matrix.to_memory() if hasattr(matrix, "to_memory") else matrix[()]
