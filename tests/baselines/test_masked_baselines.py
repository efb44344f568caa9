from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime, minimize
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from scbioformers.baselines import (
    MaskedCells,
    TrainingCells,
    bin_histogram,
    constant_bin,
    knn_smoothing,
    linear_predictions,
    linear_regression,
    low_rank,
    negative_binomial,
    softmax_regression,
)
from scbioformers.baselines._masked import _dispersion, bin_masses
from scbioformers.baselines._masked_cells import stack
from scbioformers.baselines._masked_features import Components, DepthModel, log_histogram, value_basis, zero_odds
from scbioformers.baselines._masked_levels import LowRank, Neighbors
from scbioformers.baselines._masked_regressions import _newton
from scbioformers.baselines._masked_tilt import Tilt, _loss, _newton_step
from scbioformers.config import Binning, bin_rows
from scbioformers.core import ConfigError, DataError, bin_normalized

CONDITIONAL = [
    pytest.param(negative_binomial, id="negative binomial"),
    pytest.param(knn_smoothing, id="neighbours"),
    pytest.param(low_rank, id="low rank"),
    pytest.param(softmax_regression, id="softmax"),
]
ALL = [
    *CONDITIONAL,
    pytest.param(bin_histogram, id="histogram"),
    pytest.param(lambda train, test: linear_regression(train, test, n_predictors=10), id="linear"),
    pytest.param(lambda train, test: constant_bin(train, test, 1), id="constant"),
]


def mask_cells(counts, depth, binning, rng, n_masked=4):
    """Mask ``n_masked`` expressed genes and ``n_masked`` zeros in every cell."""
    visible, cells, genes = counts.toarray(), [], []
    for i, row in enumerate(counts.toarray()):
        chosen = [rng.choice(np.flatnonzero(at), n_masked, replace=False) for at in (row > 0, row == 0)]
        genes.append(np.sort(np.concatenate(chosen)))
        cells.append(np.full(2 * n_masked, i))
    cells, genes = np.concatenate(cells), np.concatenate(genes)
    visible[cells, genes] = 0
    dense = np.zeros(counts.shape, np.int64)
    dense[counts.nonzero()] = bin_rows(binning, counts.data, counts.indptr, depth)
    bins = dense[cells, genes]
    return MaskedCells(csr_matrix(visible), depth - (counts.toarray() - visible).sum(axis=1), cells, genes, bins)


def simulate(n_cells, seed, *, n_features=60, shared=1.0, n_draws=3):
    """Two cell types with different programs and a range of depths."""
    rng = np.random.default_rng(seed)
    program = np.random.default_rng(7).gamma(0.8, size=(2, n_features)) + 0.05
    rates = np.where(np.arange(2)[:, None] == 1, program, shared * program[1] + (1 - shared) * program[0])
    rates /= rates.sum(axis=1, keepdims=True)
    expected_depth = rng.lognormal(4.3, 0.5, n_cells)
    counts = rng.poisson(rates[rng.integers(2, size=n_cells)] * expected_depth[:, None]).astype(float)
    counts[:, :6] = np.maximum(counts[:, :6], np.eye(6)[rng.integers(6, size=n_cells)])
    enough = ((counts > 0).sum(axis=1) > 5) & ((counts == 0).sum(axis=1) > 5)
    matrix = csr_matrix(counts[enough])
    depth = np.asarray(matrix.sum(axis=1)).ravel() + 20.0
    return matrix, depth, rng, n_draws


@pytest.fixture(scope="module")
def problem():
    """Training cells and masked test cells."""
    counts, depth, rng, n_draws = simulate(420, 0, shared=0.0)
    binning = Binning(cutoff=4, bins_per_doubling=2)
    highest = int(bin_normalized([(counts.toarray() * depth.mean() / depth[:, None]).max()], 4, 2)[0])
    binning = binning.freeze(mean_depth=float(depth[:330].mean()), max_bin=highest)
    draws = tuple(mask_cells(counts[:330], depth[:330], binning, rng) for _ in range(n_draws))
    return TrainingCells(counts[:330], depth[:330], binning, draws), mask_cells(counts[330:], depth[330:], binning, rng)


@pytest.fixture(scope="module")
def prediction(problem):
    """Function that returns the predictions of a baseline and caches them."""
    return cache(lambda predict: predict(*problem))


def bits(log_p, cells):
    return -log_p[np.arange(cells.bins.size), cells.bins].mean() / np.log(2)


