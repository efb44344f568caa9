import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import poisson

from scbioformers.core import ConfigError, DataError
from scbioformers.metrics import (
    calibration_curve,
    calibration_error,
    interval_coverage,
    natural_log_probabilities,
    top_label_calibration_error,
)


def test_curve_and_error_by_hand():
    p = [0.1, 0.9, 0.3, 0.2, 0.8, 0.7]
    true = [False, True, True, False, True, False]
    curve = calibration_curve(p, np.array(true), n_bins=3)  # {0.1, 0.2}, {0.3, 0.7}, {0.8, 0.9}
    np.testing.assert_allclose(curve.predicted, [0.15, 0.5, 0.85])
    np.testing.assert_allclose(curve.observed, [0, 0.5, 1])
    np.testing.assert_array_equal(curve.count, [2, 2, 2])
    assert calibration_error(p, true, n_bins=3) == pytest.approx((0.15 + 0 + 0.15) / 3)
    assert calibration_error(p, true, n_bins=1) == pytest.approx(0)  # means 0.5 and 0.5


def test_equal_predictions_share_a_bin():
    p = np.array([0.1] * 90 + [0.6] * 10)
    true = np.arange(100) % 10 == 0  # 9 of 90, 1 of 10
    curve = calibration_curve(p, true)
    np.testing.assert_allclose(curve.predicted, [0.1, 0.6])
    np.testing.assert_allclose(curve.observed, [0.1, 0.1])
    np.testing.assert_array_equal(curve.count, [90, 10])
    assert calibration_error(p, true) == pytest.approx(0.1 * 0.5)
    assert calibration_curve([0.5] * 7, [True] * 7).count.tolist() == [7]


def slow_error(p, true, n_bins):
    """Go through distinct predictions in rising order; a bin ends when it reaches its share of all positions."""
    total, bins, done = 0.0, [[]], 0
    for value in sorted(set(p)):
        outcomes = [t for q, t in zip(p, true, strict=True) if q == value]
        bins[-1] += [(value, t) for t in outcomes]
        before, done = done, done + len(outcomes)
        if any(before < k * len(p) / n_bins <= done for k in range(1, n_bins)):
            bins.append([])
    for members in filter(None, bins):
        predicted, observed = np.mean(members, axis=0)
        total += abs(predicted - observed) * len(members)
    return total / len(p)


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_error_equals_a_slow_implementation_in_any_order(seed, n, n_bins, digits):
    rng = np.random.default_rng(seed)
    p, true, order = rng.uniform(size=n).round(digits), rng.uniform(size=n) < 0.4, rng.permutation(n)
    error = calibration_error(p, true, n_bins=n_bins)
    assert error == pytest.approx(slow_error(p.tolist(), true.tolist(), n_bins))
    assert calibration_error(p[order], true[order], n_bins=n_bins) == pytest.approx(error)
    assert 0 <= error <= 1
    curve = calibration_curve(p, true, n_bins=n_bins)
    assert curve.count.sum() == n and curve.count.min() > 0 and len(curve.count) <= n_bins
    assert (np.diff(curve.predicted) > 0).all()


def test_calibrated_predictions_have_a_small_error():
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 2, size=40_000)  # most near 0, as for non-zeros in sparse data
    true = rng.uniform(size=len(p)) < p
    assert calibration_error(p, true) < 0.006
    assert calibration_error(p**2, true) > 0.04
    assert np.ptp(calibration_curve(p, true).count) <= 1


def test_top_label_by_hand():
    p = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9], [0.6, 0.4, 0.0]]
    # true, false, true, false, at 0.7, 0.8, 0.9 and 0.6: one bin each, then all in one bin
    assert top_label_calibration_error(p, [0, 2, 2, 1]) == pytest.approx((0.3 + 0.8 + 0.1 + 0.6) / 4)
    assert top_label_calibration_error(p, [0, 2, 2, 1], n_bins=1) == pytest.approx(0.75 - 0.5)


def test_top_label_of_calibrated_predictions():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 0.5, 0.2, 0.2], size=20_000)
    y = (rng.uniform(size=(len(p), 1)) > p.cumsum(axis=1)).sum(axis=1)
    assert top_label_calibration_error(p, y) < 0.012
    sharper = p**2 / (p**2).sum(axis=1, keepdims=True)
    assert top_label_calibration_error(sharper, y) > 0.05


def test_coverage_by_hand():
    # inside the interval, below, above, at its lower edge
    values = [0.5, 0.05, 0.95, 0.25]
    assert interval_coverage(values, values, level=0.5) == 0.5
    assert interval_coverage([0.25], [0.75], level=0.5) == 1
    assert interval_coverage([0.0], [0.2], level=0.5) == 0


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_coverage_of_calibrated_predictions_equals_the_level(level):
    rng = np.random.default_rng(1)
    rate = rng.gamma(0.5, size=20_000)  # mostly zeros: no interval of whole counts covers exactly 80 %
    y = rng.poisson(rate)
    covered = interval_coverage(poisson.cdf(y - 1, rate), poisson.cdf(y, rate), level=level)
    assert covered == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / len(y)))
    narrow = interval_coverage(poisson.cdf(y - 1, 1.0), poisson.cdf(y, 1.0), level=level)
    assert abs(narrow - level) > 0.02


