"""Decoding of predicted distributions over bins to expected expression.

The levels are the values to which bins are decoded: (B, V) for each cell, or (B, H, V) if they differ between features.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scale = Literal["counts", "log1p", "bins", "values"]
SCALES = ("counts", "log1p", "bins", "values")


def expected(probabilities: NDArray[np.floating], levels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of each predicted distribution: probabilities (B, H, V) -> (B, H)."""
    of_cells = levels.ndim == 2
    mean: NDArray[np.float64] = np.einsum("bhv,bv->bh" if of_cells else "bhv,bhv->bh", probabilities, levels)
    return mean


def deviation(probabilities: NDArray[np.floating], levels: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard deviation of each predicted distribution: probabilities (B, H, V) -> (B, H)."""
    variance = expected(probabilities, levels**2) - expected(probabilities, levels) ** 2
    return np.sqrt(np.maximum(variance, 0.0))


def posterior_mean(
    rate: NDArray[np.floating], dispersion: NDArray[np.floating], counts: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Posterior mean of the expression, given a negative binomial prediction and one measured count.

    A negative binomial count is a Poisson count with a gamma distributed rate. The result is the mean of this rate
    given the count. If the dispersion of a gene is small, the result is close to the prediction. If it is large, the
    result is close to the count. SAVER (Huang et al., Nature Methods 2018) does the same with a regression for each
    gene.

    Parameters
    ----------
    rate
        (B, M) predicted mean count. Where it is 0, the result is 0.
    dispersion
        (M,) inverse dispersion of the negative binomial, its shape parameter, positive.
    counts
        (B, M) measured counts.

    Returns
    -------
    float64 (B, M) posterior means, in counts.

    Examples
    --------
    >>> posterior_mean(np.array([[2.0, 2.0]]), np.array([2.0, 1000.0]), np.array([[6.0, 6.0]])).round(2)
    array([[4.  , 2.01]])
    """
    rate, dispersion = np.asarray(rate, np.float64), np.asarray(dispersion, np.float64)
    mean: NDArray[np.float64] = rate * ((counts + dispersion) / (rate + dispersion))
    return mean


def quantile(probabilities: NDArray[np.floating], levels: NDArray[np.floating], q: float) -> NDArray[np.float64]:
    """Lowest level with a cumulative probability of at least ``q``: probabilities (B, H, V) -> (B, H)."""
    reached = np.cumsum(probabilities, axis=-1) >= q - 1e-6  # a sum of float32 probabilities can be this far below 1
    at = np.where(reached.any(axis=-1), reached.argmax(axis=-1), probabilities.shape[-1] - 1)
    values = np.asarray(levels, np.float64)
    if values.ndim == 2:
        return np.take_along_axis(values, at, axis=1)
    return np.take_along_axis(values, at[..., None], axis=2)[..., 0]