@pytest.mark.parametrize("predict", ALL)
def test_log_probabilities_do_not_depend_on_the_true_bins(problem, prediction, predict):
    train, test = problem
    log_p = prediction(predict)
    assert log_p.dtype == np.float32
    assert log_p.shape == (test.bins.size, train.binning.n_values)
    np.testing.assert_allclose(np.exp(log_p.astype(float)).sum(axis=1), 1, rtol=1e-5)
    assert log_p.min() > -30
    permuted = replace(test, bins=np.random.default_rng(0).permutation(test.bins))
    np.testing.assert_array_equal(predict(train, permuted), log_p)


@pytest.mark.parametrize("predict", CONDITIONAL)
def test_simulated_types_and_depths_improve_predictions(problem, prediction, predict):
    _, test = problem
    assert bits(prediction(predict), test) < bits(prediction(bin_histogram), test) - 0.02


def test_profiles_improve_predictions_if_there_are_cell_types(problem, prediction):
    _, test = problem
    for predict in (knn_smoothing, low_rank, softmax_regression):
        assert bits(prediction(predict), test) < bits(prediction(negative_binomial), test)


@pytest.mark.parametrize(
    "predict", [bin_histogram, negative_binomial, low_rank, knn_smoothing, softmax_regression], ids=lambda f: f.__name__
)
def test_predicted_share_of_zeros_is_that_of_the_mask(prediction, predict):
    assert np.exp(prediction(predict)[:, 0]).mean() == pytest.approx(0.5, abs=0.03)


def test_prediction_of_a_cell_does_not_depend_on_other_test_cells(problem, prediction):
    train, test = problem
    some = np.arange(test.depth.size) < 5
    for predict in (negative_binomial, low_rank, softmax_regression):
        whole = prediction(predict)[some[test.cells]]
        np.testing.assert_allclose(predict(train, test.take(some)), whole, atol=1e-4)


def test_constant(problem):
    train, test = problem
    log_p = constant_bin(train, test, 2, floor=0.1)
    others = train.binning.n_values - 1
    np.testing.assert_allclose(np.exp(log_p[0]), np.where(np.arange(others + 1) == 2, 0.9, 0.1 / others), rtol=1e-5)
    with pytest.raises(ConfigError, match="value=99 is not one of the bins"):
        constant_bin(train, test, 99)


def small_training():
    """Three cells of three genes. Each draw masks one expressed gene and one zero of every cell."""
    counts = csr_matrix(np.array([[1.0, 3, 0], [2, 0, 0], [0, 1, 4]]))
    binning = Binning(normalize=False).freeze(mean_depth=4.0, max_bin=4)
    masked = [([0, 2], [0, 1], [2, 0]), ([1, 2], [0, 2], [1, 0])]
    draws = []
    for rows in masked:
        cells, genes = np.repeat(np.arange(3), 2), np.concatenate(rows)
        visible = counts.toarray()
        bins = visible[cells, genes].astype(int)
        visible[cells, genes] = 0
        draws.append(MaskedCells(csr_matrix(visible), visible.sum(axis=1), cells, genes, bins))
    return TrainingCells(counts, np.array([4.0, 2, 5]), binning, tuple(draws))


def test_histogram_by_hand():
    # chances to be masked in the three cells: 1/2, 1, 1/2 for expressed genes, and 1, 1/2, 1 for zeros
    expected = np.array([[1, 0.5, 1, 0, 0], [0.5, 0.5, 0, 0.5, 0], [1.5, 0, 0, 0, 0.5]])
    pooled = expected.sum(axis=0) + 0.25
    expected += 2 * pooled / pooled.sum()
    np.testing.assert_allclose(
        np.exp(log_histogram(small_training(), pseudo_count=2.0)), expected / expected.sum(axis=1, keepdims=True)
    )


