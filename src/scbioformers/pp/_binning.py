"""Bins as layers: to look at, or to hand their parameters on to a model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scbioformers.config import Binning, bin_rows
from scbioformers.core import DataError, bin_segment_dense
from scbioformers.data import AnnDataSource, Block, BlockSource, get_matrix, require_counts, require_valid, scan

logger = logging.getLogger(__name__)


def bin_value(
    adata: AnnData,
    *,
    layer: str | None = None,
    cutoff: int = 8,
    bins_per_doubling: float = 3,
    normalize: bool = True,
    allow_non_integer: bool = False,
    key_added: str = "bin_value",
    copy: bool = False,
) -> AnnData | None:
    """Bin raw counts by value: small counts stay as they are, large ones are coarsened on a log2 scale.

    Each cell is scaled to the mean depth of the non-empty cells. Then zero stays 0, counts up to 1 become 1, counts up
    to `cutoff` are rounded half up, and above it the bin is ``cutoff + ceil(bins_per_doubling * log2(count / cutoff))``
    (paper, section 2.1.2, Eqs. 4 and 5, with the ``+ cutoff`` that Eq. 5 drops).

    Parameters
    ----------
    adata
        Annotated data with raw counts, dense or sparse, in memory or backed.
    layer
        Layer with the counts; `None` reads ``adata.X``.
    cutoff
        Normalised count up to which bins are rounded counts, an integer of at least 1 (`c` of the paper).
    bins_per_doubling
        Number of bins per doubling of the count above the cutoff (`b` of the paper).
    normalize
        Scale each cell to the mean depth first. `False` bins the raw counts.
    allow_non_integer
        Accept values that are not integers, such as estimated counts.
    key_added
        Name of the layer and of the entry in ``adata.uns``.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets the following fields:

    `adata.layers[key_added]` : int16 (n_obs, n_vars)
        Bins, sparse if the counts are sparse (in the same format), else dense. In memory also if `adata` is backed.
    `adata.uns[key_added]["params"]` : str
        JSON string of the parameters, with the mean depth (in counts) and the highest bin.

    Raises
    ------
    ConfigError
        If a parameter is out of range.
    DataError
        If the data is not raw counts, such as log-transformed data (:func:`bin_segment` takes it), or all zero.
    MissingKeyError
        If there is no such layer.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scbioformers as bf
    >>> adata = ad.AnnData(np.array([[0, 1, 9, 30], [4, 16, 12, 8]], dtype=np.float32))
    >>> bf.pp.bin_value(adata)
    >>> adata.layers["bin_value"]
    array([[ 0,  1,  9, 14],
           [ 4, 11, 10,  8]], dtype=int16)
    """
    binning = Binning(kind="value", cutoff=cutoff, bins_per_doubling=bins_per_doubling, normalize=normalize)
    name = require_counts(adata, layer, allow_non_integer=allow_non_integer).name
    source = AnnDataSource(adata, layer=layer)
    mean_depth = scan(source).mean_depth
    if mean_depth == 0:
        raise DataError(f"{name} is zero everywhere, expected raw counts. Is this the right layer?")

    def bins_of(block: Block) -> sp.csr_matrix:
        return _csr_bins(block, bin_rows(binning, block.counts.data, block.counts.indptr, block.depth, mean_depth))

    bins = _bin_blocks(source, get_matrix(adata, layer), bins_of)
    return _write(adata, bins, binning.freeze(mean_depth=mean_depth, max_bin=bins.max()), layer, key_added, copy)


def bin_segment(
    adata: AnnData,
    *,
    layer: str | None = None,
    n_bins: int = 50,
    key_added: str = "bin_segment",
    copy: bool = False,
) -> AnnData | None:
    """Bin by rank within each cell: the highest value of every cell gets the bin `n_bins`, ties get equal bins.

    Over the non-zero values of a cell the bin of x is ``ceil(n_bins * #{values <= x} / #{values})``; zero stays 0
    (paper, section 2.1.2, Eq. 2). Only ranks count, so log-transformed data will do as well. In centred data (with
    negative values, such as CLR or z-scores) zero is not special: all values are ranked and get bins from 1.

    Parameters
    ----------
    adata
        Annotated data, dense or sparse, in memory or backed.
    layer
        Layer to bin; `None` reads ``adata.X``.
    n_bins
        Number of bins (`B` of the paper). A cell with fewer distinct values has fewer distinct bins.
    key_added
        Name of the layer and of the entry in ``adata.uns``.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if ``copy=True``. Sets the following fields:

    `adata.layers[key_added]` : int16 (n_obs, n_vars)
        Bins, sparse if the data is sparse (in the same format) and not centred, else dense. In memory also if `adata`
        is backed.
    `adata.uns[key_added]["params"]` : str
        JSON string of the parameters.

    Raises
    ------
    ConfigError
        If `n_bins` is out of range.
    DataError
        If the data has NaN or infinite values, no cells or no genes.
    MissingKeyError
        If there is no such layer.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scbioformers as bf
    >>> adata = ad.AnnData(np.array([[0, 1, 1, 2, 5], [3, 0, 0, 0, 0]], dtype=np.float32))
    >>> bf.pp.bin_segment(adata, n_bins=4)
    >>> adata.layers["bin_segment"]
    array([[0, 2, 2, 3, 4],
           [4, 0, 0, 0, 0]], dtype=int16)
    """
    binning = Binning(kind="segment", n_bins=n_bins)
    centred = require_valid(adata, layer).kind == "centered"
    source = AnnDataSource(adata, layer=layer)

    def bins_of(block: Block) -> Any:
        if centred:
            return bin_segment_dense(block.counts.toarray(), n_bins)
        return _csr_bins(block, bin_rows(binning, block.counts.data, block.counts.indptr))

    matrix = None if centred else get_matrix(adata, layer)
    return _write(adata, _bin_blocks(source, matrix, bins_of), binning, layer, key_added, copy)


def _csr_bins(block: Block, bins: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix((bins, block.counts.indices, block.counts.indptr), shape=block.counts.shape)


def _bin_blocks(source: BlockSource, matrix: Any, bins_of: Callable[[Block], Any]) -> Any:
    """Bins of all blocks, in the container of `matrix`: sparse in its format, or dense if it is dense or None."""
    format_ = getattr(matrix, "format", "csr" if hasattr(matrix, "compute") else None)
    if format_ is None:
        dense = np.empty((source.n_obs, source.n_features), dtype=np.int16)
        for block in source.blocks():
            bins = bins_of(block)
            dense[block.start : block.start + len(block.depth)] = bins.toarray() if sp.issparse(bins) else bins
        return dense
    stacked = sp.vstack([bins_of(block) for block in source.blocks()], format=format_)
    return sp.csr_array(stacked).asformat(format_) if isinstance(matrix, sp.sparray) else stacked


def _write(
    adata: AnnData, bins: Any, binning: Binning, layer: str | None, key_added: str, copy: bool
) -> AnnData | None:
    from scbioformers.results import target, write_bins  # late: it knows models, and so loads torch

    written = target(adata, copy)
    write_bins(written, key_added, bins, binning, layer)
    logger.info("Wrote the layer %r: bins up to %d.", key_added, int(bins.max()))
    return written if copy else None
