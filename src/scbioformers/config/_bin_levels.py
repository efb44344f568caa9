"""Decoding of bins: which whole counts fall into a bin in a given cell, and to which value the bin is decoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scbioformers.config._binning import Binning
from scbioformers.core import SCALES, ConfigError, Scale

_TOLERANCE = 1e-6  # depths pass through float32; rounding must not move a count across a bin edge


def count_range(binning: Binning, size: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest whole count of each value bin, for cells of a given size.

    Where lowest > highest, no whole count falls into the bin.

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
    bins = np.arange(binning.n_values)  # a bin up to the cutoff contains its lower edge, a bin above it its upper edge
    from_edge, beyond_edge = np.ceil(lower * (1 - _TOLERANCE)), np.floor(lower * (1 + _TOLERANCE)) + 1
    lowest = np.maximum(np.where(bins <= binning.cutoff, from_edge, beyond_edge), 1)
    before_edge, to_edge = np.ceil(upper * (1 - _TOLERANCE)) - 1, np.floor(upper * (1 + _TOLERANCE))
    highest = np.where(bins < binning.cutoff, before_edge, to_edge)
    lowest[:, 0] = highest[:, 0] = 0
    return lowest, highest


def bin_levels(
    binning: Binning,
    bin_mean: NDArray[np.floating],
    size: NDArray[np.floating],
    scale: Scale,
    features: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """The value to which each bin is decoded in each cell.

    Value bins: only a few whole counts fall into a bin, and they depend on the depth of the cell. The training mean of
    the bin is scaled to the depth of the cell. It is then clipped to the range of the counts that fall into the bin in
    this cell. Quantile bins are decoded to the training mean of the bin of the feature.

    Parameters
    ----------
    binning
        Frozen binning. Segment bins are ranks, so they can only be decoded with the scale ``"bins"``.
    bin_mean
        (V,) mean of the (normalised) counts of the training cells within each bin. Not used for quantile bins.
    size
        (B,) depth of each cell relative to the mean depth of the training cells.
    scale
        ``"counts"`` at the depth of the cell, ``"log1p"`` of the counts at the mean depth, ``"bins"``, or ``"values"``
        on the scale of the training data. For counts, ``"values"`` are ``"counts"``.
    features
        (B, H) features whose predictions are decoded, needed for quantile bins.

    Returns
    -------
    float64 (B, V). For quantile bins that are not decoded to ``"bins"``, (B, H, V).

    Raises
    ------
    ConfigError
        If the scale is unknown, if it is not ``"bins"`` for segment bins, or if features are needed and missing.

    Examples
    --------
    >>> binning = Binning(cutoff=2).freeze(mean_depth=1.0, max_bin=2)
    >>> bin_levels(binning, np.array([0.0, 0.9, 1.8]), np.array([1.0, 4.0]), "counts")
    array([[0. , 1. , 2. ],
           [0. , 3.6, 7.2]])
    """
    if scale not in SCALES:
        raise ConfigError(f"`scale` must be one of {SCALES}, found {scale!r}.")
    if scale == "bins":
        return np.tile(np.arange(binning.n_values, dtype=np.float64), (len(size), 1))
    if binning.kind == "segment":
        raise ConfigError(
            f"Segment bins are ranks and cannot be decoded to {scale!r}. Use 'bins', or fit with value bins."
        )
    if binning.kind == "quantile":
        if features is None:
            raise ConfigError("Quantile bins have levels for each feature. Pass `features=`.")
        means = binning.require_quantiles().means[np.asarray(features, np.int64)].astype(np.float64)
        return np.log1p(means / np.asarray(size, np.float64)[:, None, None]) if scale == "log1p" else means
    lowest, highest = count_range(binning, size)
    size = np.asarray(size, np.float64)[:, None]
    levels = bin_mean * size if binning.normalize else np.broadcast_to(bin_mean, lowest.shape)
    levels = np.where(lowest <= highest, np.clip(levels, lowest, highest), levels)
    levels[:, 0] = 0.0
    return np.log1p(levels / size) if scale == "log1p" else levels
