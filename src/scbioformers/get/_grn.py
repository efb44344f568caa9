"""Gene regulatory networks, read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import ConfigError, DataError, MissingKeyError, near_names
from scbioformers.results import read_grn_edges, read_grn_params, read_grn_weights

_HINT = "Run `bf.tl.grn(adata)` first."


def grn(adata: AnnData, *, condition: str | None = None, key: str = "grn") -> pd.DataFrame:
    """The strongest edges that :func:`scbioformers.tl.grn` found, as decoupler takes them.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.grn`; after the genes were subset, edges of those that are left, ranked anew.
    condition
        One of the conditions; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    Columns source (the regulator), target, weight, rank (from 1 in each condition), support (share of the members of
    the ensemble that hold the edge), count (cells behind it) and condition.

    Raises
    ------
    MissingKeyError
        If there is no network, or not of this condition.

    Examples
    --------
    See :func:`scbioformers.tl.grn`.
    """
    edges = read_grn_edges(adata, key)
    if condition is not None:
        _require(condition, read_grn_params(adata, key))
        edges = edges[edges["condition"] == condition]
    there = {str(name) for name in adata.var_names}
    edges = edges[edges["source"].isin(there) & edges["target"].isin(there)].reset_index(drop=True)
    edges["rank"] = edges.groupby("condition", observed=True)["rank"].rank(method="first").astype(np.int64)
    return edges


def grn_matrix(
    adata: AnnData, *, condition: str | None = None, difference: bool = False, key: str = "grn"
) -> pd.DataFrame:
    """Weights of all pairs that :func:`scbioformers.tl.grn` found.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.grn`.
    condition
        One of the conditions; needed if there are several.
    difference
        The difference from the reference instead.
    key
        The name given as ``key_added``.

    Returns
    -------
    float32, targets x regulators; NaN for pairs that were never seen, and for a gene with itself. Genes that are
    neither are left out.

    Raises
    ------
    MissingKeyError
        If there is no network, not of this condition, or no difference.
    ConfigError
        If there are several conditions and none was named.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], progress_bar=False)
    >>> bf.get.grn_matrix(adata).shape
    (40, 2)
    """
    params = read_grn_params(adata, key)
    _require_one(condition, params)
    if difference and (params["reference"] is None or condition == params["reference"]):
        raise MissingKeyError("There is no such difference. Run `bf.tl.grn(adata, groupby=…, reference=…)`.")
    table = read_grn_weights(adata, key, condition, difference=difference)
    return pd.DataFrame(table.weight.astype(np.float32), table.genes, table.regulators).dropna(how="all")


def grn_graph(
    adata: AnnData,
    *,
    regulators: Sequence[str] | None = None,
    n_top: int | None = None,
    condition: str | None = None,
    known: pd.DataFrame | None = None,
    key: str = "grn",
) -> nx.DiGraph:
    """The network as a graph of networkx; ``networkx.write_graphml`` writes it for Cytoscape or Gephi.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.grn`.
    regulators
        Edges of these alone; by default of all.
    n_top
        The strongest edges: of each of the ``regulators``, or, where none are named, of all together. None takes all
        that are in the table.
    condition
        One of the conditions; needed if there are several.
    known
        A table of edges with the columns source and target, for instance of decoupler: marks those that are in it.
    key
        The name given as ``key_added``.

    Returns
    -------
    A directed graph. Edges go from regulator to target and have weight, rank, support and count as in
    :func:`scbioformers.get.grn`, and with ``known`` the bool known; nodes have the bool regulator; the graph has
    method and condition.

    Raises
    ------
    MissingKeyError
        If there is no network, or not of this condition.
    ConfigError
        If there are several conditions and none was named, or ``n_top`` is below 1.
    DataError
        If a regulator is unknown (near names are given) or has no edge in the table, or ``known`` lacks a column.

    Examples
    --------
    >>> import networkx as nx
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], top_k=20, progress_bar=False)
    >>> graph = bf.get.grn_graph(adata, regulators=["TF1"], n_top=5)
    >>> graph.number_of_edges(), graph.nodes["TF1"]["regulator"]
    (5, True)
    >>> text = "".join(nx.generate_graphml(graph))  # or nx.write_graphml(graph, "tf1.graphml")
    """
    params = read_grn_params(adata, key)
    _require_one(condition, params)
    if n_top is not None and n_top < 1:
        raise ConfigError(f"`n_top` must be at least 1, got {n_top}.")
    edges = grn(adata, condition=condition, key=key).sort_values("rank", kind="stable")
    if regulators is not None:
        regulators = [regulators] if isinstance(regulators, str) else list(regulators)
        _require_regulators(adata, regulators, edges)
        edges = edges[edges["source"].isin(regulators)]
        edges = edges if n_top is None else edges.groupby("source", sort=False, observed=True).head(n_top)
    elif n_top is not None:
        edges = edges.head(n_top)
    graph = nx.DiGraph(method=params["method"], condition=condition or params["conditions"][0])
    sources = set(edges["source"])
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
        there = _pairs(known)
        nx.set_edge_attributes(graph, {pair: pair in there for pair in graph.edges}, "known")
    return graph


def _require(condition: str, params: dict[str, Any]) -> None:
    if condition not in params["conditions"]:
        raise MissingKeyError(f"There is no network of {condition!r}. There: {params['conditions']}. {_HINT}")


def _require_one(condition: str | None, params: dict[str, Any]) -> None:
    if condition is not None:
        _require(condition, params)
    elif params["groupby"] is not None:
        raise ConfigError(f"There are networks of several conditions; pass `condition=`: {params['conditions']}.")


def _require_regulators(adata: AnnData, regulators: Sequence[str], edges: pd.DataFrame) -> None:
    sources = set(edges["source"])
    for gene in regulators:
        if gene not in adata.var_names:
            near = near_names(gene, adata.var_names)
            raise DataError(f"{gene!r} is not among the genes.{f' Near names: {near}.' if near else ''}")
        if gene not in sources:
            raise DataError(
                f"{gene!r} regulates nothing among the {len(edges)} strongest edges. Run "
                f"`bf.tl.grn(adata, regulators=[{gene!r}])`, or with a larger `top_k`."
            )


def _pairs(known: pd.DataFrame) -> set[tuple[str, str]]:
    if not isinstance(known, pd.DataFrame) or not {"source", "target"} <= set(known.columns):
        raise DataError("`known` is a table of edges (pandas.DataFrame) with the columns 'source' and 'target'.")
    return set(zip(known["source"].astype(str), known["target"].astype(str), strict=True))
