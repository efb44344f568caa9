"""Weights of pairs of target (row) and regulator (column): correction, ranks, and consensus of several runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def average_product_correction(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract from each weight the value expected from its row mean and column mean (Dunn, Wahl and Gloor 2008).

    Parameters
    ----------
    weight
        (G, R), NaN for pairs without a weight.

    Returns
    -------
    float64 (G, R), ``weight - row mean * column mean / total mean``. The means ignore NaN, and NaN stays NaN.

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


def cosine_similarity(embedding: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Cosine similarity (G, G) between the rows of ``embedding`` (G, D), after subtraction of the mean row.

    With ``other`` (R, D), that between the rows of both, (G, R), each after subtraction of its own mean row. A row that
    is equal to the mean has the similarity 0 to every row.
    """
    unit = _unit_rows(embedding)
    return unit @ (unit if other is None else _unit_rows(other)).T


def _unit_rows(embedding: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = embedding - embedding.mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)


def rank_pairs(strength: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank of each pair, from 1 for the strongest. Ties are ranked in row order. The rank of NaN is 0.

    Examples
    --------
    >>> rank_pairs(np.array([[np.nan, 2.0], [5.0, 2.0]])).tolist()
    [[0, 2], [1, 3]]
    """
    flat = strength.ravel()
    order = np.argsort(-flat, kind="stable")[: int(np.isfinite(flat).sum())]  # argsort puts NaN last
    ranks = np.zeros(flat.size, np.int64)
    ranks[order] = np.arange(1, order.size + 1)
    return ranks.reshape(strength.shape)


@dataclass
class Consensus:
    """Consensus of several runs: mean weight, rank by mean rank, and support.

    The support of a pair is the share of runs in which it is among the ``n_best`` strongest pairs. A single run cannot
    support itself, so its support is NaN.

    Examples
    --------
    >>> consensus = Consensus(n_best=1)
    >>> consensus.add(np.array([[np.nan, 3.0], [-1.0, np.nan]]), np.array([[np.nan, 3.0], [1.0, np.nan]]))
    >>> consensus.add(np.array([[np.nan, 1.0], [-2.0, np.nan]]), np.array([[np.nan, 1.0], [2.0, np.nan]]))
    >>> consensus.support.tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """

    n_best: int
    """Number of the strongest pairs of each run that count for the support."""
    n_runs: int = 0
    """Number of added runs."""
    _weight: NDArray[np.float64] | float = 0.0
    _strength: NDArray[np.float64] | float = 0.0
    _rank: NDArray[np.int64] | int = 0
    _n_among_best: NDArray[np.int64] | int = 0

    def add(self, weight: NDArray[np.float64], strength: NDArray[np.float64]) -> None:
        """Add a run: ``weight`` (G, R), and ``strength`` (G, R) by which pairs are ranked. NaN marks excluded pairs."""
        ranks = rank_pairs(strength)
        self._weight = self._weight + weight
        self._strength = self._strength + strength
        self._rank = self._rank + ranks
        self._n_among_best = self._n_among_best + ((ranks > 0) & (ranks <= self.n_best))
        self.n_runs += 1

    @property
    def weight(self) -> NDArray[np.float64]:
        """(G, R) mean weight over the runs."""
        return np.asarray(self._weight, np.float64) / self.n_runs

    @property
    def rank(self) -> NDArray[np.int64]:
        """(G, R) rank from 1 by the mean rank, with ties ordered by the mean strength; 0 for excluded pairs."""
        total, strength = np.asarray(self._rank), np.asarray(self._strength)
        order = np.lexsort((-strength.ravel(), total.ravel()))
        order = order[total.ravel()[order] > 0]
        ranks = np.zeros(total.size, np.int64)
        ranks[order] = np.arange(1, order.size + 1)
        return ranks.reshape(total.shape)

    @property
    def support(self) -> NDArray[np.float64]:
        """(G, R) share of the runs in which a pair is among the ``n_best`` strongest; NaN if there is a single run."""
        return np.asarray(self._n_among_best) / (self.n_runs if self.n_runs > 1 else np.nan)
