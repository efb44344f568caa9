"""``bf.tl.impute``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, Names, Scale, check_arguments
from scbioformers.model import BioFormer
from scbioformers.nn import computes
from scbioformers.results import (
    ModelLike,
    check_key_added,
    create_store,
    imputed_layers,
    open_query,
    target,
    write_imputed,
)
from scbioformers.settings import shows_progress
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


@computes
def impute(
    adata: AnnData,
    *,
    mask: ArrayLike | sp.spmatrix | sp.sparray | None = None,
    genes: Names | None = None,
    output: Scale = "counts",
    posterior: bool = False,
    std: bool = False,
    quantiles: Sequence[float] = (),
    out: str | Path | None = None,
    model: ModelLike | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
    key_added: str = "imputed",
    copy: bool = False,
) -> AnnData | None:
    """Predict expression with a fitted model: denoise all values, or fill masked values (paper, section 3.2).

    Without ``mask``, every value is replaced by its prediction from the *other* genes of the cell. The genes are masked
    in seven groups, one group at a time. So a value is not used for its own prediction, also not through the depth of
    the cell.

    With ``mask``, the masked values are masked together and predicted. The other values are kept. If ``output`` is
    ``"log1p"`` or ``"bins"``, the kept values are scaled by an estimated depth of the whole cell. This estimate uses
    only the values that are not masked.

    :func:`scbioformers.get.imputed` predicts genes that were not measured.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data.
    mask
        bool (n_obs, n_vars), dense or sparse. True marks the values to predict. The values of ``adata`` at these
        positions are not used.
    genes
        Genes to predict. By default, all genes of the model that are in ``adata``.
    output
        Unit of the predictions. ``"counts"``: counts at the depth of the cell. ``"log1p"``: ``log1p`` of the counts at
        the mean depth of the training cells. ``"bins"``: bins of the model. All are means of the predicted
        distribution.
    posterior
        Estimate the expression from all measured values of the cell, including the gene itself. The estimate is the
        mean of a gamma distribution: the rate that the model predicts from ``<cls>`` is weighted with the measured
        count by the dispersion of the gene. This is faster, and closer to the true expression, than the prediction from
        the other genes. It cannot be used to evaluate the model, because a value is used for its own estimate. Only for
        ``output="counts"`` or ``"log1p"``, and without ``mask``, ``std`` and ``quantiles``.
    std
        Also store the standard deviation of the predicted distribution. It is that of a new measurement, not the
        standard error of the mean.
    quantiles
        Also store these quantiles of the predicted distribution, each between 0 and 1.
    out
        Path of a zarr store, for data larger than memory. An AnnData with the modelled genes and the predictions in
        ``layers`` is written to it block by block, and no layer is set in ``adata``. ``anndata.read_zarr`` reads it.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    layer
        Layer to read. By default, the layer that the model was fitted on if ``adata`` has it, else ``adata.X``.
        ``"X"`` reads ``adata.X``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. By default, the column
        of the fit if ``adata`` has it, else ``adata.var_names``.
    batch_size
        Maximum number of cells in a batch.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    key
        Key of the model in ``adata.uns``.
    key_added
        Key under which the results are stored (see Returns).
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.layers[key_added]`` : float32 :class:`~numpy.ndarray` (n_obs, n_vars)
        Predictions in the unit of ``output``. NaN for genes that are not modelled or not in ``genes``.
    ``adata.layers[f"{key_added}_std"]``, ``adata.layers[f"{key_added}_q10"]`` : float32 :class:`~numpy.ndarray`
        Standard deviation, and quantiles (``_q10`` is the quantile 0.1), in the unit of ``output``. Only with ``std``
        and ``quantiles``.
    ``adata.uns[key_added]`` : dict
        ``params`` (JSON string with the hash of the model, ``output``, …). Without ``mask`` and ``posterior``, also
        ``evidence``: the accuracy of the predictions of measured values. Read it with
        :func:`scbioformers.get.imputation_evidence`. :func:`scbioformers.pl.imputation` and
        :func:`scbioformers.pl.calibration` show it.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` that the model uses is not found.
    ConfigError
        If ``output``, a quantile or ``batch_size`` is not valid, ``posterior`` cannot be combined with the other
        arguments or the model, the device is not available, or ``out`` exists and is not a zarr store.
    DataError
        If the mask has another shape or dtype, a gene is not a gene of the model or not measured, the values are on
        another scale than the training data, or ``adata`` has too few genes of the model.

    Warns
    -----
    BioformersWarning
        If genes of the model are missing in ``adata``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata)
    >>> adata.layers["imputed"].shape
    (60, 40)
    """
    check_arguments(impute, locals())
    check_request(output, quantiles, batch_size)
    query = open_query(adata, model, layer=layer, gene_symbols=gene_symbols, key=key, device=device)
    _check_output(query.model, output, posterior and (mask is not None or std or bool(quantiles)), posterior)
    wanted = None if genes is None else query.positions(genes)
    chosen = _modelled_mask(mask, adata, query.columns, wanted)
    requested = np.flatnonzero(query.measured) if wanted is None else wanted
    plan: Plan = folds(len(query.columns), N_FOLDS, requested) if chosen is None else positions(chosen)
    n_values = query.model.binnings["rna"].n_values
    evidence = Evidence(np.zeros((n_values, n_values))) if chosen is None and not posterior else None
    names = imputed_layers(key_added, std, quantiles)
    check_key_added(adata, key_added, {"layers": names.values()}, layer=query.layer)
    adata = target(adata, copy)
    layers: dict[str, Any]
    if out is None:
        layers = {name: np.full(adata.shape, np.nan, np.float32) for name in names.values()}
        at = query.columns[requested]
    else:
        measured = np.flatnonzero(query.measured)
        layers = create_store(Path(out), adata, query.columns[measured], list(names.values()))
        at = np.searchsorted(measured, requested)
    options: dict[str, Any] = {"scale": output, "batch_size": batch_size, "progress_bar": shows_progress(progress_bar)}
    if posterior:
        blocks = posterior_blocks(query.model, query.source, **options)
    else:
        options |= {"std": std, "quantiles": quantiles, "keep_measured": chosen is not None, "evidence": evidence}
        blocks = impute_blocks(query.model, query.source, plan, **options)
    for start, values in blocks:
        for name, written in names.items():
            rows = np.full((len(values[name]), layers[written].shape[1]), np.nan, np.float32)
            rows[:, at] = values[name][:, requested]
            layers[written][start : start + len(rows)] = rows
    params = {"model_hash": query.model.hash, "output": output, "layer": query.layer, "masked": chosen is not None}
    params |= {"posterior": posterior, "out": None if out is None else str(out)}
    accuracy = None if evidence is None else evidence.to_dict()
    write_imputed(adata, key_added, layers if out is None else {}, params, accuracy)
    return adata if copy else None


def _check_output(model: BioFormer, output: str, conflicting: bool, posterior: bool) -> None:
    """Check that the model supports the output, and that ``posterior`` is not combined with conflicting arguments."""
    if model.binnings["rna"].kind == "segment" and output != "bins":
        raise ConfigError(
            f"The model has segment bins, which are ranks, so it cannot predict {output!r}. Pass `output='bins'`, or "
            "fit a model with `binning='value'`."
        )
    if posterior and (output == "bins" or conflicting or not model.reading.counts):
        raise ConfigError(
            "`posterior=True` requires a model that was fitted to counts, and `output` 'counts' or 'log1p'. It cannot "
            "be combined with `mask`, `std` or `quantiles`."
        )


def _modelled_mask(
    mask: Any, adata: AnnData, columns: NDArray[np.int64], wanted: NDArray[np.int64] | None
) -> sp.csr_matrix | None:
    """The mask in the order of the genes of the model, restricted to the requested genes."""
    if mask is None:
        return None
    array = mask if sp.issparse(mask) else np.asarray(mask)
    if array.shape != adata.shape or array.dtype != np.bool_:
        raise DataError(
            f"`mask` must be a bool array of the shape of the data {adata.shape}, found {array.dtype} {array.shape}. "
            "True marks the values to predict."
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
        logger.info("%d masked values are in genes that are not modelled or not requested. They are NaN.", outside)
    return chosen
