"""``bf.tl.embed``."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import BioformersWarning
from scbioformers.model import BioFormer, Use, embed_cells
from scbioformers.results import ModelLike, open_query, target, write_embedding


def embed(
    adata: AnnData,
    *,
    model: ModelLike | None = None,
    layer: str | None = None,
    use: Use = "profile",
    batch_size: int = 128,
    device: str = "cpu",
    progress_bar: bool = False,
    key: str = "bioformer",
    key_added: str = "X_bioformer",
    copy: bool = False,
) -> AnnData | None:
    """Embed cells with a fitted model (paper, section 2.3), for ``sc.pp.neighbors(adata, use_rep="X_bioformer")``.

    The result does not depend on batch size, order or chunks (1e-5), nor on which other cells are there.

    Parameters
    ----------
    adata
        The cells that were fitted, or others on the same scale; genes are found by name, in any order.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    layer
        Layer to read; by default the layer that the model was fitted on if it is there, else ``X``.
    use
        ``"profile"``: leading components of the profile that is decoded from ``<cls>`` (N, n_components);
        ``"cls"``: the paper's ``<cls>`` vector (N, width); ``"latent"`` (N, n_latent); ``"mean"`` of the gene
        outputs (N, width).
    batch_size
        Cells read at once, at most.
    device
        Where to compute, ``"cpu"``, ``"cuda"``, ….
    progress_bar
        Show a progress bar.
    key
        Where the model is in ``uns``.
    key_added
        Slot in ``obsm``.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.obsm[key_added]`` : float32 :class:`~numpy.ndarray` (N, K)
        The embedding.
    ``adata.uns[key_added]["params"]`` : str
        JSON: the hash of the model, ``use`` and ``layer``.
    ``adata.obs["bioformer_empty"]`` : bool
        Only if there are any: cells without a count in the model's genes. Their row is that of an empty cell.

    Raises
    ------
    MissingKeyError
        If there is no model, or a column that the model needs is not there.
    DataError
        If the data is on another scale than the model's, or fewer than half of its genes are there.

    Examples
    --------
    See :func:`scbioformers.tl.fit`.
    """
    query = open_query(adata, model, layer=layer, key=key)
    adata = target(adata, copy)
    how: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress_bar": progress_bar}
    embedding = embed_cells(query.model, query.source, use=use, **how)
    n_expressed = np.concatenate([np.diff(block.counts.indptr) for block in query.source.blocks()])
    params = {"model_hash": query.model.hash, "use": use, "layer": query.layer}
    write_embedding(adata, key_added, embedding, params, empty=n_expressed == 0)
    _warn_if_cut(query.model, n_expressed)
    return adata if copy else None


def _warn_if_cut(model: BioFormer, n_expressed: NDArray[np.int64]) -> None:
    limit = model.config.max_tokens
    lengths = n_expressed if model.config.tokens == "expressed" else np.full_like(n_expressed, len(model.vocabulary))
    if n := int((lengths > limit).sum()):
        warnings.warn(
            f"{n} of {len(lengths)} cells have more genes than attention reads (ModelConfig.max_tokens={limit}); "
            "of these the highest counts were read.",
            BioformersWarning,
            stacklevel=3,
        )
