"""``bf.pl.attention_heatmap`` and ``bf.pl.grn_network``."""

from __future__ import annotations

from collections.abc import Sequence
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
from numpy.typing import NDArray

from scbioformers import get
from scbioformers.core import (
    Category,
    ConfigError,
    DataError,
    MissingKeyError,
    check_arguments,
    find_category,
    near_names,
)
from scbioformers.pl._layout import GAP, border, boxes, place
from scbioformers.pl._show import check_number, figure
from scbioformers.results import read_grn_params

WEIGHTS = {
    "knockout": "knock-out effect (scaled log rate)",
    "embedding": "cosine of gene embeddings (weighted)",
    "attention": "attention (corrected)",
}
_SIGNED = ("knockout", "embedding")
_MISSING = "0.82"
_ACTIVATION, _REPRESSION, _UNSIGNED, _KNOWN = "#b2182b", "#2166ac", "0.35", "#ffd54a"
_REGULATOR, _TARGET = "#3b4252", "#eceff4"
_FONT_SIZE = 8.0


@figure
def attention_heatmap(
    adata: AnnData,
    regulator: str,
    *,
    n_top: int = 10,
    conditions: Category | Sequence[Category] | None = None,
    key: str = "grn",
    axes: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> list[Axes]:
    """Heat map of the strongest targets of one regulator in each condition (paper, section 3.4 and Fig. 2).

    The figure works with every method of :func:`scbioformers.tl.grn`, not only with attention. The label of the colour
    bar says which weights are shown. If the network has a reference condition, a second heat map shows the difference
    of the other conditions from it. Pairs without a weight are grey.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    regulator
        Name of the regulator, a gene.
    n_top
        Number of targets. They are sorted by their largest weight over the conditions (by the absolute weight if
        weights are signed).
    conditions
        Conditions to show. By default, all.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.
    axes
        Axes to draw on: one for the weights, and one for the differences if the network has a reference. By default, a
        new figure is created.
    show
        Show the figure, and return None. By default, ``bf.settings.autoshow``.
    save
        Save the figure. With True or the end of a name such as ``"_1.pdf"``, the file is in ``bf.settings.figdir``, and
        its name starts with the name of this function. A path, or text with a folder, is used as it is.

    Returns
    -------
    list of Axes or None
        Axes of the weights, and of the differences if there are any. None if the figure is shown.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for a condition.
    ConfigError
        If ``n_top`` is less than 1, ``conditions`` is empty, or the number of axes is wrong.
    DataError
        If the regulator is not a gene of the data (the message suggests similar names), or has no weights.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, n_types=2)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, groupby="cell_type", reference="type_1", regulators=["TF1"])
    >>> [ax.get_title() for ax in bf.pl.attention_heatmap(adata, "TF1", show=False)]
    ['targets of TF1', 'difference from type_1']
    """
    check_arguments(attention_heatmap, locals())
    params = read_grn_params(adata, key)
    conditions = _conditions(params, conditions)
    if n_top < 1:
        raise ConfigError(f"`n_top` must be at least 1, found {n_top}.")
    signed, reference = params["method"] in _SIGNED, params["reference"]
    weight = _column(adata, regulator, conditions, key, difference=False)
    strength = (weight.abs() if signed else weight).max(axis=1).dropna()
    weight = weight.loc[strength.sort_values(ascending=False, kind="stable").index[:n_top]]
    others = [] if reference is None else [name for name in conditions if name != reference]
    tables = [weight]
    if others:
        tables.append(_column(adata, regulator, others, key, difference=True).reindex(weight.index))
    if axes is None:
        axes = _panels(tables)
    check_number(axes, ["weights", "differences"][: len(tables)])
    titles = [f"targets of {regulator}", f"difference from {reference}"]
    missing = "\n(grey: no weight)" if weight.isna().any(axis=None) else ""
    labels = [WEIGHTS[params["method"]] + missing, "difference of weights"]
    for ax, table, title, label in zip(axes, tables, titles, labels, strict=False):
        diverging = signed or table is not weight or bool((table < 0).any(axis=None))
        _heat(ax, table, title, label, diverging)
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    return list(axes)


@figure
def grn_network(
    adata: AnnData,
    *,
    regulators: str | Sequence[str] | None = None,
    n_top: int = 20,
    condition: Category | None = None,
    known: pd.DataFrame | None = None,
    key: str = "grn",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Draw the strongest edges as a network (paper, section 3.4).

    The width of an edge is proportional to its absolute weight, plus a minimum width. With signed weights, an arrow
    head means activation and a bar means repression. :func:`scbioformers.get.grn_graph` returns the same graph as an
    object of networkx.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    regulators
        Regulators whose edges are drawn. By default, all.
    n_top
        Number of strongest edges to draw: of each regulator if ``regulators`` is given, else of the whole network.
    condition
        Condition to show. Required if the network was computed with ``groupby``.
    known
        Table of known edges with the columns ``source`` and ``target``. Edges that are in this table are marked yellow.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.
    ax
        Axes to draw on. By default, a new figure is created.
    show
        Show the figure, and return None. By default, ``bf.settings.autoshow``.
    save
        Save the figure. With True or the end of a name such as ``"_1.pdf"``, the file is in ``bf.settings.figdir``, and
        its name starts with the name of this function. A path, or text with a folder, is used as it is.

    Returns
    -------
    Axes or None
        Axes with the figure, or None if the figure is shown.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for ``condition``.
    ConfigError
        If the network was computed with ``groupby`` and ``condition`` is None, or ``n_top`` is less than 1.
    DataError
        If a regulator is not a gene of the data (the message suggests similar names) or has no edge, if there is no
        edge to draw, or if ``known`` is not a table with the two columns.

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
    graph = get.grn_graph(adata, regulators=regulators, n_top=n_top, condition=condition, known=known, key=key)
    params = read_grn_params(adata, key)
    if not graph.number_of_edges():
        raise DataError("The stored network has no edge between the genes of adata. Run `bf.tl.grn(adata)` again.")
    if ax is None:
        side = 3.0 + 0.75 * graph.number_of_nodes() ** 0.5
        _, ax = plt.subplots(figsize=(1.25 * side, side), layout="constrained")
    ax.set(title=_network_title(graph, condition, regulators), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    handles = _network_legend(graph, params["method"], known is not None)
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False, fontsize=7.5)
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # computes the final size of the axes
    _draw_network(ax, graph, params["method"] in _SIGNED)
    return ax


def _conditions(params: dict[str, Any], conditions: Category | Sequence[Category] | None) -> list[str]:
    if conditions is None:
        return list(params["conditions"])
    given = [conditions] if isinstance(conditions, str | float | int) else list(conditions)
    if not given:
        raise ConfigError(f"`conditions` is empty. Pass one or more of {params['conditions']}, or None for all.")
    place = "the conditions of this network"
    return [
        find_category(each, params["conditions"], argument="conditions", place=place, error=MissingKeyError)
        for each in given
    ]


def _column(adata: AnnData, regulator: str, conditions: Sequence[str], key: str, *, difference: bool) -> pd.DataFrame:
    """Weights of one regulator: genes (in the order of ``adata.var``) x conditions, NaN where there is no weight."""
    columns, all_regulators = {}, dict[str, None]()
    for name in conditions:
        table = get.grn_matrix(adata, condition=name, difference=difference, key=key)
        all_regulators |= dict.fromkeys(table.columns)
        columns[name] = table[regulator] if regulator in table else pd.Series(dtype=np.float64)
    if not difference and regulator not in all_regulators:
        if regulator in adata.var_names:
            raise DataError(
                f"{regulator!r} has no weights in this network: it was not among the regulators, or no cell expresses "
                f"it. Run `bf.tl.grn(adata, regulators=[{regulator!r}])`."
            )
        near = near_names(regulator, all_regulators)
        raise DataError(f"{regulator!r} is not a gene of the data.{f' Similar names: {near}.' if near else ''}")
    return pd.DataFrame({name: column.reindex(adata.var_names) for name, column in columns.items()})


def _panels(tables: Sequence[pd.DataFrame]) -> list[Axes]:
    widths = [1.5 + 0.55 * table.shape[1] for table in tables]
    longest = max(len(str(name)) for name in tables[0].columns)
    height = 1.5 + 0.26 * len(tables[0]) + 0.06 * longest
    ratios = {"width_ratios": widths}
    figsize = (1.2 + sum(widths), height)
    _, grid = plt.subplots(1, len(tables), figsize=figsize, gridspec_kw=ratios, layout="constrained", squeeze=False)
    return list(grid[0])


def _heat(ax: Axes, table: pd.DataFrame, title: str, label: str, diverging: bool) -> None:
    values = np.ma.masked_invalid(table.to_numpy(np.float64))
    largest = float(np.abs(values).max()) if values.count() else 1.0
    colours = plt.get_cmap("RdBu_r" if diverging else "Reds").with_extremes(bad=_MISSING)
    limit = largest or 1.0
    image = ax.imshow(values, aspect="auto", cmap=colours, vmin=-limit if diverging else 0.0, vmax=limit)
    ax.set_yticks(range(len(table)), table.index, fontsize=8)
    longest = max(len(str(name)) for name in table.columns)
    rotated: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if table.shape[1] > 1 or longest > 12 else {}
    )
    ax.set_xticks(range(table.shape[1]), table.columns, fontsize=8, **rotated)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=10)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _draw_network(ax: Axes, graph: nx.DiGraph, signed: bool) -> None:
    """Draw nodes and edges without overlap of the boxes. Data units of the axes are points."""
    names = list(graph.nodes)
    canvas = np.array(ax.get_window_extent().size) * 72 / ax.figure.dpi
    size = boxes(names, _FONT_SIZE)
    at = place(graph, size, canvas, GAP * _FONT_SIZE)
    low, high = (at - size / 2).min(axis=0), (at + size / 2).max(axis=0)
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


