"""Statistics of the regulators of a network: sums of all weights, and tests of the weights to a set of genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata


def out_strength(weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of the absolute weights of each regulator (column), and the number of weights in it. NaN is ignored.

    Examples
    --------
    >>> strength, n_targets = out_strength(np.array([[np.nan, 0.5], [-2.0, np.nan], [1.0, 0.25]]))
    >>> strength.tolist(), n_targets.tolist()
    ([3.0, 0.75], [2, 2])
    """
    return np.nansum(np.abs(weight), axis=0), np.isfinite(weight).sum(axis=0)


@dataclass(frozen=True)
class ColumnRanks:
    """Ranks of the targets of each regulator by absolute weight, for rank-sum tests of many sets of targets."""

    rank: NDArray[np.float64]
    """(G, R), from 1 for the weakest target. Ties get their mean rank. NaN for pairs without a weight."""
    spread: NDArray[np.float64]
    """(R,), variance of the ranks divided by that without ties, 0 to 1."""

    @classmethod
    def of(cls, weight: NDArray[np.float64]) -> ColumnRanks:
        """Rank the weights (G, R)."""
        rank = rankdata(np.abs(weight), axis=0, nan_policy="omit")
        seen = np.isfinite(rank)
        n = np.maximum(seen.sum(axis=0), 2)
        mean = np.where(seen, rank, 0.0).sum(axis=0) / n
        variance = np.where(seen, (rank - mean) ** 2, 0.0).sum(axis=0) / n
        return cls(rank, variance / ((n.astype(np.float64) ** 2 - 1) / 12))

    def test(self, targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """(R,) one-sided rank-sum p-values, small if absolute weights are larger in the rows `targets` than elsewhere.

        They use the normal approximation with corrections for ties and continuity (Mann and Whitney 1947). The p-value
        is 1 if there is nothing to compare.

        Examples
        --------
        >>> weight = np.array([[9.0], [-8.0], [1.0], [0.5], [np.nan]])
        >>> ColumnRanks.of(weight).test(np.array([0, 1])).round(3).tolist()
        [0.123]
        """
        seen = np.isfinite(self.rank)
        inside = self.rank[targets]
        n_in, n = np.isfinite(inside).sum(axis=0).astype(np.float64), seen.sum(axis=0).astype(np.float64)
        n_out = n - n_in
        excess = np.nansum(inside, axis=0) - n_in * (n + 1) / 2
        deviation = np.sqrt(n_in * n_out * (n + 1) / 12 * self.spread)
        p = np.ones(len(n))
        comparable = deviation > 0
        p[comparable] = norm.sf((excess[comparable] - 0.5) / deviation[comparable])
        return p
