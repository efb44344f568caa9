"""The estimated depth of cells with masked features: against plain sums, without leaks, and near the truth."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.core import N_DEPTHS, DepthModel, DepthModels, Draw, LowRankProfile, MaskedRows

N_FEATURES = 80


def simulate(n_cells, seed, n_features=N_FEATURES):
    """Counts of cells of four types that differ in depth. A fifth of the depth is in features that are not modelled."""
    types = np.random.default_rng(0).normal(0.0, 1.2, size=(4, n_features))
    random = np.random.default_rng(seed)
    rates = np.exp(np.random.default_rng(1).normal(0.0, 1.0, n_features) + types[random.integers(4, size=n_cells)])
    rates *= random.gamma(8.0, 60.0, size=n_cells)[:, None] / rates.sum(axis=1, keepdims=True)
    counts = random.poisson(rates).astype(np.float32)
    return counts, counts.sum(axis=1, dtype=float) + random.poisson(0.25 * rates.sum(axis=1))


def mask(counts, depth, chosen) -> MaskedRows:
    """The cells with the chosen positions (N, M) masked."""
    cells, features = np.nonzero(chosen)
    seen = depth - np.where(chosen, counts, 0.0).sum(axis=1, dtype=float)
    return MaskedRows(sp.csr_matrix(np.where(chosen, 0, counts)), seen, cells, features)


def drawn(counts, seed, exact):
    """Positions: the same share of all features, or more of the expressed ones."""
    random = np.random.default_rng(seed)
    return random.random(counts.shape) < (0.2 if exact else np.where(counts > 0, 0.25, 0.08))


def fit(counts, depth, exact, n_draws=6) -> DepthModel:
    x = sp.csr_matrix(counts)
    profile = LowRankProfile.fit(x, depth, float(depth.mean()) or 1.0)
    draws = [mask(counts, depth, drawn(counts, seed, exact)) for seed in range(n_draws)]
    return DepthModel.fit(profile, [Draw(x, depth, draw) for draw in draws], exact=exact)


@pytest.fixture(scope="module")
def models():
    """Fitted to 400 cells; by whether the form is exact."""
    return {exact: fit(*simulate(400, seed=2), exact) for exact in (False, True)}


@pytest.fixture(scope="module")
def other_cells():
    return simulate(500, seed=3)


# --- the definition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("absent", [(), (3, 40, 41)], ids=["all-measured", "some-absent"])
def test_the_estimate_is_that_of_plain_sums_and_a_matrix_of_the_visible_features(
    exact, absent, models, other_cells, slow_depth
):
    counts, depth = (x[:12].copy() for x in other_cells)
    counts[:, list(absent)] = 0
    chosen = drawn(counts, 7, exact)
    chosen[0], chosen[1, 5:] = False, True
    chosen[:, list(absent)] = False
    rows = mask(counts, depth, chosen)
    missing = np.isin(np.arange(N_FEATURES), absent)
    found, likely = models[exact].estimate(dataclasses.replace(rows, absent=missing))
    assert found.shape == (12,)
    assert likely.shape == (12, N_DEPTHS)
    for cell, x in enumerate(counts):
        seen = {j: float(x[j]) for j in np.flatnonzero((x > 0) & ~chosen[cell])}
        expected = slow_depth(models[exact], seen, rows.depth[cell], np.flatnonzero(chosen[cell]), absent)
        assert found[cell] == pytest.approx(expected[0], rel=1e-9)
        np.testing.assert_allclose(likely[cell], expected[1], rtol=1e-9)


def test_scores_are_those_of_a_profile_that_the_components_explain():
    """Two components, known exactly: from half of the features, the other half follows, to the limits of the ratio."""
    random = np.random.default_rng(0)
    loadings, mean = random.normal(0.0, 0.3, size=(20, 2)), random.uniform(1.0, 2.0, 20)
    levels = mean + loadings @ np.array([1.0, -0.5])
    profile = LowRankProfile(1000.0, mean.astype(np.float32), loadings.astype(np.float32), 1e-6)
    seen = np.arange(20) < 10
    counts = sp.csr_matrix((np.expm1(levels) * seen)[None])
    rows = MaskedRows(counts, np.array([1000.0]), np.zeros(10, np.int64), np.arange(10, 20))
    ratio = (np.expm1(levels) + 0.3 * np.expm1(mean))[10:] / (1.3 * np.expm1(mean[10:]))
    np.testing.assert_allclose(profile.expected_ratio(rows, rows.depth), np.clip(ratio, 0.1, 5.0), rtol=1e-4)


def test_components_and_noise_are_those_of_the_covariance_of_the_profiles():
    counts, depth = simulate(60, seed=4, n_features=25)
    profiles = np.log1p(counts * (300.0 / depth)[:, None])
    values, vectors = np.linalg.eigh(np.cov(profiles.T, bias=True))
    noise = values[:-10].mean()
    found = LowRankProfile.fit(sp.csr_matrix(counts), depth, 300.0)
    np.testing.assert_allclose(found.mean, profiles.mean(axis=0), rtol=1e-6)
    assert found.noise == pytest.approx(noise, rel=1e-4)
    expected = (vectors[:, -10:] * (values[-10:] - noise)) @ vectors[:, -10:].T
    np.testing.assert_allclose(found.loadings @ found.loadings.T, expected, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_shares_are_means_over_the_masked_entries_with_one_entry_like_the_average(exact):
    counts, depth = simulate(30, seed=5)
    draws = [drawn(counts, seed, exact) for seed in range(6)]
    model = fit(counts, depth, exact)
    of_feature = [[counts[i, j] / depth[i] for x in draws for i in np.flatnonzero(x[:, j])] for j in range(N_FEATURES)]
    overall = np.mean([share for shares in of_feature for share in shares])
    expected = [(sum(shares) + overall) / (len(shares) + 1) for shares in of_feature]
    np.testing.assert_allclose(model.share, expected, rtol=1e-5)
    squares = [[(share - expected[j]) ** 2 for share in shares] for j, shares in enumerate(of_feature)]
    usual = np.mean([square for values in squares for square in values])
    np.testing.assert_allclose(model.variance, [(sum(v) + usual) / (len(v) + 1) for v in squares], rtol=1e-4)


# --- what the estimate depends on ----------------------------------------------------------------------------------


def test_the_exact_form_is_the_visible_depth_if_nothing_is_masked(models, other_cells):
    counts, depth = other_cells
    found, likely = models[True].estimate(mask(counts, depth, np.zeros(counts.shape, bool)))
    np.testing.assert_array_equal(found, depth)
    np.testing.assert_array_equal(likely, np.repeat(depth[:, None], N_DEPTHS, axis=1))


@pytest.mark.parametrize("exact", [False, True])
def test_a_cell_has_the_same_bits_alone_and_among_others(exact, models, other_cells):
    counts, depth = (x[:150] for x in other_cells)
    chosen = drawn(counts, 7, exact)
    chosen[0], chosen[1] = False, True
    together = models[exact].estimate(mask(counts, depth, chosen))
    for some in ([0], [1], [77], [149, 3, 8, 50]):
        apart = models[exact].estimate(mask(counts[some], depth[some], chosen[some]))
        for all_cells, few in zip(together, apart, strict=True):
            np.testing.assert_array_equal(few, all_cells[some])


@pytest.mark.parametrize("exact", [False, True])
def test_an_absent_feature_is_not_a_zero(exact, models, other_cells):
    """The counts of the others alone say what a cell is."""
    counts, depth = (x[:50].copy() for x in other_cells)
    absent = np.arange(N_FEATURES) % 3 == 0
    counts[:, absent] = 0
    chosen = drawn(counts, 7, exact) & ~absent
    rows = mask(counts, depth, chosen)
    found, _ = models[exact].estimate(dataclasses.replace(rows, absent=absent))
    read_as_zero, _ = models[exact].estimate(rows)
    assert np.abs(np.log(found / read_as_zero)).max() > 0.001
    none, _ = models[exact].estimate(dataclasses.replace(rows, absent=np.zeros(N_FEATURES, bool)))
    np.testing.assert_array_equal(none, read_as_zero)


@pytest.mark.parametrize("exact", [False, True])
def test_likely_depths_ascend_from_the_visible_depth(exact, models, other_cells):
    counts, depth = other_cells
    rows = mask(counts, depth, drawn(counts, 7, exact))
    found, likely = models[exact].estimate(rows)
    assert (np.diff(likely, axis=1) >= 0).all()
    assert (likely >= rows.depth[:, None]).all()
    assert ((likely[:, 0] < found) & (found < likely[:, -1])).mean() > 0.99


# --- how near the truth it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
def test_the_error_is_much_below_that_of_a_constant_share(exact, models, other_cells):
    counts, depth = other_cells
    rows = mask(counts, depth, drawn(counts, 7, exact))
    constant = np.log(rows.depth / depth)
    found, _ = models[exact].estimate(rows)
    # a half, or less: the error of a constant is that of the genes that happen to be masked, and of the cell
    assert np.log(found / depth).std() < 0.5 * constant.std()
    assert abs(np.log(found / depth).mean()) < 0.01


@pytest.mark.parametrize("exact", [False, True])
def test_the_share_of_cells_below_each_likely_depth_is_what_it_should_be(exact, models, other_cells):
    counts, depth = other_cells
    below = np.zeros(N_DEPTHS)
    for seed in range(10, 14):
        _, likely = models[exact].estimate(mask(counts, depth, drawn(counts, seed, exact)))
        below += (depth[:, None] < likely).mean(axis=0) / 4
    np.testing.assert_allclose(below, (np.arange(7) + 0.5) / 7, atol=0.04)


@pytest.mark.parametrize("exact", [False, True])
def test_the_spread_is_wider_where_more_of_the_depth_is_masked(exact, models, other_cells):
    counts, depth = other_cells
    order = np.argsort(models[exact].share)
    widths = []
    for chosen in (order[:10], order[-10:]):
        masked = np.zeros(counts.shape, bool)
        masked[:, chosen] = True
        _, likely = models[exact].estimate(mask(counts, depth, masked))
        widths.append(np.log(likely[:, -1] / likely[:, 0]).mean())
    assert widths[1] > 3 * widths[0] > 0


# --- storage -------------------------------------------------------------------------------------------------------


def test_arrays_hold_all_state(models, other_cells):
    counts, depth = other_cells
    both = DepthModels(models[False], models[True])
    arrays = both.to_arrays()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    again = DepthModels.from_arrays(arrays, N_FEATURES)
    for exact, model in ((False, again.drawn), (True, again.natural)):
        assert model.exact == exact
        rows = mask(counts, depth, drawn(counts, 7, exact))
        for first, second in zip(models[exact].estimate(rows), model.estimate(rows), strict=True):
            np.testing.assert_array_equal(first, second)
    found = again.to_arrays()
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"profile.mean": np.zeros(79, np.float32)}, id="fewer-features"),
        pytest.param({"profile.loadings": np.zeros((10, 80), np.float32)}, id="transposed"),
        pytest.param({"profile.loadings": np.float32(1)}, id="no-matrix"),
        pytest.param({"natural.weights": np.zeros(6, np.float32)}, id="weights-of-the-other-form"),
        pytest.param({"drawn.quantiles": np.zeros(8, np.float32)}, id="more-depths"),
        pytest.param({"drawn.share": np.full(80, np.nan, np.float32)}, id="nan"),
        pytest.param({"natural.spread": np.array([np.inf, 0], np.float32)}, id="inf"),
        pytest.param({"natural.variance": np.full(80, -1, np.float32)}, id="negative-variance"),
        pytest.param({"drawn.share": np.full(80, -1, np.float32)}, id="negative-share"),
        pytest.param({"profile.scale": np.array([100.0, 0.0], np.float32)}, id="no-noise"),
        pytest.param({"profile.scale": np.array([-1.0, 1.0], np.float32)}, id="negative-depth"),
        pytest.param({"another": np.zeros(3, np.float32)}, id="one-more"),
    ],
)
def test_arrays_that_no_fit_gives_are_refused(change, models):
    arrays = DepthModels(models[False], models[True]).to_arrays()
    with pytest.raises(ValueError, match="found depth arrays"):
        DepthModels.from_arrays(arrays | change, N_FEATURES)


# --- unusual cells -------------------------------------------------------------------------------------------------

CONSTANT = np.tile(np.array([6, 0, 3, 1, 0, 10], np.float32), (40, 1))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param(CONSTANT[:1], id="one-cell"),
        pytest.param(CONSTANT[:2], id="two-equal-cells"),
        pytest.param(np.arange(1, 31, dtype=np.float32)[:, None], id="one-feature"),
        pytest.param(np.zeros((5, 4), np.float32), id="empty-cells"),
        pytest.param(np.eye(4, dtype=np.float32), id="one-count-each"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0], ids=["nothing-masked", "some-masked", "all-masked"])
def test_few_and_poor_cells_give_finite_depths_that_are_not_below_the_visible(counts, share, exact):
    depth = counts.sum(axis=1, dtype=float)
    random = np.random.default_rng(0)
    masks = [random.random(counts.shape) < share for _ in range(4)]
    x = sp.csr_matrix(counts)
    profile = LowRankProfile.fit(x, depth, float(depth.mean()) or 1.0)
    model = DepthModel.fit(profile, [Draw(x, depth, mask(counts, depth, chosen)) for chosen in masks], exact=exact)
    for chosen in (*masks, np.zeros(counts.shape, bool), np.ones(counts.shape, bool)):
        rows = mask(counts, depth, chosen)
        found, likely = model.estimate(rows)
        assert np.isfinite(likely).all()
        assert (found >= rows.depth).all()
        assert (likely >= rows.depth[:, None]).all()
        assert (found[rows.depth == 0] == 0).all()  # nothing is known of such a cell
        if exact:
            nothing = rows.n_masked == 0
            np.testing.assert_array_equal(found[nothing], rows.depth[nothing])


@pytest.mark.parametrize("exact", [False, True])
def test_the_depth_of_cells_that_are_all_equal_is_found(exact):
    depth = CONSTANT.sum(axis=1, dtype=float)
    model = fit(CONSTANT, depth, exact)
    rows = mask(CONSTANT, depth, drawn(CONSTANT, 9, exact))
    kept = rows.depth > 0
    found, likely = model.estimate(rows)
    np.testing.assert_allclose(found[kept], depth[kept], rtol=0.01 if exact else 0.1)
    assert (np.abs(np.log(likely[kept] / depth[kept, None])) < (0.03 if exact else 0.25)).all()
