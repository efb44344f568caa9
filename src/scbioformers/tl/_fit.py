"""``bf.tl.fit``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.config import Binning, ModelConfig, Perturbation, TrainConfig
from scbioformers.core import ConfigError, check_arguments, seed_from
from scbioformers.data import (
    DEFAULT_MASK,
    FeatureMap,
    MemorySource,
    gene_names,
    refuse_dicts,
)
from scbioformers.model import BioFormer, network_bytes
from scbioformers.nn import choose_device, computes, use_threads
from scbioformers.results import ModelLike, check_storage, find_model, store_model
from scbioformers.settings import shows_progress
from scbioformers.tasks.perturbation import Design, fit_perturbation, read_design, require_head
from scbioformers.tl._fit_cells import Cells, read_cells, read_cells_for
from scbioformers.tl._fit_modalities import read_modalities, read_modalities_for
from scbioformers.tl._fit_settings import fit_settings, require_encoder
from scbioformers.training import check_checkpoint_dir, fit_model

_log = logging.getLogger(__name__)


@computes
def fit(
    adata: AnnData | MuData,
    *,
    model: ModelLike | None = None,
    modalities: Sequence[str] | None = None,
    layer: str | Mapping[str, Any] | None = None,
    mask_var: str | NDArray[np.bool_] | Mapping[str, Any] | None = DEFAULT_MASK,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    batch_key: str | None = None,
    phenotype_keys: str | Sequence[str] = (),
    external_key: str | Mapping[str, str] | None = None,
    binning: Literal["value", "segment", "quantile"] | Binning | Mapping[str, Any] | None = None,
    config: Literal["small", "no_attention", "decoder", "paper"] | ModelConfig | None = None,
    train: TrainConfig | None = None,
    task: Perturbation | None = None,
    max_epochs: int | None = None,
    n_models: int | None = None,
    save_dir: str | Path | None = None,
    allow_non_integer: bool = False,
    key_added: str = "bioformer",
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Fit a BioFormer model to the cells of ``adata``, without labels (paper, section 2).

    All other functions of ``bf.tl`` use the fitted model. A fit takes minutes on a CPU. :func:`scbioformers.pp.check`
    estimates the time.

    Parameters
    ----------
    adata
        AnnData with raw counts, in memory or backed. With ``binning="segment"`` or
        ``"quantile"``, values on any scale are accepted.
        Or a MuData, whose modalities are read together. A sample may lack some of them.
    model
        A fitted model to start from (fine-tuning): a model, its directory, or an AnnData or MuData with a model, for
        instance from :func:`scbioformers.tl.pretrain`. Its genes keep their meaning. Genes and batches that it does not
        know are appended, in a MuData to each modality. Its binning, masks and configuration are used. A modality that
        the MuData lacks stays in the model; one that the model does not have is an error.
    modalities
        Modalities of the MuData to read. None reads all. ``layer``, ``mask_var``, ``gene_symbols``, ``external_key``
        and ``binning`` are then dicts by modality, such as ``layer={"rna": "counts"}``. A modality that they do not
        name has the default. Each modality has its own bins, depth, masks, tokens and loss. In training, whole
        modalities are hidden at random, so that one can be predicted from another.
    layer
        Layer to read. None, and ``"X"``, read ``adata.X``.
    mask_var
        Column of ``adata.var`` that is True for the genes to model, or a bool array (n_vars,). None selects all genes.
        The default also selects all genes if ``adata.var`` has no column ``"highly_variable"``. The depth of a cell is
        always the sum over all genes. With ``model``, the genes to model besides those of the model; the default then
        selects no others if there is no such column.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. The model knows its
        genes by these names. Of several genes with the same name, the one that most cells express is modelled, which is
        logged. A gene without a value in the column keeps its ``var_names``. None uses ``adata.var_names``.
    feature_map
        Dict or Series from the names of genes in ``adata`` to their names in ``model``, such as orthologues. In a
        MuData, a dict of them by modality, such as ``feature_map={"prot": {"CD3": "CD3E"}}``.
    batch_key
        Column of ``adata.obs`` with the batch. The predicted profile is conditioned on the batch, so the embedding does
        not have to contain it. Other data may have other batches, or no such column: their cells are read as cells of
        the average batch. A column with one category is not used.
    phenotype_keys
        Columns of ``adata.obs`` with phenotypes, such as the condition, the disease or the time. In a MuData also
        columns of a modality, such as ``"rna:age"``. They are tokens of the model, and the predicted profile is
        conditioned on them, so the embedding keeps the differences that they explain. Some are masked in training and
        predicted. A numeric column is a number: between its values, what the model learns is interpolated. Missing
        values are accepted. With ``model``, phenotypes are added to its own. One that it does not have changes its
        predictions a little even without a step of training.
    external_key
        Column of ``adata.var`` with a category of each gene, such as whether it is a transcription factor. The model
        reads it. Each category is an external token (Eq. 6), whose embedding is added to that of the gene.
        NaN means none. The categories are stored with the model, so other data need no such column. With ``model``,
        the column gives the categories of new genes.
    binning
        Binning of the values: ``"value"`` (Eqs. 4 and 5), ``"segment"`` (Eq. 2), ``"quantile"`` (ranks of a feature
        among the training cells, for few features) or a :class:`~scbioformers.Binning`. The default is ``"value"``,
        or that of ``model``. In a MuData, the default is chosen by the values of each modality, which is logged.
    config
        Architecture of the model: ``"small"``, ``"no_attention"``, ``"decoder"``, ``"paper"`` or a
        :class:`~scbioformers.ModelConfig`. The default is ``"small"``, or that of ``model``.
    train
        Parameters of the training. By default, ``TrainConfig.paper()`` if ``config="paper"``,
        ``TrainConfig.fine_tuning()`` with ``model``, else ``TrainConfig()``.
    task
        A :class:`~scbioformers.Perturbation`, for predictions with :func:`scbioformers.tl.perturb`. The network is then
        fitted to the control cells only. After that, the external token of perturbed genes (Eq. 7) is trained on
        control cells that are paired with perturbed cells of the same batch and cell type. Finally, a small head is
        fitted to the observed effects and cross-validated over targets. The effect that the network predicts is one of
        its inputs.
    max_epochs
        Number of passes over the cells. It replaces ``max_epochs`` of ``train``.
    n_models
        Number of ensemble members. The default is 1, or the number of members of ``model``. Their seeds are ``rng``,
        ``rng + 1``, …. With ``model``, each starts from one of its members. If there are more, the others share a start
        and have new output layers. They agree more than independent fits would, so the support of their networks is
        too high; :func:`scbioformers.tl.grn` logs this.
    save_dir
        Directory to which the model is saved, instead of ``adata.uns``. Required if the model is larger than 32 MB.
    allow_non_integer
        Accept values that are not integers, such as estimated counts. With ``model``, they are accepted if it accepts
        them.
    key_added
        Key under which the results are stored (see Returns).
    rng
        Seed, or :class:`numpy.random.Generator`, for all random choices. None draws a new seed. The same seed, number
        of threads and device give the same result, bit by bit.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    callbacks
        Callbacks of Lightning, which the trainer calls besides its own.
    logger
        Logger of Lightning that gets the losses, such as ``lightning.pytorch.loggers.CSVLogger``.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.uns[key_added]["model"]`` : uint8 :class:`~numpy.ndarray`
        The model, as bytes in the safetensors format. Read it with :func:`scbioformers.get.model`. With ``save_dir``,
        ``["model_dir"]`` (str, the directory) is set instead.
    ``adata.uns[key_added]["model_hash"]`` : str
        SHA-256 hash of the model. Every result that is computed with the model contains this hash.
    ``adata.uns[key_added]["history"]`` : :class:`~pandas.DataFrame`
        Mean losses of every epoch, in nats. Read it with :func:`scbioformers.get.history`, which explains the columns.
    ``adata.uns[key_added]["params"]`` : str
        JSON string with the arguments. Read it with :func:`scbioformers.get.params`.

    Raises
    ------
    DataError
        If the values are not raw counts and ``binning`` requires counts, or the column of ``external_key`` has no
        categories. The message suggests the next call.
    ReadError
        If cells cannot be read from their file. If this happens after a validation, the model with the best weights is
        stored first.
    MissingKeyError
        If the layer or a column does not exist.
    ConfigError
        If a parameter is out of range, a column is named twice, the device is not available, or the model is too large
        for ``adata.uns``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.embed(adata)
    >>> adata.obsm["X_bioformer"].shape
    (60, 32)
    """
    check_arguments(fit, locals())
    began = time.perf_counter()
    start = _find_start(adata, model, feature_map)
    several = isinstance(adata, MuData)
    given: dict[str, Any] = {"layer": layer, "mask_var": mask_var, "gene_symbols": gene_symbols}
    given |= {"binning": binning, "external_key": external_key}
    if several:
        _refuse_task(task)
    else:
        refuse_dicts(modalities=modalities, **given)
    chosen = fit_settings(start, config, None if several else given["binning"], train, max_epochs, n_models)
    require_encoder(chosen.config, chosen.binning, several=several, perturbed=task is not None)
    device, shown = choose_device(device), shows_progress(progress_bar)
    use_threads(chosen.config.width)
    check_checkpoint_dir(chosen.train, save_dir)
    seed, of_modalities = seed_from(rng), None
    if isinstance(adata, MuData):
        columns = (batch_key, phenotype_keys)
        if start is None:
            read = read_modalities(adata, modalities, given, *columns, allow_non_integer, copy)
        else:
            read = read_modalities_for(start, adata, modalities, given | {"feature_map": feature_map}, *columns, copy)
        adata, cells, of_modalities = read
        chosen = replace(chosen, binning=cells.binning or chosen.binning)
    elif start is None:
        split = None if task is not None else (chosen.train.validation_fraction, seed)
        options = (chosen.binning, batch_key, phenotype_keys, allow_non_integer, copy, split, given["external_key"])
        adata, cells = read_cells(adata, given["layer"], given["mask_var"], given["gene_symbols"], *options)
    else:
        known: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map}
        known["external_key"] = external_key
        adata, cells = read_cells_for(start, adata, given["mask_var"], batch_key, phenotype_keys, copy, **known)
    design = None if task is None else _read_design(adata, task, batch_key, given["gene_symbols"], cells)
    n_bytes = network_bytes(chosen.config, len(cells.vocabulary), chosen.binning, cells.batch, cells.phenotypes)
    check_storage(chosen.n_models * n_bytes, save_dir)
    fitted = fit_model(
        cells.source if design is None else MemorySource(cells.source.rows(design.controls)),
        cells.vocabulary,
        chosen.binning,
        chosen.config,
        chosen.train,
        start=start,
        batch=cells.batch,
        phenotypes=cells.phenotypes,
        reading=cells.reading,
        others=cells.others,
        external=cells.external,
        n_models=chosen.n_models,
        seed=seed,
        surveyed=cells.surveyed,
        device=device,
        progress_bar=shown,
        callbacks=callbacks,
        lightning_logger=logger,
    )
    result = fitted.model
    if design is not None:
        result = fit_perturbation(result, cells.source, design, seed=seed, progress_bar=shown)
    history = pd.DataFrame([{"member": i, **row} for i, rows in enumerate(fitted.history) for row in rows])
    params = {
        "modalities": of_modalities,
        "layer": None if several else cells.reading.layer,
        "mask_var": mask_var if isinstance(mask_var, str) else None,
        "gene_symbols": None if several else gene_symbols,
        "batch_key": batch_key,
        "external_key": None if several else external_key,
        "phenotype_keys": [phenotype.name for phenotype in cells.phenotypes],
        "started_from": None if start is None else start.hash,
        **chosen.to_dict(),
        "task": None if design is None else dict(require_head(result).task),
        "seed": seed,
    }
    store_model(adata, key_added, result, params, history, save_dir, chosen.train)
    if fitted.unread is not None:
        raise fitted.unread  # now that the model is stored
    _log_summary(history, time.perf_counter() - began, key_added, perturbs=design is not None, several=several)
    return adata if copy else None


