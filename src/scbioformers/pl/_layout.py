"""Where the nodes of a graph stand, so that their labels can be read."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

SEED = 0
LETTER = 0.64  # width of a letter in font sizes; not measured: pictures must not depend on the machine's fonts
MARGIN = 1.1  # of a label, all around, in font sizes
GAP = 2.0  # least distance of two boxes, in font sizes: an arrow needs some
_N_PUSHES = 500


def boxes(labels: Sequence[str], font_size: float) -> NDArray[np.float64]:
    """(N, 2) width and height of the box around each label, in points."""
    return font_size * np.array([(LETTER * len(label) + MARGIN, 1.0 + MARGIN / 1.4) for label in labels])


def place(graph: nx.DiGraph, size: NDArray[np.float64], canvas: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """(N, 2) centres of the boxes of the nodes, of which no two overlap.

    Parameters
    ----------
    graph
        With N nodes.
    size
        (N, 2) width and height of each box.
    canvas
        Width and height to fill; if the boxes do not fit, their centres reach beyond.
    gap
        Least distance of two boxes.
    """
    order = {name: i for i, name in enumerate(graph.nodes)}
    plain = nx.Graph([(order[a], order[b]) for a, b in graph.edges])
    # parts that share no edge would fly apart: a hub, not drawn, holds them
    parts = list(nx.connected_components(plain))
    if len(parts) > 1:
        plain.add_edges_from((-1, max(sorted(part), key=plain.degree)) for part in parts)
    found = nx.spring_layout(plain, k=1.6 / max(len(order), 1) ** 0.5, iterations=200, weight=None, seed=SEED)
    at = np.array([found[i] for i in range(len(order))], dtype=np.float64)
    span = np.ptp(at, axis=0)
    at = (at - at.min(axis=0)) / np.where(span > 0, span, 1.0) * (canvas - size.max(axis=0)).clip(min=1.0)
    return push_apart(at, size + gap)


def push_apart(at: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move boxes (centres ``at``, ``size``, both (N, 2)) by the shortest ways until no two overlap."""
    at = at + 1e-6 * np.arange(at.size).reshape(at.shape)  # boxes at one place part in a fixed direction
    least = (size[:, None] + size[None]) / 2
    first, second = np.triu_indices(len(at), k=1)
    for _ in range(_N_PUSHES):
        apart = at[second] - at[first]
        overlap = least[first, second] - np.abs(apart)
        hit = (overlap > 1e-9).all(axis=1)
        if not hit.any():
            break
        axis = overlap.argmin(axis=1)
        rows = np.flatnonzero(hit)
        push = 0.51 * overlap[rows, axis[rows]] * np.where(apart[rows, axis[rows]] < 0, -1.0, 1.0)
        np.add.at(at, (first[rows], axis[rows]), -push)
        np.add.at(at, (second[rows], axis[rows]), push)
    return at


def border(centre: NDArray[np.float64], size: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2,) the point where the line from the centre of a box towards another point leaves the box."""
    line = towards - centre
    with np.errstate(divide="ignore"):
        reach = np.min(size / 2 / np.abs(line))
    return centre + min(float(reach), 1.0) * line
