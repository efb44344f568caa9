"""The fitted model, its training and its gene embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import SPECIALS
from scbioformers.model import BioFormer
from scbioformers.stored import ModelLike, find_fit, find_model


def model(adata: AnnData, *, key: str = "bioformer") -> BioFormer:
    """The model that :func:`scbioformers.tl.fit` stored in ``adata.uns[key]``.

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

    Raises
    ------
    MissingKeyError
        If nothing was fitted.
    """
    return find_fit(adata, key)[1]


def params(adata: AnnData, *, key: str = "bioformer") -> dict[str, Any]:
    """The arguments of the fit, defaults filled in.

    Raises
    ------
    MissingKeyError
        If nothing was fitted.
    """
    return find_fit(adata, key)[0]


def gene_embeddings(
    adata: AnnData | None = None, *, model: ModelLike | None = None, key: str = "bioformer"
) -> pd.DataFrame:
    """Embeddings of the modelled genes, genes x width (members of an ensemble side by side), float32.

    Raises
    ------
    MissingKeyError
        If there is no model.
    """
    fitted = find_model(adata, model, key)
    tables = [network.molecule.weight.detach().numpy()[len(SPECIALS) :] for network in fitted.members]
    return pd.DataFrame(np.concatenate(tables, axis=1), index=fitted.vocabulary.molecules())
