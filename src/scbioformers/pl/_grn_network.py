"""``bf.pl.grn_network``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from mudata import MuData
from numpy.typing import NDArray

from scbioformers import get
from scbioformers.core import Category, DataError, Names, as_names, check_arguments
from scbioformers.data import names_modality
from scbioformers.pl._grn_words import WEIGHTS, condition_label, is_signed, only_associated
from scbioformers.pl._layout import GAP, border, boxes, place, unit_normals
from scbioformers.pl._show import figure
from scbioformers.results import ModalityPair, find_condition, open_grn, read_grn_params, result_genes

_ACTIVATION, _REPRESSION, _UNSIGNED, _KNOWN = "#b2182b", "#2166ac", "0.35", "#ffd54a"
_REGULATOR, _TARGET = "#3b4252", "#eceff4"
_FONT_SIZE = 8.0
_MAX_SIDE = 24.0  # inches
_SIDE = 3.5  # distance of an edge from the middle if there is one in each direction, in points


@figure
@names_modality
def grn_network(
    adata: AnnData | MuData,
    *,
    modality: ModalityPair | None = None,
    regulators: Names | None = None,
    n_top: int = 20,
    condition: Category | None = None,
    mutual: bool = False,
    known: pd.DataFrame | None = None,
    gene_symbols: str | None = None,
    key: str = "grn",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Draw the strongest edges as a network (paper, section 3.4).

    The width of an edge is proportional to its absolute weight, plus a minimum width. With signed weights, an arrow
    head means activation and a bar means repression. Between two modalities, with ``method="embedding"``, they say
    only that both rise and fall together, or that one falls as the other rises. A network without directions
    (:func:`scbioformers.tl.grn` without ``regulators``) is drawn with plain lines.
    :func:`scbioformers.get.grn_graph` returns the same graph as an object of networkx.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    modality
        The modality of a MuData that has the network, or the two modalities of a network between them, such as
        ``("rna", "prot")``. None is the only one.
    regulators
        Regulators whose edges are drawn. By default, all. In a network without directions, these are the genes whose
        edges are drawn.
    n_top
        Number of strongest edges to draw: of each regulator if ``regulators`` is given, else of the whole network.
    condition
        Condition to show. Required if the network was computed with ``groupby``.
    mutual
        Only for a network by ``method="attention"``. Draw the pairs of genes with the strongest mutual attention, as
        plain lines: :func:`scbioformers.get.grn` with ``mutual=True``.
    known
        Table of known edges with the columns ``source`` and ``target``. Edges that are in this table are marked yellow.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.
    ax
        Axes to draw on. By default, a new figure is created.
    %(show_save)s

    Returns
    -------
    Axes or None
        Axes with the figure, or None with ``show=True``.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for ``condition``.
    ConfigError
        If the network was computed with ``groupby`` and ``condition`` is None, ``n_top`` is less than 1, or ``mutual``
        is True and the network is not one by attention.
    DataError
        If none of the regulators has an edge (the message suggests similar names), if there is no edge to draw, or if
        ``known`` is not a table with the two columns.

    Warns
    -----
    BioformersWarning
        If some of the regulators have no edge in the table of edges. The edges of the others are drawn. If ``mutual``
        is True and there are pairs that have a weight in one direction only.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], top_k=20)
    >>> bf.pl.grn_network(adata, n_top=10, known=adata.uns["grn_true"], show=False).get_title()
    '10 strongest edges'
    """
    check_arguments(grn_network, locals())
    adata = open_grn(adata, modality, key)
    options: dict[str, Any] = {"condition": condition, "mutual": mutual, "gene_symbols": gene_symbols, "key": key}
    graph = get.grn_graph(adata, regulators=regulators, n_top=n_top, known=known, **options)
    params = read_grn_params(adata, key)
    if not graph.number_of_edges():
        raise DataError("The stored network has no edge between the genes of adata. Run `bf.tl.grn(adata)` again.")
    own_figure = ax is None
    if ax is None:
        side = 3.0 + 0.75 * graph.number_of_nodes() ** 0.5
        _, ax = plt.subplots(figsize=(1.25 * side, side), layout="constrained")
    shown = None if condition is None else find_condition(params, condition)
    names = None if regulators is None else as_names(regulators, "regulators")
    if names is not None:
        spelled = result_genes(adata, key, gene_symbols).spelled(names, graph.nodes)
        names = [spelled[name] for name in names if spelled.get(name) in graph]
    ax.set(title=_network_title(graph, shown, names), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    handles = _network_legend(graph, params, known is not None)
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=7.5)
    _draw_network(ax, graph, is_signed(params), own_figure)
    return ax


