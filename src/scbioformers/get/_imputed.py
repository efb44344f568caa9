"""Predict genes that were not measured, and read how accurate imputed values are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import DataError, GeneIndex, Names, Scale, as_names, check_arguments, describe_unknown
from scbioformers.data import FeatureMap, names_modality, open_modality, refuse_dicts
from scbioformers.nn import computes
from scbioformers.results import (
    ModalitiesQuery,
    ModelLike,
    open_modalities,
    open_query,
    read_evidence,
    read_references,
)
from scbioformers.settings import shows_progress
from scbioformers.tasks import N_FOLDS, check_request, folds, impute_blocks, modality_scale, predict_modality


@computes
def imputed(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    genes: Names | None = None,
    output: Scale = "counts",
    model: ModelLike | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
) -> AnnData:
    """Predict genes that the model was fitted to but that were not measured in ``adata`` (paper, section 3.2).

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. The genes that are found must have at least 20 % of
        the counts that the model's genes have in the training data. They are matched by name. Or a MuData, if the
        model was fitted to one.
    modality
        Only for a MuData: the modality to predict from the others, for all samples. Nothing of it is read, so the data
        need not have it. ``layer``, ``gene_symbols`` and ``feature_map`` are dicts by modality.
    genes
        Genes to predict. By default, all genes of the model that are not in ``adata``, or all features of the modality.
        A gene of ``adata`` can be named as well. It is then predicted from the other genes.
    output
        Unit of the predictions. ``"counts"``: counts at the depth of the cell. ``"log1p"``: ``log1p`` of the counts at
        the mean depth of the training cells. ``"bins"``: bins of the model. All are means of the predicted
        distribution. A modality is predicted at the mean depth. If it has no counts, the unit is that of its data.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    layer
        Layer to read. By default, the layer that the model was fitted on if ``adata`` has it, else ``adata.X``.
        ``"X"`` reads ``adata.X``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. By default, the column
        of the fit if ``adata`` has it, else ``adata.var_names``.
    feature_map
        Dict or Series from the names of genes in ``adata`` to their names in the model, such as orthologues of another
        species. Names that it does not have stay as they are. If several genes have one name in the model, or a gene
        has several, the gene that most cells express is used. Results have the names of ``adata``.
    batch_size
        Maximum number of cells in a batch.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    key
        Key of the model in ``adata.uns``.

    Returns
    -------
    AnnData
        New object with the cells and ``obs`` of ``adata``. ``X`` is float32 (n_obs, n_genes), in the unit of
        ``output``. Samples that have no other modality than the predicted one are NaN.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` that the model uses is not found.
    ConfigError
        If ``output`` or ``batch_size`` is not valid, ``output`` requires counts and the model has segment bins, or the
        device is not available.
    DataError
        If a requested gene is not a gene of the model, there is no gene to predict, the values are on another scale
        than the training data, or ``adata`` has too few genes of the model.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.get.imputed(adata, genes=list(adata.var_names[:2])).shape
    (60, 2)
    """
    check_arguments(imputed, locals())
    check_request(output, (), batch_size)
    names_of: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map}
    if isinstance(adata, MuData):
        predicted = [] if modality is None else [modality]
        samples = open_modalities(adata, model, predicted=predicted, key=key, device=device, **names_of)
        return _imputed_modality(adata, samples, modality, genes, output, batch_size, shows_progress(progress_bar))
    refuse_dicts(modality=modality, layer=layer, gene_symbols=gene_symbols)
    query = open_query(adata, model, key=key, device=device, **names_of)
    requested = np.flatnonzero(~query.measured) if genes is None else query.positions(genes, measured=False)
    if not requested.size:
        raise DataError(
            "All genes of the model are measured in the data. Pass the genes to predict as `genes=`, or run "
            "`bf.tl.impute(adata)` to denoise all genes."
        )
    names = np.array(query.names)[requested]
    x = np.empty((adata.n_obs, requested.size), np.float32)
    blocks = impute_blocks(
        query.model,
        query.source,
        folds(len(query.columns), N_FOLDS, requested),
        scale=output,
        batch_size=batch_size,
        progress_bar=shows_progress(progress_bar),
    )
    for block in blocks:
        x[block.cells.start : block.cells.start + len(block.low_depth)] = block.values["mean"][:, requested]
    return AnnData(x, obs=adata.obs.copy(), var=pd.DataFrame(index=names))


def _imputed_modality(
    mdata: MuData,
    query: ModalitiesQuery,
    modality: str | None,
    genes: Names | None,
    output: Scale,
    batch_size: int,
    progress_bar: bool,
) -> AnnData:
    """Features of one modality, predicted from the others."""
    name = query.choose(modality)
    state, own = query.model.of(name), query.queries.get(name)
    names = state.vocabulary.feature_names() if own is None else list(own.names)
    at = np.arange(len(names))
    if genes is not None and own is not None:
        at = own.positions(genes, measured=False)
    elif genes is not None:
        wanted = list(dict.fromkeys(as_names(genes, "genes")))
        at = GeneIndex(names).positions(wanted)
        if unknown := [gene for gene, i in zip(wanted, at, strict=True) if i < 0]:
            raise DataError(f"`genes`: not among the features of {name!r}: {describe_unknown(unknown, names)}.")
    scale = modality_scale(state, output)
    options: dict[str, Any] = {"scale": scale, "batch_size": batch_size, "progress_bar": progress_bar}
    values = predict_modality(query.model, query.source, name, **options)["mean"]
    return AnnData(values[:, at], obs=mdata.obs.copy(), var=pd.DataFrame(index=np.array(names)[at]))


@names_modality
def imputation_evidence(
    adata: AnnData | MuData, *, modality: str | None = None, key: str = "imputed"
) -> dict[str, Any]:
    """How accurately measured values were predicted after they were masked (paper, section 3.2).

    :func:`scbioformers.tl.impute` masks the values of at most 2,000 cells for it, a seventh of the genes at a time. If
    the cells are those of the fit, it takes the validation cells of the fit. They were not used to compute the weights.
    If there are fewer than 50 of them, it adds other cells, for which the results are too optimistic. ``"n_cells"`` and
    ``"n_validation_cells"`` say so. Cells of other data are unbiased.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.impute`.
    modality
        The modality of a MuData that has the result. None is the only one.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.impute`.

    Returns
    -------
    dict
        - ``"bins"``: DataFrame (n_bins, n_bins + 1). Row ``i`` has the mean predicted probability of each bin, over all
          values measured in bin ``i``. The column ``n`` is the number of these values.
        - ``"counts"``: float64 (n_bins,), the count at the mean depth that each bin stands for. NaN for segment bins.
        - ``"calibration"``: DataFrame. Each row is an interval of the predicted probability of expression. The columns
          are ``predicted`` (mean of that probability), ``observed`` (share of the values that are above 0) and ``n``
          (number of values). With quantile bins, nearly all values are above 0. So there it is the probability of a
          value above the median of the feature in the training cells.
        - ``"threshold"``: int, the bin above which a value counts in ``"calibration"``, 0 for expression.
        - ``"nll_bits"``: float, mean negative log-likelihood of a measured value, in bits.
        - ``"n_cells"``, ``"n_validation_cells"``: int, number of cells, and of validation cells of the fit among them.

    Raises
    ------
    MissingKeyError
        If no imputed values are stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata)
    >>> bf.get.imputation_evidence(adata)["bins"]["n"].sum().round() == 60 * 40
    np.True_
    """
    check_arguments(imputation_evidence, locals())
    adata = open_modality(adata, modality)
    evidence, params = read_evidence(adata, key)
    joint, count = evidence["joint"], evidence["count"]
    filled = np.maximum(count, 1)
    return {
        "bins": pd.DataFrame(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-12)).assign(n=joint.sum(axis=1)),
        "counts": evidence.get("level", np.full(len(joint), np.nan)),
        "calibration": pd.DataFrame(
            {
                "predicted": evidence["predicted"] / filled,
                "observed": evidence["observed"] / filled,
                "n": count.astype(int),
            }
        )[count > 0],
        "threshold": int(evidence.get("threshold", np.zeros(1))[0]),
        "nll_bits": float(evidence["nll_bits"][0]),
        "n_cells": int(params.get("n_evidence_cells", 0)),
        "n_validation_cells": int(params.get("n_validation_cells", 0)),
    }


def reference_cells(adata: AnnData, *, key: str = "imputed") -> pd.DataFrame:
    """Which cells each cell has read, after ``bf.tl.impute(adata, model=model, memory="query")``.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.impute` with ``memory="query"``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.impute`.

    Returns
    -------
    DataFrame
        Names ``cell`` and ``reference``, and the ``weight`` of the reference in this cell. For each cell, in the order
        of ``adata``, the fifteen references with the highest weights come first to last. The weights of *all*
        references of a cell add up to 1.

    Raises
    ------
    MissingKeyError
        If no imputed values are stored under ``key``, or if they were imputed without ``memory="query"``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> other, adata = (bf.datasets.simulate(n_cells=120, n_genes=40, rng=seed) for seed in (0, 1))
    >>> bf.tl.fit(other, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata, model=other, memory="query")
    >>> bf.get.reference_cells(adata).groupby("cell").size().max()
    np.int64(15)
    """
    check_arguments(reference_cells, locals())
    weights = read_references(adata, key).tocoo()
    order = np.lexsort((-weights.data, weights.row))
    names = np.asarray(adata.obs_names)
    return pd.DataFrame(
        {
            "cell": names[weights.row[order]],
            "reference": names[weights.col[order]],
            "weight": weights.data[order],
        }
    )
