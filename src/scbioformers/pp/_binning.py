"""``bf.pp.bin_value``, ``bf.pp.bin_segment`` and ``bf.pp.bin_quantile``: bins as layers, for inspection.

A model does not need these layers: :func:`scbioformers.tl.fit` bins the values itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from scbioformers.config import Binning, bin_rows
from scbioformers.core import DataError, QuantileBins, bin_segment_dense, check_arguments
from scbioformers.data import (
    AnnDataSource,
    Block,
    BlockSource,
    get_matrix,
    open_modality,
    require_counts,
    require_valid,
    scan,
)

logger = logging.getLogger(__name__)


def bin_value(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    layer: str | None = None,
    cutoff: int = 8,
    bins_per_doubling: float = 3,
    normalize: bool = True,
    allow_non_integer: bool = False,
    key_added: str = "bin_value",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Bin raw counts by value: small counts are rounded, and large counts are binned on a log2 scale.

    The layer is for inspection. :func:`scbioformers.tl.fit` reads the counts and bins them itself.

    Each cell is first scaled to the mean depth of the non-empty cells. The bin of a scaled count ``x`` is then

    - 0 if ``x`` is 0,
    - 1 if ``x`` is at most 1,
    - ``x``, rounded half up, if ``x`` is at most ``cutoff``,
    - ``cutoff + ceil(bins_per_doubling * log2(x / cutoff))`` if ``x`` is larger than ``cutoff``

    (paper, section 2.1.2, Eqs. 4 and 5). Eq. 5 in the paper lacks the term ``cutoff +``.

    Parameters
    ----------
    adata
        AnnData with raw counts, dense or sparse, in memory or backed, or a MuData.
    modality
        The modality of a MuData to bin. The fields are set in ``mdata[modality]``. None is the only one.
    layer
        Layer to read. None, and ``"X"``, read ``adata.X``.
    cutoff
        Largest scaled count that is rounded, an integer of at least 1 (``c`` in the paper).
    bins_per_doubling
        Number of bins per doubling of the count above ``cutoff`` (``b`` in the paper).
    normalize
        Scale each cell to the mean depth first. False bins the raw counts.
    allow_non_integer
        Accept values that are not integers, such as estimated counts.
    key_added
        Key under which the results are stored (see Returns).
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.layers[key_added]`` : int16 (n_obs, n_vars)
        Bins. They have the sparse format of the counts, or are dense if the counts are dense. They are in memory, also
        if ``adata`` is backed.
    ``adata.uns[key_added]["params"]`` : str
        JSON string with the parameters, the mean depth (in counts) and the highest bin.

    Raises
    ------
    ConfigError
        If a parameter is out of range, or ``modality`` is missing.
    DataError
        If the values are not raw counts, or all values are zero. :func:`bin_segment` accepts log-transformed data.
    MissingKeyError
        If the layer or the modality does not exist.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scbioformers as bf
    >>> adata = ad.AnnData(np.array([[0, 1, 9, 30], [4, 16, 12, 8]], dtype=np.float32))
    >>> bf.pp.bin_value(adata)
    >>> adata.layers["bin_value"]
    array([[ 0,  1,  9, 14],
           [ 4, 11, 10,  8]], dtype=int16)
    """
    check_arguments(bin_value, locals())
    whole, adata = adata, open_modality(adata, modality)
    _check_key(adata, key_added, layer)
    binning = Binning(kind="value", cutoff=cutoff, bins_per_doubling=bins_per_doubling, normalize=normalize)
    name = require_counts(adata, layer, allow_non_integer=allow_non_integer).name
    source = AnnDataSource(adata, layer=layer)
    mean_depth = scan(source).mean_depth
    if mean_depth == 0:
        raise DataError(f"All values of {name} are zero; expected raw counts. Pass the layer with counts as `layer=`.")

    def bins_of(block: Block) -> sp.csr_matrix:
        return _csr_bins(block, bin_rows(binning, block.counts.data, block.counts.indptr, block.depth, mean_depth))

    bins = _bin_blocks(source, get_matrix(adata, layer), bins_of)
    frozen = binning.freeze(mean_depth=mean_depth, max_bin=bins.max())
    return _write(whole, modality, bins, frozen, layer, key_added, copy)


