"""Random networks with the degrees of a given network. They show how much of a score the hubs alone explain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, check_arguments, seed_from
from scbioformers.metrics._grn import read_edges

SWAPS_PER_EDGE = 10  # tried swaps between two networks; enough for complete mixing (Milo et al. 2003)


@dataclass(frozen=True)
class NullComparison:
    """A score compared with the same score of random networks.

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
    """One-sided p-value: share of networks that score at least as high, with the observed network counted as one."""


def degree_preserving_null(
    truth: pd.DataFrame, *, n: int = 100, rng: int | np.random.Generator = 0
) -> Iterator[pd.DataFrame]:
    """Draw random networks that keep the number of targets of each regulator and of regulators of each target.

    Random pairs of edges swap their targets. A swap is skipped if it would create a self-loop or a duplicate edge. Each
    network starts from the one before, and 10 swaps for each edge are tried. An edge keeps its regulator and sign.

    Parameters
    ----------
    truth
        Edges, with the columns ``source`` and ``target``. The sign is that of the column ``weight``, if present.
        Self-loops and duplicates are left out.
    n
        Number of networks.
    rng
        Seed or generator.

    Returns
    -------
    Iterator of DataFrames
        Columns ``source``, ``target``, ``weight`` (1, -1, or 0 without a sign).

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
    check_arguments(degree_preserving_null, locals())
    if n < 1:
        raise ConfigError(f"`n` must be at least 1, found {n}.")
    edges = read_edges(truth)
    if edges.empty:
        raise DataError(f"The truth has no edges ({len(truth)} rows, without self-loops).")
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
        # this also skips i = j and edges that share an end, for which a swap changes nothing
        if a == d or c == b or taken[a, d] or taken[c, b]:
            continue
        taken[a, b] = taken[c, d] = False
        taken[a, d] = taken[c, b] = True
        target[i], target[j] = d, b


def compare_with_null(observed: float, null: ArrayLike, *, level: float = 0.95) -> NullComparison:
    """Compare a score with the scores of random networks. The test is one-sided: higher is better.

    Parameters
    ----------
    observed
        Score of the weights against the truth.
    null
        Scores of the same weights against random networks, shape (n,). See :func:`degree_preserving_null`.
    level
        Share of the random networks that the interval holds.

    Returns
    -------
    NullComparison

    Raises
    ------
    ConfigError
        If `level` is not between 0 and 1.
    DataError
        If there is no random network, or a score is not finite.

    Examples
    --------
    >>> compare_with_null(3.0, [1.0, 1.0, 1.0])
    NullComparison(observed=3.0, mean=1.0, low=1.0, high=1.0, ratio=3.0, p=0.25)
    """
    check_arguments(compare_with_null, locals())
    if not 0 < level < 1:
        raise ConfigError(f"`level` must be between 0 and 1, found {level}.")
    scores: NDArray[np.float64] = np.asarray(null, np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite([observed, *scores]).all():
        raise DataError(f"Expected finite scores of at least one random network, found shape {scores.shape}.")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    mean = float(scores.mean())
    # the tolerance is for equal scores that differ by rounding
    reached = scores >= observed - 1e-12 * abs(observed)
    ratio = float(observed) / mean if mean else float("nan")
    return NullComparison(float(observed), mean, float(low), float(high), ratio,
                          float(1 + reached.sum()) / (1 + scores.size))  # fmt: skip
