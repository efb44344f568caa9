"""What a bin stands for in a cell: the whole counts that fall into it, and the value that it is decoded to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scbioformers.config._binning import Binning
from scbioformers.core import SCALES, ConfigError, Scale

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