def bin_segment(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    layer: str | None = None,
    n_bins: int = 50,
    key_added: str = "bin_segment",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Bin the values of each cell by rank: the highest value of a cell is in bin ``n_bins``.

    The layer is for inspection. :func:`scbioformers.tl.fit` reads the values and bins them itself.

    A zero is in bin 0. The bin of a non-zero value ``x`` is ``ceil(n_bins * k / n)``. Here ``n`` is the number of
    non-zero values of the cell, and ``k`` is the number of those that are at most ``x`` (paper, section 2.1.2, Eq. 2).
    Equal values have equal bins.

    The bins depend on ranks only, so log-transformed data has the same bins as its counts. If the data has negative
    values (centred data, such as CLR or z-scores), all values are ranked, zeros included, and all bins are at least 1.

    Parameters
    ----------
    adata
        AnnData with counts or other values, dense or sparse, in memory or backed, or a MuData.
    modality
        The modality of a MuData to bin. The fields are set in ``mdata[modality]``. None is the only one.
    layer
        Layer to read. None, and ``"X"``, read ``adata.X``.
    n_bins
        Number of bins (``B`` in the paper). A cell with fewer distinct values has fewer distinct bins.
    key_added
        Key under which the results are stored (see Returns).
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.layers[key_added]`` : int16 (n_obs, n_vars)
        Bins. They have the sparse format of the data, or are dense if the data is dense or centred. They are in memory,
        also if ``adata`` is backed.
    ``adata.uns[key_added]["params"]`` : str
        JSON string with the parameters.

    Raises
    ------
    ConfigError
        If ``n_bins`` is out of range, or ``modality`` is missing.
    DataError
        If the data has NaN or infinite values, no cells, or no genes.
    MissingKeyError
        If the layer or the modality does not exist.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scbioformers as bf
    >>> adata = ad.AnnData(np.array([[0, 1, 1, 2, 5], [3, 0, 0, 0, 0]], dtype=np.float32))
    >>> bf.pp.bin_segment(adata, n_bins=4)
    >>> adata.layers["bin_segment"]
    array([[0, 2, 2, 3, 4],
           [4, 0, 0, 0, 0]], dtype=int16)
    """
    check_arguments(bin_segment, locals())
    whole, adata = adata, open_modality(adata, modality)
    _check_key(adata, key_added, layer)
    binning = Binning(kind="segment", n_bins=n_bins)
    centred = require_valid(adata, layer).kind == "centered"
    source = AnnDataSource(adata, layer=layer)

    def bins_of(block: Block) -> Any:
        if centred:
            return bin_segment_dense(block.counts.toarray(), n_bins)
        return _csr_bins(block, bin_rows(binning, block.counts.data, block.counts.indptr))

    matrix = None if centred else get_matrix(adata, layer)
    return _write(whole, modality, _bin_blocks(source, matrix, bins_of), binning, layer, key_added, copy)


def bin_quantile(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    layer: str | None = None,
    n_bins: int = 50,
    key_added: str = "bin_quantile",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Bin the values of each feature by rank among the cells: the highest value of a feature is in bin ``n_bins``.

    This is for few features, such as proteins, and for values without a natural unit. The layer is for inspection.
    :func:`scbioformers.tl.fit` reads the values and bins them itself.

    A zero is in bin 0. The bin of a non-zero value ``x`` is ``ceil(n_bins * k / n)``. Here ``n`` is the number of
    non-zero values of the feature, and ``k`` is the number of those that are at most ``x``. Equal values have equal
    bins. If the data has negative values (centred data, such as CLR or z-scores), all values are ranked, zeros
    included, and all bins are at least 1. The depth of a cell is not used.

    Parameters
    ----------
    adata
        AnnData with counts or other values, dense or sparse, in memory or backed, or a MuData.
    modality
        The modality of a MuData to bin. The fields are set in ``mdata[modality]``. None is the only one.
    layer
        Layer to read. None, and ``"X"``, read ``adata.X``.
    n_bins
        Number of bins. A feature with fewer distinct values has fewer distinct bins.
    key_added
        Key under which the results are stored (see Returns).
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.layers[key_added]`` : int16 (n_obs, n_vars)
        Bins. They have the sparse format of the data, or are dense if the data is dense or centred. They are in memory,
        also if ``adata`` is backed.
    ``adata.varm[f"{key_added}_edges"]`` : float32 (n_vars, n_bins - 1)
        Edges between the bins of each feature, in the unit of the data. A bin contains its upper edge. -Inf for bins
        below the lowest value. Not set with one bin.
    ``adata.varm[f"{key_added}_means"]`` : float32 (n_vars, n_bins + 1)
        Mean of the values in each bin, from bin 0 on, in the unit of the data. A bin without values has that of the
        next bin.
    ``adata.uns[key_added]["params"]`` : str
        JSON string with the parameters.

    Raises
    ------
    ConfigError
        If ``n_bins`` is out of range, or ``modality`` is missing.
    DataError
        If the data has NaN or infinite values, no cells, or no genes.
    MissingKeyError
        If the layer or the modality does not exist.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scbioformers as bf
    >>> proteins = ad.AnnData(np.array([[310, 0], [12, 45], [95, 45], [880, 3]], dtype=np.float32))
    >>> bf.pp.bin_quantile(proteins, n_bins=4)
    >>> proteins.layers["bin_quantile"]
    array([[3, 0],
           [1, 4],
           [2, 4],
           [4, 2]], dtype=int16)
    """
    check_arguments(bin_quantile, locals())
    whole, adata = adata, open_modality(adata, modality)
    _check_key(adata, key_added, layer, varm=[f"{key_added}_{name}" for name in ("edges", "means")])
    Binning(kind="quantile", n_bins=n_bins)  # checks n_bins before the data are read
    centred = require_valid(adata, layer).kind == "centered"
    source = AnnDataSource(adata, layer=layer)
    values = sp.vstack([block.counts for block in source.blocks()], format="csc")
    columns = (values[:, [i]].toarray().ravel() if centred else values[:, [i]].data for i in range(values.shape[1]))
    quantiles = QuantileBins.fit(columns, n_bins)

    def bins_of(block: Block) -> Any:
        if centred:
            dense = block.counts.toarray()
            features = np.broadcast_to(np.arange(dense.shape[1]), dense.shape)
            return quantiles.apply(dense.ravel(), features.ravel(), rank_zeros=True).reshape(dense.shape)
        return _csr_bins(block, quantiles.apply(block.counts.data, block.counts.indices))

    matrix = None if centred else get_matrix(adata, layer)
    binning = Binning(kind="quantile", n_bins=n_bins, quantiles=quantiles)
    return _write(whole, modality, _bin_blocks(source, matrix, bins_of), binning, layer, key_added, copy)


def _csr_bins(block: Block, bins: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix((bins, block.counts.indices, block.counts.indptr), shape=block.counts.shape)


def _bin_blocks(source: BlockSource, matrix: Any, bins_of: Callable[[Block], Any]) -> Any:
    """Bins of all blocks, in the format of ``matrix`` if it is sparse, else dense (also if it is None)."""
    format_ = getattr(matrix, "format", "csr" if hasattr(matrix, "compute") else None)
    if format_ is None:
        dense = np.empty((source.n_obs, source.n_features), dtype=np.int16)
        for block in source.blocks():
            bins = bins_of(block)
            dense[block.start : block.start + len(block.depth)] = bins.toarray() if sp.issparse(bins) else bins
        return dense
    stacked = sp.vstack([bins_of(block) for block in source.blocks()], format=format_)
    return sp.csr_array(stacked).asformat(format_) if isinstance(matrix, sp.sparray) else stacked


def _check_key(adata: AnnData, key: str, layer: str | None, **others: list[str]) -> None:
    from scbioformers.results import check_key_added  # imported here because it imports torch

    get_matrix(adata, layer)  # first, because it checks the type of `adata`
    check_key_added(adata, key, {"layers": [key], **others}, layer=layer)


def _write(
    adata: AnnData | MuData,
    modality: str | None,
    bins: Any,
    binning: Binning,
    layer: str | None,
    key_added: str,
    copy: bool,
) -> AnnData | MuData | None:
    from scbioformers.results import target, write_bins  # imported here because it imports torch

    written: AnnData | MuData = target(adata, copy)
    write_bins(open_modality(written, modality), key_added, bins, binning, layer)
    logger.info("Added the layer %r with bins from 0 to %d.", key_added, int(bins.max()))
    return written if copy else None
