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
    """Weights, ranks and support of all pairs (M, R)."""
    count: NDArray[np.int64]
    """(M, R), number of cells from which the weight of each pair was computed."""
    received: NDArray[np.float64] | None
    """(R,), attention that each regulator receives, averaged over the members. None for other methods."""


def edge_table(found: ConsensusGRN, genes: Sequence[str], regulators: NDArray[np.int64], top_k: int) -> pd.DataFrame:
    """Table of the strongest ``top_k`` edges with source, target, weight, rank, support and count."""
    rank, names = found.consensus.rank, np.array(genes, dtype=object)
    target, regulator = np.nonzero((rank > 0) & (rank <= top_k))
    table = pd.DataFrame(
        {
            "source": names[regulators][regulator],
            "target": names[target],
            "weight": found.consensus.weight[target, regulator],
            "rank": rank[target, regulator],
            "support": found.consensus.support[target, regulator],
            "count": found.count[target, regulator],
        }
    )
    return table.sort_values("rank", ignore_index=True)
