"""Baselines of masked expression with one regression for each gene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix
from scipy.special import log_ndtr, log_softmax

from scbioformers.baselines._masked_cells import MaskedCells, TrainingCells, stack
from scbioformers.baselines._masked_features import Array, estimate_depth, fit_depth, masked_rows, value_basis
from scbioformers.baselines._masked_levels import LowRank, best, best_rank
from scbioformers.baselines._masked_tilt import Tilt
from scbioformers.config import bin_rows
from scbioformers.core import ConfigError, check_arguments

_GRID = ((5, 30.0), (5, 100.0), (10, 100.0), (10, 300.0), (20, 300.0))  # number of components, ridge penalty
_INTERCEPT_RIDGE = 5.0
_PSEUDO_COUNT = 5.0
_MAX_NEWTON_STEPS, _TOLERANCE = 20, 1e-5


def linear_predictions(train: TrainingCells, test: MaskedCells, *, n_predictors: int = 300) -> Array:
    """Predicted bins of the paper's linear regression, before rounding (paper, section 3.2).

    Each gene has an ordinary least-squares regression on value bins of other genes. The predictors are the
    ``n_predictors`` genes with the highest Pearson correlation with it in the training cells. In the test cells, masked
    genes have the value 0, as in the paper. The visible genes are binned with the estimated depth of the cell.

    Parameters
    ----------
    train, test
        Training cells, whose masks are used for the estimate of the depth alone, and masked cells to predict, whose
        bins are not read.
    n_predictors
        Number of predictors (`k` in the paper). If it is above M - 1, M - 1 predictors are used.

    Returns
    -------
    float64 (H,), predicted bin of every masked entry of ``test``.

    Raises
    ------
    ConfigError
        If `n_predictors` is below 1.
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(linear_predictions, locals())
    train.check_genes(test)
    if n_predictors < 1:
        raise ConfigError(f"n_predictors={n_predictors} must be at least 1.")
    X = _dense_bins(train, train.counts, train.depth)
    visible_bins = _dense_bins(train, test.visible, estimate_depth(fit_depth(train), test)[0])
    mean = X.mean(axis=0)
    X -= mean
    gram = X.T @ X
    scale = np.sqrt(np.diag(gram))
    correlation = gram / np.maximum(np.outer(scale, scale), 1e-12)
    # genes that are constant over the cells, and the gene itself, are not predictors
    correlation[:, scale < 1e-6] = -2.0
    np.fill_diagonal(correlation, -3.0)
    k = min(n_predictors, mean.size - 1)
    order = np.argsort(test.genes, kind="stable")
    bounds = np.searchsorted(test.genes[order], np.arange(mean.size + 1))
    out = np.empty(test.bins.size)
    for j in range(mean.size):
        entries = order[bounds[j] : bounds[j + 1]]
        if not entries.size:
            continue
        predictors = np.argpartition(-correlation[j], k - 1)[:k]
        system = gram[np.ix_(predictors, predictors)]
        system[np.diag_indices(k)] += 1e-6 * system.trace() / k + 1e-9
        slopes = cho_solve(cho_factor(system, lower=True, overwrite_a=True), gram[predictors, j])
        cells = test.cells[entries][:, None]
        out[entries] = mean[j] + (visible_bins[cells, predictors] - mean[predictors]) @ slopes
    return out


def _dense_bins(train: TrainingCells, counts: csr_matrix, depth: Array) -> Array:
    bins = bin_rows(train.binning, counts.data, counts.indptr, depth, float(train.binning.mean_depth or 1.0))
    return csr_matrix((bins.astype(np.float64), counts.indices, counts.indptr), shape=counts.shape).toarray()


