"""Read the fitted model, its training history, its parameters and its gene embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import SPECIALS, MissingKeyError, check_arguments
from scbioformers.data import FeatureMap, refuse_dicts
from scbioformers.model import BioFormer
from scbioformers.results import ModelLike, feature_names, find_fit, find_model, modality_feature_names


def model(adata: AnnData | MuData, *, key: str = "bioformer") -> BioFormer:
    """Fitted model, as stored by :func:`scbioformers.tl.fit` in ``adata.uns[key]``.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.fit`.
    key
        Key of the model in ``adata.uns``.

    Returns
    -------
    BioFormer
        New object. Changes to it do not change the stored model.

    Raises
    ------
    MissingKeyError
        If no model is stored under ``key``.
    ModelFormatError
        If the stored model is damaged.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.get.model(adata).config.width
    128
    """
    check_arguments(model, locals())
    return find_model(adata, None, key)


def history(adata: AnnData | MuData, *, key: str = "bioformer") -> pd.DataFrame:
    """Training history of the fit: the mean losses of every epoch.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.fit`.
    key
        Key of the model in ``adata.uns``.

    Returns
    -------
    DataFrame
        One row per ensemble member and epoch. The columns are ``member``, ``epoch``, ``step`` and the losses. With more
        than 65,536 cells, the model is also validated within an epoch. Such a validation has a row of its own, whose
        ``epoch`` is a fraction. ``train_…`` are losses on the training cells. ``val_…`` are losses on held-out cells,
        NaN in epochs without a validation. ``…_loss`` is the weighted sum of the objectives. An objective is a mean
        over cells, in nats per masked gene (``…_masked_bins``), per expressed gene (``…_profile_counts``) or per gene
        (``…_profile_bins``). With several modalities, the objectives are ``…_masked_bins`` and
        ``…_profile_modalities``. Those of a modality, such as ``…_masked_bins_rna``, are means over the cells that have
        it, NaN if none has. If the fit started from a model, the first row, of step 0, has the losses on held-out cells
        before it.

    Raises
    ------
    MissingKeyError
        If no fit is stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> list(bf.get.history(adata))[:3]
    ['member', 'epoch', 'step']
    """
    check_arguments(history, locals())
    return find_fit(adata, key)[1]


def params(adata: AnnData | MuData, *, key: str = "bioformer") -> dict[str, Any]:
    """Arguments of the fit, including the default values.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.fit`.
    key
        Key of the model in ``adata.uns``.

    Returns
    -------
    dict
        Value of each argument by name. ``binning``, ``config`` and ``train`` are dicts.

    Raises
    ------
    MissingKeyError
        If no fit is stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.get.params(adata)["n_models"]
    1
    """
    check_arguments(params, locals())
    return find_fit(adata, key)[0]


def gene_embeddings(
    adata: AnnData | MuData | None = None,
    *,
    modality: str | None = None,
    model: ModelLike | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    key: str = "bioformer",
) -> pd.DataFrame:
    """Embeddings of the modelled genes: the learned vectors of the gene tokens (paper, section 2.1.4).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.fit`, or other data. The genes are named as in these data. Not required if
        ``model`` is given; the names are then those of the training data.
    modality
        Modality whose features are returned, if the model has several. By default all, with qualified names such as
        ``"rna:CD4"``. ``gene_symbols`` is a dict by modality.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, such as symbols beside Ensembl ids. By default, the column
        of the fit if ``adata`` has it, else ``adata.var_names``.
    feature_map
        Dict or Series from the names of genes in ``adata`` to their names in the model, such as orthologues of another
        species. Names that it does not have stay as they are. If several genes have one name in the model, or a gene
        has several, the gene that most cells express is used. Results have the names of ``adata``.
    key
        Key of the model in ``adata.uns``.

    Returns
    -------
    DataFrame
        float32 (n_genes, n_members * width), one row per modelled gene. The embeddings of the ensemble members are
        concatenated.

    Raises
    ------
    MissingKeyError
        If no model is stored under ``key``, or the column of ``adata.var`` does not exist.
    DataError
        If neither ``adata`` nor ``model`` is given, or an AnnData for a model of several modalities.
    ConfigError
        If ``feature_map`` cannot be used.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.get.gene_embeddings(adata).shape[0]
    40
    """
    check_arguments(gene_embeddings, locals())
    fitted = find_model(adata, model, key)
    tables = [network.feature.weight.detach().numpy()[len(SPECIALS) :] for network in fitted.members]
    values = np.concatenate(tables, axis=1)
    if not (fitted.others or isinstance(adata, MuData)):
        refuse_dicts(modality=modality, gene_symbols=gene_symbols)
        symbols: Any = gene_symbols
        return pd.DataFrame(values, index=feature_names(fitted, adata, symbols, feature_map))
    names = modality_feature_names(fitted, adata, gene_symbols, feature_map)
    if modality is not None:
        if modality not in names:
            raise MissingKeyError(f"The model has no modality {modality!r}. It has {list(names)}.")
        return pd.DataFrame(values[fitted.columns(modality)], index=names[modality])
    qualified = [f"{name}:{feature}" for name, features in names.items() for feature in features]
    return pd.DataFrame(values, index=qualified if fitted.others else next(iter(names.values())))
