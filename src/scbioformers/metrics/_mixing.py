"""Scores of batch mixing in an embedding: iLISI and kBET."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from scbioformers.core import MissingDependencyError

if TYPE_CHECKING:
    from scib_metrics.nearest_neighbors import NeighborsResults

LISI_NEIGHBORS = 90  # as in the benchmark of scib-metrics
KBET_MIN_CELLS = 10  # labels with fewer cells or with a single batch are left out


def mixing_scores(
    embedding: NDArray[np.floating], codes: NDArray[np.intp], batches: NDArray[np.intp]
) -> tuple[float, float]:
    """Return iLISI and kBET, computed by scib-metrics on exact neighbours. The first neighbour is the cell itself.

    The function ``kbet_per_label`` of scib-metrics is not used. It searches approximate neighbours on a diffusion map
    of each label, which is meant for methods that return graphs. Its results differ in the last digits between runs,
    and it needs a minute to compile.
    """
    try:
        from scib_metrics import ilisi_knn, kbet
    except ImportError as error:
        raise MissingDependencyError(
            'Batch scores need scib-metrics. Run `pip install "scbioformers[bench]"`, or pass batch=None.'
        ) from error
    ilisi = ilisi_knn(_exact_neighbors(embedding, LISI_NEIGHBORS), batches)
    accepted = []
    for label in range(codes.max() + 1):
        rows = codes == label
        sizes = np.bincount(batches[rows])
        sizes = sizes[sizes > 0]
        if rows.sum() >= KBET_MIN_CELLS and len(sizes) > 1:
            k = int(np.clip(sizes.mean() // 4, 10, 70)) + 1  # number of neighbours as in scib, plus the cell itself
            accepted.append(kbet(_exact_neighbors(embedding[rows], k), batches[rows])[0])
    return float(ilisi), float(np.mean(accepted)) if accepted else float("nan")


def _exact_neighbors(embedding: NDArray[np.floating], k: int) -> NeighborsResults:
    from scib_metrics.nearest_neighbors import NeighborsResults

    k = min(k, embedding.shape[0])
    distances, indices = NearestNeighbors(n_neighbors=k).fit(embedding).kneighbors(embedding)
    return NeighborsResults(indices=indices, distances=distances)