def linear_regression(
    train: TrainingCells, test: MaskedCells, *, n_predictors: int = 300, floor: float = 0.01
) -> NDArray[np.float32]:
    """Predict probabilities from the paper's linear regression (paper, section 3.2).

    The probabilities are those of a normal distribution around :func:`linear_predictions`. Its most probable bin is the
    rounded prediction. Its standard deviation is estimated from the residuals of the gene at the masked entries of the
    first draw of the training cells.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.
    n_predictors
        Number of predictors (`k` in the paper).
    floor
        Total probability, above 0 and below 1, that is divided equally between all bins. It keeps the likelihood
        finite.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    ConfigError
        If `n_predictors` is below 1.
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(linear_regression, locals())
    train.check_genes(test)
    n_values, draw = train.binning.n_values, train.draws[0]
    predicted = linear_predictions(train, stack([draw, test]), n_predictors=n_predictors)
    of_draw, of_test = np.split(np.clip(predicted, 0, n_values - 1), [draw.bins.size])
    squares = (draw.bins - of_draw) ** 2
    n_features = train.counts.shape[1]
    by_gene = np.bincount(draw.genes, weights=squares, minlength=n_features)
    n = np.bincount(draw.genes, minlength=n_features)
    variance = (by_gene + _PSEUDO_COUNT * squares.mean()) / (n + _PSEUDO_COUNT)
    sd = np.sqrt(np.maximum(variance, 1e-4))[test.genes][:, None]
    # every bin has the width 1: an outer bin with its tail could be more probable than the rounded bin
    distance = np.abs(np.arange(n_values) - of_test[:, None])
    near, far = (distance - 0.5) / sd, (distance + 0.5) / sd
    log_mass = log_ndtr(-near) + np.log1p(-np.exp(np.minimum(log_ndtr(-far) - log_ndtr(-near), -1e-12)))
    normal = log_softmax(log_mass, axis=1)
    return np.logaddexp(np.log1p(-floor) + normal, np.log(floor / n_values)).astype(np.float32)


@dataclass(frozen=True)
class _Entries:
    """Masked entries sorted by gene, with the features of their cells and their low-rank predictions."""

    cells: NDArray[np.int64]
    bins: NDArray[np.int64]
    bounds: NDArray[np.int64]
    order: NDArray[np.int64]
    depth: Array
    levels: Array
    features: Array

    @classmethod
    def of(cls, model: LowRank, rank: int, cells: MaskedCells) -> _Entries:
        order = np.argsort(cells.genes, kind="stable")
        bounds = np.searchsorted(cells.genes[order], np.arange(cells.visible.shape[1] + 1))
        depth, profile, masked = model.depth(cells), model.profile.leading(rank), masked_rows(cells)
        scores = profile.scores(masked, depth)
        features = np.column_stack([np.ones(depth.size), np.log(depth / model.mean_depth), scores])
        levels = profile.levels(masked, scores)
        return cls(cells.cells[order], cells.bins[order], bounds, order, depth, levels[order], features)

    def offset(self, model: LowRank, tilt: Tilt, gene: int) -> tuple[slice, Array]:
        """Return the slice of the entries of the gene, and their (n, V) logits from the low-rank baseline."""
        at = slice(self.bounds[gene], self.bounds[gene + 1])
        genes = np.full(at.stop - at.start, gene)
        return at, model.logits(tilt, self.depth[self.cells[at]], genes, self.levels[at])


def softmax_regression(train: TrainingCells, test: MaskedCells) -> NDArray[np.float32]:
    """Predict by a multinomial logistic regression for each gene. This is the strongest baseline.

    The predictors are the log depth and the leading components of the cell. Each predictor has two slopes: one for
    whether the bin is above 0, and one for the log level of the bin. A ridge penalty shrinks the slopes to 0, and so
    the prediction to that of :func:`low_rank`. The number of components and the penalty are chosen on held-out training
    cells. The problem is convex and is solved by Newton steps.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(softmax_regression, locals())
    train.check_genes(test)
    fit, validation = train.split()
    model = LowRank(fit)
    rank = best_rank(model, validation)
    tilt = model.fit(rank)
    training, masked = _Entries.of(model, rank, fit.together), _Entries.of(model, rank, validation)
    grid = [choice for choice in _GRID if choice[0] <= rank] or [(rank, 100.0)]
    chosen = best(grid, lambda choice: _fit_and_predict(model, tilt, training, masked, *choice), validation)
    model = LowRank(train)
    training, masked = _Entries.of(model, rank, train.together), _Entries.of(model, rank, test)
    return _fit_and_predict(model, model.fit(rank), training, masked, *chosen).astype(np.float32)


def _fit_and_predict(model: LowRank, tilt: Tilt, training: _Entries, masked: _Entries, k: int, ridge: float) -> Array:
    basis = value_basis(model.train.binning)
    out = np.empty((masked.bins.size, basis.shape[0]))
    for gene in range(training.bounds.size - 1):
        at, offset = masked.offset(model, tilt, gene)
        if at.start == at.stop:
            continue
        fitted, start = training.offset(model, tilt, gene)
        slopes = _newton(training.features[training.cells[fitted], : k + 2], start, basis, training.bins[fitted], ridge)
        logits = offset + masked.features[masked.cells[at], : k + 2] @ slopes @ basis.T
        out[masked.order[at]] = log_softmax(logits, axis=1)
    return out


def _newton(X: Array, offset: Array, basis: Array, bins: NDArray[np.int64], ridge: float) -> Array:
    """(F, R) slopes that maximise the penalised likelihood, with logits = offset + X @ slopes @ basis.T."""
    n_features, n_basis = X.shape[1], basis.shape[1]
    penalty = np.full((n_features, n_basis), ridge)
    penalty[0] = _INTERCEPT_RIDGE
    rows, observed = np.arange(bins.size), basis[bins]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(-1, n_basis**2)

    def loss(slopes: Array) -> tuple[float, Array]:
        logits = offset + X @ (slopes @ basis.T)
        logits -= logits.max(axis=1, keepdims=True)
        observed_logits = logits[rows, bins]
        p = np.exp(logits, out=logits)
        total = p.sum(axis=1)
        p /= total[:, None]
        return float(0.5 * (penalty * slopes**2).sum() + (np.log(total) - observed_logits).sum()), p

    slopes = np.zeros((n_features, n_basis))
    value, p = loss(slopes)
    for _ in range(_MAX_NEWTON_STEPS):
        expected = p @ basis
        gradient = X.T @ (expected - observed) + penalty * slopes
        covariance = p @ products - (expected[:, :, None] * expected[:, None, :]).reshape(-1, n_basis**2)
        blocks = np.empty((n_features, n_basis, n_features, n_basis))
        for r, s in np.ndindex(n_basis, n_basis):
            blocks[:, r, :, s] = X.T @ (X * covariance[:, r * n_basis + s, None])
        hessian = blocks.reshape(slopes.size, slopes.size)
        hessian[np.diag_indices(len(hessian))] += penalty.ravel()
        step = np.linalg.solve(hessian, gradient.ravel()).reshape(slopes.shape)
        size = 1.0
        while (trial := loss(slopes - size * step))[0] > value and size > 1e-3:
            size /= 2
        if value - trial[0] < _TOLERANCE * max(bins.size, 1):
            break
        slopes, (value, p) = slopes - size * step, trial
    return slopes
