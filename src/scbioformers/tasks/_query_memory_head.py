"""The head of the memory of a query: it changes predicted probabilities of bins by what similar cells showed.

    log p'(b) = log p(b) + inputs · W · (b > 0, level of b) + const,

with the inputs of :func:`head_inputs`. W has 10 x 2 weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scbioformers.config import Binning

Array = NDArray[np.float64]

RIDGE = 1.0
N_STEPS = 12  # of Newton's method; it converges in fewer


def head_inputs(
    probabilities: Array, log_rate: Array, log_depth: Array, counts: Array, exposure: Array, expected: Array
) -> Array:
    """(H, 10) inputs of the head for H masked values.

    Two inputs say what similar cells showed: the log of attended counts over those that the rate of the *cell* would
    give, and over those that the rates of the *references* give, each with one pseudo-count (Gamma-Poisson). The others
    are 1, the log of the expected count, the log depth, the log odds of 0, the squares of the two, and their products
    with the log of the expected count.

    Parameters
    ----------
    probabilities
        (H, V), probabilities of the bins.
    log_rate
        (H,), log of the count that the network expects at the mean depth.
    log_depth
        (H,), log of the depth over the mean depth.
    counts, exposure, expected
        (H,), see :class:`Attended`.
    """
    count = np.clip(log_rate + log_depth, -6, 4) / 2
    zero = np.clip(np.log(np.maximum(probabilities[:, 0], 1e-12)), -8, -1e-3)
    given = np.column_stack([exposure * np.exp(log_rate), expected])
    read = np.clip(np.log((counts[:, None] + 1.0) / (given + 1.0)), -3, 3)
    inputs = [np.ones_like(count), count, log_depth, zero - np.log(-np.expm1(zero))]
    return np.column_stack([*inputs, read, read**2, read * count[:, None]])


def value_basis(binning: Binning) -> Array:
    """(V, 2): whether a bin is above 0, and its log2 level over that of bin 1."""
    lower, upper = binning.edges()
    level = 0.5 * np.log2(np.maximum(lower, 0.5) * np.maximum(upper, 0.5))
    above = np.arange(level.size) > 0
    return np.column_stack([above, above * (level - level[min(1, level.size - 1)])])


def tilted(probabilities: Array, inputs: Array, weights: Array, basis: Array) -> Array:
    """(H, V) probabilities after the head with these weights (10, 2), or (H, 10, 2) if they differ."""
    slopes = (inputs[:, :, None] * weights).sum(axis=1)
    logits = np.log(np.maximum(probabilities, 1e-30)) + slopes @ basis.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def fit_head(probabilities: Array, inputs: Array, bins: NDArray[np.int64], basis: Array) -> Array:
    """(10, 2) weights of the highest penalised likelihood of the bins (H,), by Newton's method."""
    n_inputs, weights = inputs.shape[1], np.zeros((inputs.shape[1], 2))
    for _ in range(N_STEPS):
        p = tilted(probabilities, inputs, weights, basis)
        mean = p @ basis
        gradient = (inputs.T @ (mean - basis[bins]) + RIDGE * weights).T.ravel()
        hessian = RIDGE * np.eye(2 * n_inputs)
        for r in range(2):
            for s in range(2):
                covariance = p @ (basis[:, r] * basis[:, s]) - mean[:, r] * mean[:, s]
                at = slice(r * n_inputs, (r + 1) * n_inputs), slice(s * n_inputs, (s + 1) * n_inputs)
                hessian[at] += inputs.T @ (inputs * covariance[:, None])
        step = np.linalg.solve(hessian, gradient).reshape(2, n_inputs).T
        weights = weights - step * min(1.0, 1.0 / max(np.abs(step).max(), 1e-9))
        if np.abs(step).max() < 1e-4:
            break
    return weights
