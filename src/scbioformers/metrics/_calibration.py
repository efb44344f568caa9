"""Calibration of predicted probabilities, at the natural shares of zeros and non-zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import ConfigError, DataError, check_arguments, check_shapes, uniform
from scbioformers.metrics._masked import Floats, check_bins, check_log_probabilities

TOLERANCE = 1e-5  # float32 rounding can put a probability this far below 0 or above 1


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """Predicted and observed frequency in each reliability bin.

    The bins are in the order of rising predicted probability. Empty bins are left out.
    """

    predicted: NDArray[np.float64]
    """Mean predicted probability of each bin, shape (n_used,)."""
    observed: NDArray[np.float64]
    """Share of the positions of each bin whose outcome is true, shape (n_used,)."""
    count: NDArray[np.int64]
    """Number of positions in each bin, shape (n_used,)."""


def calibration_curve(probability: ArrayLike, outcome: ArrayLike, *, n_bins: int = 10) -> CalibrationCurve:
    """Compare predicted probabilities with observed frequencies, in bins with equal numbers of positions.

    The bins are quantiles of the predicted probability, not intervals of equal width. Most positions of a sparse
    matrix are zeros that are predicted with near certainty. Bins of equal width would put nearly all positions into
    one bin, and the frequencies of the other bins would be noisy. Equal predictions are always in the same bin, so the
    order of the positions does not matter. With many ties there are fewer than `n_bins` bins.

    Parameters
    ----------
    probability
        Predicted probabilities, shape (n,).
    outcome
        Whether the predicted event occurred, bool, shape (n,).
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
    check_arguments(calibration_curve, locals())
    p = _check_probabilities(probability, "probability")
    check_shapes(probability=(p, "N"), outcome=(outcome, "N"))
    true = np.asarray(outcome)
    if true.dtype != np.bool_:
        raise DataError(f"`outcome` must be boolean, found dtype {true.dtype}.")
    if n_bins < 1:
        raise ConfigError(f"`n_bins` must be at least 1, found {n_bins}.")
    # the upper edge of a bin is a predicted value and belongs to the bin
    edges = np.unique(np.quantile(p, np.arange(1, n_bins) / n_bins, method="inverted_cdf"))
    which = np.searchsorted(edges, p, side="left")
    count = np.bincount(which)
    used = count > 0
    predicted, observed = np.bincount(which, weights=p), np.bincount(which, weights=true)
    return CalibrationCurve(predicted[used] / count[used], observed[used] / count[used], count[used])


def calibration_error(probability: ArrayLike, outcome: ArrayLike, *, n_bins: int = 10) -> float:
    """Expected calibration error: mean absolute difference of predicted and observed frequency over the bins.

    Each bin is weighted by its number of positions. Perfectly calibrated predictions still have an error of about
    0.8 √(n_bins · p(1-p) / n), where p is the frequency of the outcome and n the number of positions.

    Parameters
    ----------
    probability
        Predicted probabilities, shape (n,).
    outcome
        Whether the predicted event occurred, bool, shape (n,).
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
    check_arguments(calibration_error, locals())
    curve = calibration_curve(probability, outcome, n_bins=n_bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.count))


def top_label_calibration_error(probabilities: ArrayLike, target: ArrayLike, *, n_bins: int = 10) -> float:
    """Calibration error of the most probable bin.

    The predicted probability is that of the most probable bin. The outcome is true if this bin is the true bin.

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
    check_arguments(top_label_calibration_error, locals())
    check_shapes(probabilities=(probabilities, "NV"), target=(target, "N"))
    p = np.asarray(probabilities)
    if 0 in p.shape:
        raise DataError(f"`probabilities` has the shape {p.shape}. Pass at least one row and one bin.")
    y = check_bins(target, p.shape[1])
    return calibration_error(p.max(axis=1), p.argmax(axis=1) == y, n_bins=n_bins)


def interval_coverage(cdf_below: ArrayLike, cdf_at: ArrayLike, *, level: float = 0.8, seed: int = 0) -> float:
    """Share of the outcomes inside their predicted central intervals.

    If the predictions are calibrated, the share is `level`. Bins and counts are discrete, so no interval of whole bins
    covers exactly `level`. Therefore the quantile of each outcome is drawn uniformly between P(Y < y) and P(Y ≤ y)
    (randomised probability integral transform; Czado, Gneiting and Held 2009).

    Parameters
    ----------
    cdf_below
        Predicted P(Y < y) of each outcome y, shape (n,).
    cdf_at
        Predicted P(Y ≤ y), shape (n,).
    level
        Probability of the interval, between 0 and 1.
    seed
        Seed of the draws. Each draw depends only on the seed and the position.

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
    Outcomes at the median are inside the interval. Outcomes in the outer tenths are not.

    >>> from scbioformers.metrics import interval_coverage
    >>> interval_coverage([0.5, 0.0, 0.95, 0.5], [0.5, 0.05, 1.0, 0.5], level=0.8)
    0.5
    """
    check_arguments(interval_coverage, locals())
    below, at = _check_probabilities(cdf_below, "cdf_below"), _check_probabilities(cdf_at, "cdf_at")
    check_shapes(cdf_below=(below, "N"), cdf_at=(at, "N"))
    if (at < below - TOLERANCE).any():
        first = int(np.flatnonzero(at < below - TOLERANCE)[0])
        raise DataError(f"P(Y ≤ y) is below P(Y < y) at position {first}: {at[first]:.4g} and {below[first]:.4g}.")
    if not 0 < level < 1:
        raise ConfigError(f"`level` must be between 0 and 1, found {level}.")
    u = below + uniform(seed, np.arange(len(below))) * (at - below)
    return float(((u >= (1 - level) / 2) & (u <= (1 + level) / 2)).mean())


def natural_log_probabilities(log_probabilities: ArrayLike, odds: ArrayLike) -> Floats:
    """Correct predicted probabilities for the share of zeros among the masked values.

    Most values are zero, but the mask chooses about as many non-zeros as zeros. Predictions under the mask therefore
    overestimate the probability of a non-zero. The result predicts values that are masked with equal chances. By Bayes'
    rule, P(0) is divided by the odds, and then the bins are normalised again.

    Parameters
    ----------
    log_probabilities
        Natural logarithms of the probabilities of bins 0 … V-1 under the mask, shape (H, V), each row normalised.
    odds
        Chance of a zero to be masked divided by the chance of a non-zero, above 0. One number, or one for each
        position, shape (H,).

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
    check_arguments(natural_log_probabilities, locals())
    logs = check_log_probabilities(log_probabilities)
    if np.ndim(odds):
        check_shapes(log_probabilities=(logs, "HV"), odds=(odds, "H"))
    ratio = np.asarray(odds, dtype=np.float64)
    if not ((ratio > 0) & (ratio < np.inf)).all():
        raise DataError("`odds` must be positive and finite.")
    natural = logs.copy()
    natural[:, 0] -= np.log(ratio)
    natural -= np.logaddexp.reduce(natural, axis=1, keepdims=True)
    return natural


def _check_probabilities(values: ArrayLike, name: str) -> NDArray[np.float64]:
    check_shapes(**{name: (values, "N")})
    p = np.asarray(values, dtype=np.float64)
    if p.size == 0:
        raise DataError(f"`{name}` has the shape {p.shape}. Pass at least one value.")
    if not ((p >= -TOLERANCE) & (p <= 1 + TOLERANCE)).all():
        raise DataError(f"`{name}` must be in 0…1, found {p.min():.4g} to {p.max():.4g}.")
    return p.clip(0, 1)
