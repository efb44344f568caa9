"""The visible part of cells, from which the input of the network is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.tokens._rows import Rows


@dataclass(frozen=True)
class Context:
    """The visible part of B cells: tokens, counts that rank them, bins, profile for the bag, and estimated depth."""

    tokens: Rows
    order: NDArray[np.float64]
    visible_bins: NDArray[np.float64]
    profile: NDArray[np.float32]
    known: NDArray[np.bool_]
    log_depth: NDArray[np.float64]
    small_count_bins: NDArray[np.float32]
    depth: NDArray[np.float64]


def split_queried(full: Rows, query_mask: csr_matrix) -> tuple[NDArray[np.bool_], Rows]:
    """Whether each entry is queried, and the queried zeros."""
    queried = query_mask.astype(bool).toarray()  # a stored False is not queried
    masked = queried[full.cells, full.features]
    queried[full.cells, full.features] = False  # only zeros remain
    features = np.nonzero(queried)[1].astype(np.int32)
    return masked, Rows(np.concatenate(([0], np.cumsum(queried.sum(axis=1)))), features, np.zeros(features.size))
