"""``bf.tl.impute``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from numpy.typing import ArrayLike

from scbioformers.core import Names, Scale, check_arguments, free_memory
from scbioformers.data import FeatureMap, check_phenotype_values, read_mask, refuse_dicts
from scbioformers.nn import computes
from scbioformers.results import (
    ModelLike,
    check_imputed_key,
    check_out,
    imputed_layers,
    layer_bytes,
    new_layer,
    open_modalities,
    open_query,
    open_result,
    warn_of_memory,
    write_imputed,
)
from scbioformers.settings import shows_progress
from scbioformers.tasks import (
    BLOCK_CELLS,
    N_FOLDS,
    Evidence,
    ImputedBlock,
    ImputeMethod,
    check_memory,
    check_method,
    check_request,
    choose_method,
    collect_evidence,
    find_evidence_cells,
    folds,
    impute_blocks,
    positions,
    posterior_blocks,
)
from scbioformers.tl._impute_cells import ImputedCells
from scbioformers.tl._impute_modalities import Request, impute_modalities, refuse_arguments

logger = logging.getLogger(__name__)


@computes
def impute(
    adata: AnnData | MuData,
    *,
    modalities: Sequence[str] | None = None,
    method: ImputeMethod | None = None,
    mask: ArrayLike | sp.spmatrix | sp.sparray | None = None,
    genes: Names | None = None,
    output: Scale = "counts",
    std: bool = False,
    quantiles: Sequence[float] = (),
    out: str | Path | None = None,
    model: ModelLike | None = None,
    memory: Literal["query"] | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    phenotype: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress_bar: bool | None = None,
    key: str = "bioformer",
    key_added: str = "imputed",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Denoise the expression of cells, or predict values from the other genes (paper, section 3.2).

    There are two methods, for two different questions.

    ``"denoise"``
        What is the expression of this cell, given everything that was measured in it? The mean of a gamma distribution:
        the rate that the model predicts from ``<cls>`` is weighted with the measured count by the dispersion of the
        gene. Use it to look at expression. It is much faster than the other method, and closer to the true
        expression. It cannot be used to evaluate the model, because a count is used for its own estimate.
    ``"held_out"``
        What would be predicted for this value if it had not been measured? Each value is predicted from the *other*
        genes of the cell. The genes are masked in seven groups, one group at a time. So a value is not used for its own
        prediction, also not through the depth of the cell. With ``mask``, the masked values are masked together and
        predicted, and the other values are kept.

    Genes that are not modelled keep their own values, in the same unit, so that they can be shown beside the others.

    :func:`scbioformers.get.imputed` predicts genes that were not measured.

    With ``memory="query"``, a model that was fitted to *other* data reads similar cells of ``adata``, without a fit.

    In a MuData, the default is ``"held_out"``: each modality is predicted from the *other* modalities of a sample, such
    as proteins from RNA. The modality itself is not read, so samples that have it and samples that lack it are
    predicted in the same way. ``"denoise"`` estimates the expression given *all* modalities of the sample, also the
    modality itself: RNA given RNA and proteins.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data. Or a
        MuData, if the model was fitted to one.
    modalities
        Modalities of the MuData to predict. None predicts all modalities of the model. ``layer``, ``gene_symbols``
        and ``feature_map`` are dicts by modality. ``mask``, ``genes`` and ``out`` are for an AnnData.
    method
        ``"denoise"`` or ``"held_out"``. By default ``"held_out"`` if ``mask``, ``std``, ``quantiles`` or
        ``output="bins"`` is given, which only this method can do, else ``"denoise"``. In a MuData, by default
        ``"held_out"``.

        A model with segment bins that was fitted to counts has both methods, ``"held_out"`` only with
        ``output="bins"``, because such bins are ranks. If it was fitted to values that are not counts, it has only
        ``"held_out"`` with ``output="bins"``.
    mask
        bool (n_obs, n_vars), dense or sparse. True marks the values to predict. The values of ``adata`` at these
        positions are never looked at. They may be NaN or negative. Data on disk are read into memory as a sparse
        matrix.
    genes
        Genes to predict. By default, all genes of the model that are in ``adata``. The others keep their own values.
    output
        Unit of the values. ``"counts"``: mean counts at the depth of the cell. ``"log1p"``: ``log1p`` of the counts at
        the mean depth of the training cells. ``"bins"``: bins of the model. ``"values"``: the
        scale of the training data, for counts the same as ``"counts"``. With ``mask``, the depth of a cell is estimated
        from the values that are not masked. In a MuData, counts with value bins are at the mean depth of the training
        cells. A modality with quantile bins is predicted on the scale of the training data, without a correction for
        depth. A modality with segment bins is predicted in bins.
    std
        Also store the standard deviation of the predicted distribution. It is that of a new measurement, not the
        standard error of the mean. It is 0 for values that are kept.
    quantiles
        Also store these quantiles of the predicted distribution, each between 0 and 1. Values that are kept are their
        own quantiles.
    out
        Path of a new zarr store, for results larger than memory. The result is written to it in blocks of cells, and
        nothing is set in ``adata``. :func:`anndata.read_zarr` reads it. The store gets this name when it is whole.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        By default, the model in ``adata.uns[key]``.
    memory
        ``"query"``: each cell also reads what similar cells of ``adata`` showed at the same gene. It is for a model of
        *other* data; a model that was fitted to these cells gains little. At most 4,096 cells are read. They are chosen
        by a hash of their names, so that results depend neither on the batch size nor on the order of the cells. A cell
        never reads itself, nor a cell with the same visible values. At least 100 cells are needed. The model must have
        one modality of counts with value bins. Nothing is stored in it.
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
    names of the cells, and the genes of the model that are in ``adata``. Sets the following fields:

    ``adata.layers[key_added]`` : float32 :class:`~numpy.ndarray` or :class:`~scipy.sparse.csr_matrix` (n_obs, n_vars)
        Values in the unit of ``output``. It is dense if at least half of the genes are imputed, else sparse. Genes that
        are not imputed have their own values. Values that are masked and cannot be predicted are NaN.
    ``adata.layers[f"{key_added}_std"]``, ``adata.layers[f"{key_added}_q10"]`` : as ``adata.layers[key_added]``
        Standard deviation, and quantiles (``_q10`` is the quantile 0.1), in the unit of ``output``. Only with ``std``
        and ``quantiles``.
    ``mdata.obsm[f"{key_added}_{modality}"]``, with ``std`` ``mdata.obsm[f"{key_added}_{modality}_std"]``, … : DataFrame
        float32 (n_obs, n_features), only in a MuData: predictions of all samples. NaN in samples without any other
        modality, with ``method="denoise"`` in samples without this modality. The fields of ``adata`` are set in each
        modality, for the samples that it has.
    ``adata.var[key_added]`` : bool (n_vars,)
        Whether the gene is imputed.
    ``adata.obs[f"{key_added}_low_depth"]`` : bool (n_obs,)
        True for cells with less than 5 % of the mean depth of the training cells, and for cells without a count in the
        genes of the model, or in those that were not masked together. They are imputed at their own depth: an empty
        cell has zeros. Only set if there are such cells.
    ``adata.obsp[f"{key_added}_references"]`` : float32 :class:`~scipy.sparse.csr_matrix` (n_obs, n_obs)
        Weights of the fifteen cells that each cell has read most; those of all cells add up to 1. With
        ``method="held_out"``, they are means over the groups of genes. Only with ``memory``. Read them with
        :func:`scbioformers.get.reference_cells`.
    ``adata.uns[key_added]`` : dict
        ``params`` (JSON string with the hash of the model, ``method``, ``output``, …; with ``memory`` also the number
        of references, the temperature, the weights of the head, and ``head_bits``: bits of masked values without and
        with the memory). ``evidence``: the accuracy of predictions of measured values that were masked, in at most
        2,000 cells and about a million values. In the data of the fit, its validation cells are used; if they are fewer
        than 50, other cells are added. Read it with
        :func:`scbioformers.get.imputation_evidence`.
        :func:`scbioformers.pl.imputation` and :func:`scbioformers.pl.calibration` show it.

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` that the model uses is not found.
    ConfigError
        If ``method``, ``output``, a quantile or ``batch_size`` is not valid, ``method`` cannot be combined with the
        other arguments or the model, ``key_added`` would overwrite a model or counts, the device is not available, or
        ``out`` exists or is passed with ``copy=True``. Also if ``memory`` is passed for a MuData, or for a model that
        does not have one modality of counts with value bins.
    DataError
        If the mask has another shape or dtype, ``memory`` is passed for fewer than 100 cells, none of ``genes`` can be
        used, the values are on another scale than the training data, or ``adata`` has too few genes of the model.
    StorageError
        If ``out`` cannot be written, for instance to a full disk. No part of the store is left.

    Warns
    -----
    BioformersWarning
        If genes of the model are missing in ``adata``, or the layers take more memory than is free.

    Notes
    -----
    Size for pbmc3k (2,638 cells, 13,714 genes, 2,000 of them modelled): the h5ad file grows from 24 to 80 MB
    (from 10 to 36 MB with ``compression="gzip"``). A dense layer would make it 168 MB.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata)
    >>> adata.layers["imputed"].shape
    (60, 40)
    """
    check_arguments(impute, locals())
    check_phenotype_values(phenotype)
    check_request(output, quantiles, batch_size)
    names_of: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map}
    if isinstance(adata, MuData):
        refuse_arguments(adata, mask=mask, genes=genes, out=out, memory=memory)
        kept: dict[str, Any] = {"masked": False, "std": std, "quantiles": quantiles}
        way = choose_method(method or "held_out", output, **kept)
        samples = open_modalities(
            adata, model, predicted=modalities or (), key=key, device=device, phenotype=phenotype, **names_of
        )
        asked = Request(way, output, std, tuple(quantiles), batch_size, shows_progress(progress_bar))
        return impute_modalities(adata, samples, modalities, asked, key_added, copy)
    refuse_dicts(modalities=modalities, layer=layer, gene_symbols=gene_symbols)
    place = check_out(out, copy)
    method = choose_method(method, output, masked=mask is not None, std=std, quantiles=quantiles)
    hidden = None if mask is None else read_mask(mask, adata)
    query = open_query(
        adata,
        model,
        **names_of,
        key=key,
        device=device,
        hidden=hidden,
        phenotype=phenotype,
    )
    check_method(query.model, method, output)
    if memory is not None:
        check_memory(query.model)
    wanted = np.flatnonzero(query.measured) if genes is None else query.positions(genes)
    names = imputed_layers(key_added, std, quantiles)
    if place is None:
        check_imputed_key(adata, key_added, names.values(), query.layer)
        warn_of_memory(len(names) * layer_bytes(adata.shape, wanted.size), free_memory())
    cells = ImputedCells(query, query.columns[wanted], hidden)
    options: dict[str, Any] = {"batch_size": batch_size, "progress_bar": shows_progress(progress_bar)}
    read = None if memory is None else cells.fit_memory(**options)
    rows, n_validation = find_evidence_cells(query.model, cells.source, masked=hidden is not None)
    evidence = Evidence.empty(query.model, cells=np.isin(np.arange(adata.n_obs), rows))
    params: dict[str, Any] = {"model_hash": query.model.hash, "method": method, "output": output, "layer": query.layer}
    params |= {} if phenotype is None else {"phenotype": dict(phenotype)}
    params |= {"masked": hidden is not None, "n_evidence_cells": len(rows), "n_validation_cells": n_validation}
    params |= {} if read is None else read.params()
    if read is not None and n_validation:
        logger.info("The model was fitted to these cells, so `memory='query'` gains little. It is for other models.")
    blocks: Iterator[ImputedBlock]
    if method == "denoise":
        blocks = posterior_blocks(query.model, cells.source, scale=output, memory=read, **options)
    else:
        held: dict[str, Any] = {"std": std, "quantiles": quantiles, "keep_measured": hidden is not None, "memory": read}
        plan = folds(len(query.columns), N_FOLDS, wanted) if cells.mask is None else positions(cells.mask)
        counted = evidence if cells.mask is None else None
        blocks = impute_blocks(query.model, cells.source, plan, scale=output, evidence=counted, **held, **options)
    low_depth, references = np.zeros(adata.n_obs, dtype=bool), []
    with open_result(adata, place, copy, np.sort(query.columns[query.measured])) as result:
        layers = {name: new_layer(result, name, wanted.size, BLOCK_CELLS) for name in names.values()}
        for block in blocks:
            start, n = block.cells.start, len(block.low_depth)
            low_depth[start : start + n] = block.low_depth
            references += [] if block.references is None else [block.references]
            own = cells.own(block.cells, output)
            for name, written in names.items():
                values = block.values[name][:, wanted]
                layers[written].add(start, cells.assemble(values, 0 * own if name == "std" else own))
        if method == "denoise" or cells.mask is not None:
            shown: dict[str, Any] = {"hidden": cells.mask, "memory": read}
            evidence = collect_evidence(query.model, cells.source, rows, wanted, **shown, **options)
        write_imputed(
            result.data,
            key_added,
            layers,
            imputed=np.isin(result.columns, cells.imputed),
            low_depth=low_depth,
            params=params,
            evidence=evidence.to_dict(),
            references=sp.vstack(references, format="csr") if references else None,
        )
    return result.data if copy else None
