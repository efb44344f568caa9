"""From bins back to counts: what a predicted distribution over bins says of the expression."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scbioformers.core._binning import Binning
from scbioformers.core._errors import ConfigError

Scale = Literal["counts", "log1p", "bins"]
SCALES = ("counts", "log1p", "bins")
_TOLERANCE = 1e-6  # depths pass through float32: a count on an edge must not fall on its other side


def count_range(binning: Binning, size: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest whole count of each value bin in cells of that size; none fits where lowest > highest.

    Parameters
    ----------
    binning
        Frozen value bins.
    size
        (B,) depth of each cell relative to the mean of the training cells.

    Returns
    -------
    Two float64 arrays (B, V).

    Examples
    --------
    >>> count_range(Binning(cutoff=2).freeze(mean_depth=1.0, max_bin=2), np.array([4.0]))
    (array([[0., 1., 6.]]), array([[0., 5., 8.]]))
    """
    to_counts = np.asarray(size, np.float64)[:, None] if binning.normalize else np.ones((len(size), 1))
    lower, upper = (edge * to_counts for edge in binning.edges())
    bins = np.arange(binning.n_values)  # up to the cutoff a bin holds its lower edge, from there on its upper
    from_edge, beyond_edge = np.ceil(lower * (1 - _TOLERANCE)), np.floor(lower * (1 + _TOLERANCE)) + 1
    lowest = np.maximum(np.where(bins <= binning.cutoff, from_edge, beyond_edge), 1)
    before_edge, to_edge = np.ceil(upper * (1 - _TOLERANCE)) - 1, np.floor(upper * (1 + _TOLERANCE))
    highest = np.where(bins < binning.cutoff, before_edge, to_edge)
    lowest[:, 0] = highest[:, 0] = 0
    return lowest, highest


def bin_levels(
    binning: Binning, bin_mean: NDArray[np.floating], size: NDArray[np.floating], scale: Scale
) -> NDArray[np.float64]:
    """The value that each bin stands for in each cell.

    A bin holds few whole counts, and which ones depends on the depth of the cell: the training mean of the bin, at the
    depth of the cell, is moved to the nearest count that the bin can hold there.

    Parameters
    ----------
    binning
        Frozen value bins; segment bins are ranks, and can only be read as ``"bins"``.
    bin_mean
        (V,) mean of the (normalised) counts of the training cells within each bin.
    size
        (B,) depth of each cell relative to the mean of the training cells.
    scale
        ``"counts"`` at the depth of the cell, ``"log1p"`` of the counts at the mean depth, or ``"bins"``.

    Returns
    -------
    float64 (B, V).

    Raises
    ------
    ConfigError
        If the scale is unknown, or asks segment bins for counts.

    Examples
    --------
    >>> binning = Binning(cutoff=2).freeze(mean_depth=1.0, max_bin=2)
    >>> bin_levels(binning, np.array([0.0, 0.9, 1.8]), np.array([1.0, 4.0]), "counts")
    array([[0. , 1. , 2. ],
           [0. , 3.6, 7.2]])
    """
    if scale not in SCALES:
        raise ConfigError(f"The scale is one of {SCALES}, got {scale!r}.")
    if scale == "bins":
        return np.tile(np.arange(binning.n_values, dtype=np.float64), (len(size), 1))
    if binning.kind == "segment":
        raise ConfigError(f"Segment bins are ranks and do not tell {scale!r}; ask for 'bins', or fit with value bins.")
    lowest, highest = count_range(binning, size)
    size = np.asarray(size, np.float64)[:, None]
    levels = bin_mean * size if binning.normalize else np.broadcast_to(bin_mean, lowest.shape)
    levels = np.where(lowest <= highest, np.clip(levels, lowest, highest), levels)
    levels[:, 0] = 0.0
    return levels if scale == "counts" else np.log1p(levels / size)


def expected(probabilities: NDArray[np.floating], levels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of each predicted distribution, (B, H, V) over levels (B, V) -> (B, H)."""
    mean: NDArray[np.float64] = np.einsum("bhv,bv->bh", probabilities, levels)
    return mean


def deviation(probabilities: NDArray[np.floating], levels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard deviation of each predicted distribution, (B, H, V) over levels (B, V) -> (B, H)."""
    variance = expected(probabilities, levels**2) - expected(probabilities, levels) ** 2
    return np.sqrt(np.maximum(variance, 0.0))


def posterior_mean(
    rate: NDArray[np.floating], dispersion: NDArray[np.floating], counts: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Expression to expect where a negative binomial predicted it and one count was seen.

    The negative binomial is a Poisson count whose rate is gamma distributed; this is the mean of that rate given the
    count. A gene with little dispersion keeps its prediction, one that varies from cell to cell follows its count
    (SAVER, Huang et al., Nature Methods 2018, does so with a regression for each gene).

    Parameters
    ----------
    rate
        (B, M) predicted mean count, positive.
    dispersion
        (M,) inverse dispersion of the negative binomial, its shape parameter, positive.
    counts
        (B, M) measured counts.

    Examples
    --------
    >>> posterior_mean(np.array([[2.0, 2.0]]), np.array([2.0, 1000.0]), np.array([[6.0, 6.0]])).round(2)
    array([[4.  , 2.01]])
    """
    dispersion = np.asarray(dispersion, np.float64)
    return (counts + dispersion) / (1.0 + dispersion / np.asarray(rate, np.float64))


def quantile(probabilities: NDArray[np.floating], levels: NDArray[np.floating], q: float) -> NDArray[np.float64]:
    """Lowest level that the distribution does not exceed with probability ``q``, (B, H, V) -> (B, H)."""
    reached = np.cumsum(probabilities, axis=-1) >= q - 1e-6  # float32 sums may miss 1 by as much
    at = np.where(reached.any(axis=-1), reached.argmax(axis=-1), probabilities.shape[-1] - 1)
    return np.take_along_axis(np.asarray(levels, np.float64), at, axis=1)
