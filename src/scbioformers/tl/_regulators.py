"""``bf.tl.regulators`` and ``bf.tl.program_enrichment``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import Category, ConfigError, DataError, check_arguments
from scbioformers.data import names_modality, open_modality
from scbioformers.metrics import enrichment
from scbioformers.results import (
    check_key_added,
    find_condition,
    read_grn_params,
    read_grns,
    read_program_background,
    read_program_genes,
    result_genes,
    stored_edges,
    target,
    write_enrichment,
    write_regulators,
)
from scbioformers.tasks import count_known_targets, rank_drivers, rank_set_regulators
from scbioformers.tl._gene_sets import GeneSets, read_gene_sets


@names_modality
def regulators(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    gene_sets: GeneSets | None = None,
    condition: Category | None = None,
    known: pd.DataFrame | None = None,
    k: int | Sequence[int] = (10, 20),
    top_k: int = 20,
    gene_symbols: str | None = None,
    grn_key: str = "grn",
    key_added: str = "regulators",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Rank the regulators of a network (key drivers) and the regulators of gene sets (paper, section 3.4).

    For networks with ``method="attention"``, the key drivers are the regulators that receive the most attention. For
    other methods, they are the regulators with the largest sum of absolute weights. The sum includes all weights that
    :func:`scbioformers.tl.grn` stored, not only its table of edges. For ``method="knockout"``, the sum is large if the
    model explains the regulator well and if the effect is spread over many targets.

    The regulators of a gene set are tested with a rank-sum test. With ``known``, the strongest targets of each
    regulator are also compared with known targets.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    modality
        The modality of a MuData that has the input of this function and gets its result. None is the only one.
    gene_sets
        Gene sets whose regulators are ranked: a list of genes, a dict of lists, a DataFrame with the columns ``source``
        (name of the set) and ``target`` (gene), or a column of ``adata.var``, such as ``"gene_program"``. Genes that
        are not modelled are ignored, and counted in a log message.
    condition
        Condition to analyse. None analyses each condition separately.
    known
        Known edges with the columns ``source`` (regulator) and ``target``, for example from CollecTRI or ReMap.
    k
        Number of strongest targets of each regulator that are compared with ``known``. Several numbers are possible.
        Choose them before you see the results.
    top_k
        Number of regulators that are stored for each gene set. All regulators are tested.
    gene_symbols
        Column of ``adata.var`` with the names of the genes in the arguments. By default, the column of the call that
        stored the network, else ``adata.var_names``.
    grn_key
        Key of the network: the value of ``key_added`` in :func:`scbioformers.tl.grn`.
    key_added
        Key under which the results are stored (see Returns).
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.uns[key_added]`` : dict of DataFrames
        ``drivers``: read it with :func:`scbioformers.get.regulators`. ``sets``, only with ``gene_sets``: read it with
        :func:`scbioformers.get.set_regulators`. ``known``, only with ``known``: read it with
        :func:`scbioformers.get.known_targets`. ``params`` (JSON string).

    Raises
    ------
    MissingKeyError
        If no network is stored under ``grn_key``, or none for ``condition``, or the column of ``adata.var`` does not
        exist.
    ConfigError
        If ``k`` or ``top_k`` is less than 1, or ``gene_sets`` has another type.
    DataError
        If no gene of the sets or no known edge is in the network. The message suggests similar names.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2", "TF3"])
    >>> bf.tl.regulators(adata, gene_sets={"mine": ["G1", "G2", "G3"]}, known=adata.uns["grn_true"])
    >>> bf.get.regulators(adata)["rank"].tolist()
    [1, 2, 3]
    """
    check_arguments(regulators, locals())
    whole, adata = adata, open_modality(adata, modality)
    params = read_grn_params(adata, grn_key)
    check_key_added(adata, key_added, inputs=[grn_key])
    if condition is not None:
        condition = find_condition(params, condition)
    if top_k < 1:
        raise ConfigError(f"`top_k` must be at least 1, found {top_k}.")
    genes = result_genes(adata, grn_key, gene_symbols)
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, network in read_grns(adata, grn_key):
        if condition is None or name == condition:
            results = {"drivers": rank_drivers(network)}
            if gene_sets is not None:
                sets = read_gene_sets(adata, gene_sets, network.genes, genes)
                results["sets"] = rank_set_regulators(network, sets, top_k)
            if known is not None:
                results["known"] = count_known_targets(network, stored_edges(known, genes, network.genes), k)
            for kind, table in results.items():
                tables.setdefault(kind, []).append(table.assign(condition=name))
    whole = target(whole, copy)
    settings = {"condition": condition, "k": np.atleast_1d(k).tolist(), "top_k": top_k, "grn_key": grn_key}
    settings |= {"gene_symbols": genes.gene_symbols}
    joined = {kind: pd.concat(parts, ignore_index=True) for kind, parts in tables.items()}
    write_regulators(open_modality(whole, modality), key_added, joined, settings | {"model_hash": params["model_hash"]})
    return whole if copy else None


