"""``bf.tl.embed``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import check_arguments, warn
from scbioformers.data import FeatureMap, check_phenotype_values
from scbioformers.model import READ_CHUNK, BioFormer, Use, embed_blocks
from scbioformers.nn import computes
from scbioformers.results import (
    ModelLike,
    check_key_added,
    check_out,
    open_data,
    open_result,
    write_embedding,
)
from scbioformers.settings import shows_progress


@computes
def embed(
    adata: AnnData | MuData,
    *,
    model: ModelLike | None = None,
    modalities: Sequence[str] | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    phenotype: Mapping[str, Any] | None = None,
    use: Use = "profile",
    out: str | Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
    key_added: str = "X_bioformer",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Embed cells with a fitted model (paper, section 2.3).

    Pass the result to scanpy with ``sc.pp.neighbors(adata, use_rep="X_bioformer")``. The embedding of a cell does not
    depend on the other cells, their order, or the batch size (differences are below 1e-5).

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data. Or a
        MuData, if the model was fitted to one. All samples are embedded, also those that lack a modality.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    modalities
        Modalities of the MuData to read. None reads those of the model. The model reads the others as not measured.
        ``layer``, ``gene_symbols`` and ``feature_map`` are dicts by modality.
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
    phenotype
        Values of phenotypes of the model that are set in all cells, such as ``{"condition": "stim"}``, instead of those
        in ``adata.obs``. None stands for "not known".
    use
        Embedding to compute. ``"profile"``: principal components of the expression profile that the model predicts from
        ``<cls>`` (n_obs, n_components). ``"cls"``: the ``<cls>`` vector of the paper (n_obs, width). ``"latent"``: the
        latent vector between ``<cls>`` and the profile (n_obs, n_latent). ``"mean"``: mean of the output vectors of the
        genes (n_obs, width).
    out
        Path of a new zarr store, for results larger than memory. The result is written to it in blocks of cells, and
        nothing is set in ``adata``. :func:`anndata.read_zarr` reads it. The store gets this name when it is whole.
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
    None, or the copy if ``copy=True``. With ``out``, the fields are in the AnnData of the store instead. It has the
    names of the cells and no genes. Sets the following fields:

    ``adata.obsm[key_added]`` : float32 :class:`~numpy.ndarray` (n_obs, K)
        The embedding. For an ensemble, ``"profile"`` is the mean over the members, and the others are concatenated.
    ``adata.uns[key_added]["params"]`` : str
        JSON string with the hash of the model, ``use`` and ``layer``.
    ``adata.obs["bioformer_empty"]`` : bool (n_obs,)
        True for cells without a count in the genes of the model. Their embedding is that of an empty cell. Only set if
        there are such cells, or if the column exists.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` that the model uses is not found.
    ConfigError
        If ``use`` or ``batch_size`` is not valid, the device is not available, or ``out`` exists or is passed with
        ``copy=True``.
    DataError
        If the values are on another scale than the training data, or ``adata`` has too few genes of the model.
    StorageError
        If ``out`` cannot be written, for instance to a full disk. No part of the store is left.

    Warns
    -----
    BioformersWarning
        If genes of the model are missing in ``adata``, or cells have more genes than ``ModelConfig.max_tokens``.

    Examples
    --------
    See :func:`scbioformers.tl.fit`. The samples of a MuData by all that was measured, and by their RNA alone:

    >>> import scbioformers as bf
    >>> mdata = bf.datasets.simulate(n_cells=60, n_genes=40, n_proteins=10)
    >>> bf.tl.fit(mdata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.embed(mdata)
    >>> bf.tl.embed(mdata, modalities=["rna"], key_added="X_rna")
    >>> mdata.obsm["X_bioformer"].shape, mdata.obsm["X_rna"].shape
    ((60, 32), (60, 32))
    """
    check_arguments(embed, locals())
    check_phenotype_values(phenotype)
    place = check_out(out, copy)
    query = open_data(
        adata,
        model,
        modalities=modalities,
        layer=layer,
        gene_symbols=gene_symbols,
        feature_map=feature_map,
        key=key,
        device=device,
        phenotype=phenotype,
    )
    if place is None:
        check_key_added(adata, key_added, {"obsm": [key_added]})
    options: dict[str, Any] = {"batch_size": batch_size, "progress_bar": shows_progress(progress_bar)}
    blocks = embed_blocks(query.model, query.source, use=use, **options)
    n_expressed = np.zeros(query.source.n_obs, np.int64)
    params = {"model_hash": query.model.hash, "use": use, "layer": query.layer}
    params |= {} if phenotype is None else {"phenotype": dict(phenotype)}
    with open_result(adata, place, copy) as result:
        embedding: Any = None
        for block in blocks:
            if embedding is None:
                embedding = result.array("obsm", key_added, block.values.shape[1], READ_CHUNK)
            result.write(embedding, block.start, block.values)
            n_expressed[block.start : block.start + len(block.values)] = block.n_expressed
        write_embedding(result.data, key_added, embedding, params, empty=n_expressed == 0)
    _warn_if_truncated(query.model, n_expressed)
    return result.data if copy else None


def _warn_if_truncated(model: BioFormer, n_expressed: NDArray[np.int64]) -> None:
    limit = model.config.max_tokens
    lengths = n_expressed if model.config.tokens == "expressed" else np.full_like(n_expressed, len(model.vocabulary))
    if n := int((lengths > limit).sum()):
        warn(
            f"{n} of {len(lengths)} cells have more genes than attention can read (ModelConfig.max_tokens={limit}). "
            "For these cells, attention reads the genes with the highest counts.",
        )