def test_histogram_is_the_limit_of_many_draws(problem):
    train, _ = problem
    rng = np.random.default_rng(3)
    many = stack([mask_cells(train.counts, train.depth, train.binning, rng) for _ in range(40)])
    n_values, n_features = train.binning.n_values, train.counts.shape[1]
    table = np.bincount(many.genes * n_values + many.bins, minlength=n_features * n_values)
    table = table.reshape(n_features, n_values) / table.reshape(n_features, n_values).sum(axis=1, keepdims=True)
    difference = np.exp(log_histogram(train, pseudo_count=1e-3)) - table
    assert np.abs(difference).max() < 0.07
    assert np.abs(difference).mean() < 0.005


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("share", [pytest.param(1.0, id="at the mean"), pytest.param(0.37, id="shallow")])
def test_bin_masses_are_sums_over_counts(share, normalize):
    binning = Binning(cutoff=4, bins_per_doubling=2, normalize=normalize).freeze(mean_depth=100.0, max_bin=9)
    rate, dispersion = np.array([0.02, 0.3]), np.array([0.5, 2.0])
    depths = share * np.array([[97.0, 103.0], [55.0, 61.0]])
    expected = np.zeros((2, 10))
    x = np.arange(20_000)
    for entry in range(2):
        for depth in depths[entry]:
            mean, size = rate[entry] * depth, 1 / dispersion[entry]
            mass = stats.nbinom.pmf(x, size, size / (size + mean))
            bins = np.minimum(bin_normalized(x * 100.0 / depth if normalize else x, 4, 2), 9)
            expected[entry] += np.bincount(bins, weights=mass, minlength=10) / 2
    np.testing.assert_allclose(bin_masses(binning, rate, dispersion, depths), np.maximum(expected, 1e-6), atol=1e-9)


def test_dispersion_has_the_maximum_likelihood():
    rng = np.random.default_rng(0)
    depth, rate = rng.lognormal(5, 0.4, 800), np.array([0.01, 0.05, 0.2])
    true = np.array([0.2, 1.0, 4.0])
    x = rng.poisson(rng.gamma(1 / true, true, (800, 3)) * rate * depth[:, None]).astype(float)

    def loss(log_dispersion, j):
        size = np.exp(-log_dispersion)
        return -stats.nbinom.logpmf(x[:, j], size, size / (size + rate[j] * depth)).sum()

    estimated = _dispersion(csr_matrix(x), depth, rate)
    for j in range(3):
        expected = minimize(lambda t, j=j: loss(t[0], j), [0.0]).x[0]
        assert np.log(estimated[j]) == pytest.approx(expected, abs=0.2)  # half a step of the grid


def test_depth_is_estimated_from_visible_counts(problem):
    train, _ = problem
    counts, depth, rng, _ = simulate(200, 5, shared=0.0)
    cells = mask_cells(counts, depth, train.binning, rng)
    model = DepthModel.fit(train)
    error = np.log(depth / model.estimate(cells))
    assert error.std() < 0.92 * np.log(depth / (train.depth_ratio * cells.depth)).std()
    low, high = np.log(model.spread[[0, -1]])
    assert 0.7 < np.mean((error > low) & (error < high)) < 0.97


def test_zero_odds_of_the_default_rule(problem):
    train, test = problem
    # in every cell as many expressed genes as zeros are masked
    n_expressed = np.diff(test.visible.indptr) + 4
    expected = n_expressed / (test.visible.shape[1] - n_expressed)
    np.testing.assert_allclose(zero_odds(train, test), expected, rtol=0.05)


def test_zero_odds_of_uniform_masking(problem):
    train, _ = problem
    rng, draws = np.random.default_rng(4), []
    for _ in range(4):
        masked = rng.random(train.counts.shape) < 0.3
        cells, genes = np.nonzero(masked)
        whole = train.counts.toarray()
        bins = (whole[cells, genes] > 0).astype(int)
        whole[masked] = 0
        draws.append(MaskedCells(csr_matrix(whole), train.depth, cells, genes, bins))
    odds = zero_odds(replace(train, draws=tuple(draws)), draws[0])
    assert np.median(odds) == pytest.approx(1, abs=0.05)
    # under the default rule the odds would vary much more
    n_expressed = np.diff(train.counts.indptr)
    assert np.log(odds).std() < 0.3 * np.log(n_expressed / (60 - n_expressed)).std()


def test_scores_are_the_expectation_given_visible_entries(problem):
    train, test = problem
    components, some = Components.fit(train, 5), test.take(np.arange(test.depth.size) < 4)
    loadings, noise = components.loadings(3)
    np.testing.assert_allclose(loadings.T @ loadings, np.diag(np.diag(loadings.T @ loadings)), atol=1e-8)
    depth = some.depth * 1.1
    profiles = components.profiles(some.visible, depth).toarray()
    for i, scores in enumerate(components.scores(3, some, depth)):
        seen = np.setdiff1d(np.arange(profiles.shape[1]), some.genes[some.cells == i])
        W, y = loadings[seen], profiles[i, seen] - components.mean[seen]
        # conditional mean of a joint normal distribution, from the covariance of the visible entries
        np.testing.assert_allclose(scores, W.T @ np.linalg.solve(W @ W.T + noise * np.eye(seen.size), y), atol=1e-8)
    whole = components.whole_scores(3, some.visible, depth)
    W, y = loadings, profiles - components.mean
    np.testing.assert_allclose(whole.T, W.T @ np.linalg.solve(W @ W.T + noise * np.eye(len(W)), y.T), atol=1e-8)


