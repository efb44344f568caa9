"""``bf.tl.regulators`` and ``bf.tl.program_enrichment``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.metrics import enrichment
from scbioformers.results import (
    read_grn_params,
    read_grns,
    read_program_background,
    read_program_genes,
    target,
    write_enrichment,
    write_regulators,
)
from scbioformers.tasks import count_known_targets, rank_drivers, rank_set_regulators
from scbioformers.tl._gene_sets import GeneSets, read_gene_sets


def regulators(
    adata: AnnData,
    *,
    gene_sets: GeneSets | None = None,
    condition: str | None = None,
    known: pd.DataFrame | None = None,
    k: int | Sequence[int] = (10, 20),
    top_k: int = 20,
    grn_key: str = "grn",
    key_added: str = "regulators",
    copy: bool = False,
) -> AnnData | None:
    """Key drivers: the strongest regulators of a network, those of gene sets, and how many known targets they find.

    The key drivers of a network by attention are the regulators that receive most of it over the data (paper, section
    3.4). Those of the others have the largest sum of absolute weights, over all that :func:`scbioformers.tl.grn` stored
    and not over its table of edges; by knock-outs that is the larger, the more of the regulator is explained, which is
    the length of its effects, and the more targets share them.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.grn`.
    gene_sets
        Sets whose regulators are wanted: a list of genes, a dict of them, a DataFrame with columns ``source`` (name
        of the set) and ``target`` (gene), or a column of ``adata.var``, such as ``"gene_program"``. Genes that are not
        modelled do not count; in a list they are an error.
    condition
        One of the network's conditions; None takes all, each for itself.
    known
        Known edges, columns ``source`` (regulator) and ``target``, e.g. of CollecTRI or ReMap.
    k
        How many of the top targets of each regulator are compared with ``known``. Choose before looking.
    top_k
        Regulators of each set that are stored, of all that were tested.
    grn_key
        The name given to :func:`scbioformers.tl.grn` as ``key_added``.
    key_added
        Name of the result.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.uns[key_added]`` : dict of DataFrames
        ``drivers``, read by :func:`scbioformers.get.regulators`; with ``gene_sets``, ``sets``, by
        :func:`scbioformers.get.set_regulators`; with ``known``, ``known``, by :func:`scbioformers.get.known_targets`;
        ``params`` (JSON).

    Raises
    ------
    MissingKeyError
        If there is no network, not of this condition, or no such column of ``adata.var``.
    ConfigError
        If ``k`` or ``top_k`` is below 1, or the sets are of no kind that can be read.
    DataError
        If no gene of the sets, or no known edge, is in the network (near names are given).

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2", "TF3"], progress_bar=False)
    >>> bf.tl.regulators(adata, gene_sets={"mine": ["G1", "G2", "G3"]}, known=adata.uns["grn_true"])
    >>> bf.get.regulators(adata)["rank"].tolist()
    [1, 2, 3]
    """
    params = read_grn_params(adata, grn_key)
    if condition is not None and condition not in params["conditions"]:
        raise MissingKeyError(f"There is no network of {condition!r}. There: {params['conditions']}.")
    if top_k < 1:
        raise ConfigError(f"`top_k` must be at least 1, got {top_k}.")
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, network in read_grns(adata, grn_key):
        if condition is None or name == condition:
            found = {"drivers": rank_drivers(network)}
            if gene_sets is not None:
                found["sets"] = rank_set_regulators(network, read_gene_sets(adata, gene_sets, network.genes), top_k)
            if known is not None:
                found["known"] = count_known_targets(network, known, k)
            for what, table in found.items():
                tables.setdefault(what, []).append(table.assign(condition=name))
    adata = target(adata, copy)
    settings = {"condition": condition, "k": np.atleast_1d(k).tolist(), "top_k": top_k, "grn_key": grn_key}
    joined = {what: pd.concat(parts, ignore_index=True) for what, parts in tables.items()}
    write_regulators(adata, key_added, joined, settings | {"model_hash": params["model_hash"]})
    return adata if copy else None


def program_enrichment(
    adata: AnnData,
    gene_sets: GeneSets,
    *,
    min_genes: int = 5,
    max_genes: int | None = 500,
    program_key: str = "gene_program",
    key_added: str = "program_enrichment",
    copy: bool = False,
) -> AnnData | None:
    """Which gene sets, e.g. of the Gene Ontology, the gene programs overlap with, more than by chance.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.gene_programs`.
    gene_sets
        A dict of lists of genes, a DataFrame with columns ``source`` (name of the set) and ``target`` (gene), one list
        of genes, or a column of ``adata.var``. Genes that are not modelled do not count; in a list they are an error.
    min_genes, max_genes
        Sets with fewer or more modelled genes are not tested.
    program_key
        The name given to :func:`scbioformers.tl.gene_programs` as ``key_added``.
    key_added
        Name of the result.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Sets the following fields:

    ``adata.uns[key_added]`` : dict
        ``table``, read by :func:`scbioformers.get.program_enrichment`: hypergeometric tests against the modelled genes
        of the data, of programs and sets that share a gene; ``params`` (JSON).

    Raises
    ------
    MissingKeyError
        If there are no programs, or no such column of ``adata.var``.
    ConfigError
        If a size is out of range, or the sets are of no kind that can be read.
    DataError
        If no gene of the sets is modelled (near names are given), or no set has a size within the limits.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.gene_programs(adata, progress_bar=False)
    >>> bf.tl.program_enrichment(adata, adata.uns["grn_true"])  # sets: the targets of each regulator
    >>> list(bf.get.program_enrichment(adata))[:5]
    ['program', 'gene_set', 'size', 'set_size', 'hits']
    """
    background = read_program_background(adata, program_key)
    if min_genes < 1 or (max_genes is not None and max_genes < min_genes):
        raise ConfigError(f"Expected 1 <= `min_genes` <= `max_genes`, got {min_genes} and {max_genes}.")
    sets = read_gene_sets(adata, gene_sets, background)
    highest = len(background) if max_genes is None else max_genes
    kept = {name: genes for name, genes in sets.items() if min_genes <= len(genes) <= highest}
    if not kept:
        sizes = sorted(len(genes) for genes in sets.values())
        raise DataError(
            f"None of {len(sets)} gene sets has {min_genes} to {highest} modelled genes; they have {sizes[0]} to "
            f"{sizes[-1]}. Pass `min_genes=` or `max_genes=`."
        )
    genes = read_program_genes(adata, program_key)
    groups = {str(name): part["gene"].tolist() for name, part in genes.groupby("program", sort=False)}
    table = enrichment(groups, kept, background).rename(columns={"group": "program"})
    # most of thousands of sets share no gene with a program: tested, and no news
    table = table[table["hits"] > 0].sort_values("p", kind="stable", ignore_index=True)
    pairs = zip(table["program"], table["gene_set"], strict=True)
    shared = [", ".join(sorted(set(groups[program]).intersection(kept[name]))) for program, name in pairs]
    table["genes"] = np.array(shared, object)
    adata = target(adata, copy)
    settings = {"min_genes": min_genes, "max_genes": max_genes, "program_key": program_key}
    write_enrichment(adata, key_added, table, settings)
    return adata if copy else None
