"""``bf.tl.impute``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, Scale
from scbioformers.model import BioFormer
from scbioformers.results import ModelLike, create_store, imputed_layers, open_query, target, write_imputed
from scbioformers.tasks import (
    N_FOLDS,
    Evidence,
    Plan,
    check_request,
    folds,
    impute_blocks,
    positions,
    posterior_blocks,
)

logger = logging.getLogger(__name__)


def impute(
    adata: AnnData,
    *,
    mask: Any = None,
    genes: Sequence[str] | None = None,
    output: Scale = "counts",
    posterior: bool = False,
    std: bool = False,
    quantiles: Sequence[float] = (),
    out: str | Path | None = None,
    model: ModelLike | None = None,
    layer: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress_bar: bool = True,
    key: str = "bioformer",
    key_added: str = "imputed",
    copy: bool = False,
) -> AnnData | None:
    """Predict expression with a fitted model (paper, section 3.2): denoise what is measured, or fill what is masked.

    Without ``mask`` every value is replaced by its prediction from the *other* genes of the cell: the genes are
    masked a seventh at a time, so that no value takes part in its own prediction, not even through the depth. With
    ``mask`` only the masked positions are masked, together, and predicted; the others keep what was measured (its log1p
    and bins at the depth that they tell of the whole cell, since what is masked is not looked at).
    Genes that were not measured at all are predicted by :func:`scbioformers.get.imputed`.

    Parameters
    ----------
    adata
        The cells that were fitted, or others on the same scale; genes are found by name, in any order.
    mask
        bool (N, n_vars), dense or sparse: positions to fill. What ``adata`` holds there is not looked at.
    genes
        Only predict these.
    output
        ``"counts"`` at the depth of the cell; ``"log1p"`` of the counts at the mean depth of the training cells;
        ``"bins"`` of the model's binning. All are means of the predicted distribution.
    posterior
        Estimate the expression from all that was measured of a cell, the gene itself included: the rate that
        ``<cls>`` decodes, weighed with the count by the gene's dispersion (mean of a gamma distribution). Closer to
        the truth than the prediction from the others alone, and faster, but no evidence of anything: a value takes part
        in its own estimate. For counts or ``log1p``, without ``mask``, ``std`` and ``quantiles``.
    std
        Also write the standard deviation of the predicted distribution (of a new measurement, not of its mean).
    quantiles
        Also write these quantiles of it, each between 0 and 1.
    out
        For data larger than memory: a zarr path, to which an AnnData with the modelled genes and the predictions in
        ``layers`` is written block by block (``anndata.read_zarr`` opens it); then no layer is set.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    layer
        Layer to read; by default the layer that the model was fitted on if it is there, else ``X``.
    batch_size
        Cells read at once, at most.
    device
        Where to compute, ``"cpu"``, ``"cuda"``, ….
    progress_bar
        Show a progress bar.
    key
        Where the model is in ``uns``.
    key_added
        Name of the layers.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.layers[key_added]`` : float32 :class:`~numpy.ndarray` (N, n_vars)
        The predictions, in the unit of ``output``; NaN for genes that were not modelled or not requested.
    ``adata.layers[key_added + "_std"]``, ``adata.layers[key_added + "_q10"]`` : float32 :class:`~numpy.ndarray`
        On request, in the same unit; ``_q10`` is the quantile .1.
    ``adata.uns[key_added]`` : dict
        ``params`` (JSON: hash of the model, ``output``, …) and, without ``mask`` and ``posterior``, ``evidence``: how
        well the measured values were predicted, which :func:`scbioformers.pl.imputation` and
        :func:`scbioformers.pl.calibration` show.

    Raises
    ------
    MissingKeyError
        If there is no model, or a column that the model needs is not there.
    ConfigError
        If ``output``, a quantile, ``batch_size`` or the device is not to be had, or ``out`` is there and no zarr store.
    DataError
        If the mask has another shape or dtype, a gene is unknown, the data is on another scale than the model's, or
        fewer than half of its genes are there. Nothing is written then.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.impute(adata, progress_bar=False)
    >>> adata.layers["imputed"].shape
    (60, 40)
    """
    check_request(output, quantiles, batch_size, device)
    query = open_query(adata, model, layer=layer, key=key)
    _check_output(query.model, output, posterior and (mask is not None or std or bool(quantiles)), posterior)
    wanted = None if genes is None else query.positions(genes)
    chosen = _modelled_mask(mask, adata, query.columns, wanted)
    requested = np.flatnonzero(query.measured) if wanted is None else wanted
    plan: Plan = folds(len(query.columns), N_FOLDS, requested) if chosen is None else positions(chosen)
    n_values = query.model.binnings["rna"].n_values
    evidence = Evidence(np.zeros((n_values, n_values))) if chosen is None and not posterior else None
    adata = target(adata, copy)
    names = imputed_layers(key_added, std, quantiles)
    layers: dict[str, Any]
    if out is None:
        layers = {name: np.full(adata.shape, np.nan, np.float32) for name in names.values()}
        at = query.columns[requested]
    else:
        measured = np.flatnonzero(query.measured)
        layers = create_store(Path(out), adata, query.columns[measured], list(names.values()))
        at = np.searchsorted(measured, requested)
    how: dict[str, Any] = {"scale": output, "batch_size": batch_size, "device": device, "progress_bar": progress_bar}
    if posterior:
        blocks = posterior_blocks(query.model, query.source, **how)
    else:
        how |= {"std": std, "quantiles": quantiles, "keep_measured": chosen is not None, "evidence": evidence}
        blocks = impute_blocks(query.model, query.source, plan, **how)
    for start, values in blocks:
        for name, written in names.items():
            rows = np.full((len(values[name]), layers[written].shape[1]), np.nan, np.float32)
            rows[:, at] = values[name][:, requested]
            layers[written][start : start + len(rows)] = rows
    params = {"model_hash": query.model.hash, "output": output, "layer": query.layer, "masked": chosen is not None}
    params |= {"posterior": posterior, "out": None if out is None else str(out)}
    found = None if evidence is None else evidence.to_dict()
    write_imputed(adata, key_added, layers if out is None else {}, params, found)
    return adata if copy else None


def _check_output(model: BioFormer, output: str, too_much: bool, posterior: bool) -> None:
    """Refuse what this model cannot tell."""
    if model.binnings["rna"].kind == "segment" and output != "bins":
        raise ConfigError(f"This model has segment bins, ranks that do not tell {output!r}: pass `output='bins'`.")
    if posterior and (output == "bins" or too_much or not model.reading.counts):
        raise ConfigError(
            "`posterior=True` estimates the expression behind measured counts: it needs a model of counts and an "
            "output of 'counts' or 'log1p', and goes without `mask`, `std` and `quantiles`."
        )


def _modelled_mask(
    mask: Any, adata: AnnData, columns: NDArray[np.int64], wanted: NDArray[np.int64] | None
) -> sp.csr_matrix | None:
    """The user's mask over the model's genes, restricted to those wanted."""
    if mask is None:
        return None
    array = mask if sp.issparse(mask) else np.asarray(mask)
    if array.shape != adata.shape or array.dtype != np.bool_:
        raise DataError(
            f"`mask` must be bool of the shape of the data {adata.shape}, found {array.dtype} {array.shape}. "
            "True marks what to fill."
        )
    full = sp.csc_matrix(array)
    full.eliminate_zeros()
    keep = columns >= 0
    if wanted is not None:
        keep &= np.isin(np.arange(len(columns)), wanted)
    genes = np.flatnonzero(keep)
    part = full[:, columns[genes]].tocoo()
    chosen = sp.csr_matrix((part.data, (part.row, genes[part.col])), shape=(adata.n_obs, len(columns)))
    if outside := full.nnz - chosen.nnz:
        logger.info("%d masked positions are of genes that are not modelled or not requested, and stay NaN.", outside)
    return chosen
