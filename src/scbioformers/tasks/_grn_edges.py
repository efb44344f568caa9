"""The consensus of the networks of all members, and the table of its strongest edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import Consensus


@dataclass(frozen=True)
class ConsensusGRN:
    """Consensus of the members of a model in the cells of one condition."""

    consensus: Consensus
    """Weights, ranks and support of all pairs (T, R)."""
    count: NDArray[np.int64]
    """(T, R), number of cells from which the weight of each pair was computed."""
    received: NDArray[np.float64] | None
    """(R,), attention that each regulator receives, averaged over the members. None for other methods."""


def edge_table(found: ConsensusGRN, targets: Sequence[str], regulators: Sequence[str], top_k: int) -> pd.DataFrame:
    """Table of the strongest ``top_k`` edges with source, target, weight, rank, support and count.

    ``targets`` (T,) and ``regulators`` (R,) are the names of the rows and of the columns of the weights.
    """
    rank = found.consensus.rank
    target, regulator = np.nonzero((rank > 0) & (rank <= top_k))
    table = pd.DataFrame(
        {
            "source": np.array(regulators, dtype=object)[regulator],
            "target": np.array(targets, dtype=object)[target],
            "weight": found.consensus.weight[target, regulator],
            "rank": rank[target, regulator],
            "support": found.consensus.support[target, regulator],
            "count": found.count[target, regulator],
        }
    )
    return table.sort_values("rank", ignore_index=True)
