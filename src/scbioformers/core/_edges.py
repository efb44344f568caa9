"""Pairs of target (row) and regulator (column): correction of their weights, ranks, and agreement between runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def average_product_correction(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take out of each pair what its row and its column alone lead to expect (Dunn, Wahl and Gloor 2008).

    Parameters
    ----------
    weight
        (G, R), NaN where a pair was never seen.

    Returns
    -------
    ``weight - row mean * column mean / mean`` over the pairs that were seen, NaN where it was NaN.

    Examples
    --------
    >>> average_product_correction(np.array([[1.0, 3.0], [2.0, 6.0]])).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    seen = np.isfinite(weight)
    filled = np.where(seen, weight, 0.0)
    rows = filled.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    columns = filled.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    total = filled.sum() / max(int(seen.sum()), 1)
    expected = np.outer(rows, columns) / total if total else np.zeros_like(filled)
    return np.where(seen, filled - expected, np.nan)


def cosine_similarity(embedding: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine between the rows of ``embedding`` (G, D) less their mean, (G, G); 0 for rows that are the mean."""
    centred = embedding - embedding.mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return unit @ unit.T


def rank_pairs(strength: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank of each pair from 1, the strongest, ties in row order; 0 where ``strength`` is NaN.

    Examples
    --------
    >>> rank_pairs(np.array([[np.nan, 2.0], [5.0, 2.0]])).tolist()
    [[0, 2], [1, 3]]
    """
    flat = strength.ravel()
    order = np.argsort(-flat, kind="stable")[: int(np.isfinite(flat).sum())]  # NaN comes last
    ranks = np.zeros(flat.size, np.int64)
    ranks[order] = np.arange(1, order.size + 1)
    return ranks.reshape(strength.shape)


@dataclass
class Consensus:
    """What several runs agree on: mean weight, mean rank, and the share of runs that hold a pair among their best.

    Examples
    --------
    >>> consensus = Consensus(n_best=1)
    >>> consensus.add(np.array([[np.nan, 3.0], [-1.0, np.nan]]), np.array([[np.nan, 3.0], [1.0, np.nan]]))
    >>> consensus.add(np.array([[np.nan, 1.0], [-2.0, np.nan]]), np.array([[np.nan, 1.0], [2.0, np.nan]]))
    >>> consensus.support.tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """

    n_best: int
    n_runs: int = 0
    _weight: NDArray[np.float64] | float = 0.0
    _strength: NDArray[np.float64] | float = 0.0
    _rank: NDArray[np.int64] | int = 0
    _held: NDArray[np.int64] | int = 0

    def add(self, weight: NDArray[np.float64], strength: NDArray[np.float64]) -> None:
        """Add a run: weights (G, R), and how strong they count when ranked; NaN for what is no pair."""
        ranks = rank_pairs(strength)
        self._weight = self._weight + weight
        self._strength = self._strength + strength
        self._rank = self._rank + ranks
        self._held = self._held + ((ranks > 0) & (ranks <= self.n_best))
        self.n_runs += 1

    @property
    def weight(self) -> NDArray[np.float64]:
        """(G, R) mean over the runs."""
        return np.asarray(self._weight, np.float64) / self.n_runs

    @property
    def rank(self) -> NDArray[np.int64]:
        """(G, R) from 1 by the mean rank, ties by the mean strength; 0 for what is no pair."""
        total, strength = np.asarray(self._rank), np.asarray(self._strength)
        order = np.lexsort((-strength.ravel(), total.ravel()))
        order = order[total.ravel()[order] > 0]
        ranks = np.zeros(total.size, np.int64)
        ranks[order] = np.arange(1, order.size + 1)
        return ranks.reshape(total.shape)

    @property
    def support(self) -> NDArray[np.float64]:
        """(G, R) share of the runs that hold a pair among their best ``n_best``."""
        return np.asarray(self._held) / self.n_runs
