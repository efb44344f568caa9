"""How unlike the labelled cells a cell is: by its distance to the nearest class, and by its logits."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

from scbioformers.tasks.annotation._classifier import Array, Codes

LEAST = -1.0  # high logits must not hide a large distance: both grow with the distance from all labelled cells


def fit_classes(X: Array, codes: Codes) -> tuple[Array, Array]:
    """Means of the classes that have cells (C, P), and the axes (P, P) in which all classes have unit variance.

    The covariance is that within classes, the same for all of them (Lee et al. 2018, "A simple unified framework for
    detecting out-of-distribution samples"), shrunk as in Ledoit and Wolf (2004).
    """
    means = np.stack([X[codes == c].mean(axis=0) for c in np.unique(codes)])
    rest = X - means[np.searchsorted(np.unique(codes), codes)]
    covariance = ledoit_wolf(rest, assume_centered=True)[0]
    if not np.trace(covariance) > 0:  # one cell for each class
        covariance = np.eye(X.shape[1])
    covariance = covariance + 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return means, np.linalg.cholesky(np.linalg.inv(covariance))


def distance(X: Array, means: Array, axes: Array) -> Array:
    """(N,), Mahalanobis distance of cells (N, P) to the nearest class."""
    at, centres = X @ axes, means @ axes
    squared = (at**2).sum(axis=1)[:, None] - 2 * at @ centres.T + (centres**2).sum(axis=1)
    nearest: Array = np.sqrt(np.maximum(squared.min(axis=1), 0))
    return nearest


def energy(logits: Array) -> Array:
    """(N,), high if no class fits: minus the logarithm of the sum of exp(logits) (Liu et al. 2020)."""
    values: Array = -logsumexp(logits, axis=1)
    return values


def standards(distances: Array, energies: Array) -> Array:
    """(2, 2), mean and standard deviation of distances and of energies of cells that are known."""
    both = np.stack([distances, energies])
    return np.stack([both.mean(axis=1), np.maximum(both.std(axis=1), 1e-6)], axis=1)


def unlikeness(distances: Array, energies: Array, standard: Array) -> Array:
    """(N,), the sum of the standardised distance and energy (experiment 79). It is about 0 for known cells."""
    far, unsure = (np.stack([distances, energies]) - standard[:, :1]) / standard[:, 1:]
    found: Array = far + np.maximum(unsure, LEAST)
    return found
