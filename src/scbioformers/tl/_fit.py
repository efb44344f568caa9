"""``bf.tl.fit``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.config import Binning, ModelConfig, Perturbation, Reading, TrainConfig
from scbioformers.core import ConfigError, Vocabulary, seed_from
from scbioformers.data import (
    DEFAULT_MASK,
    AnnDataSource,
    MemorySource,
    ObsField,
    field_codes,
    gene_mask,
    inspect,
    require_counts,
    require_valid,
)
from scbioformers.nn import Sizes, Transformer, require_device
from scbioformers.results import check_size, store_model, target
from scbioformers.tasks.perturbation import fit_perturbation, read_design, require_head
from scbioformers.training import fit_model

logger = logging.getLogger(__name__)


def fit(
    adata: AnnData,
    *,
    layer: str | None = None,
    mask_var: str | NDArray[np.bool_] | None = DEFAULT_MASK,
    batch_key: str | None = None,
    obs_tokens: Sequence[str] = (),
    binning: str | Binning = "value",
    config: str | ModelConfig = "small",
    train: TrainConfig | None = None,
    task: Perturbation | None = None,
    max_epochs: int | None = None,
    n_models: int = 1,
    save_dir: str | Path | None = None,
    allow_non_integer: bool = False,
    key_added: str = "bioformer",
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Fit a BioFormer to the cells of ``adata``, without labels (paper, section 2).

    One fit serves every other verb. It takes minutes on a CPU; :func:`scbioformers.pp.check` says how many.

    Parameters
    ----------
    adata
        N cells x G genes. Raw counts; with ``binning="segment"`` any scale. In memory or backed.
    layer
        Layer that holds the counts; None reads ``X``.
    mask_var
        Column of ``adata.var`` with the genes to model, or the bools. By default ``"highly_variable"`` if it is there,
        else all. The depth of a cell is always taken from all genes.
    batch_key
        Column of ``adata.obs``: the profile is predicted given the batch, so that the embedding need not hold it.
    obs_tokens
        Further columns of ``adata.obs`` to be read as tokens of the cell.
    binning
        ``"value"``, ``"segment"`` or a :class:`~scbioformers.Binning` (Eqs. 2, 4 and 5).
    config
        ``"small"``, ``"paper"`` or a :class:`~scbioformers.ModelConfig`.
    train
        Length, pace, masks and devices of the training; by default those of ``config="paper"`` or of the small model.
    task
        A :class:`~scbioformers.Perturbation`: the network is fitted to the control cells alone; then the external token
        that a perturbed gene carries (Eq. 7) is trained on control cells paired with perturbed cells of the same
        batch and cell type. What the network says is one piece of evidence for a light head, fitted to the effects and
        cross-validated over targets; see :func:`scbioformers.tl.perturb`.
    max_epochs
        Passes over the cells; a shortcut to ``TrainConfig(max_epochs=...)``.
    n_models
        Members of an ensemble, seeded ``rng``, ``rng + 1``, ….
    save_dir
        Write the model to this directory instead of into ``adata.uns``; needed above 32 MB.
    allow_non_integer
        Take values that are not integers as counts.
    key_added
        Slot in ``adata.uns``.
    rng
        Seed or generator. Same seed, threads and device: the same bits.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.uns[key_added]["model"]`` : uint8 :class:`~numpy.ndarray`
        The model, as safetensors bytes (or ``["model_dir"]``: str, its directory).
    ``adata.uns[key_added]["model_hash"]`` : str
        SHA-256 of the model; every result records it.
    ``adata.uns[key_added]["history"]`` : :class:`~pandas.DataFrame`
        Mean losses (nats per cell) of every validation: member, epoch, step, ``train_…``, ``val_…``.
    ``adata.uns[key_added]["params"]`` : str
        The arguments, as JSON.

    Raises
    ------
    DataError
        If the data cannot be used as counts; the message names the next call.
    MissingKeyError
        If a layer or column is not there.
    ConfigError
        If a parameter is out of range, or the model too large for ``uns``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.embed(adata)
    >>> adata.obsm["X_bioformer"].shape
    (60, 32)
    """
    kind = binning if isinstance(binning, Binning) else Binning(kind=binning)  # type: ignore[arg-type]
    model_config = config if isinstance(config, ModelConfig) else ModelConfig.preset(config)
    train = train or (TrainConfig.paper() if config == "paper" else TrainConfig())
    if max_epochs is not None:
        train = replace(train, max_epochs=max_epochs)
    if n_models < 1:
        raise ConfigError(f"`n_models` must be at least 1, got {n_models}.")
    if train.accelerator != "auto":
        require_device(train.accelerator)
    found = inspect(adata, layer)
    genes = gene_mask(adata, mask_var)
    if kind.kind == "value":
        require_counts(adata, layer, allow_non_integer=allow_non_integer, modelled=genes, inspection=found)
    else:
        require_valid(adata, layer, modelled=genes, inspection=found)
    adata = target(adata, copy)
    keys = [*([batch_key] if batch_key is not None else []), *obs_tokens]
    fields = tuple(ObsField.register(adata, key) for key in keys)
    vocabulary = Vocabulary.from_names([str(name) for name in adata.var_names[genes]])
    counts = found.kind == "counts" or allow_non_integer
    design = None if task is None else read_design(adata, task, batch_key, vocabulary.feature_names(), counts=counts)
    check_size(n_models * _n_bytes(model_config, vocabulary, fields), save_dir)
    seed = seed_from(rng)
    source = AnnDataSource(adata, layer=layer, columns=np.flatnonzero(genes), fields=field_codes(fields, adata))
    fitted = fit_model(
        source if design is None else MemorySource(source.rows(design.controls)),
        vocabulary,
        kind,
        model_config,
        train,
        fields=fields,
        reading=Reading(layer, counts, allow_non_integer),
        n_models=n_models,
        seed=seed,
    )
    model = fitted.model
    if design is not None:
        model = fit_perturbation(model, source, design, progress_bar=train.progress_bar)
    history = pd.DataFrame([{"member": i, **row} for i, rows in enumerate(fitted.history) for row in rows])
    params = {
        "layer": layer,
        "mask_var": mask_var if isinstance(mask_var, str) else None,
        "batch_key": batch_key,
        "obs_tokens": list(obs_tokens),
        "binning": kind.to_dict(),
        "config": model_config.to_dict(),
        "train": train.to_dict(),
        "n_models": n_models,
        "task": None if design is None else dict(require_head(model).task),
        "seed": seed,
    }
    store_model(adata, key_added, model, params, history, save_dir)
    return adata if copy else None


def _n_bytes(config: ModelConfig, vocabulary: Vocabulary, fields: Sequence[ObsField]) -> int:
    """Size of the weights, without allocating them (100 bin values stand for what the data will say)."""
    with torch.device("meta"):
        network = Transformer(config, Sizes(len(vocabulary), 100, tuple(len(f.categories) for f in fields)))
    return sum(p.numel() * p.element_size() for p in network.parameters())
