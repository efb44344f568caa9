"""The Leiden algorithm on a graph given as a sparse matrix."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def leiden(connectivities: sparse.csr_matrix, resolution: float, seed: int) -> NDArray[np.intp]:
    """Cluster a graph by modularity. The algorithm runs until the clusters are stable.

    Parameters
    ----------
    connectivities
        (N, N), symmetric edge weights. Only the values above the diagonal are used.
    resolution
        Resolution of the modularity. A higher value gives more clusters.
    seed
        Seed of the algorithm. The global random state does not change.

    Returns
    -------
    intp (N,), cluster of each node.

    Examples
    --------
    >>> leiden(sparse.csr_matrix(np.kron(np.eye(2), np.ones((3, 3)))), 1.0, 0).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    import igraph

    edges = sparse.triu(connectivities, k=1).tocoo()
    graph = igraph.Graph(n=connectivities.shape[0], edges=np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(seed))  # by default igraph uses the global generator of Python
    try:
        partition = graph.community_leiden(
            "modularity", weights=edges.data.tolist(), resolution=resolution, n_iterations=-1
        )
    finally:
        igraph.set_random_number_generator(random)  # the default of igraph
    return np.asarray(partition.membership, dtype=np.intp)
