"""Read gene regulatory networks as tables, matrices and graphs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import (
    Category,
    ConfigError,
    DataError,
    MissingKeyError,
    Names,
    as_names,
    check_arguments,
    near_names,
    short_list,
    warn,
)
from scbioformers.data import GeneNames
from scbioformers.results import (
    find_condition,
    read_grn_edges,
    read_grn_params,
    read_grn_weights,
    read_mutual_pairs,
    result_genes,
    show_genes,
)


def grn(
    adata: AnnData,
    *,
    condition: Category | None = None,
    mutual: bool = False,
    gene_symbols: str | None = None,
    key: str = "grn",
) -> pd.DataFrame:
    """Strongest edges of a network from :func:`scbioformers.tl.grn`, in the format of decoupler.

    With ``mutual=True`` these are the pairs of genes with the strongest mutual attention (paper, section 3.4).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`. If genes were removed since then, only the edges between the remaining
        genes are returned, and their ranks are computed again.
    condition
        Condition to return, a category of ``groupby``. Numbers and bools may be given as such. None returns all.
    mutual
        Only for a network by ``method="attention"``. Return one row for each pair of genes that have a weight in both
        directions. The weight of the pair is the smaller one of the two, so it is high only if both genes attend to
        each other. The pairs are chosen from all weights of the network, and the strongest are returned, at most
        ``top_k`` of :func:`scbioformers.tl.grn` in each condition. If ``regulators`` were passed there, only two
        regulators have weights in both directions.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.

    Returns
    -------
    DataFrame
        One row per edge. The columns are:

        - ``source`` (str): the regulator.
        - ``target`` (str): the target gene. In a network without directions (see :func:`scbioformers.tl.grn`), and with
          ``mutual``, an edge has one row, and which gene is the source has no meaning.
        - ``weight`` (float): weight of the edge, in the unit of the method of :func:`scbioformers.tl.grn`. Positive
          means that the regulator activates the target: a knock-out of the regulator lowers the target. Attention has
          no sign.
        - ``rank`` (int64): 1 is the strongest edge of the condition.
        - ``support`` (float, 0 to 1): share of the ensemble members that have the edge among their strongest edges. NaN
          if the model has a single member, and with ``mutual``, because weights of single members are not stored. It is
          too high if members share a start: if ``n_starts`` in ``adata.uns[key]["params"]`` is less than ``n_members``.
        - ``count`` (int): number of cells from which the weight was computed, at most the number of cells that express
          the rarer of the two genes. With ``mutual``, it is the smaller one of both directions.
        - ``condition`` (str).

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for ``condition``.
    ConfigError
        If ``mutual`` is True and the network is not one by attention.

    Warns
    -----
    BioformersWarning
        If ``mutual`` is True and there are pairs that have a weight in one direction only. They are left out.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, method="attention", top_k=100)
    >>> bf.get.grn(adata).shape, bf.get.grn(adata, mutual=True).shape
    ((100, 7), (100, 7))
    """
    check_arguments(grn, locals())
    params = read_grn_params(adata, key)
    conditions = params["conditions"] if condition is None else [find_condition(params, condition)]
    edges = _mutual_edges(adata, key, params, conditions) if mutual else read_grn_edges(adata, key)
    edges = edges[edges["condition"].isin(conditions)]
    genes = result_genes(adata, key, gene_symbols)
    edges = edges[edges["source"].isin(genes.var_names) & edges["target"].isin(genes.var_names)].reset_index(drop=True)
    edges["rank"] = edges.groupby("condition", observed=True)["rank"].rank(method="first").astype(np.int64)
    return show_genes(edges, genes, ["source", "target"])


def grn_matrix(
    adata: AnnData,
    *,
    condition: Category | None = None,
    difference: bool = False,
    gene_symbols: str | None = None,
    key: str = "grn",
) -> pd.DataFrame:
    """Weights of all pairs of a network from :func:`scbioformers.tl.grn`, as a matrix.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    condition
        Condition to return. Required if the network was computed with ``groupby``.
    difference
        Return the difference from the reference condition (weight minus weight in the reference).
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.

    Returns
    -------
    DataFrame
        float32 (n_targets, n_regulators), one row per target gene and one column per regulator. A positive weight means
        that the regulator activates the target. The value is NaN for pairs without a weight, such as genes that were
        never seen together, and for a gene with itself. Genes without any weight are left out.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, none for ``condition``, or no difference for ``condition``.
    ConfigError
        If the network was computed with ``groupby`` and ``condition`` is None.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"])
    >>> bf.get.grn_matrix(adata).shape
    (40, 2)
    """
    check_arguments(grn_matrix, locals())
    params = read_grn_params(adata, key)
    condition = _require_one(condition, params)
    if difference and (params["reference"] is None or condition == params["reference"]):
        raise MissingKeyError(_no_difference(params))
    table = read_grn_weights(adata, key, condition, difference=difference)
    shown = result_genes(adata, key, gene_symbols).shown_by_stored(table.genes)
    targets, regulators = ([shown[name] for name in names] for names in (table.genes, table.regulators))
    return pd.DataFrame(table.weight.astype(np.float32), targets, regulators).dropna(how="all")


def grn_graph(
    adata: AnnData,
    *,
    regulators: Names | None = None,
    n_top: int | None = None,
    condition: Category | None = None,
    mutual: bool = False,
    known: pd.DataFrame | None = None,
    gene_symbols: str | None = None,
    key: str = "grn",
) -> nx.Graph:
    """A network from :func:`scbioformers.tl.grn` as a graph of networkx.

    ``networkx.write_graphml`` writes the graph to a file for Cytoscape or Gephi.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    regulators
        Regulators whose edges are included. By default, all. In a network without directions, these are the genes whose
        edges are included.
    n_top
        Number of strongest edges to include: of each regulator if ``regulators`` is given, else of the whole network.
        None includes all edges in the table of :func:`scbioformers.get.grn`.
    condition
        Condition to return. Required if the network was computed with ``groupby``.
    mutual
        Only for a network by ``method="attention"``. The edges are the pairs of genes of
        :func:`scbioformers.get.grn` with ``mutual=True``, and have no directions.
    known
        Table of known edges with the columns ``source`` and ``target``, for example from decoupler. Edges that are in
        this table are marked.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.

    Returns
    -------
    networkx.DiGraph or networkx.Graph
        Edges go from the regulator to the target. Their attributes are ``weight``, ``rank``, ``support`` and ``count``
        as in :func:`scbioformers.get.grn`, and ``known`` (bool) if a table was passed. Nodes have the attribute
        ``regulator`` (bool). The graph has the attributes ``method`` and ``condition``. A network without directions,
        also by ``mutual``, is a ``networkx.Graph``, in which no node is a regulator.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for ``condition``.
    ConfigError
        If the network was computed with ``groupby`` and ``condition`` is None, ``n_top`` is less than 1, or ``mutual``
        is True and the network is not one by attention.
    DataError
        If none of the regulators has an edge in the table (the message says why, and suggests similar names), or if
        ``known`` is not a table with the two columns.

    Warns
    -----
    BioformersWarning
        If some of the regulators have no edge in the table. The graph then has the edges of the others. If ``mutual``
        is True and there are pairs that have a weight in one direction only.

    Examples
    --------
    >>> import networkx as nx
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], top_k=20)
    >>> graph = bf.get.grn_graph(adata, regulators=["TF1"], n_top=5)
    >>> graph.number_of_edges(), graph.nodes["TF1"]["regulator"]
    (5, True)
    >>> text = "".join(nx.generate_graphml(graph))  # or nx.write_graphml(graph, "tf1.graphml")
    """
    check_arguments(grn_graph, locals())
    params = read_grn_params(adata, key)
    condition = _require_one(condition, params)
    if n_top is not None and n_top < 1:
        raise ConfigError(f"`n_top` must be at least 1, found {n_top}.")
    genes = result_genes(adata, key, gene_symbols)
    edges = grn(adata, condition=condition, mutual=mutual, gene_symbols=gene_symbols, key=key)
    edges = edges.sort_values("rank", kind="stable")
    in_table = {*edges["source"], *edges["target"]}
    directed = bool(params["directed"]) and not mutual
    if regulators is not None:
        given = as_names(regulators, "regulators")
        spelled = genes.spelled(given, in_table)
        chosen = list(dict.fromkeys(spelled.get(name, name) for name in given))
        edges = edges.assign(regulator=edges["source"])
        if not directed:  # a gene is at either end of its edges
            edges = pd.concat([edges, edges.assign(regulator=edges["target"])]).sort_values("rank", kind="stable")
        if without := [gene for gene in chosen if not (edges["regulator"] == gene).any()]:
            weights = read_grn_weights(adata, key, condition)
            weak = list(genes.spelled(weights.regulators, in_table).values())
            message = _without_edges(without, weak, genes)
            if len(without) == len(chosen):
                raise DataError(message)
            warn(f"{message} The others are shown.")
        edges = edges[edges["regulator"].isin(chosen)]
        edges = edges if n_top is None else edges.groupby("regulator", sort=False, observed=True).head(n_top)
    elif n_top is not None:
        edges = edges.head(n_top)
    graph: nx.Graph = nx.DiGraph() if directed else nx.Graph()
    graph.graph.update(method=params["method"], condition=params["conditions"][0] if condition is None else condition)
    sources = set(edges["source"]) if directed else set()
    for gene in dict.fromkeys([*edges["source"], *edges["target"]]):
        graph.add_node(gene, regulator=gene in sources)
    for edge in edges.to_dict("records"):
        graph.add_edge(
            edge["source"],
            edge["target"],
            weight=float(edge["weight"]),
            rank=int(edge["rank"]),
            support=float(edge["support"]),
            count=int(edge["count"]),
        )
    if known is not None:
        pairs = _pairs(known, genes, in_table)
        pairs |= set() if directed else {(target, source) for source, target in pairs}
        nx.set_edge_attributes(graph, {pair: pair in pairs for pair in graph.edges}, "known")
    return graph


def _mutual_edges(adata: AnnData, key: str, params: dict[str, Any], conditions: Sequence[str]) -> pd.DataFrame:
    """Pairs of genes by the smaller weight of both directions, of each condition."""
    added = "" if key == "grn" else f", key_added={key!r}"
    call = f'`bf.tl.grn(adata, method="attention"{added})`'
    if params["method"] != "attention":
        raise ConfigError(
            f"`mutual=True` requires a network by attention, found one by {params['method']!r}. Run {call} first."
        )
    tables, n_one_way = zip(*(read_mutual_pairs(adata, key, name) for name in conditions), strict=True)
    if sum(n_one_way):
        warn(
            "Only pairs of two regulators have a weight in both directions, because the network was computed for some "
            f"`regulators`. The other {sum(n_one_way)} pairs are left out. Run {call} without `regulators=` for all "
            "pairs."
        )
    return pd.concat(tables, ignore_index=True)


def _require_one(condition: Category | None, params: dict[str, Any]) -> str | None:
    """Name of the condition, None if the network is that of all cells."""
    if condition is not None:
        return find_condition(params, condition)
    if params["groupby"] is not None:
        raise ConfigError(
            "The networks were computed for each condition, so one must be chosen. Pass one of these as `condition=`: "
            f"{short_list(params['conditions'])}."
        )
    return None


def _without_edges(names: Sequence[str], regulators: Sequence[str], genes: GeneNames) -> str:
    """Say which genes have no edge in the table, and what to do about it."""
    in_data = dict(zip(names, genes.index.positions(names) >= 0, strict=True))
    weak = [name for name in names if name in regulators]
    absent = [name for name in names if name not in regulators and in_data[name]]
    parts = []
    if weak:
        parts.append(
            f"{short_list(weak)} have no edge among the strongest edges of the network. Run `bf.tl.grn` with a larger "
            "`top_k`."
        )
    if absent:
        column = "" if genes.gene_symbols is None else f", gene_symbols={genes.gene_symbols!r}"
        parts.append(
            f"{short_list(absent)} have no edge in the network: they were not among its regulators, or fewer than "
            f"`min_count` cells express them. Run `bf.tl.grn(adata, regulators={absent[:5]}{column})`."
        )
    if unknown := [name for name in names if name not in regulators and not in_data[name]]:
        near = near_names(unknown[0], genes.shown)
        parts.append(
            f"Not genes of the data: {short_list(unknown)}.{f' Similar names: {near}.' if near else ''}"
            f"{genes.column_hint(unknown, 0)}"
        )
    return " ".join(parts)


def _no_difference(params: dict[str, Any]) -> str:
    reference, others = params["reference"], [name for name in params["conditions"] if name != params["reference"]]
    if reference is None:
        return "No differences are stored. Run `bf.tl.grn` again with `groupby=` and `reference=`."
    return f"{reference!r} is the reference, so it has no difference. Pass one of these as `condition=`: {others}."


def _pairs(known: pd.DataFrame, genes: GeneNames, in_table: Collection[str]) -> set[tuple[str, str]]:
    """Known edges by the names in the table of edges."""
    if not isinstance(known, pd.DataFrame) or not {"source", "target"} <= set(known.columns):
        columns = list(known.columns) if isinstance(known, pd.DataFrame) else type(known).__name__
        raise DataError(
            f"`known` must be a pandas.DataFrame of edges with the columns 'source' and 'target', found {columns}."
        )
    edges = known[["source", "target"]].dropna().astype(str)
    names = genes.spelled(pd.unique(edges.to_numpy().ravel()), in_table)
    return {(names.get(source, source), names.get(target, target)) for source, target in edges.itertuples(index=False)}