def test_neighbour_levels_equal_scikit_learn(problem):
    train, test = problem
    model, depth = Neighbors(train), DepthModel.fit(train)
    rank = 10
    loadings = model.components.loadings(rank)[0]
    whole = model.components.whole_scores(rank, train.counts, train.depth) @ loadings.T
    profiles = model.components.profiles(train.counts, train.depth).toarray()

    def expected(cells, k, first):
        # distances between profiles reconstructed from the components
        queries = model.components.scores(rank, cells, depth.estimate(cells)) @ loadings.T
        nearest = NearestNeighbors(n_neighbors=k).fit(whole).kneighbors(queries, return_distance=False)[:, first:]
        return profiles[nearest].mean(axis=1)[cells.cells, cells.genes]

    np.testing.assert_allclose(model.levels(7, test), expected(test, 7, 0), atol=1e-8)
    # a training cell is not its own neighbour
    cells, rows = train.sample(10**9)
    levels = model.levels(7, cells, rows)
    queries = model.components.scores(rank, cells, depth.estimate(cells)) @ loadings.T
    for i in (0, 400, 900):
        others = np.flatnonzero(np.arange(len(whole)) != rows[i])
        nearest = others[np.argsort(((whole[others] - queries[i]) ** 2).sum(axis=1))[:7]]
        at = cells.cells == i
        np.testing.assert_allclose(levels[at], profiles[nearest].mean(axis=0)[cells.genes[at]], atol=1e-8)


def test_low_rank_levels_by_hand(problem):
    train, test = problem
    model = LowRank(train)
    scores = model.components.scores(4, test, model.depth.estimate(test))
    profiles = model.components.mean + scores @ model.components.loadings(4)[0].T
    np.testing.assert_allclose(model.levels(4, test), profiles[test.cells, test.genes])


def test_linear_regression_equals_scikit_learn(problem):
    train, test = problem
    k = 12
    predicted = linear_predictions(train, test, n_predictors=k)
    X = np.zeros(train.counts.shape)
    X[train.counts.nonzero()] = bin_rows(train.binning, train.counts.data, train.counts.indptr, train.depth)
    mean_depth = train.binning.mean_depth / train.depth_ratio
    seen = np.zeros(test.visible.shape)
    visible = test.visible
    seen[visible.nonzero()] = bin_rows(train.binning, visible.data, visible.indptr, test.depth, mean_depth)
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(X.T), nan=-1)
    for j in range(0, X.shape[1], 7):
        order = np.argsort(-correlation[j])
        predictors = order[order != j][:k]
        model = LinearRegression().fit(X[:, predictors], X[:, j])
        at = test.genes == j
        np.testing.assert_allclose(predicted[at], model.predict(seen[test.cells[at]][:, predictors]), atol=1e-3)


def test_most_probable_bin_of_linear_regression_is_the_rounded_prediction(problem):
    train, test = problem
    predicted = np.clip(linear_predictions(train, test, n_predictors=12), 0, train.binning.n_values - 1)
    clear = np.abs(predicted % 1 - 0.5) > 1e-3
    most_probable = linear_regression(train, test, n_predictors=12).argmax(axis=1)
    np.testing.assert_array_equal(most_probable[clear], np.floor(predicted + 0.5)[clear])


def test_linear_regression_allows_constant_genes():
    train = small_training()
    counts = train.counts.toarray()
    counts[:, 1] = 0
    train = replace(train, counts=csr_matrix(counts))
    predicted = linear_predictions(train, train.draws[0])
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(predicted[train.draws[0].genes == 1], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda *cells: knn_smoothing(*cells, n_neighbors=330), "outside 1…329", id="neighbours"),
        pytest.param(lambda *cells: low_rank(*cells, rank=41), "rank=41 is outside 1…40", id="rank"),
        pytest.param(lambda *cells: linear_predictions(*cells, n_predictors=0), "at least 1", id="predictors"),
    ],
)
def test_parameters_out_of_range_raise(problem, call, message):
    with pytest.raises(ConfigError, match=message):
        call(*problem)


def random_entries(rng, n=60, n_values=5, n_features=2):
    offset, X = rng.normal(size=(n, n_values)), rng.normal(size=(n, n_features))
    basis = value_basis(Binning().freeze(mean_depth=1.0, max_bin=n_values - 1))
    return offset, X, rng.integers(n_values, size=n), basis