def _draw_edges(
    ax: Axes, graph: nx.DiGraph, nodes: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], signed: bool
) -> None:
    strongest = _strongest(graph)
    for source, target, edge in graph.edges(data=True):
        (start, start_size), (end, end_size) = nodes[source], nodes[target]
        both = graph.has_edge(target, source)
        ends = border(start, start_size, end), border(end, end_size, start)
        represses = signed and edge["weight"] < 0
        width = 0.7 + 2.5 * abs(edge["weight"]) / strongest
        style: dict[str, Any] = {
            "posA": tuple(ends[0]),
            "posB": tuple(ends[1]),
            "shrinkA": 0.0,
            "shrinkB": 2.5,
            "connectionstyle": f"arc3,rad={0.18 if both else 0.0}",
        }
        if edge.get("known"):
            ax.add_patch(FancyArrowPatch(arrowstyle="-", color=_KNOWN, linewidth=width + 5, zorder=1, **style))
        arrow = "-[,widthB=3,lengthB=0" if represses else "-|>"
        colour = _UNSIGNED if not signed else _REPRESSION if represses else _ACTIVATION
        ax.add_patch(
            FancyArrowPatch(
                arrowstyle=arrow,
                mutation_scale=1.5 if represses else 9,
                color=colour,
                linewidth=width,
                zorder=2,
                **style,
            )
        )


