from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
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
from scbioformers.baselines._masked_features import (
    estimate_depth,
    fit_depth,
    log_histogram,
    masked_rows,
    zero_odds,
)
from scbioformers.baselines._masked_levels import LowRank, Neighbors
from scbioformers.config import Binning, bin_rows
from scbioformers.core import ConfigError, DataError, LowRankProfile, MaskedRows, bin_normalized, log1p_rows

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
    cells, genes = [], []
    for i, row in enumerate(counts.toarray()):
        chosen = [rng.choice(np.flatnonzero(at), n_masked, replace=False) for at in (row > 0, row == 0)]
        genes.append(np.sort(np.concatenate(chosen)))
        cells.append(np.full(2 * n_masked, i))
    return hide(counts, depth, binning, np.concatenate(cells), np.concatenate(genes))


def hide(counts, depth, binning, cells, genes):
    """Mask these entries."""
    visible = counts.toarray()
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


@pytest.mark.parametrize("predict", ALL)
def test_masked_counts_do_not_enter_the_prediction(problem, prediction, predict):
    train, test = problem
    rng, whole = np.random.default_rng(1), test.visible.toarray()
    whole[test.cells, test.genes] = rng.integers(0, 50, test.bins.size)  # expressed entries and zeros
    hidden = whole.sum(axis=1) - np.asarray(test.visible.sum(axis=1)).ravel()
    changed = hide(csr_matrix(whole), test.depth + hidden, train.binning, test.cells, test.genes)
    assert (changed.bins != test.bins).mean() > 0.9
    np.testing.assert_array_equal(predict(train, changed), prediction(predict))


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


def slow_depth_terms(profile, mean_share, cells, i):
    """Terms of the regression of the depth of one cell, with the conditional mean of a joint normal distribution."""
    masked, x = cells.genes[cells.cells == i], cells.visible[i].toarray()[0]
    seen, loadings, mean = np.setdiff1d(np.arange(x.size), masked), profile.loadings.astype(float), profile.mean
    shares = mean_share[masked]
    rough = cells.depth[i] / (1 - shares.sum())
    covariance = loadings @ loadings.T + profile.noise * np.eye(x.size)
    difference = np.log1p(x * profile.mean_depth / rough)[seen] - mean[seen]
    level = mean[masked] + covariance[np.ix_(masked, seen)] @ np.linalg.solve(
        covariance[np.ix_(seen, seen)], difference
    )
    usual = np.expm1(mean[masked].astype(float))
    ratio = np.clip((np.expm1(level) + 0.3 * usual) / (1.3 * usual), 0.1, 5)
    expected = (shares * ratio).sum()
    return [shares.sum(), expected, np.log1p(masked.size), np.log1p(cells.depth[i]), np.log1p((x > 0).sum())]


def test_depth_of_the_baselines_equals_a_slow_computation(problem):
    train, test = problem
    counts, n_features = train.counts.toarray(), train.counts.shape[1]
    of_gene = [[] for _ in range(n_features)]
    for draw in train.draws:
        for i, j in zip(draw.cells, draw.genes, strict=True):
            of_gene[j].append(counts[i, j] / train.depth[i])
    prior = np.mean(np.concatenate(of_gene))  # one more entry of every gene
    share = np.array([(sum(shares) + prior) / (len(shares) + 1) for shares in of_gene])
    profile = LowRankProfile.fit(train.counts, train.depth, train.binning.mean_depth)
    X = [slow_depth_terms(profile, share, draw, i) for draw in train.draws for i in range(len(train.depth))]
    ratio = np.concatenate([train.depth / draw.depth for draw in train.draws])
    regression = LinearRegression().fit(X, np.log(ratio))
    some = range(0, test.depth.size, 9)
    expected = test.depth[some] * np.exp(regression.predict([slow_depth_terms(profile, share, test, i) for i in some]))
    np.testing.assert_allclose(estimate_depth(fit_depth(train), test)[0][some], expected, rtol=1e-3)