def _draw_network(ax: Axes, graph: nx.Graph, signed: bool, own_figure: bool) -> None:
    """Draw nodes and edges without overlap of the boxes. Data units of the axes are points."""
    names = list(graph.nodes)
    canvas = _canvas(ax)
    size = boxes(names, _FONT_SIZE)
    at = place(graph, size, canvas, GAP * _FONT_SIZE)
    low, high = (at - size / 2).min(axis=0), (at + size / 2).max(axis=0)
    if own_figure and ((high - low) > canvas).any():  # a larger figure rather than smaller letters
        whole = ax.figure.canvas.figure
        whole.set_size_inches((whole.get_size_inches() + (high - low - canvas).clip(min=0.0) / 72).clip(max=_MAX_SIDE))
        canvas = _canvas(ax)
    shrink = max(1.0, *((high - low) / canvas))  # smaller letters if the boxes do not fit
    middle = (low + high) / 2
    low, high = middle - shrink * canvas / 2, middle + shrink * canvas / 2
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    _draw_edges(ax, graph, dict(zip(names, zip(at, size, strict=True), strict=True)), signed)
    for name, centre in zip(names, at, strict=True):
        face, text = (_REGULATOR, "white") if graph.nodes[name]["regulator"] else (_TARGET, "black")
        box = {"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": _REGULATOR, "linewidth": 0.8}
        ax.text(
            centre[0],
            centre[1],
            name,
            color=text,
            ha="center",
            va="center",
            fontsize=_FONT_SIZE / shrink,
            bbox=box,
            zorder=3,
        )


def _canvas(ax: Axes) -> NDArray[np.float64]:
    """(2,), width and height of the axes in points."""
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # computes the final size of the axes
    return np.array(ax.get_window_extent().size) * 72 / ax.figure.dpi


def _draw_edges(
    ax: Axes, graph: nx.Graph, nodes: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], signed: bool
) -> None:
    strongest = _strongest(graph)
    for source, target, edge in graph.edges(data=True):
        (start, start_size), (end, end_size) = nodes[source], nodes[target]
        ends = np.array([border(start, start_size, end), border(end, end_size, start)])
        if graph.is_directed() and graph.has_edge(target, source):  # two edges side by side
            ends += _SIDE * unit_normals((ends[1] - ends[0])[None])
        represses = signed and edge["weight"] < 0
        width = 0.7 + 2.5 * abs(edge["weight"]) / strongest
        style: dict[str, Any] = {
            "posA": tuple(ends[0]),
            "posB": tuple(ends[1]),
            "shrinkA": 0.0,
            "shrinkB": 0.0 if not graph.is_directed() else 4.5 if represses else 2.5,
        }
        if edge.get("known"):
            ax.add_patch(FancyArrowPatch(arrowstyle="-", color=_KNOWN, linewidth=width + 5, zorder=1, **style))
        arrow, size = ("-[,widthB=3,lengthB=0", 1.5) if represses else ("-|>", 9.0)
        arrow = arrow if graph.is_directed() else "-"
        colour = _UNSIGNED if not signed else _REPRESSION if represses else _ACTIVATION
        ax.add_patch(
            FancyArrowPatch(arrowstyle=arrow, mutation_scale=size, color=colour, linewidth=width, zorder=2, **style)
        )


def _strongest(graph: nx.Graph) -> float:
    return max(abs(weight) for _, _, weight in graph.edges(data="weight")) or 1.0


def _network_title(graph: nx.Graph, condition: str | None, regulators: str | Sequence[str] | None) -> str:
    mutual = graph.graph["method"] == "attention" and not graph.is_directed()
    edges = f"{graph.number_of_edges()} strongest {'mutual pairs' if mutual else 'edges'}"
    if regulators is not None:
        names = [name for name in ([regulators] if isinstance(regulators, str) else regulators) if name in graph]
        edges += f" of {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    return edges if condition is None else f"{edges} in {condition_label(condition)}"


def _network_legend(graph: nx.Graph, params: Mapping[str, Any], known: bool) -> list[Line2D | Patch]:
    signed, directed = is_signed(params), graph.is_directed()
    handles: list[Line2D | Patch] = [Patch(facecolor=_TARGET, edgecolor=_REGULATOR, label="gene")]
    if directed:
        handles = [
            Patch(facecolor=_REGULATOR, edgecolor=_REGULATOR, label="regulator"),
            Patch(facecolor=_TARGET, edgecolor=_REGULATOR, label="target"),
        ]
    if signed:
        for colour, marker, size, name in ((_ACTIVATION, ">", 5, "activation"), (_REPRESSION, "|", 8, "repression")):
            if not directed or only_associated(params):
                name = {"activation": "positive", "repression": "negative"}[name]
            marker = marker if directed else ""
            handles.append(Line2D([], [], color=colour, linewidth=2, marker=marker, markersize=size, label=name))
    if known:
        handles.append(Line2D([], [], color=_KNOWN, linewidth=6, label="known"))
    weight = WEIGHTS[params["method"]].split(" (")[0]
    widest = f"{f'|{weight}|' if signed else weight} = {_strongest(graph):.2g}"
    handles.append(Line2D([], [], color="black" if signed else _UNSIGNED, linewidth=3.2, label=widest))
    return handles
