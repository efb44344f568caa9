"""Baselines of perturbation models: from effects of the training perturbations (T, M) to predictions (K, M).

``own`` is bool (…, M), the genes that each perturbation hits. ``features`` are (…, F) and 0 where they are unknown.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor

from scbioformers.core import DataError, check_arguments, check_shapes

Array = NDArray[np.float64]


def no_change(training: ArrayLike, n: int) -> Array:
    """Predict no change.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    n
        Number of perturbations to predict.

    Returns
    -------
    float64 (n, M), zeros.

    Raises
    ------
    DataError
        If `training` is not a matrix with at least one row.

    Examples
    --------
    >>> no_change([[1.0, 2.0]], 1)
    array([[0., 0.]])
    """
    check_arguments(no_change, locals())
    return np.zeros((n, _effects(training).shape[1]))


def training_mean(training: ArrayLike, n: int) -> Array:
    """Predict the mean effect of the training perturbations for every perturbation.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    n
        Number of perturbations to predict.

    Returns
    -------
    float64 (n, M).

    Raises
    ------
    DataError
        If `training` is not a matrix with at least one row.

    Examples
    --------
    >>> training_mean([[1.0, 2.0], [3.0, 2.0]], 1)
    array([[2., 2.]])
    """
    check_arguments(training_mean, locals())
    return np.tile(_effects(training).mean(axis=0), (n, 1))


def target_falls(own: ArrayLike) -> Array:
    """Predict that only the target genes change: -1 for the targets, 0 for all other genes.

    Parameters
    ----------
    own
        bool (K, M), the genes that each perturbation hits.

    Returns
    -------
    float64 (K, M).

    Raises
    ------
    DataError
        If `own` is not a matrix.

    Examples
    --------
    >>> target_falls([[False, True]])
    array([[ 0., -1.]])
    """
    check_arguments(target_falls, locals())
    check_shapes(own=(own, "KM"))
    return np.where(np.asarray(own, bool), -1.0, 0.0)


def additive(singles: ArrayLike) -> Array:
    """Predict each combination as the sum of the effects of its single perturbations.

    Parameters
    ----------
    singles
        (K, 2, M), effects of the single perturbations of each combination. The second axis can have any length.

    Returns
    -------
    float64 (K, M).

    Raises
    ------
    DataError
        If `singles` does not have three axes.

    Examples
    --------
    >>> additive([[[1.0, 0.0], [1.0, -1.0]]])
    array([[ 2., -1.]])
    """
    check_arguments(additive, locals())
    check_shapes(singles=(singles, "KNM"))
    total: Array = np.asarray(singles, np.float64).sum(axis=1)
    return total


def linear_bilinear(
    training: ArrayLike, own: ArrayLike, new_own: ArrayLike, *, n_components: int = 10, ridge: float = 0.1
) -> Array:
    """Linear model of Ahlmann-Eltze, Huber and Anders (2025), around the mean of the training effects.

    A prediction is gene embedding x weights x perturbation embedding. The gene embedding has the leading components of
    the training effects. The embedding of a perturbation is the sum over its target genes. If no target is measured,
    the embedding is 0 and the prediction is the mean.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    own, new_own
        bool (T, M) and (K, M), the genes that the training and the predicted perturbations hit.
    n_components
        Number of dimensions of the embeddings.
    ridge
        Ridge penalty, the same for genes and perturbations.

    Returns
    -------
    float64 (K, M).

    Raises
    ------
    DataError
        If `training` is not a matrix with at least one row, or shapes do not match.

    Examples
    --------
    >>> import numpy as np
    >>> linear_bilinear([[1.0, 2.0], [3.0, 2.0]], np.zeros((2, 2), bool), np.zeros((1, 2), bool))
    array([[2., 2.]])
    """
    check_arguments(linear_bilinear, locals())
    effects = _effects(training)
    check_shapes(training=(effects, "TM"), own=(own, "TM"), new_own=(new_own, "KM"))
    mean = effects.mean(axis=0)
    left, scale, _ = np.linalg.svd((effects - mean).T, full_matrices=False)
    k = min(n_components, int((scale > 1e-9).sum()))
    genes = left[:, :k] * scale[:k]
    trained, predicted = (np.asarray(rows, np.float64) @ genes for rows in (own, new_own))
    inner = np.linalg.solve(genes.T @ genes + ridge * np.eye(k), genes.T @ (effects - mean).T @ trained)
    weights = inner @ np.linalg.inv(trained.T @ trained + ridge * np.eye(k))
    effect: Array = (genes @ weights @ predicted.T).T + mean
    return effect


def knn_features(training: ArrayLike, features: ArrayLike, new_features: ArrayLike, *, n_neighbors: int = 3) -> Array:
    """Mean effect of the training perturbations with the most similar features.

    The neighbours have the highest cosine similarity. They are weighted by the inverse Euclidean distance between
    features of unit length.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    features, new_features
        (T, F) and (K, F), features of the training and the predicted perturbations.
    n_neighbors
        Number of neighbours. If it is above T, T neighbours are used.

    Returns
    -------
    float64 (K, M).

    Raises
    ------
    DataError
        If `training` is not a matrix with at least one row, or shapes do not match.

    Examples
    --------
    >>> knn_features([[1.0], [3.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], n_neighbors=1)
    array([[1.]])
    """
    check_arguments(knn_features, locals())
    effects, known, new = _read(training, features, new_features)
    model = KNeighborsRegressor(min(n_neighbors, len(effects)), weights="distance").fit(known, effects)
    predicted: Array = np.asarray(model.predict(new), np.float64)
    return predicted


def ridge_features(training: ArrayLike, features: ArrayLike, new_features: ArrayLike, *, penalty: float = 1.0) -> Array:
    """Ridge regression from features, scaled to unit length, to effects.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    features, new_features
        (T, F) and (K, F), features of the training and the predicted perturbations.
    penalty
        Penalty on the squared coefficients.

    Returns
    -------
    float64 (K, M).

    Raises
    ------
    DataError
        If `training` is not a matrix with at least one row, or shapes do not match.

    Examples
    --------
    >>> ridge_features([[1.0], [3.0]], [[1.0], [1.0]], [[1.0]])
    array([[2.]])
    """
    check_arguments(ridge_features, locals())
    effects, known, new = _read(training, features, new_features)
    predicted: Array = np.asarray(Ridge(penalty).fit(known, effects).predict(new), np.float64)
    return predicted.reshape(len(new), -1)


def mlp_features(training: ArrayLike, features: ArrayLike, new_features: ArrayLike, *, seed: int = 0) -> Array:
    """Neural network with one hidden layer of 64 units, from features, scaled to unit length, to effects.

    Parameters
    ----------
    training
        (T, M), effects of the training perturbations.
    features, new_features
        (T, F) and (K, F), features of the training and the predicted perturbations.
    seed
        Seed of the initial weights.

    Returns
    -------
    float64 (K, M).

    Raises
    ------
    DataError
        If `training` is not a matrix with at least one row, or shapes do not match.

    Examples
    --------
    >>> mlp_features([[1.0, 0.0], [3.0, 0.0]], [[1.0], [1.0]], [[1.0]]).shape
    (1, 2)
    """
    check_arguments(mlp_features, locals())
    effects, known, new = _read(training, features, new_features)
    model = MLPRegressor(hidden_layer_sizes=(64,), alpha=1e-3, solver="lbfgs", max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(known, effects)
    predicted: Array = np.asarray(model.predict(new), np.float64)
    return predicted.reshape(len(new), -1)


def _effects(training: ArrayLike) -> Array:
    check_shapes(training=(training, "TM"))
    effects = np.asarray(training, np.float64)
    if not len(effects):
        raise DataError(f"Expected effects (T, M) of at least one training perturbation, found shape {effects.shape}.")
    return effects


def _read(training: ArrayLike, features: ArrayLike, new_features: ArrayLike) -> tuple[Array, Array, Array]:
    """Effects, and both features scaled to unit length."""
    effects = _effects(training)
    check_shapes(training=(effects, "TM"), features=(features, "TF"), new_features=(new_features, "KF"))
    arrays = [np.asarray(rows, np.float64) for rows in (features, new_features)]
    known, new = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in arrays)
    return effects, known, new