def _find_start(adata: Any, model: ModelLike | None, feature_map: FeatureMap | None) -> BioFormer | None:
    """The model that the fit starts from."""
    if feature_map is not None and model is None:
        raise ConfigError(
            f"`feature_map` maps to the names of a model, found {type(feature_map).__name__} without `model`. Pass "
            "`model=` too, or rename adata.var_names."
        )
    return None if model is None else find_model(adata, model)


def _read_design(
    adata: Any, task: Perturbation, batch_key: str | None, gene_symbols: str | None, cells: Cells
) -> Design:
    """Which cells have which perturbation, by the names of the genes of the model."""
    genes, measured = cells.vocabulary.feature_names(), gene_names(adata, gene_symbols).tolist()
    return read_design(adata, task, batch_key, genes, measured=measured, counts=cells.reading.counts)


def _refuse_task(task: Any) -> None:
    """Check that a fit of a MuData has no argument that is for one AnnData."""
    if task is not None:
        raise ConfigError(
            "`task` is for an AnnData, found a MuData. Leave it out, or pass one modality, such as "
            "`bf.tl.fit(mdata['rna'], ...)`."
        )


def _log_summary(history: pd.DataFrame, seconds: float, key: str, *, perturbs: bool, several: bool) -> None:
    """Say what the fit took and reached, and what to call next."""
    loss = ""
    if "val_loss" in history:
        best = [float(rows["val_loss"].min()) for _, rows in history.groupby("member")]
        loss = f", validation loss {np.mean(best):.3f} nats" + f" (mean of {len(best)} members)" * (len(best) > 1)
    steps = int(history.groupby("member")["step"].max().sum()) if len(history) else 0
    named = "" if key == "bioformer" else f", key={key!r}"
    call = (
        f"bf.tl.perturb(adata, 'all'{named})" if perturbs else f"bf.tl.embed({'mdata' if several else 'adata'}{named})"
    )
    _log.info(
        "Fitted in %.0f s: %d step%s%s. The next call can be `%s`.", seconds, steps, "s" * (steps != 1), loss, call
    )