def test_newton_finds_the_optimum():
    offset, X, bins, basis = random_entries(np.random.default_rng(0), n_features=3)
    penalty = np.array([[5.0], [2.0], [2.0]])

    def loss(flat):
        slopes = flat.reshape(3, 2)
        log_p = log_softmax(offset + X @ slopes @ basis.T, axis=1)
        return -log_p[np.arange(len(bins)), bins].sum() + 0.5 * (penalty * slopes**2).sum()

    expected = minimize(loss, np.zeros(6)).x.reshape(3, 2)
    np.testing.assert_allclose(_newton(X, offset, basis, bins, 2.0), expected, atol=1e-2)
    assert np.abs(expected).max() > 0.05


def test_tilt_finds_the_optimum():
    rng = np.random.default_rng(1)
    offset, X, bins, basis = random_entries(rng)
    depth = rng.lognormal(size=60)
    fitted = Tilt.fit(offset, depth, X, bins, basis, n_groups=3)
    group = np.searchsorted(np.quantile(depth, [1 / 3, 2 / 3]), depth)
    parts = [(offset[group == g], X[group == g], bins[group == g]) for g in range(3)]

    def loss(flat):
        return _loss(parts, flat[:15].reshape(3, 5), flat[15:].reshape(2, 2), basis)

    solution = np.concatenate([fitted.effects.ravel(), fitted.weights.ravel()])
    np.testing.assert_allclose(approx_fprime(solution, loss), 0, atol=0.02)
    assert np.abs(approx_fprime(0 * solution, loss)).max() > 1
    expected = minimize(loss, np.zeros(19)).x
    np.testing.assert_allclose(solution, expected, atol=5e-3)
    logits = fitted.logits(offset[:3], depth[:3], X[:3])
    by_hand = [offset[i] + fitted.effects[group[i]] + basis @ fitted.weights.T @ X[i] for i in range(3)]
    np.testing.assert_allclose(logits, by_hand)


def test_newton_step_lowers_the_loss_from_a_random_start():
    rng = np.random.default_rng(2)
    offset, X, bins, basis = random_entries(rng)
    effects, weights = 0.2 * rng.normal(size=(1, 5)), 0.2 * rng.normal(size=(2, 2))
    steps = _newton_step([(offset, X, bins)], effects, weights, basis)
    before = _loss([(offset, X, bins)], effects, weights, basis)
    assert _loss([(offset, X, bins)], effects - steps[0], weights - steps[1], basis) < before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"depth": np.ones(3)}, r"`depth` has the shape \(3,\); expected \(2,\)", id="depth"),
        pytest.param({"bins": np.zeros(1, int)}, r"`bins` has the shape \(1,\); expected \(2,\)", id="length"),
        pytest.param({"genes": np.array([0, 9])}, "`genes` of the masked entries must be from 0 to 2", id="out"),
        pytest.param({"cells": np.array([1, 0])}, "sorted by cell", id="order"),
    ],
)
def test_bad_cells_raise(change, message):
    cells = MaskedCells(csr_matrix(np.eye(2, 3)), np.ones(2), np.array([0, 1]), np.array([2, 2]), np.zeros(2, int))
    with pytest.raises(DataError, match=message):
        replace(cells, **change)


def test_draws_of_other_cells_raise(problem):
    train, test = problem
    for draws, message in (((), "no draw of the mask"), ((test,), r"`draws\[0\].visible` has the shape")):
        with pytest.raises(DataError, match=message):
            replace(train, draws=draws)


def test_take_stack_and_split(problem):
    train, test = problem
    rows = np.arange(test.depth.size) % 3 == 0
    parts = test.take(rows), test.take(~rows)
    both = stack(parts)
    assert both.bins.size == test.bins.size
    i = int(np.flatnonzero(rows)[4])
    np.testing.assert_array_equal(parts[0].bins[parts[0].cells == 4], test.bins[test.cells == i])
    np.testing.assert_array_equal(parts[0].visible[4].toarray(), test.visible[i].toarray())
    j = int(np.flatnonzero(~rows)[0])
    np.testing.assert_array_equal(both.genes[both.cells == parts[0].depth.size], test.genes[test.cells == j])
    fit, validation = train.split()
    assert validation.depth.size == 2 * (train.depth.size - fit.depth.size)
    assert 0.05 < validation.depth.size / 2 / train.depth.size < 0.25