def _strongest(graph: nx.DiGraph) -> float:
    return max(abs(weight) for _, _, weight in graph.edges(data="weight")) or 1.0


def _network_title(graph: nx.DiGraph, condition: Category | None, regulators: str | Sequence[str] | None) -> str:
    edges = f"{graph.number_of_edges()} strongest edges"
    if regulators is not None:
        names = [regulators] if isinstance(regulators, str) else list(regulators)
        edges += f" of {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    return edges if condition is None else f"{edges} in {condition}"


def _network_legend(graph: nx.DiGraph, method: str, known: bool) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Patch(facecolor=_REGULATOR, edgecolor=_REGULATOR, label="regulator"),
        Patch(facecolor=_TARGET, edgecolor=_REGULATOR, label="target"),
    ]
    if method in _SIGNED:
        handles += [
            Line2D([], [], color=_ACTIVATION, linewidth=2, marker=">", markersize=5, label="activation"),
            Line2D([], [], color=_REPRESSION, linewidth=2, marker="|", markersize=8, label="repression"),
        ]
    if known:
        handles.append(Line2D([], [], color=_KNOWN, linewidth=6, label="known"))
    colour = "black" if method in _SIGNED else _UNSIGNED
    weight = WEIGHTS[method].split(" (")[0]
    widest = f"{f'|{weight}|' if method in _SIGNED else weight} = {_strongest(graph):.2g}"
    handles.append(Line2D([], [], color=colour, linewidth=3.2, label=widest))
    return handles
