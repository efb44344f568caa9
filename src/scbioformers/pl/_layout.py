"""Layout of a graph without overlap of the node labels."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

SEED = 0
LETTER = 0.64  # width of a letter, in font sizes. A constant, so that figures do not depend on the installed fonts.
MARGIN = 1.1  # total margin of a label, in font sizes
GAP = 2.0  # minimum distance between two boxes, in font sizes; it leaves room for an arrow
_N_PUSHES = 500


def boxes(labels: Sequence[str], font_size: float) -> NDArray[np.float64]:
    """(N, 2), width and height of the box around each label, in points."""
    return font_size * np.array([(LETTER * len(label) + MARGIN, 1.0 + MARGIN / 1.4) for label in labels])


def place(graph: nx.DiGraph, size: NDArray[np.float64], canvas: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """(N, 2), centres of the boxes of the nodes, such that no two boxes overlap.

    Parameters
    ----------
    graph
        Graph with N nodes.
    size
        (N, 2), width and height of each box.
    canvas
        Width and height of the canvas. If the boxes do not fit, some centres are outside of it.
    gap
        Minimum distance between two boxes.
    """
    order = {name: i for i, name in enumerate(graph.nodes)}
    plain = nx.Graph([(order[a], order[b]) for a, b in graph.edges])
    # without a connection, the spring layout moves components far apart: connect them by a hub that is not drawn
    components = list(nx.connected_components(plain))
    if len(components) > 1:
        plain.add_edges_from((-1, max(sorted(component), key=plain.degree)) for component in components)
    positions = nx.spring_layout(plain, k=1.6 / max(len(order), 1) ** 0.5, iterations=200, weight=None, seed=SEED)
    centres = np.array([positions[i] for i in range(len(order))], dtype=np.float64)
    span = np.ptp(centres, axis=0)
    scale = (canvas - size.max(axis=0)).clip(min=1.0)
    centres = (centres - centres.min(axis=0)) / np.where(span > 0, span, 1.0) * scale
    return push_apart(centres, size + gap)


def push_apart(centres: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move boxes by small steps until no two overlap; ``centres`` and ``size`` are (N, 2)."""
    centres = centres + 1e-6 * np.arange(centres.size).reshape(centres.shape)  # separates boxes with equal centres
    minimum = (size[:, None] + size[None]) / 2
    first, second = np.triu_indices(len(centres), k=1)
    for _ in range(_N_PUSHES):
        distance = centres[second] - centres[first]
        overlap = minimum[first, second] - np.abs(distance)
        overlapping = (overlap > 1e-9).all(axis=1)
        if not overlapping.any():
            break
        axis = overlap.argmin(axis=1)  # move along the axis of the smaller overlap
        pairs = np.flatnonzero(overlapping)
        push = 0.51 * overlap[pairs, axis[pairs]] * np.where(distance[pairs, axis[pairs]] < 0, -1.0, 1.0)
        np.add.at(centres, (first[pairs], axis[pairs]), -push)
        np.add.at(centres, (second[pairs], axis[pairs]), push)
    return centres


def border(centre: NDArray[np.float64], size: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2,), the point where the line from the centre of a box to the point ``towards`` leaves the box."""
    line = towards - centre
    with np.errstate(divide="ignore"):
        fraction = np.min(size / 2 / np.abs(line))
    return centre + min(float(fraction), 1.0) * line
