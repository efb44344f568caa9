"""Networks with the same degrees and other edges: what hubs alone explain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, seed_from
from scbioformers.metrics._grn import read_edges

SWAPS_PER_EDGE = 10  # tried between two networks: Milo et al. 2003 found the mixing complete from there


@dataclass(frozen=True)
class NullComparison:
    """A score beside the same score of random networks.

    Examples
    --------
    See :func:`compare_with_null`.
    """

    observed: float
    """The score."""
    mean: float
    """Mean over the random networks."""
    low: float
    """Lower end of the interval that holds `level` of the random networks."""
    high: float
    """Upper end."""
    ratio: float
    """``observed / mean``."""
    p: float
    """Share of the random networks that score at least as high, the observed one counted among them."""


def degree_preserving_null(
    truth: pd.DataFrame, *, n: int = 100, rng: int | np.random.Generator = 0
) -> Iterator[pd.DataFrame]:
    """Draw random networks in which every regulator has as many targets, and every target as many regulators.

    Two edges swap their targets, 10 times for each edge, unless that would make a self-loop or an edge twice. Each
    network starts from the one before. Signs stay with the regulator.

    Parameters
    ----------
    truth
        Edges: ``source``, ``target``, with signs ``weight`` too. Self-loops and duplicates are left out.
    n
        Number of networks.
    rng
        Seed or generator.

    Returns
    -------
    Iterator of DataFrames
        ``source``, ``target``, ``weight`` (1, -1, or 0 without a sign).

    Raises
    ------
    ConfigError
        If `n` is below 1.
    DataError
        If there are no edges, or columns are missing.

    Examples
    --------
    >>> import pandas as pd
    >>> truth = pd.DataFrame({"source": ["A", "A", "B", "C"], "target": ["D", "E", "D", "F"]})
    >>> null = next(degree_preserving_null(truth, n=1))
    >>> (null["source"].value_counts() == truth["source"].value_counts()).all()
    np.True_
    """
    if n < 1:
        raise ConfigError(f"`n` must be at least 1, got {n}.")
    edges = read_edges(truth)
    if edges.empty:
        raise DataError(f"The truth has no edges ({len(truth)} rows, self-loops left out).")
    return _draw(edges, n, np.random.default_rng(seed_from(rng)))


def _draw(edges: pd.DataFrame, n: int, random: np.random.Generator) -> Iterator[pd.DataFrame]:
    names = pd.Index(pd.unique(edges[["source", "target"]].to_numpy().ravel()))
    source = names.get_indexer(edges["source"]).astype(np.int64)
    target = names.get_indexer(edges["target"]).astype(np.int64)
    taken = np.zeros((len(names), len(names)), np.bool_)
    taken[source, target] = True
    for _ in range(n):
        _swap(source, target, taken, random.integers(len(source), size=(SWAPS_PER_EDGE * len(source), 2)))
        yield pd.DataFrame({
            "source": edges["source"].to_numpy(), "target": names[target].to_numpy(), "weight": edges["sign"].to_numpy()
        })  # fmt: skip


@njit(cache=True)
def _swap(source, target, taken, pairs):  # type: ignore[no-untyped-def]
    for index in range(len(pairs)):
        i, j = pairs[index, 0], pairs[index, 1]
        a, b, c, d = source[i], target[i], source[j], target[j]
        # that also leaves out i = j and edges that share an end, where a swap changes nothing
        if a == d or c == b or taken[a, d] or taken[c, b]:
            continue
        taken[a, b] = taken[c, d] = False
        taken[a, d] = taken[c, b] = True
        target[i], target[j] = d, b


def compare_with_null(observed: float, null: ArrayLike, *, level: float = 0.95) -> NullComparison:
    """Compare a score with those of random networks, one-sided: higher is better.

    Parameters
    ----------
    observed
        Score against the truth.
    null
        Scores of the same weights against random networks, see :func:`degree_preserving_null`.
    level
        Share of the random networks that the interval holds.

    Returns
    -------
    NullComparison

    Raises
    ------
    ConfigError
        If the level is not between 0 and 1.
    DataError
        If there is no score, or one is not finite.

    Examples
    --------
    >>> compare_with_null(3.0, [1.0, 1.0, 1.0])
    NullComparison(observed=3.0, mean=1.0, low=1.0, high=1.0, ratio=3.0, p=0.25)
    """
    if not 0 < level < 1:
        raise ConfigError(f"`level` lies between 0 and 1, got {level}.")
    scores: NDArray[np.float64] = np.asarray(null, np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite([observed, *scores]).all():
        raise DataError(f"Expected finite scores of at least one random network, found shape {scores.shape}.")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    mean = float(scores.mean())
    # rounding must not tell apart scores that are equal
    reached = scores >= observed - 1e-12 * abs(observed)
    ratio = float(observed) / mean if mean else float("nan")
    return NullComparison(float(observed), mean, float(low), float(high), ratio,
                          float(1 + reached.sum()) / (1 + scores.size))  # fmt: skip
