"""``bf.tl.fit``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.config import Binning, ModelConfig, Perturbation, Reading, TrainConfig
from scbioformers.core import ConfigError, Vocabulary, check_arguments, seed_from, warn
from scbioformers.data import (
    DEFAULT_MASK,
    AnnDataSource,
    MemorySource,
    ObsField,
    best_measured,
    field_codes,
    gene_mask,
    gene_names,
    hash_genes,
    inspect,
    require_counts,
    require_valid,
)
from scbioformers.model import network_sizes
from scbioformers.nn import Transformer, choose_device, computes, use_threads
from scbioformers.results import check_storage, store_model, target
from scbioformers.settings import shows_progress
from scbioformers.tasks.perturbation import fit_perturbation, read_design, require_head
from scbioformers.training import fit_model

logger = logging.getLogger(__name__)


@computes
def fit(
    adata: AnnData,
    *,
    layer: str | None = None,
    mask_var: str | NDArray[np.bool_] | None = DEFAULT_MASK,
    gene_symbols: str | None = None,
    batch_key: str | None = None,
    phenotype_keys: str | Sequence[str] = (),
    binning: Literal["value", "segment"] | Binning = "value",
    config: Literal["small", "no_attention", "paper"] | ModelConfig = "small",
    train: TrainConfig | None = None,
    task: Perturbation | None = None,
    max_epochs: int | None = None,
    n_models: int = 1,
    save_dir: str | Path | None = None,
    allow_non_integer: bool = False,
    key_added: str = "bioformer",
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Fit a BioFormer model to the cells of ``adata``, without labels (paper, section 2).

    All other functions of ``bf.tl`` use the fitted model. A fit takes minutes on a CPU. :func:`scbioformers.pp.check`
    estimates the time.

    Parameters
    ----------
    adata
        AnnData with raw counts, in memory or backed. With ``binning="segment"``, values on any scale are accepted.
    layer
        Layer to read. None, and ``"X"``, read ``adata.X``.
    mask_var
        Column of ``adata.var`` that is True for the genes to model, or a bool array (n_vars,). None selects all genes.
        The default also selects all genes if ``adata.var`` has no column ``"highly_variable"``. The depth of a cell is
        always the sum over all genes.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. The model knows its
        genes by these names. Of several genes with the same name, the one that most cells express is modelled, which is
        logged. A gene without a value in the column keeps its ``var_names``. None uses ``adata.var_names``.
    batch_key
        Column of ``adata.obs`` with the batch. The predicted profile is conditioned on the batch, so the embedding does
        not have to contain it. Other data may have other batches, or no such column: their cells are read as cells of
        the average batch. A column with one category is not used.
    phenotype_keys
        Columns of ``adata.obs`` with phenotypes, such as the condition or the disease. They are input tokens of the
        model, and the embedding keeps the differences that they explain.
    binning
        Binning of the values: ``"value"`` (Eqs. 4 and 5), ``"segment"`` (Eq. 2) or a :class:`~scbioformers.Binning`.
    config
        Architecture of the model: ``"small"``, ``"no_attention"``, ``"paper"`` or a :class:`~scbioformers.ModelConfig`.
    train
        Parameters of the training. By default, ``TrainConfig.paper()`` if ``config="paper"``, else ``TrainConfig()``.
    task
        A :class:`~scbioformers.Perturbation`, for predictions with :func:`scbioformers.tl.perturb`. The network is then
        fitted to the control cells only. After that, the external token of perturbed genes (Eq. 7) is trained on
        control cells that are paired with perturbed cells of the same batch and cell type. Finally, a small head is
        fitted to the observed effects and cross-validated over targets. The effect that the network predicts is one of
        its inputs.
    max_epochs
        Number of passes over the cells. It replaces ``max_epochs`` of ``train``.
    n_models
        Number of ensemble members. Their seeds are ``rng``, ``rng + 1``, ….
    save_dir
        Directory to which the model is saved, instead of ``adata.uns``. Required if the model is larger than 32 MB.
    allow_non_integer
        Accept values that are not integers, such as estimated counts.
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
        If the values are not raw counts and ``binning`` requires counts. The message suggests the next call.
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
    start = time.perf_counter()
    kind = binning if isinstance(binning, Binning) else Binning(kind=binning)
    model_config = config if isinstance(config, ModelConfig) else ModelConfig.preset(config)
    train = train or (TrainConfig.paper() if config == "paper" else TrainConfig())
    if max_epochs is not None:
        train = replace(train, max_epochs=max_epochs)
    if n_models < 1:
        raise ConfigError(f"`n_models` must be at least 1, found {n_models}.")
    device, shown = choose_device(device), shows_progress(progress_bar)
    use_threads(model_config.width)
    adata, cells = _read(adata, layer, mask_var, gene_symbols, kind, batch_key, phenotype_keys, allow_non_integer, copy)
    source, vocabulary, counts = cells.source, cells.vocabulary, cells.reading.counts
    design = None
    if task is not None:
        measured = gene_names(adata, gene_symbols).tolist()
        design = read_design(adata, task, batch_key, vocabulary.feature_names(), measured=measured, counts=counts)
    check_storage(n_models * _n_bytes(model_config, cells), save_dir)
    seed = seed_from(rng)
    fitted = fit_model(
        source if design is None else MemorySource(source.rows(design.controls)),
        vocabulary,
        kind,
        model_config,
        train,
        batch=cells.batch,
        phenotypes=cells.phenotypes,
        reading=cells.reading,
        n_models=n_models,
        seed=seed,
        device=device,
        progress_bar=shown,
    )
    model = fitted.model
    if design is not None:
        model = fit_perturbation(model, source, design, seed=seed, progress_bar=shown)
    history = pd.DataFrame([{"member": i, **row} for i, rows in enumerate(fitted.history) for row in rows])
    params = {
        "layer": cells.reading.layer,
        "mask_var": mask_var if isinstance(mask_var, str) else None,
        "gene_symbols": gene_symbols,
        "batch_key": batch_key,
        "phenotype_keys": [phenotype.name for phenotype in cells.phenotypes],
        "binning": kind.to_dict(),
        "config": model_config.to_dict(),
        "train": train.to_dict(),
        "n_models": n_models,
        "task": None if design is None else dict(require_head(model).task),
        "seed": seed,
    }
    store_model(adata, key_added, model, params, history, save_dir)
    _log_summary(history, time.perf_counter() - start, key_added, perturbs=design is not None)
    return adata if copy else None


@dataclass(frozen=True)
class _Cells:
    """What a fit reads: the cells, over the genes to model, and how they are read."""

    source: AnnDataSource
    vocabulary: Vocabulary
    batch: ObsField | None
    phenotypes: tuple[ObsField, ...]
    reading: Reading


def _read(
    adata: AnnData,
    layer: str | None,
    mask_var: str | NDArray[np.bool_] | None,
    gene_symbols: str | None,
    binning: Binning,
    batch_key: str | None,
    phenotype_keys: str | Sequence[str],
    allow_non_integer: bool,
    copy: bool,
) -> tuple[AnnData, _Cells]:
    """Check the data, and read the cells of the object that the model will be written to."""
    inspection = inspect(adata, layer)
    layer = inspection.layer
    names = gene_names(adata, gene_symbols)
    genes = gene_mask(adata, mask_var)
    if gene_symbols is not None:
        # in a query the best measured gene is read, also if the mask has another one of the same name
        genes = np.isin(names, names[genes]) & best_measured(names, inspection.gene_nnz, gene_symbols)
    if binning.kind == "value":
        require_counts(adata, layer, allow_non_integer=allow_non_integer, modelled=genes, inspection=inspection)
    else:
        require_valid(adata, layer, modelled=genes, inspection=inspection)
    keys = [phenotype_keys] if isinstance(phenotype_keys, str) else list(phenotype_keys)
    if batch_key in keys or len(set(keys)) < len(keys):
        raise ConfigError(
            f"A column is named twice: `batch_key` is {batch_key!r} and `phenotype_keys` is {keys}. Pass each column "
            "once, as `batch_key=` if it is technical, or as one of `phenotype_keys=` if the embedding should keep it."
        )
    adata = target(adata, copy)
    batch = None if batch_key is None else ObsField.register(adata, batch_key)
    if batch is not None and len(batch.categories) == 1:
        logger.info("adata.obs[%r] has one category, so the model is fitted without a batch.", batch_key)
        batch = None
    phenotypes = tuple(ObsField.register(adata, name) for name in keys)
    fields = (*(() if batch is None else (batch,)), *phenotypes)
    source = AnnDataSource(adata, layer=layer, columns=np.flatnonzero(genes), fields=field_codes(fields, adata))
    vocabulary = Vocabulary.from_names(names[genes])
    estimated_counts = allow_non_integer and not inspection.n_negative
    scale = "counts" if estimated_counts else inspection.scale
    reading = Reading(layer, scale, allow_non_integer, gene_symbols, hash_genes(names))
    _warn_of_single_cells(adata, fields)
    return adata, _Cells(source, vocabulary, batch, phenotypes, reading)


def _warn_of_single_cells(adata: AnnData, fields: Sequence[ObsField]) -> None:
    """Warn of categories with one cell, which cannot be told from the cell itself."""
    for field in fields:
        size = np.bincount(field.transfer(adata), minlength=len(field.categories))
        if single := [name for name, n in zip(field.categories, size, strict=True) if n == 1]:
            warn(
                f"{len(single)} of the {len(size)} categories of adata.obs[{field.name!r}] have one cell, such as "
                f"{single[:3]}. The model cannot tell the state of such a cell from its category. Pass a column with "
                "larger groups, or merge these categories."
            )


def _log_summary(history: pd.DataFrame, seconds: float, key: str, *, perturbs: bool) -> None:
    """Say what the fit took and reached, and what to call next."""
    loss = ""
    if "val_loss" in history:
        best = [float(rows["val_loss"].min()) for _, rows in history.groupby("member")]
        loss = f", validation loss {np.mean(best):.3f} nats" + f" (mean of {len(best)} members)" * (len(best) > 1)
    steps = int(history.groupby("member")["step"].max().sum()) if len(history) else 0
    named = "" if key == "bioformer" else f", key={key!r}"
    call = f"bf.tl.perturb(adata, 'all'{named})" if perturbs else f"bf.tl.embed(adata{named})"
    logger.info(
        "Fitted in %.0f s: %d step%s%s. The next call can be `%s`.", seconds, steps, "s" * (steps != 1), loss, call
    )


def _n_bytes(config: ModelConfig, cells: _Cells) -> int:
    """Size of the weights in bytes, without allocating them. The number of bins is not known yet; 100 is assumed."""
    binning = Binning().freeze(mean_depth=1.0, max_bin=99)
    sizes = network_sizes(len(cells.vocabulary), binning, cells.batch, cells.phenotypes, counts=True)
    with torch.device("meta"):
        network = Transformer(config, sizes)
    return sum(p.numel() * p.element_size() for p in network.parameters())
