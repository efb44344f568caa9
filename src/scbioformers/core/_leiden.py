"""The Leiden algorithm on a graph given as a sparse matrix."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def leiden(connectivities: sparse.csr_matrix, resolution: float, seed: int) -> NDArray[np.intp]:
    """Cluster by modularity, iterating until nothing changes.

    Parameters
    ----------
    connectivities
        (N, N), symmetric, weights of the edges; only what is above the diagonal is read.
    resolution
        Higher gives more clusters.
    seed
        Of the algorithm; no global random state is touched.

    Returns
    -------
    (N,) cluster of each node.

    Examples
    --------
    >>> leiden(sparse.csr_matrix(np.kron(np.eye(2), np.ones((3, 3)))), 1.0, 0).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    import igraph

    edges = sparse.triu(connectivities, k=1).tocoo()
    graph = igraph.Graph(n=connectivities.shape[0], edges=np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(seed))  # else it would draw from Python's global generator
    try:
        partition = graph.community_leiden(
            "modularity", weights=edges.data.tolist(), resolution=resolution, n_iterations=-1
        )
    finally:
        igraph.set_random_number_generator(random)  # igraph's default
    return np.asarray(partition.membership, dtype=np.intp)
