"""The head of the memory of a query: it changes predicted probabilities of bins by what similar cells showed.

    log p'(b) = log p(b) + inputs · W · (b > 0, r(b)) + const,

with the inputs of :func:`head_inputs`, and W of 10 x 2 weights. r(b) is the level of a bin above 0, in doublings from
the level that the network expects of values above 0. It is limited to 2: with the level itself, bins that the network
holds for nearly impossible became likely, and means were far too high (experiment 90).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scbioformers.config import Binning

Array = NDArray[np.float64]

RIDGE = 1.0
MAX_DOUBLINGS = 2.0
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


def bin_log_levels(binning: Binning) -> Array:
    """(V,), log2 level of each bin: the middle of its edges, which are at least 1/2."""
    lower, upper = binning.edges()
    return np.asarray(0.5 * np.log2(np.maximum(lower, 0.5) * np.maximum(upper, 0.5)))


def directions(probabilities: Array, levels: Array) -> Array:
    """(H, V, 2): whether a bin is above 0, and by how many doublings its level (V,) is above that which is expected."""
    above = np.arange(levels.size) > 0
    positive = probabilities * above
    expected = positive @ levels / np.maximum(positive.sum(axis=1), 1e-30)
    relative = np.clip(levels - expected[:, None], -MAX_DOUBLINGS, MAX_DOUBLINGS) * above
    return np.stack([np.broadcast_to(above, relative.shape), relative], axis=2)


def tilted(probabilities: Array, inputs: Array, weights: Array, levels: Array) -> Array:
    """(H, V) probabilities after the head with these weights (10, 2), or (H, 10, 2) if they differ."""
    slopes = (inputs[:, :, None] * weights).sum(axis=1)
    change = (directions(probabilities, levels) * slopes[:, None]).sum(axis=2)
    logits = np.log(np.maximum(probabilities, 1e-30)) + change
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def fit_head(probabilities: Array, inputs: Array, bins: NDArray[np.int64], levels: Array) -> Array:
    """(10, 2) weights of the highest penalised likelihood of the bins (H,), by Newton's method."""
    n, weights, basis = inputs.shape[1], np.zeros((inputs.shape[1], 2)), directions(probabilities, levels)
    measured = basis[np.arange(bins.size), bins]
    for _ in range(N_STEPS):
        p = tilted(probabilities, inputs, weights, levels)[:, :, None]
        mean = (p * basis).sum(axis=1)
        gradient = (inputs.T @ (mean - measured) + RIDGE * weights).T.ravel()
        hessian = RIDGE * np.eye(2 * n)
        for r in range(2):
            second = (p * basis[:, :, [r]] * basis).sum(axis=1) - mean[:, [r]] * mean  # covariances (H, 2)
            for s in range(2):
                hessian[r * n : (r + 1) * n, s * n : (s + 1) * n] += inputs.T @ (inputs * second[:, [s]])
        step = np.linalg.solve(hessian, gradient).reshape(2, n).T
        weights = weights - step * min(1.0, 1.0 / max(np.abs(step).max(), 1e-9))
        if np.abs(step).max() < 1e-4:
            break
    return weights
