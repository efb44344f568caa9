"""Read gene regulatory networks as graphs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import networkx as nx
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import (
    Category,
    ConfigError,
    DataError,
    Names,
    as_names,
    check_arguments,
    near_names,
    short_list,
    warn,
)
from scbioformers.data import GeneNames, names_modality
from scbioformers.get._grn import grn, require_one
from scbioformers.results import ModalityPair, open_grn, read_grn_params, read_grn_weights, result_genes


@names_modality
def grn_graph(
    adata: AnnData | MuData,
    *,
    modality: ModalityPair | None = None,
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
    modality
        The modality of a MuData that has the network, or the two modalities of a network between them, such as
        ``("rna", "prot")``. None is the only one.
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
    adata = open_grn(adata, modality, key)
    params = read_grn_params(adata, key)
    condition = require_one(condition, params)
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
