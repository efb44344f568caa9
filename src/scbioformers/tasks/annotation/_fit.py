"""Learn labels: a classifier, its calibration and its evidence from out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from scbioformers.model import Use
from scbioformers.tasks.annotation._classifier import (
    N_FOLDS,
    Array,
    Codes,
    draw_folds,
    draw_training,
    fit_linear,
    fit_temperature,
)
from scbioformers.tasks.annotation._evidence import collect_evidence
from scbioformers.tasks.annotation._head import AnnotationHead
from scbioformers.tasks.annotation._known_cells import distance, energy, fit_classes, standards, unlikeness

USE: tuple[Use, ...] = ("cls", "latent")  # experiment 83
CLS_WEIGHT = 0.3  # standard deviation of `<cls>`, relative to that of the latent: it moves more between data sets
MAX_CELLS = 20_000  # number of labelled cells that are learned from
UNLIKE = 0.01  # share of the labelled cells that are above the threshold when they are left out


@dataclass(frozen=True, eq=False)
class FittedLabels:
    """A head, and what it says of the N labelled cells that were passed."""

    head: AnnotationHead
    probability: NDArray[np.float32]
    """(N,) probability of the given label, by a classifier that was not fitted to the cell. NaN if no other cell has
    this label."""


def fit_annotation(
    features: NDArray[np.float32],
    codes: Codes,
    categories: Sequence[str],
    *,
    n_latent: int,
    label_key: str,
    network: str,
    colours: Mapping[str, str] | None = None,
    batches: Mapping[str, NDArray[np.bool_]] | None = None,
    seed: int = 0,
) -> FittedLabels:
    """Learn the labels of N cells from their embeddings.

    Parameters
    ----------
    features
        (N, D), embeddings of the labelled cells.
    codes
        (N,), position of the label of each cell in ``categories``. At least two labels have cells.
    categories
        The K labels.
    n_latent
        Number of columns of ``features``, from the last, that are the latent. The distance to the labelled cells is
        measured in them.
    label_key
        The column of labels.
    network
        Hash of the network.
    colours
        Colours of the labels.
    batches
        Which of the cells (N,) belong to each batch, for the evidence.
    seed
        Seed of the folds, and of the choice of at most 20,000 cells to learn from.
    """
    k = len(categories)
    rows = draw_training(codes, k, MAX_CELLS, seed)
    X, y = features[rows].astype(np.float64), codes[rows]
    mean, scale = X.mean(axis=0), _scales(X, n_latent)
    X = (X - mean) / scale
    folds = draw_folds(y, k, seed)
    logits, distances = np.empty((len(y), k)), np.empty(len(y))
    learnable = np.zeros(len(y), dtype=bool)  # cells whose label has a cell in another fold
    for fold in np.unique(folds):
        test = folds == fold
        weights, intercepts = fit_linear(X[~test], y[~test], k)
        logits[test] = X[test] @ weights.T + intercepts
        distances[test] = distance(X[test, -n_latent:], *fit_classes(X[~test, -n_latent:], y[~test]))
        learnable[test] = np.isin(y[test], y[~test])
    temperature = fit_temperature(logits[learnable], y[learnable])
    probabilities = softmax(logits / temperature, axis=1)
    in_rows = {name: cells[rows] for name, cells in (batches or {}).items()}
    evidence = collect_evidence(
        y, probabilities.argmax(axis=1), probabilities.max(axis=1), categories, categories, batches=in_rows
    )
    weights, intercepts = fit_linear(X, y, k)
    means, axes = fit_classes(X[:, -n_latent:], y)
    standard = standards(distances, energy(logits))
    head = AnnotationHead(
        label_key=label_key,
        categories=tuple(categories),
        network=network,
        use=USE,
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=weights.astype(np.float32),
        intercepts=intercepts.astype(np.float32),
        temperature=temperature,
        class_means=means.astype(np.float32),
        class_axes=axes.astype(np.float32),
        standard=standard.astype(np.float32),
        threshold=float(np.quantile(unlikeness(distances, energy(logits), standard), 1 - UNLIKE)),
        colours=dict(colours or {}),
        evidence={"source": "cross-validation", "n_folds": N_FOLDS, **evidence},
    )
    probability = head.predict(features)[0][np.arange(len(codes)), codes]
    own = probabilities[np.arange(len(y)), y]
    probability[rows] = np.where(learnable, own, np.nan)
    return FittedLabels(head, probability)


def _scales(X: Array, n_latent: int) -> Array:
    """(D,), one unit for the columns of `<cls>`, one for those of the latent: root mean squares of their deviations."""
    variance = X.var(axis=0)
    scale = np.empty(len(variance))
    scale[:-n_latent] = np.sqrt(variance[:-n_latent].mean()) / CLS_WEIGHT
    scale[-n_latent:] = np.sqrt(variance[-n_latent:].mean())
    return np.maximum(scale, 1e-12)
