"""Strength of regulators, and rank-sum tests of sets of targets, compared with scipy."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from scbioformers.core import ColumnRanks, out_strength


@pytest.fixture
def weight() -> np.ndarray:
    """Signed weights with missing pairs, many ties (column 1), one value only (column 2), and only NaN (column 3)."""
    random = np.random.default_rng(0)
    w = random.normal(size=(40, 5))
    w[:, 1] = np.round(w[:, 1])
    w[:, 2] = -0.5
    w[random.random(w.shape) < 0.2] = np.nan
    w[:, 3] = np.nan
    return w


def test_strength_sums_absolute_weights_without_nan(weight):
    strength, n = out_strength(weight)
    for column in range(5):
        seen = [abs(x) for x in weight[:, column] if x == x]
        assert n[column] == len(seen)
        assert strength[column] == pytest.approx(sum(seen))


@pytest.mark.parametrize("targets", [np.arange(8), np.array([3, 30, 39]), np.array([5])], ids=["8", "3", "1"])
def test_rank_sum_equals_scipy(weight, targets):
    p_values = ColumnRanks.of(weight).test(targets)
    inside = np.isin(np.arange(40), targets)
    for column in (0, 1, 4):
        size = np.abs(weight[:, column])
        kept = ~np.isnan(size)
        if (inside & kept).any():
            p = mannwhitneyu(
                size[inside & kept], size[~inside & kept], alternative="greater", method="asymptotic"
            ).pvalue
            assert p_values[column] == pytest.approx(p, rel=1e-9)
        else:
            assert p_values[column] == 1
    assert p_values[2] == 1
    assert p_values[3] == 1


def test_p_is_uniform_for_random_weights_and_small_for_a_simulated_effect():
    random = np.random.default_rng(1)
    weight = random.normal(size=(300, 400))
    weight[:20, 7] *= 4
    p = ColumnRanks.of(weight).test(np.arange(20))
    assert np.argmin(p) == 7
    assert p[7] < 1e-5
    assert np.mean(np.delete(p, 7) < 0.1) == pytest.approx(0.1, abs=0.05)


def test_the_sign_does_not_matter(weight):
    targets = np.arange(10)
    flipped = weight * np.random.default_rng(2).choice([-1, 1], size=weight.shape)
    np.testing.assert_array_equal(ColumnRanks.of(weight).test(targets), ColumnRanks.of(flipped).test(targets))