def test_coverage_of_uniform_draws_depends_on_the_seed():
    below, at = np.zeros(20_000), np.ones(20_000)  # u is the random number itself
    first = interval_coverage(below, at, level=0.8)
    assert first == pytest.approx(0.8, abs=0.012)
    assert interval_coverage(below, at, level=0.8) == first
    assert interval_coverage(below, at, level=0.8, seed=1) != first


def test_natural_probabilities_by_hand():
    # P(0): 0.5 / 0.25 = 2; with 0.4 and 0.1 the sum is 2.5
    natural = natural_log_probabilities(np.log([[0.5, 0.4, 0.1], [0.2, 0.3, 0.5]]), 0.25)
    np.testing.assert_allclose(np.exp(natural), [[0.8, 0.16, 0.04], [0.5, 0.1875, 0.3125]])


def test_natural_probabilities_of_a_simulated_mask():
    rng = np.random.default_rng(0)
    natural = np.array([0.9, 0.06, 0.03, 0.01])
    y = rng.choice(4, size=400_000, p=natural)
    masked = rng.uniform(size=len(y)) < np.where(y == 0, 0.05, 0.5)  # odds 0.1
    seen = np.bincount(y[masked]) / masked.sum()
    assert seen[0] < 0.5
    corrected = np.exp(natural_log_probabilities(np.log(seen)[None], 0.1))[0]
    np.testing.assert_allclose(corrected, natural, atol=0.003)


@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=40, deadline=None)
def test_natural_probabilities_are_normalised_and_invertible(seed, dtype):
    rng = np.random.default_rng(seed)
    logs = log_softmax(4 * rng.normal(size=(5, 6)), axis=1).astype(dtype)
    odds, before = np.exp(rng.normal(size=5)), logs.copy()
    natural = natural_log_probabilities(logs, odds)
    assert natural.dtype == dtype
    np.testing.assert_allclose(np.exp(natural).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(natural[:, 1:] - natural[:, 1:2], logs[:, 1:] - logs[:, 1:2], atol=1e-5)
    np.testing.assert_allclose(natural_log_probabilities(natural, 1 / odds), logs, atol=1e-5)
    np.testing.assert_allclose(natural[2], natural_log_probabilities(logs[2:3], odds[2])[0], atol=1e-6)
    np.testing.assert_array_equal(logs, before)


def test_natural_probabilities_of_certain_predictions():
    certain = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    np.testing.assert_array_equal(natural_log_probabilities(certain, 0.1), certain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: calibration_curve([[0.5]], [True]), r"shape \(1, 1\); expected \(N,\)", id="2-D"),
        pytest.param(lambda: calibration_curve([], []), r"shape \(0,\)", id="empty"),
        pytest.param(lambda: calibration_curve([0.5], [True, False]), r"\(2,\); expected .*\(1,\)", id="lengths"),
        pytest.param(lambda: calibration_error([0.5], [1]), "must be boolean, found dtype int64", id="not-bool"),
        pytest.param(lambda: calibration_error([1.5], [True]), "in 0…1, found 1.5 to 1.5", id="above-1"),
        pytest.param(lambda: calibration_error([np.nan], [True]), "in 0…1", id="nan"),
        pytest.param(
            lambda: top_label_calibration_error([0.5, 0.5], [0]), r"shape \(2,\); expected \(N, V\)", id="top-1-D"
        ),
        pytest.param(lambda: top_label_calibration_error([[0.5, 0.5]], [0, 1]), r"`target`.*\(2,\)", id="top-target"),
        pytest.param(lambda: top_label_calibration_error([[0.5, 0.5]], [2]), "bins 2 to 2", id="top-bin"),
        pytest.param(lambda: interval_coverage([0.1], [0.2, 0.3]), r"`cdf_at` has the shape \(2,\)", id="cdf-lengths"),
        pytest.param(lambda: interval_coverage([0.1, 0.5], [0.2, 0.4]), "position 1: 0.4 and 0.5", id="cdf-falls"),
        pytest.param(lambda: natural_log_probabilities([0.0], 1), r"shape \(1,\); expected \(H, V\)", id="natural-1-D"),
        pytest.param(lambda: natural_log_probabilities([[0.0, 1.0]], 1), "sum to 3.718", id="natural-logits"),
        pytest.param(lambda: natural_log_probabilities([[0.0]], [1, 2]), r"`odds` has the shape \(2,\)", id="odds"),
        pytest.param(lambda: natural_log_probabilities([[0.0]], 0), "positive and finite", id="odds-0"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: calibration_curve([0.5], [True], n_bins=0), "at least 1, found 0", id="bins"),
        pytest.param(lambda: interval_coverage([0.1], [0.2], level=80), "between 0 and 1, found 80", id="level"),
    ],
)
def test_bad_parameters_raise(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
