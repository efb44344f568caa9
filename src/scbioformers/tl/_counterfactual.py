"""``bf.tl.counterfactual``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, check_arguments, free_memory
from scbioformers.data import FeatureMap, Labels, check_phenotype, check_phenotype_values
from scbioformers.nn import computes
from scbioformers.results import (
    ModelLike,
    Query,
    check_counterfactual_key,
    layer_bytes,
    open_query,
    target,
    warn_of_memory,
    write_counterfactual,
)
from scbioformers.settings import shows_progress
from scbioformers.tasks import Effects, decode_blocks
from scbioformers.tl._counterfactual_evidence import collect_counterfactual_evidence

ALL = "all"  # name of the only group without `groupby`


@computes
def counterfactual(
    adata: AnnData,
    phenotype: Mapping[str, Any],
    *,
    groupby: str | None = None,
    evidence: bool = False,
    model: ModelLike | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    feature_map: FeatureMap | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
    key_added: str = "counterfactual",
    copy: bool = False,
) -> AnnData | None:
    """Predict the profiles of the same cells under another phenotype, such as a condition or a time (paper, section 1).

    The model must have been fitted with ``phenotype_keys``. It reads each cell with its own phenotypes, and decodes it
    with others.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data.
    phenotype
        Phenotypes and the values that are set in all cells, such as ``{"condition": "stim"}`` or ``{"time": 4.0}``. A
        number may lie between those of the training data. Beyond them it is extrapolated, with a warning.
    groupby
        Column of ``adata.obs``, such as the cell type. Effects are means over its groups. By default, over all cells.
    evidence
        Fit the model again for each group, without the cells of this group that have the phenotype, and compare the
        effect that it predicts with the measured one. One fit per group: a log message estimates the time. Needs the
        AnnData of the fit.
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
    ``adata.uns[key_added]`` : dict
        ``params`` (JSON string), and with ``evidence=True`` ``evidence``, which
        :func:`scbioformers.get.counterfactual_evidence` explains.

    Raises
    ------
    ConfigError
        If the model has no such phenotype or category, ``key_added`` would overwrite counts or a model, or ``evidence``
        is asked for with a model that was not fitted to ``adata``.
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` is not found.
    DataError
        If the values are on another scale than the training data, ``adata`` has too few genes of the model, or no group
        has cells with and without the phenotype, which ``evidence`` needs.

    Warns
    -----
    BioformersWarning
        If a number is beyond the training data.

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
    query = open_query(adata, model, **names, key=key, device=device)
    if not phenotype:
        raise ConfigError(
            "`phenotype` is empty. Pass the phenotypes that are changed, such as `{'condition': 'stim'}`. The model "
            f"has {[each.name for each in query.model.phenotypes]}."
        )
    changed = check_phenotype(query.model.fields, query.model.batch, phenotype)
    check_counterfactual_key(adata, key_added, query.layer)
    warn_of_memory(layer_bytes(adata.shape, adata.n_vars), free_memory())
    groups, codes = (np.array([ALL]), np.zeros(adata.n_obs, np.int64))
    if groupby is not None:
        labels = Labels.read(adata, groupby)
        groups, codes = np.array(labels.categories), labels.codes.astype(np.int64)
    shown = shows_progress(progress_bar)
    found: pd.DataFrame | None = None
    if evidence:
        found = collect_counterfactual_evidence(adata, query, phenotype, groups, codes, key, shown)
    adata = target(adata, copy)
    effects = Effects(len(groups), len(query.model.members), len(query.model.vocabulary))
    profiles = np.full(adata.shape, np.nan, np.float32)
    for block in decode_blocks(query.model, query.source, changed, batch_size=batch_size, progress_bar=shown):
        rows = slice(block.start, block.start + len(block.differs))
        profiles[rows, query.columns[query.measured]] = block.other.mean(axis=0)[:, query.measured]
        effects.add(block, codes[rows])
    tables = [
        pd.DataFrame(_over_all_genes(query, values.T), index=adata.var_names, columns=pd.Index(groups))
        for values in (effects.mean(), effects.standard_error())
    ]
    params = {
        "model_hash": query.model.hash,
        "phenotype": dict(phenotype),
        "groupby": groupby,
        "layer": query.layer,
        "n_cells": dict(zip(groups.tolist(), effects.n_cells.tolist(), strict=True)),
    }
    write_counterfactual(adata, key_added, profiles, *tables, params=params, evidence=found)
    return adata if copy else None


def _over_all_genes(query: Query, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_vars, K) from values of the features of the model (M, K), NaN for other genes."""
    found = np.full((query.data.n_vars, values.shape[1]), np.nan)
    found[query.columns[query.measured]] = values[query.measured]
    return found
