"""Masked values: data in which they are never looked at, not even if they are NaN or negative."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError
from scbioformers.data._block import Block
from scbioformers.data._matrix import canonical, get_matrix, layer_key, layer_names, to_csr
from scbioformers.data._source import AnnDataSource, BlockSource

_CHUNK_CELLS = 1024  # rows whose mask is converted to a dense array at a time


def read_mask(mask: Any, adata: AnnData) -> sp.csr_matrix:
    """Convert a mask to a bool CSR matrix (n_obs, n_vars) without stored False.

    Raises
    ------
    DataError
        If the shape, the type, or the names of a data frame are not those of the data.
    """
    if isinstance(mask, pd.DataFrame) and mask.shape == adata.shape:
        names = (("rows", mask.index, adata.obs_names), ("columns", mask.columns, adata.var_names))
        for axis, found, expected in names:
            if list(found.astype(str)) != list(expected.astype(str)):
                raise DataError(
                    f"The {axis} of `mask` have other names than the data, or another order. Pass "
                    "`mask=mask.loc[adata.obs_names, adata.var_names]`."
                )
    array = mask if sp.issparse(mask) else np.asarray(mask)
    if array.shape != adata.shape or array.dtype != np.bool_:
        raise DataError(
            f"`mask` must be a bool array of the shape of the data {adata.shape}, found {array.dtype} {array.shape}. "
            "True marks the values to predict."
        )
    read = sp.csr_matrix(array, copy=sp.issparse(mask))
    read.sum_duplicates()
    read.eliminate_zeros()
    return read


def hide(adata: AnnData, layer: str | None, hidden: sp.csr_matrix) -> AnnData:
    """Copy of the data in which the values of one matrix are 0 at the hidden positions. Data on disk are read."""
    matrix, layer = get_matrix(adata, layer), layer_key(adata, layer)
    if sp.issparse(matrix) or hasattr(matrix, "to_memory"):
        matrix = (matrix.to_memory() if hasattr(matrix, "to_memory") else matrix).tocsr()
    parts = []
    for start in range(0, max(adata.n_obs, 1), _CHUNK_CELLS):
        # as stored, because duplicates are added up only after they are hidden: NaN and -1 would spread
        rows = to_csr(matrix[start : start + _CHUNK_CELLS])
        cell = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        kept = ~hidden[start : start + _CHUNK_CELLS].toarray()[cell, rows.indices]
        indptr = np.concatenate(([0], np.cumsum(np.bincount(cell[kept], minlength=rows.shape[0]))))
        parts.append(canonical(sp.csr_matrix((rows.data[kept], rows.indices[kept], indptr), shape=rows.shape)))
    visible = sp.vstack(parts, format="csr")
    others: dict[str, Any] = {} if adata.isbacked else {name: adata.layers[name] for name in layer_names(adata)}
    if layer is None:
        return AnnData(visible, obs=adata.obs, var=adata.var, layers=others)
    return AnnData(None if adata.isbacked else adata.X, obs=adata.obs, var=adata.var, layers=others | {layer: visible})


class HiddenSource(BlockSource):
    """Cells whose depth is corrected for hidden values of features that are not modelled.

    The model corrects the depth for hidden values of its own features. The counts of the other features that are
    visible in a cell are divided by the share of the mean counts of these features that is visible in it. These means
    are those of the cells in which a feature is visible.

    Parameters
    ----------
    source
        The cells, read from data in which the hidden values are 0.
    others
        The same cells, over the features that are not modelled.
    hidden
        bool (n_obs, n_others), the hidden positions of these features.
    """

    def __init__(self, source: BlockSource, others: AnnDataSource, hidden: sp.csr_matrix) -> None:
        self.n_obs, self.n_features = source.n_obs, source.n_features
        self._source = source
        counts, visible = np.zeros(others.n_features), np.zeros(others.n_features)
        for block in others.blocks():
            depth = block.depth
            counts += np.asarray(block.counts.sum(axis=0)).ravel()
            rows = hidden[block.start : block.start + len(depth)]
            visible += depth.sum() - rows.T @ depth
        share = np.divide(counts, visible, out=np.zeros_like(counts), where=visible > 0)
        lost = np.asarray(hidden @ share).ravel() / max(float(share.sum()), 1e-300)
        self._factor: NDArray[np.float64] = 1 / np.maximum(1 - lost, 1e-3)

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive). `stop` may be beyond the end of the data."""
        block = self._source.read(start, stop)
        modelled = np.asarray(block.counts.sum(axis=1, dtype=np.float64)).ravel()
        factor = self._factor[start : start + len(modelled)]
        return replace(block, total=modelled + np.maximum(block.total - modelled, 0) * factor)