def test_depth_is_estimated_from_visible_counts(problem):
    train, _ = problem
    counts, depth, rng, _ = simulate(200, 5, shared=0.0)
    cells = mask_cells(counts, depth, train.binning, rng)
    estimated, depths = estimate_depth(fit_depth(train), cells)
    constant = np.log(train.depth / train.draws[0].depth).mean()
    error = np.log(depth / estimated)
    assert error.std() < 0.8 * np.log(depth / (cells.depth * np.exp(constant))).std()
    assert np.mean((depth > depths[:, 0]) & (depth < depths[:, -1])) == pytest.approx(6 / 7, abs=0.08)
    assert (np.diff(depths, axis=1) > 0).all()


def test_depth_of_a_cell_without_visible_counts_is_positive(problem):
    train, test = problem
    empty = hide(csr_matrix((1, 60)), np.zeros(1), train.binning, np.zeros(4, int), np.arange(4))
    depth, depths = estimate_depth(fit_depth(train), empty)
    assert depth.min() == depths.min() == 1
    for predict in (negative_binomial, low_rank, softmax_regression):
        assert np.isfinite(predict(train, stack([empty, test]))[:4]).all()


def test_negative_binomial_averages_over_the_likely_depths(problem, prediction):
    train, test = problem
    rate = np.asarray(train.counts.sum(axis=0)).ravel() / train.depth.sum()
    dispersion, odds = _dispersion(train.counts, train.depth, rate), zero_odds(train, test)
    _, depths = estimate_depth(fit_depth(train), test)
    for entry in range(0, test.bins.size, 97):
        i, j = test.cells[entry], test.genes[entry]
        masses = [bin_masses(train.binning, rate[[j]], dispersion[[j]], np.array([[depth]]))[0] for depth in depths[i]]
        p = np.mean(masses, axis=0) * np.where(np.arange(train.binning.n_values) == 0, odds[i], 1)
        np.testing.assert_allclose(np.exp(prediction(negative_binomial)[entry]), p / p.sum(), rtol=1e-3, atol=1e-6)


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


def test_neighbour_levels_equal_scikit_learn(problem):
    train, test = problem
    model, none = Neighbors(train), np.empty(0, int)
    space = LowRankProfile.fit(train.counts, train.depth, train.binning.mean_depth, n_components=10)
    complete = MaskedRows(train.counts, train.depth, none, none)
    whole = space.scores(complete, train.depth) @ space.loadings.T
    profiles = log1p_rows(train.counts, train.depth, train.binning.mean_depth).toarray()

    def expected(cells, k, first):
        # distances between profiles reconstructed from the components
        queries = space.scores(masked_rows(cells), model.depth(cells)) @ space.loadings.T
        nearest = NearestNeighbors(n_neighbors=k).fit(whole).kneighbors(queries, return_distance=False)[:, first:]
        return profiles[nearest].mean(axis=1)[cells.cells, cells.genes]

    np.testing.assert_allclose(model.levels(7, test), expected(test, 7, 0), atol=1e-8)
    # a training cell is not its own neighbour
    cells, rows = train.sample(10**9)
    levels = model.levels(7, cells, rows)
    queries = space.scores(masked_rows(cells), model.depth(cells)) @ space.loadings.T
    for i in (0, 400, 900):
        others = np.flatnonzero(np.arange(len(whole)) != rows[i])
        nearest = others[np.argsort(((whole[others] - queries[i]) ** 2).sum(axis=1))[:7]]
        at = cells.cells == i
        np.testing.assert_allclose(levels[at], profiles[nearest].mean(axis=0)[cells.genes[at]], atol=1e-8)


def test_low_rank_levels_by_hand(problem):
    train, test = problem
    model = LowRank(train)
    profile = LowRankProfile.fit(train.counts, train.depth, train.binning.mean_depth, n_components=4)
    scores = profile.scores(masked_rows(test), model.depth(test))
    profiles = profile.mean + scores @ profile.loadings.T
    np.testing.assert_allclose(model.levels(4, test), profiles[test.cells, test.genes], rtol=1e-4, atol=1e-5)


def test_linear_regression_equals_scikit_learn(problem):
    train, test = problem
    k = 12
    predicted = linear_predictions(train, test, n_predictors=k)
    X = np.zeros(train.counts.shape)
    X[train.counts.nonzero()] = bin_rows(train.binning, train.counts.data, train.counts.indptr, train.depth)
    depth, _ = estimate_depth(fit_depth(train), test)
    seen = np.zeros(test.visible.shape)
    visible = test.visible
    seen[visible.nonzero()] = bin_rows(train.binning, visible.data, visible.indptr, depth)
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
