"""Layout of a graph: no label overlaps another label, and no edge runs under the label of another node."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

LETTER = 0.64  # width of a letter, in font sizes. A constant, so that figures do not depend on the installed fonts.
MARGIN = 1.1  # total margin of a label, in font sizes
GAP = 2.0  # minimum distance between two boxes, in font sizes; it leaves room for an arrow
_N_SEEDS = 4  # maximum number of layouts that are tried
_N_PUSHES = 500
_N_CLEARINGS = 60
_GROW_EVERY, _GROWTH = 8, 1.15  # as long as a label is on an edge, the layout grows, so that there is more room
_CLEARANCE = 8.0  # minimum distance between an edge and the box of another node, in points


def boxes(labels: Sequence[str], font_size: float) -> NDArray[np.float64]:
    """(N, 2), width and height of the box around each label, in points."""
    return font_size * np.array([(LETTER * len(label) + MARGIN, 1.0 + MARGIN / 1.4) for label in labels])


def place(graph: nx.Graph, size: NDArray[np.float64], canvas: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """(N, 2), centres of the boxes of the nodes, such that no two boxes overlap.

    The first layout in which no label is on an edge is used; if there is none, the one with the fewest such labels.

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
    edges = np.array(sorted(plain.edges))
    layouts = []
    for seed in range(_N_SEEDS):
        centres = _layout(plain, size, canvas, gap, seed)
        n_covered = int((covered(centres, size, edges) > 0).sum())
        layouts.append((n_covered, seed, centres))
        if not n_covered:
            break
    return min(layouts, key=lambda x: x[:2])[2]


def _layout(
    graph: nx.Graph, size: NDArray[np.float64], canvas: NDArray[np.float64], gap: float, seed: int
) -> NDArray[np.float64]:
    """(N, 2), centres. Each connected component has its own spring layout; the components are put into rows."""
    centres = np.zeros_like(size)
    components = sorted((sorted(component) for component in nx.connected_components(graph)), key=lambda x: (-len(x), x))
    for nodes in components:
        part, own = graph.subgraph(nodes), size[nodes]
        positions = nx.spring_layout(part, k=1.6 / len(nodes) ** 0.5, iterations=200, weight=None, seed=seed)
        at = np.array([positions[node] for node in nodes], dtype=np.float64)
        span = np.ptp(at, axis=0)
        scale = (canvas * (len(nodes) / len(size)) ** 0.5 - own.max(axis=0)).clip(min=1.0)
        scale[1] = scale[1] if len(nodes) > 2 else 1.0  # two nodes are put side by side
        number = {node: i for i, node in enumerate(nodes)}
        edges = np.array([(number[a], number[b]) for a, b in part.edges])
        centres[nodes] = _clear(at / np.where(span > 0, span, 1.0) * scale, own, edges, gap)
    left, top, height = 0.0, 0.0, 0.0
    for nodes in components:
        low, high = (centres[nodes] - size[nodes] / 2).min(axis=0), (centres[nodes] + size[nodes] / 2).max(axis=0)
        if left and left + high[0] - low[0] > canvas[0]:
            left, top, height = 0.0, top + height + gap, 0.0
        centres[nodes] += (left - low[0], top - low[1])
        left, height = left + high[0] - low[0] + gap, max(height, high[1] - low[1])
    return centres


def _clear(
    centres: NDArray[np.float64], size: NDArray[np.float64], edges: NDArray[np.int64], gap: float
) -> NDArray[np.float64]:
    """Move boxes away from the edges of other nodes, and apart from each other."""
    for step in range(_N_CLEARINGS):
        centres = centres * _GROWTH if step % _GROW_EVERY == _GROW_EVERY - 1 else centres
        centres = push_apart(centres, size + gap)
        depth = covered(centres, size, edges)
        if not depth.any():
            break
        nearest = depth.argmax(axis=0)
        start, end = centres[edges[nearest, 0]], centres[edges[nearest, 1]]
        normal = unit_normals(end - start)
        side = np.where(((centres - start) * normal).sum(axis=1) < 0, -1.0, 1.0)
        centres = centres + 1.1 * (side * depth.max(axis=0))[:, None] * normal
    return push_apart(centres, size + gap)


def covered(centres: NDArray[np.float64], size: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """(E, N), how far each box must move so that the edge does not run under it, 0 if it does not or is its own."""
    start, end = centres[edges[:, 0]], centres[edges[:, 1]]
    normal, line = unit_normals(end - start), end - start
    to_box = centres - start[:, None]
    along = np.einsum("enk,ek->en", to_box, line) / np.maximum((line**2).sum(axis=1), 1e-12)[:, None]
    distance = np.abs(np.einsum("enk,ek->en", to_box, normal))
    depth = np.abs(normal) @ size.T / 2 + _CLEARANCE - distance
    depth[(along <= 0) | (along >= 1)] = 0.0
    depth[np.arange(len(edges))[:, None], edges] = 0.0
    return depth.clip(min=0.0)


def unit_normals(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """(E, 2), unit vectors at right angles to the lines."""
    turned = np.column_stack([-line[:, 1], line[:, 0]])
    return turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)


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