@names_modality
def program_enrichment(
    adata: AnnData | MuData,
    gene_sets: GeneSets,
    *,
    modality: str | None = None,
    min_genes: int = 5,
    max_genes: int | None = 500,
    gene_symbols: str | None = None,
    program_key: str = "gene_program",
    key_added: str = "program_enrichment",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Test the overlap of gene programs with gene sets, such as those of the Gene Ontology (paper, section 3.4).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.gene_programs`.
    gene_sets
        Gene sets to test: a list of genes, a dict of lists, a DataFrame with the columns ``source`` (name of the set)
        and ``target`` (gene), or a column of ``adata.var``. Genes that are not modelled are ignored, and counted in
        a log message.
    modality
        The modality of a MuData that has the input of this function and gets its result. None is the only one.
    min_genes, max_genes
        Minimum and maximum number of modelled genes of a set. Other sets are not tested. None means no maximum.
    gene_symbols
        Column of ``adata.var`` with the names of the genes in the arguments. By default, the column of the call that
        stored the programs, else ``adata.var_names``.
    program_key
        Key of the programs: the value of ``key_added`` in :func:`scbioformers.tl.gene_programs`.
    key_added
        Key under which the results are stored (see Returns).
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy if ``copy=True``. Sets the following fields:

    ``adata.uns[key_added]`` : dict
        ``table``: read it with :func:`scbioformers.get.program_enrichment`. It has the hypergeometric tests of all
        pairs of a program and a set that share a gene. The background is all genes that were clustered. ``params``
        (JSON string).

    Raises
    ------
    MissingKeyError
        If no programs are stored under ``program_key``, or the column of ``adata.var`` does not exist.
    ConfigError
        If ``min_genes`` or ``max_genes`` is out of range, or ``gene_sets`` has another type.
    DataError
        If no gene of the sets is modelled (the message suggests similar names), or no set has a size within the limits.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.gene_programs(adata)
    >>> bf.tl.program_enrichment(adata, adata.uns["grn_true"])  # sets: the targets of each regulator
    >>> list(bf.get.program_enrichment(adata))[:5]
    ['program', 'gene_set', 'size', 'set_size', 'hits']
    """
    check_arguments(program_enrichment, locals())
    whole, adata = adata, open_modality(adata, modality)
    background = read_program_background(adata, program_key)
    check_key_added(adata, key_added, inputs=[program_key])
    if min_genes < 1 or (max_genes is not None and max_genes < min_genes):
        raise ConfigError(f"Expected 1 <= `min_genes` <= `max_genes`, found {min_genes} and {max_genes}.")
    names = result_genes(adata, program_key, gene_symbols)
    sets = read_gene_sets(adata, gene_sets, background, names)
    highest = len(background) if max_genes is None else max_genes
    kept = {name: genes for name, genes in sets.items() if min_genes <= len(genes) <= highest}
    if not kept:
        sizes = sorted(len(genes) for genes in sets.values())
        raise DataError(
            f"No gene set has {min_genes} to {highest} modelled genes; the {len(sets)} sets have {sizes[0]} to "
            f"{sizes[-1]}. Pass another `min_genes=` or `max_genes=`."
        )
    genes = read_program_genes(adata, program_key)
    groups = {str(name): part["gene"].tolist() for name, part in genes.groupby("program", sort=False)}
    table = enrichment(groups, kept, background).rename(columns={"group": "program"})
    # pairs without a shared gene are counted as tests, but not stored: with thousands of sets they are the majority
    table = table[table["hits"] > 0].sort_values("p", kind="stable", ignore_index=True)
    pairs = zip(table["program"], table["gene_set"], strict=True)
    shared = [", ".join(sorted(set(groups[program]).intersection(kept[name]))) for program, name in pairs]
    table["genes"] = np.array(shared, object)
    whole = target(whole, copy)
    settings = {"min_genes": min_genes, "max_genes": max_genes, "program_key": program_key}
    settings |= {"gene_symbols": names.gene_symbols}
    write_enrichment(open_modality(whole, modality), key_added, table, settings)
    return whole if copy else None
