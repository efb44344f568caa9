"""``bf.tl.gene_programs``."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import BioformersWarning, ConfigError, DataError, seed_from, tqdm
from scbioformers.results import ModelLike, open_query, target, write_gene_programs
from scbioformers.tasks import Programs, Use, check_use, draw_conditions, find_programs, score_cells, similarity

logger = logging.getLogger(__name__)


def gene_programs(
    adata: AnnData,
    *,
    use: Use = "embedding",
    resolution: float | None = None,
    min_genes: int = 5,
    n_neighbors: int = 10,
    n_cells: int | None = 1000,
    model: ModelLike | None = None,
    layer: str | None = None,
    key: str = "bioformer",
    key_added: str = "gene_program",
    rng: int | np.random.Generator = 0,
    progress_bar: bool = True,
    copy: bool = False,
) -> AnnData | None:
    """Gene programs: groups of genes that the model treats alike (paper, section 3.4 and Fig. 2), and their scores.

    Genes that are each among the nearest of the other, and more alike than random directions are, are joined; the
    Leiden algorithm finds the groups, at the resolution at which the members of the ensemble agree most. Fit an
    ensemble first (``bf.tl.fit(adata, n_models=5)``): with one member, agreement is that between random parts of its
    graph, which is higher than between two fits, and so is the support. Programs that no member
    supports are warned of.

    Parameters
    ----------
    adata
        The data that the model was fitted on, or other cells on the same scale.
    use
        ``"embedding"``: genes are alike if their predicted rates answer alike to the state of the cells (cosine of the
        mean-centred contextual embeddings). ``"attention"``: if they read of the same genes (cosine of the attention
        that ``bf.tl.grn(adata, method="attention")`` weighs).
    resolution
        Of the Leiden algorithm: higher gives smaller programs. None takes, of 1, 2, 4, … 64, the one at which the
        adjusted Rand index between members is highest.
    min_genes
        Smaller groups are no programs.
    n_neighbors
        Nearest genes of a gene that it can be joined with.
    n_cells
        Cells drawn to ask the model; None takes all. Scores are of all cells.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    layer
        Layer to read; by default the layer that the model was fitted on if it is there, else ``X``.
    key
        Where the model is in ``uns``.
    key_added
        Name of the result.
    rng
        Seed or generator of the cells that are drawn and of the clustering.
    progress_bar
        Show a progress bar.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.var[key_added]`` : categorical (n_vars,)
        Program of each gene, ``"1"``, ``"2"``, … by size; NaN for genes in none and for those not modelled.
    ``adata.obsm[f"{key_added}_scores"]`` : float32 (n_obs, n_programs)
        Mean over the program's genes of ``log1p`` of the count at the mean depth, standardised over the cells. Columns
        in the order of the programs; :func:`scbioformers.get.gene_program_scores` names them.
    ``adata.uns[key_added]`` : dict
        ``genes``, read by :func:`scbioformers.get.gene_programs`; ``stability``: agreement (``ari``), ``n_programs``
        and ``n_genes`` by ``resolution``, means over the members; ``background``: the genes that
        could have been in a program; ``params`` (JSON).

    Raises
    ------
    MissingKeyError
        If there is no model, or a column that it needs is not there.
    ConfigError
        If a parameter is out of range, or the model has no attention.
    DataError
        If there are fewer than two cells, or the data is on another scale than the model's.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, n_models=2, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.gene_programs(adata, progress_bar=False)
    >>> adata.obsm["gene_program_scores"].shape[1] == adata.var["gene_program"].nunique()
    True
    """
    query = open_query(adata, model, layer=layer, key=key)
    fitted = query.model
    check_use(fitted, use)
    _check_sizes(resolution, min_genes, n_neighbors, n_cells)
    if adata.n_obs < 2:
        raise DataError(f"Programs are found over at least 2 cells; there are {adata.n_obs}.")
    seed = seed_from(rng)
    adata = target(adata, copy)
    (rows,) = draw_conditions(np.zeros(adata.n_obs, np.int64), n_cells, seed)
    cells, known = query.source.rows(rows), np.flatnonzero(query.measured)
    steps = len(rows) * len(fitted.members) * (use == "attention")
    with tqdm(total=steps, desc="Gene programs", disable=not (progress_bar and steps)) as bar:
        similarities = [
            similarity(fitted, network, cells, use, seed, bar)[np.ix_(known, known)] for network in fitted.members
        ]
    programs = find_programs(
        similarities, n_neighbors=n_neighbors, min_genes=min_genes, resolution=resolution, seed=seed
    )
    if len(similarities) > 1 and (programs.label >= 0).any() and not np.nanmax(programs.support):
        warnings.warn(
            "No member of the ensemble has two genes of a program in one of its own (support 0): the programs may be "
            "chance. Fit for longer, to more cells, or lower `min_genes`.",
            BioformersWarning,
            stacklevel=2,
        )
    label = np.full(len(query.columns), -1)
    label[known] = programs.label
    of_variable = np.full(adata.n_vars, -1)
    of_variable[query.columns[known]] = programs.label
    mean_depth = fitted.binnings["rna"].mean_depth if fitted.reading.counts else None
    names = np.array(fitted.vocabulary.feature_names(), dtype=object)[known]
    params: dict[str, Any] = {"use": use, "resolution": programs.resolution, "min_genes": min_genes}
    params |= {"n_neighbors": n_neighbors, "n_cells": len(rows), "n_members": len(fitted.members)}
    params |= {"model_hash": fitted.hash, "layer": query.layer}
    write_gene_programs(
        adata,
        key_added,
        of_variable,
        score_cells(query.source, label, mean_depth),
        genes=_table(programs, names),
        stability=programs.stability,
        background=names,
        params=params,
    )
    logger.info("%d gene programs at resolution %g", label.max(initial=-1) + 1, programs.resolution)
    return adata if copy else None


def _check_sizes(resolution: float | None, min_genes: int, n_neighbors: int, n_cells: int | None) -> None:
    if resolution is not None and not 0 < resolution < np.inf:
        raise ConfigError(f"`resolution` must be positive and finite, got {resolution}.")
    if min_genes < 2 or n_neighbors < 1 or (n_cells is not None and n_cells < 2):
        raise ConfigError(
            "`min_genes` must be at least 2, `n_neighbors` at least 1 and `n_cells` at least 2; "
            f"got {min_genes}, {n_neighbors} and {n_cells}."
        )


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
