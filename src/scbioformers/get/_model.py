"""The fitted model, its training and its gene embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import SPECIALS
from scbioformers.model import BioFormer
from scbioformers.results import ModelLike, find_fit, find_model


def model(adata: AnnData, *, key: str = "bioformer") -> BioFormer:
    """The model that :func:`scbioformers.tl.fit` stored in ``adata.uns[key]``.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.fit`.
    key
        Where the fit is in ``uns``.

    Returns
    -------
    The model, built anew: changing it does not change what is stored.

    Raises
    ------
    MissingKeyError
        If there is none.
    ModelFormatError
        If it is damaged.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.get.model(adata).config.width
    128
    """
    return find_model(adata, None, key)


def history(adata: AnnData, *, key: str = "bioformer") -> pd.DataFrame:
    """Mean losses of every validation, in nats per cell: columns member, epoch, step, ``train_…`` and ``val_…``.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.fit`.
    key
        Where the fit is in ``uns``.

    Returns
    -------
    A row per validation and member of the ensemble.

    Raises
    ------
    MissingKeyError
        If nothing was fitted.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> list(bf.get.history(adata))[:3]
    ['member', 'epoch', 'step']
    """
    return find_fit(adata, key)[1]


def params(adata: AnnData, *, key: str = "bioformer") -> dict[str, Any]:
    """The arguments of the fit, defaults filled in.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.fit`.
    key
        Where the fit is in ``uns``.

    Returns
    -------
    By name, those of ``binning``, ``config`` and ``train`` as dicts.

    Raises
    ------
    MissingKeyError
        If nothing was fitted.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.get.params(adata)["n_models"]
    1
    """
    return find_fit(adata, key)[0]


def gene_embeddings(
    adata: AnnData | None = None, *, model: ModelLike | None = None, key: str = "bioformer"
) -> pd.DataFrame:
    """Embeddings of the modelled genes, genes x width (members of an ensemble side by side), float32.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.fit`; not needed with ``model``.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    key
        Where the model is in ``uns``.

    Returns
    -------
    One row per modelled gene, in the model's order.

    Raises
    ------
    MissingKeyError
        If there is no model.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.get.gene_embeddings(adata).shape[0]
    40
    """
    fitted = find_model(adata, model, key)
    tables = [network.feature.weight.detach().numpy()[len(SPECIALS) :] for network in fitted.members]
    return pd.DataFrame(np.concatenate(tables, axis=1), index=fitted.vocabulary.feature_names())
