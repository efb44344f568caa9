"""``bf.tl.counterfactual``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import ConfigError, check_arguments, free_memory
from scbioformers.data import FeatureMap, Labels, check_phenotype, check_phenotype_values, refuse_dicts
from scbioformers.model import BioFormer
from scbioformers.nn import computes
from scbioformers.results import (
    ModelLike,
    check_counterfactual_key,
    layer_bytes,
    open_modalities,
    open_query,
    target,
    warn_of_memory,
    write_counterfactual,
)
from scbioformers.settings import shows_progress
from scbioformers.tl._counterfactual_evidence import collect_counterfactual_evidence
from scbioformers.tl._counterfactual_modalities import Request, counterfactual_modalities, refuse_evidence

ALL = "all"  # name of the only group without `groupby`


@computes
def counterfactual(
    adata: AnnData | MuData,
    phenotype: Mapping[str, Any],
    *,
    modalities: Sequence[str] | None = None,
    groupby: str | None = None,
    evidence: bool = False,
    model: ModelLike | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
    key_added: str = "counterfactual",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Predict the profiles of the same cells under another phenotype, such as a condition or a time (paper, section 1).

    The model must have been fitted with ``phenotype_keys``. It reads each cell with its own phenotypes, and decodes it
    with others.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Or a MuData, if the model was fitted to one: all
        modalities of a sample are predicted from those that it has.
    phenotype
        Phenotypes and the values that are set in all cells, such as ``{"condition": "stim"}`` or ``{"time": 4.0}``. A
        number may lie between those of the training data. Beyond them it is extrapolated, with a warning. For a time
        that was not measured, see Notes.
    modalities
        Modalities of the MuData to predict. None predicts all modalities of the model. ``layer``, ``gene_symbols`` and
        ``feature_map`` are dicts by modality.
    groupby
        Column of ``adata.obs``, such as the cell type. Effects are means over its groups. By default, over all cells.
        In a MuData also a column of a modality, such as ``"rna:cell_type"``.
    evidence
        Fit the model again for each group, without the cells of this group that have the phenotype, and compare the
        effect that it predicts with the measured one. One fit per group: a log message estimates the time. Needs the
        AnnData of the fit, so it is not for a MuData.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    layer, gene_symbols, feature_map
        As in :func:`scbioformers.tl.embed`.
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
        Predicted profiles: log1p of the expected counts at the mean depth of the training cells (if the data are not
        counts: shares of the highest bin). NaN for genes that are not modelled.
    ``adata.varm[f"{key_added}_effect"]`` : :class:`~pandas.DataFrame`, float64 (n_vars, K)
        Mean difference between these profiles and those that the model decodes with the phenotypes that the cells have,
        over the cells of each of the K groups that have another value of ``phenotype``. NaN for genes that are not
        modelled, and for groups without such cells. :func:`scbioformers.get.counterfactual` reads it back.
    ``adata.varm[f"{key_added}_effect_se"]`` : :class:`~pandas.DataFrame`, float64 (n_vars, K)
        Its standard error, from the differences between cells and, in an ensemble, between members. It does not contain
        the error of the model: that is what ``evidence`` is for.
    ``adata.varm[f"{key_added}_profile"]`` : :class:`~pandas.DataFrame`, float64 (n_vars, K)
        Mean of the predicted profiles over the same cells as the effects.
    ``adata.uns[key_added]`` : dict
        ``params`` (JSON string), and with ``evidence=True`` ``evidence``, which
        :func:`scbioformers.get.counterfactual_evidence` explains.
    ``mdata.obsm[f"{key_added}_{modality}"]`` : DataFrame float32 (n_obs, n_features), only in a MuData
        Predicted profiles of all samples, also of those that lack the modality. NaN in samples that were measured in
        nothing that is read. The fields of ``adata`` are set in each modality, for the samples that it has: their
        profiles, and the effects over them.

    Raises
    ------
    ConfigError
        If the model has no such phenotype or category, ``key_added`` would overwrite counts or a model, or ``evidence``
        is asked for with a MuData, or with a model that was not fitted to ``adata``.
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` is not found.
    DataError
        If the values are on another scale than the training data, ``adata`` has too few genes of the model, or no group
        has cells with and without the phenotype, which ``evidence`` needs.

    Warns
    -----
    BioformersWarning
        If a number is beyond the training data.

    Notes
    -----
    The prediction for a time that was not measured is the mean of the profiles that are decoded with this time, over
    the cells of the neighbouring times::

        near = adata[adata.obs["time"].isin([3.0, 6.0])].copy()
        bf.tl.counterfactual(near, {"time": 4.0}, model=adata)
        bf.get.counterfactual(near)  # the column "predicted"

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40, n_conditions=2)
    >>> bf.tl.fit(adata, phenotype_keys="condition", train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.counterfactual(adata, {"condition": "condition_2"}, groupby="cell_type")
    >>> adata.varm["counterfactual_effect"].shape
    (40, 5)
    """
    check_arguments(counterfactual, locals())
    check_phenotype_values(phenotype)
    names: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map}
    names |= {"key": key, "device": device}
    if isinstance(adata, MuData):
        refuse_evidence(adata, phenotype, evidence)
        samples = open_modalities(adata, model, predicted=modalities or (), **names)
        asked = _read_request(adata, samples.model, phenotype, groupby, batch_size, shows_progress(progress_bar))
        return counterfactual_modalities(adata, samples, modalities, asked, key_added, copy)
    refuse_dicts(modalities=modalities, layer=layer, gene_symbols=gene_symbols)
    query = open_query(adata, model, **names)
    asked = _read_request(adata, query.model, phenotype, groupby, batch_size, shows_progress(progress_bar))
    check_counterfactual_key(adata, key_added, query.layer)
    warn_of_memory(layer_bytes(adata.shape, adata.n_vars), free_memory())
    found: pd.DataFrame | None = None
    if evidence:
        groups = asked.groups, asked.codes
        found = collect_counterfactual_evidence(adata, query, phenotype, *groups, key, asked.progress_bar)
    adata = target(adata, copy)
    effects = asked.effects(query.model, len(query.model.vocabulary))
    profiles = np.full(adata.shape, np.nan, np.float32)
    for block in asked.blocks(query.model, query.source):
        rows = slice(block.start, block.start + len(block.differs))
        profiles[rows, query.columns[query.measured]] = block.other.mean(axis=0)[:, query.measured]
        effects.add(block, asked.codes[rows])
    tables = asked.tables(query, effects)
    params = asked.params(effects) | {"model_hash": query.model.hash, "layer": query.layer}
    write_counterfactual(adata, key_added, profiles, *tables, params=params, evidence=found)
    return adata if copy else None


def _read_request(
    data: AnnData | MuData,
    model: BioFormer,
    phenotype: Mapping[str, Any],
    groupby: str | None,
    batch_size: int,
    progress_bar: bool,
) -> Request:
    """Check the phenotypes that are set, and read the groups of the cells."""
    if not phenotype:
        raise ConfigError(
            "`phenotype` is empty. Pass the phenotypes that are changed, such as `{'condition': 'stim'}`. The model "
            f"has {[each.name for each in model.phenotypes]}."
        )
    changed = check_phenotype(model.fields, model.batch, phenotype)
    groups, codes = np.array([ALL]), np.zeros(data.n_obs, np.int64)
    if groupby is not None:
        labels = Labels.read(data, groupby)
        groups, codes = np.array(labels.categories), labels.codes.astype(np.int64)
    return Request(phenotype, changed, groupby, groups, codes, batch_size, progress_bar)
