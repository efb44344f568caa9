"""What a model of perturbations has to beat: from effects of the training perturbations (T, M) to predictions (K, M).

Rows of ``own`` are bool (…, M), the genes that a perturbation hits; ``features`` are (…, F), zeros where unknown.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor

from scbioformers.core import DataError

Array = NDArray[np.float64]


def no_change(training: ArrayLike, n: int) -> Array:
    """Nothing happens.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    n
        Number of perturbations to predict.

    Returns
    -------
    float64 (n, M), zeros.

    Examples
    --------
    >>> no_change([[1.0, 2.0]], 1)
    array([[0., 0.]])
    """
    return np.zeros((n, _effects(training).shape[1]))


def training_mean(training: ArrayLike, n: int) -> Array:
    """The mean effect of the training perturbations, for every other.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    n
        Number of perturbations to predict.

    Returns
    -------
    float64 (n, M).

    Examples
    --------
    >>> training_mean([[1.0, 2.0], [3.0, 2.0]], 1)
    array([[2., 2.]])
    """
    return np.tile(_effects(training).mean(axis=0), (n, 1))


def target_falls(own: ArrayLike) -> Array:
    """Only the target itself changes: -1 there, 0 elsewhere.

    Parameters
    ----------
    own
        bool (K, M), the genes that each perturbation hits.

    Returns
    -------
    float64 (K, M).

    Examples
    --------
    >>> target_falls([[False, True]])
    array([[ 0., -1.]])
    """
    return np.where(np.asarray(own, bool), -1.0, 0.0)


def additive(singles: ArrayLike) -> Array:
    """Sum of the effects of the single perturbations.

    Parameters
    ----------
    singles
        (K, 2, M), or any number of singles, for each combination.

    Returns
    -------
    float64 (K, M).

    Examples
    --------
    >>> additive([[[1.0, 0.0], [1.0, -1.0]]])
    array([[ 2., -1.]])
    """
    found: Array = np.asarray(singles, np.float64).sum(axis=1)
    return found


def linear_bilinear(
    training: ArrayLike, own: ArrayLike, new_own: ArrayLike, *, n_components: int = 10, ridge: float = 0.1
) -> Array:
    """Ahlmann-Eltze's linear model: gene embedding x weights x perturbation embedding, around the training mean.

    The gene embedding are the leading components of the training effects; a perturbation has that of its target. Those
    whose target is not measured have none, and get the mean.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    own, new_own
        bool (T, M) and (K, M), the genes that they hit.
    n_components
        Width of the embedding.
    ridge
        Penalty on either side.

    Returns
    -------
    float64 (K, M).

    Examples
    --------
    >>> import numpy as np
    >>> linear_bilinear([[1.0, 2.0], [3.0, 2.0]], np.zeros((2, 2), bool), np.zeros((1, 2), bool))
    array([[2., 2.]])
    """
    effects = _effects(training)
    mean = effects.mean(axis=0)
    left, scale, _ = np.linalg.svd((effects - mean).T, full_matrices=False)
    k = min(n_components, int((scale > 1e-9).sum()))
    genes = left[:, :k] * scale[:k]
    trained, requested = (np.asarray(rows, np.float64) @ genes for rows in (own, new_own))
    inner = np.linalg.solve(genes.T @ genes + ridge * np.eye(k), genes.T @ (effects - mean).T @ trained)
    weights = inner @ np.linalg.inv(trained.T @ trained + ridge * np.eye(k))
    found: Array = (genes @ weights @ requested.T).T + mean
    return found


def knn_features(training: ArrayLike, features: ArrayLike, new_features: ArrayLike, *, n_neighbors: int = 3) -> Array:
    """Mean effect of the training perturbations with the most similar features (cosine), weighted by similarity.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    features, new_features
        (T, F) and (K, F).
    n_neighbors
        How many.

    Returns
    -------
    float64 (K, M).

    Examples
    --------
    >>> knn_features([[1.0], [3.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], n_neighbors=1)
    array([[1.]])
    """
    effects, (known, requested) = _effects(training), _unit(features, new_features)
    model = KNeighborsRegressor(min(n_neighbors, len(effects)), weights="distance").fit(known, effects)
    found: Array = np.asarray(model.predict(requested), np.float64)
    return found


def ridge_features(training: ArrayLike, features: ArrayLike, new_features: ArrayLike, *, penalty: float = 1.0) -> Array:
    """Ridge regression from features of unit length to the effects.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    features, new_features
        (T, F) and (K, F).
    penalty
        Of the squared weights.

    Returns
    -------
    float64 (K, M).

    Examples
    --------
    >>> ridge_features([[1.0], [3.0]], [[1.0], [1.0]], [[1.0]])
    array([[2.]])
    """
    known, requested = _unit(features, new_features)
    found: Array = np.asarray(Ridge(penalty).fit(known, _effects(training)).predict(requested), np.float64)
    return found.reshape(len(requested), -1)


def mlp_features(training: ArrayLike, features: ArrayLike, new_features: ArrayLike, *, seed: int = 0) -> Array:
    """Neural network of one hidden layer of 64 from features of unit length to the effects.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    features, new_features
        (T, F) and (K, F).
    seed
        Of the weights it starts from.

    Returns
    -------
    float64 (K, M).

    Examples
    --------
    >>> mlp_features([[1.0, 0.0], [3.0, 0.0]], [[1.0], [1.0]], [[1.0]]).shape
    (1, 2)
    """
    known, requested = _unit(features, new_features)
    model = MLPRegressor(hidden_layer_sizes=(64,), alpha=1e-3, solver="lbfgs", max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known, _effects(training))
    found: Array = np.asarray(model.predict(requested), np.float64)
    return found.reshape(len(requested), -1)


def _effects(training: ArrayLike) -> Array:
    found = np.asarray(training, np.float64)
    if found.ndim != 2 or not len(found):
        raise DataError(f"Expected the effects of at least one training perturbation, (T, M), found {found.shape}.")
    return found


def _unit(features: ArrayLike, new_features: ArrayLike) -> tuple[Array, Array]:
    known, requested = (np.asarray(rows, np.float64) for rows in (features, new_features))
    scaled = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (known, requested)]
    return scaled[0], scaled[1]
