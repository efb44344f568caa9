"""Classification of cells from their embeddings: folds, a linear classifier, a temperature, and known cells."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from scbioformers import settings

Array: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]

N_FOLDS = 5
STRENGTH = 0.3  # inverse of the L2 penalty (experiment 83)
ABSENT = -30.0  # logit of a class without a training cell
_MAX_STEPS = 500


def draw_training(codes: Codes, n_classes: int, limit: int, seed: int) -> Codes:
    """At most ``limit`` of N labelled cells to learn from, as sorted positions. Small classes stay whole.

    Half of the places are divided equally among the classes. What a class does not need, and the other half, are
    divided in proportion to the cells that are left.

    Examples
    --------
    >>> codes = np.repeat([0, 1], [90, 10])
    >>> chosen = draw_training(codes, 2, 40, seed=0)
    >>> np.bincount(codes[chosen]).tolist()
    [30, 10]
    """
    counts = np.bincount(codes, minlength=n_classes)
    if len(codes) <= limit:
        return np.arange(len(codes))
    kept = np.minimum(counts, limit // (2 * n_classes))
    left = counts - kept
    kept = kept + (left * ((limit - kept.sum()) / left.sum())).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(codes))
    return np.sort(np.concatenate([order[codes[order] == c][: kept[c]] for c in range(n_classes)]))


def draw_folds(codes: Codes, n_classes: int, seed: int) -> Codes:
    """(N,) fold of each cell. The cells of each class are divided equally, so each class is in as many as possible.

    Examples
    --------
    >>> np.bincount(draw_folds(np.zeros(10, int), 1, seed=0)).tolist()
    [2, 2, 2, 2, 2]
    """
    generator = np.random.default_rng(seed)
    folds = np.empty(len(codes), np.int64)
    first = 0
    for c in range(n_classes):
        rows = generator.permutation(np.flatnonzero(codes == c))
        folds[rows] = (first + np.arange(len(rows))) % N_FOLDS  # classes start one after the other: equal folds
        first += len(rows)
    return folds


def fit_linear(X: Array, codes: Codes, n_classes: int) -> tuple[Array, Array]:
    """Weights (K, D) and intercepts (K,) of a multinomial logistic regression with an L2 penalty.

    A class without cells has zero weights and the intercept :data:`ABSENT`. If there is only one class with cells, it
    is always predicted.
    """
    present = np.unique(codes)
    weights, intercepts = np.zeros((n_classes, X.shape[1])), np.full(n_classes, ABSENT)
    if len(present) == 1:
        intercepts[present] = 0.0
        return weights, intercepts
    with threadpool_limits(settings.n_threads or 1):  # on a busy machine, several threads take many times longer
        fitted = LogisticRegression(C=STRENGTH, max_iter=_MAX_STEPS).fit(X, codes)
    if len(present) == 2:  # scikit-learn has one logit for two classes
        weights[present] = np.stack([-fitted.coef_[0], fitted.coef_[0]]) / 2
        intercepts[present] = np.array([-1, 1]) * fitted.intercept_[0] / 2
    else:
        weights[present], intercepts[present] = fitted.coef_, fitted.intercept_ - fitted.intercept_.mean()
    return weights, intercepts


def fit_temperature(logits: Array, codes: Codes) -> float:
    """The number by which logits (N, K) are divided to make their negative log-likelihood lowest (Guo et al. 2017).

    The logits must come from cells that the classifier was not fitted to. 1 if there are none.
    """
    if not len(codes):
        return 1.0
    rows = np.arange(len(codes))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, codes].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
