"""``bf.tl.gene_programs``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, check_arguments, seed_from, tqdm, warn
from scbioformers.data import FeatureMap
from scbioformers.nn import computes
from scbioformers.results import ModelLike, check_key_added, open_parts, target, write_gene_programs
from scbioformers.settings import shows_progress
from scbioformers.tasks import (
    Features,
    Programs,
    Use,
    check_use,
    draw_conditions,
    find_programs,
    score_cells,
    similarity,
)
from scbioformers.tl._support import log_shared_starts

logger = logging.getLogger(__name__)


@computes
def gene_programs(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    use: Use = "embedding",
    resolution: float | None = None,
    min_genes: int = 5,
    n_neighbors: int = 10,
    n_cells: int | None = 1000,
    min_count: int = 3,
    model: ModelLike | None = None,
    layer: str | Mapping[str, Any] | None = None,
    gene_symbols: str | Mapping[str, Any] | None = None,
    feature_map: FeatureMap | None = None,
    key: str = "bioformer",
    key_added: str = "gene_program",
    rng: int | np.random.Generator = 0,
    device: str = "auto",
    progress_bar: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Find gene programs and score them in each cell (paper, section 3.4 and Fig. 2).

    A gene program is a group of genes with similar embeddings or similar attention in the model. Two genes are
    connected if each is among the nearest neighbours of the other, and if their similarity is larger than that of
    random directions. The Leiden algorithm clusters this graph. It uses the resolution at which the members of the
    ensemble agree most.

    Fit an ensemble first (``bf.tl.fit(adata, n_models=5)``). With a single member, the agreement is computed between
    random parts of its graph, and is then larger than between independent fits. The support is NaN. Members that a fit
    with ``model=`` has added share the start of others and agree more, so the agreement and the support are too high. A
    log message says so.

    Parameters
    ----------
    adata
        Cells with values on the same scale as the training data. Genes are matched by name, in any order. The genes
        that are found must have at least 20 % of the counts that the model's genes have in the training data. Or a
        MuData, if the model was fitted to one.
    modality
        Only for a MuData: the modality whose features are clustered, in which the results are stored. The model reads
        the other modalities of the samples, too. ``layer``, ``gene_symbols`` and ``feature_map`` are dicts by modality.
    use
        Similarity between genes. ``"embedding"``: cosine of the mean-centred contextual embeddings. The contextual
        embedding of a gene is the derivative of its predicted log rate with respect to the latent vector, averaged over
        cells. ``"attention"``: cosine of the attention that two genes pay to the other genes, corrected as in
        ``bf.tl.grn(adata, method="attention")``.
    resolution
        Resolution of the Leiden algorithm. A higher resolution gives smaller programs. None tries 1, 2, 4, … 64 and
        uses the one with the highest adjusted Rand index between members.
    min_genes
        Minimum number of genes in a program. Smaller clusters are discarded.
    n_neighbors
        Number of nearest neighbours of a gene in the graph.
    n_cells
        Number of cells that are drawn to compute the similarities. None uses all cells. All cells are scored.
    min_count
        Minimum number of the drawn cells that express a gene. Other genes are not clustered and are in no program.
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
    key
        Key of the model in ``adata.uns``.
    key_added
        Key under which the results are stored (see Returns).
    rng
        Seed, or :class:`numpy.random.Generator`, for all random choices.
    device
        Device for the computation: ``"auto"`` (CUDA if there is a GPU, else the CPU), ``"cpu"``, ``"cuda"``,
        ``"cuda:0"`` or ``"mps"``.
    progress_bar
        Show a progress bar. None uses ``bf.settings.progress_bar``.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.var[key_added]`` : categorical (n_vars,)
        Program of each gene: ``"1"`` (the largest), ``"2"``, …. NaN for genes that are in no program or not modelled.
    ``adata.obsm[f"{key_added}_scores"]`` : float32 (n_obs, n_programs)
        Score of each cell for each program: the mean standardised expression of the genes of the program. Expression is
        ``log1p`` of the count at the mean depth, and the unit is one standard deviation over the cells. The columns are
        in the order of the programs. :func:`scbioformers.get.gene_program_scores` returns them with names.
    ``adata.uns[key_added]`` : dict
        ``genes`` (DataFrame, read it with :func:`scbioformers.get.gene_programs`). ``stability`` (DataFrame): for each
        ``resolution``, the agreement between members (``ari``), and the means over the members of ``n_programs`` and
        ``n_genes``. ``background`` (str array): all genes that were clustered. ``params`` (JSON string).

    Raises
    ------
    MissingKeyError
        If the model, the layer, or a column of ``adata.obs`` that the model uses is not found.
    ConfigError
        If a parameter is out of range, ``use="attention"`` and the model has no attention, or the device is not
        available.
    DataError
        If there are fewer than 2 cells, no gene is expressed in ``min_count`` cells, the values are on another scale
        than the training data, or ``adata`` has too few genes of the model.

    Warns
    -----
    BioformersWarning
        If no member of an ensemble supports any program.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, n_models=2, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.gene_programs(adata)
    >>> adata.obsm["gene_program_scores"].shape[1] == adata.var["gene_program"].nunique()
    True
    """
    check_arguments(gene_programs, locals())
    (part,) = open_parts(
        adata,
        model,
        modality,
        layer=layer,
        gene_symbols=gene_symbols,
        feature_map=feature_map,
        key=key,
        device=device,
    )
    query, fitted = part.own, part.model
    check_key_added(query.data, key_added, {"var": [key_added]})
    check_use(fitted, use)
    _check_sizes(resolution, min_genes, n_neighbors, n_cells, min_count)
    if part.measured.sum() < 2:
        raise DataError(f"Gene programs require at least 2 cells, found {part.measured.sum()}.")
    log_shared_starts(fitted)
    seed = seed_from(rng)
    adata = target(adata, copy)
    (rows,) = draw_conditions(np.where(part.measured, 0, -1), n_cells, seed)
    cells, features = part.source.rows(rows), Features.of(fitted, part.modality)
    n_expressing = np.diff(features.cells(cells).counts.tocsc().indptr)
    clustered = np.flatnonzero(query.measured & (n_expressing >= min_count))
    _report_clustered(clustered.size, int(query.measured.sum()), len(rows), min_count)
    steps = len(rows) * len(fitted.members)
    with tqdm(total=steps, desc="Gene programs", unit="cell", disable=not shows_progress(progress_bar)) as bar:
        similarities = [
            similarity(fitted, network, cells, use, seed, bar, part.modality)[np.ix_(clustered, clustered)]
            for network in fitted.members
        ]
    programs = find_programs(
        similarities, n_neighbors=n_neighbors, min_genes=min_genes, resolution=resolution, seed=seed
    )
    if len(similarities) > 1 and (programs.label >= 0).any() and not np.nanmax(programs.support):
        warn(
            "The support of all programs is 0: no ensemble member has two genes of a program in one program. The "
            "programs may be random. Fit for more epochs, fit to more cells, or use a smaller `min_genes`.",
        )
    label = np.full(len(query.columns), -1)
    label[clustered] = programs.label
    label_of_var = np.full(query.data.n_vars, -1)
    label_of_var[query.columns[clustered]] = programs.label
    state = features.state
    mean_depth = state.binning.mean_depth if state.reading.counts else None
    names = np.array(query.stored_names, dtype=object)[clustered]
    params: dict[str, Any] = {"use": use, "resolution": programs.resolution, "min_genes": min_genes}
    params |= {"n_neighbors": n_neighbors, "min_count": min_count, "n_cells": len(rows), **part.provenance}
    write_gene_programs(
        adata[part.modality] if isinstance(adata, MuData) else adata,
        key_added,
        label_of_var,
        score_cells(query.source, label, mean_depth),
        genes=_table(programs, names),
        stability=programs.stability,
        background=names,
        params=params,
    )
    logger.info("Found %d gene programs at resolution %g.", label.max(initial=-1) + 1, programs.resolution)
    return adata if copy else None


