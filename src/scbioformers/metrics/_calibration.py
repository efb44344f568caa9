"""Whether predicted probabilities mean what they say, at the natural shares of zeros and non-zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, uniform
from scbioformers.metrics._masked import Floats, check_bins, check_log_probabilities

TOLERANCE = 1e-5  # how far rounding in float32 may take a probability beyond 0 or 1


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """Predicted and observed frequency in each reliability bin, by rising prediction; the bins are not empty."""

    predicted: NDArray[np.float64]
    """Mean predicted probability, shape (n_used,)."""
    observed: NDArray[np.float64]
    """Share of the positions where it came true, shape (n_used,)."""
    count: NDArray[np.int64]
    """Number of positions, shape (n_used,)."""


def calibration_curve(probability: ArrayLike, outcome: ArrayLike, *, n_bins: int = 10) -> CalibrationCurve:
    """Compare predicted probabilities with how often they come true, in bins of equal numbers of positions.

    The bins are quantiles of the prediction, not of equal width: most positions of a sparse matrix are near-certain
    zeros, so bins of equal width would hold nearly all of them in one and a few noisy ones in the others. Equal
    predictions are always in the same bin, so that their order cannot matter; with many ties there are fewer bins.

    Parameters
    ----------
    probability
        Predicted probabilities, shape (n,).
    outcome
        Whether it came true, booleans, shape (n,).
    n_bins
        Number of bins, at least 1.

    Returns
    -------
    :class:`CalibrationCurve`

    Raises
    ------
    DataError
        If the shapes differ, there are no values, or a probability is not in 0…1.
    ConfigError
        If `n_bins` is below 1.

    Examples
    --------
    >>> from scbioformers.metrics import calibration_curve
    >>> curve = calibration_curve([0.25, 0.75, 0.25, 0.75], [False, True, False, False], n_bins=2)
    >>> curve.predicted.tolist(), curve.observed.tolist(), curve.count.tolist()
    ([0.25, 0.75], [0.0, 0.5], [2, 2])
    """
    p = _check_probabilities(probability, "probability")
    true = np.asarray(outcome)
    if true.shape != p.shape:
        raise DataError(f"`outcome` has the shape {true.shape}; expected that of `probability`, {p.shape}.")
    if true.dtype != np.bool_:
        raise DataError(f"`outcome` must be boolean, found dtype {true.dtype}.")
    if n_bins < 1:
        raise ConfigError(f"`n_bins` must be at least 1, found {n_bins}.")
    # the upper edges are values that occur, and belong to the lower bin
    edges = np.unique(np.quantile(p, np.arange(1, n_bins) / n_bins, method="inverted_cdf"))
    which = np.searchsorted(edges, p, side="left")
    count = np.bincount(which)
    used = count > 0
    predicted, observed = np.bincount(which, weights=p), np.bincount(which, weights=true)
    return CalibrationCurve(predicted[used] / count[used], observed[used] / count[used], count[used])


def calibration_error(probability: ArrayLike, outcome: ArrayLike, *, n_bins: int = 10) -> float:
    """Expected calibration error: mean distance of predicted and observed frequency, bins weighted by their counts.

    Chance alone gives even perfect predictions an error of about 0.8 √(n_bins · p(1-p) / n).

    Parameters
    ----------
    probability
        Predicted probabilities, shape (n,).
    outcome
        Whether it came true, booleans, shape (n,).
    n_bins
        Number of bins of :func:`calibration_curve`.

    Returns
    -------
    The error, 0 (best) to 1.

    Raises
    ------
    DataError, ConfigError
        As :func:`calibration_curve`.

    Examples
    --------
    >>> from scbioformers.metrics import calibration_error
    >>> calibration_error([0.25, 0.75, 0.25, 0.75], [False, True, False, False], n_bins=2)
    0.25
    """
    curve = calibration_curve(probability, outcome, n_bins=n_bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.count))


def top_label_calibration_error(probabilities: ArrayLike, target: ArrayLike, *, n_bins: int = 10) -> float:
    """Calibration error of the probability of the most probable bin, which comes true if it is the true bin.

    Parameters
    ----------
    probabilities
        Probabilities (not logarithms) of the bins, shape (n, V).
    target
        True bins, integers 0 … V-1, shape (n,).
    n_bins
        Number of reliability bins of :func:`calibration_curve`.

    Returns
    -------
    The error, 0 (best) to 1.

    Raises
    ------
    DataError
        If shapes do not match, a probability is not in 0…1, or a target is not one of the bins.
    ConfigError
        If `n_bins` is below 1.

    Examples
    --------
    >>> from scbioformers.metrics import top_label_calibration_error
    >>> top_label_calibration_error([[0.75, 0.25], [0.25, 0.75]], [0, 1])
    0.25
    """
    p = np.asarray(probabilities)
    if p.ndim != 2 or 0 in p.shape:
        raise DataError(f"`probabilities` must have the shape (n, bins), neither of them 0, not {p.shape}.")
    y = check_bins(target, *p.shape)
    return calibration_error(p.max(axis=1), p.argmax(axis=1) == y, n_bins=n_bins)


def interval_coverage(cdf_below: ArrayLike, cdf_at: ArrayLike, *, level: float = 0.8, seed: int = 0) -> float:
    """Share of the outcomes inside their predicted central intervals; `level` if the predictions are calibrated.

    A bin or count has a mass, so the outcome's place in its distribution is drawn evenly from what that mass spans
    (randomised probability integral transform; Czado, Gneiting and Held 2009): no interval of whole bins would
    cover exactly `level`.

    Parameters
    ----------
    cdf_below
        Predicted P(Y < y) of each outcome y, shape (n,).
    cdf_at
        Predicted P(Y ≤ y), shape (n,).
    level
        Probability of the interval, between 0 and 1.
    seed
        Seed of the draws; each depends on the seed and the position only.

    Returns
    -------
    Share covered, 0 to 1.

    Raises
    ------
    DataError
        If shapes differ, there are no values, one is not in 0…1, or P(Y ≤ y) is below P(Y < y).
    ConfigError
        If `level` is not between 0 and 1.

    Examples
    --------
    Outcomes always at the median are covered, those in the outer tenths are not.

    >>> from scbioformers.metrics import interval_coverage
    >>> interval_coverage([0.5, 0.0, 0.95, 0.5], [0.5, 0.05, 1.0, 0.5], level=0.8)
    0.5
    """
    below, at = _check_probabilities(cdf_below, "cdf_below"), _check_probabilities(cdf_at, "cdf_at")
    if below.shape != at.shape:
        raise DataError(f"`cdf_at` has the shape {at.shape}; expected that of `cdf_below`, {below.shape}.")
    if (at < below - TOLERANCE).any():
        first = int(np.flatnonzero(at < below - TOLERANCE)[0])
        raise DataError(f"P(Y ≤ y) is below P(Y < y) at position {first}: {at[first]:.4g} and {below[first]:.4g}.")
    if not 0 < level < 1:
        raise ConfigError(f"`level` must be between 0 and 1, found {level}.")
    u = below + uniform(seed, np.arange(len(below))) * (at - below)
    return float(((u >= (1 - level) / 2) & (u <= (1 + level) / 2)).mean())


def natural_log_probabilities(log_probabilities: ArrayLike, odds: ArrayLike) -> Floats:
    """Take back what the mask did to the share of zeros: predictions as if every value had been equally masked.

    Hiding half zeros among mostly zeros inflates the probability of a non-zero. Bayes' rule: the natural P(0) is
    proportional to P(0) / odds, the other bins unchanged.

    Parameters
    ----------
    log_probabilities
        Natural logarithms of the probabilities of bins 0 … V-1 under the mask, shape (H, V), each row normalised.
    odds
        Chance of a zero to be masked divided by that of a non-zero, above 0; one number, or one a position, shape (H,).

    Returns
    -------
    Normalised natural log-probabilities, float, shape (H, V), in a new array.

    Raises
    ------
    DataError
        If shapes do not match, rows are not normalised, or odds are not positive and finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scbioformers.metrics import natural_log_probabilities
    >>> np.exp(natural_log_probabilities(np.log([[0.5, 0.25, 0.25]]), odds=0.125)).round(4)
    array([[0.8889, 0.0556, 0.0556]])
    """
    logs = check_log_probabilities(log_probabilities)
    ratio = np.asarray(odds, dtype=np.float64)
    if ratio.shape not in ((), (len(logs),)):
        raise DataError(f"`odds` has the shape {ratio.shape}; expected one number, or {(len(logs),)}.")
    if not ((ratio > 0) & (ratio < np.inf)).all():
        raise DataError("`odds` must be positive and finite.")
    natural = logs.copy()
    natural[:, 0] -= np.log(ratio)
    natural -= np.logaddexp.reduce(natural, axis=1, keepdims=True)
    return natural


def _check_probabilities(values: ArrayLike, name: str) -> NDArray[np.float64]:
    p = np.asarray(values, dtype=np.float64)
    if p.ndim != 1 or p.size == 0:
        raise DataError(f"`{name}` must have the shape (n,), n at least 1, not {p.shape}.")
    if not ((p >= -TOLERANCE) & (p <= 1 + TOLERANCE)).all():
        raise DataError(f"`{name}` must be in 0…1, found {p.min():.4g} to {p.max():.4g}.")
    return p.clip(0, 1)