def _report_clustered(n_clustered: int, n_measured: int, n_cells: int, min_count: int) -> None:
    if not n_clustered:
        raise DataError(
            f"Of {n_measured} modelled genes, none is expressed in at least {min_count} of {n_cells} cells "
            "(`min_count`). Pass more cells or a smaller `min_count=`."
        )
    if n_clustered < n_measured:
        logger.info(
            "%d of %d modelled genes are expressed in fewer than %d cells (`min_count`) and are in no program.",
            n_measured - n_clustered,
            n_measured,
            min_count,
        )


def _check_sizes(
    resolution: float | None, min_genes: int, n_neighbors: int, n_cells: int | None, min_count: int
) -> None:
    if resolution is not None and not 0 < resolution < np.inf:
        raise ConfigError(f"`resolution` must be positive and finite, found {resolution}.")
    if min_genes < 2 or n_neighbors < 1 or (n_cells is not None and n_cells < 2):
        raise ConfigError(
            "`min_genes` must be at least 2, `n_neighbors` at least 1 and `n_cells` at least 2; "
            f"found {min_genes}, {n_neighbors} and {n_cells}."
        )
    if min_count < 1:
        raise ConfigError(f"`min_count` must be at least 1, found {min_count}.")


def _table(programs: Programs, names: NDArray[Any]) -> pd.DataFrame:
    order = np.lexsort((-programs.weight, programs.label))
    order = order[programs.label[order] >= 0]
    return pd.DataFrame(
        {
            "program": (programs.label[order] + 1).astype(str),
            "gene": names[order],
            "weight": programs.weight[order],
            "support": programs.support[order],
        }
    )
