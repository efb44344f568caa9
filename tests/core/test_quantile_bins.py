"""Quantile bins: worked examples, an independent slow implementation, and the inputs that are not ordinary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scbioformers.core import ConfigError, DataError, QuantileBins

no_deadline = settings(deadline=None, max_examples=40)  # the first example may include compile time
FLOATS = st.floats(-1e6, 1e6, width=32)
COLUMN = st.one_of(st.lists(FLOATS, max_size=40), st.lists(st.integers(-3, 3).map(float), max_size=40))


def slow_bin(x: float, training: list[float], n_bins: int) -> int:
    """The lowest bin that has its share of the training values at or below x, in integers."""
    k = sum(y <= x for y in training)
    bin_ = 1
    while bin_ * len(training) < n_bins * k:
        bin_ += 1
    return bin_


def apply(bins: QuantileBins, values, feature: int = 0, **options) -> list[int]:
    return bins.apply(np.array(values, np.float32), np.full(len(values), feature), **options).tolist()


@no_deadline
@given(COLUMN, st.integers(1, 60))
def test_training_values_are_ranked(column, n_bins):
    bins = QuantileBins.fit([np.array(column)], n_bins)
    expected = [slow_bin(x, column, n_bins) for x in column]
    assert apply(bins, column, rank_zeros=True) == expected
    assert apply(bins, column) == [0 if x == 0 else bin_ for x, bin_ in zip(column, expected, strict=True)]


@no_deadline
@given(COLUMN.filter(len), st.integers(1, 60))
def test_a_bin_has_the_mean_of_its_values(column, n_bins):
    bins = QuantileBins.fit([np.array(column)], n_bins)
    members: dict[int, list[float]] = {}
    for x in column:
        members.setdefault(slow_bin(x, column, n_bins), []).append(x)
    assert bins.means[0, 0] == 0
    for k in range(1, n_bins + 1):  # a bin without values has the mean of the next one that has any
        of_next = members[min(other for other in members if other >= k)]
        assert bins.means[0, k] == pytest.approx(np.mean(of_next), rel=1e-5, abs=1e-3)
    assert (np.diff(bins.means[0, 1:]) >= 0).all()


@no_deadline
@given(COLUMN.filter(len), st.lists(FLOATS, min_size=2, max_size=20), st.integers(1, 30))
def test_other_values_keep_their_order_and_lie_between_their_neighbours(column, others, n_bins):
    bins = QuantileBins.fit([np.array(column)], n_bins)
    found = apply(bins, sorted(others), rank_zeros=True)
    assert found == sorted(found)
    for x, bin_ in zip(sorted(others), found, strict=True):
        below, above = [y for y in column if y <= x], [y for y in column if y >= x]
        assert bin_ >= (slow_bin(max(below), column, n_bins) if below else 1)
        assert bin_ <= (slow_bin(min(above), column, n_bins) if above else n_bins)


def test_each_feature_has_its_own_bins():
    bins = QuantileBins.fit([np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 20, 40])], 2)
    assert len(bins) == 2
    assert bins.edges.tolist() == [[2.5], [10 + (20 - 10) / 2]]
    assert bins.means.tolist() == [[0, 1.5, 3.5], [0, 10, np.float32(80 / 3)]]
    assert bins.apply([2.4, 2.6, 14, 16], [0, 0, 1, 1]).tolist() == [1, 2, 1, 2]


def test_a_constant_feature_is_in_the_last_bin():
    bins = QuantileBins.fit([np.full(7, 3.25)], 5)
    assert apply(bins, [3.25, 3.0, 9.0]) == [5, 5, 5]
    assert bins.means.tolist() == [[0, 3.25, 3.25, 3.25, 3.25, 3.25]]


def test_a_feature_without_training_values():
    bins = QuantileBins.fit([np.array([]), np.array([1.0, 2.0])], 2)
    assert apply(bins, [0.0, 4.0]) == [0, 2]  # above all training values, which are zeros
    assert bins.means[0].tolist() == [0, 0, 0]


def test_fewer_distinct_values_than_bins():
    counts = np.array([1.0] * 6 + [2.0] * 3 + [9.0])
    bins = QuantileBins.fit([counts], 50)
    assert apply(bins, [1, 2, 9, 8, 1.4, 1.6, 100]) == [30, 45, 50, 50, 30, 45, 50]


def test_neighbouring_float32_numbers_are_told_apart():
    values = [np.float32(1.0)]
    for _ in range(9):
        values.append(np.nextafter(values[-1], np.float32(2.0)))
    bins = QuantileBins.fit([np.array(values)], 10)
    assert apply(bins, values) == list(range(1, 11))


@pytest.mark.fault(37)
def test_ties_and_order_do_not_change_the_bins():
    rng = np.random.default_rng(0)
    column = rng.integers(0, 5, 300).astype(np.float32)
    assert QuantileBins.fit([column], 20) == QuantileBins.fit([rng.permutation(column)], 20)


def test_nan_has_no_rank():
    assert apply(QuantileBins.fit([np.arange(5.0)], 3), [np.nan, 4.0]) == [0, 3]


def test_equal_contents_are_equal_and_have_one_hash():
    one, same = (QuantileBins.fit([np.arange(9.0), np.arange(5.0)], 4) for _ in range(2))
    other = QuantileBins.fit([np.arange(9.0), np.arange(6.0)], 4)
    assert (one == same, hash(one) == hash(same), one == other, one == "bins") == (True, True, False, False)
    assert repr(one) == "QuantileBins(2 features, 4 bins)"


def test_features_can_be_appended():
    a, b = np.arange(9.0), np.array([-4.0, 4, 5])
    assert QuantileBins.fit([a], 4).append(QuantileBins.fit([b], 4)) == QuantileBins.fit([a, b], 4)


def test_faulty_input():
    with pytest.raises(ConfigError, match="`n_bins` must be an integer from 1"):
        QuantileBins.fit([np.arange(3.0)], 0)
    bins = QuantileBins.fit([np.arange(3.0)], 2)
    with pytest.raises(DataError, match=r"one of their 1 features for each value.*from 0 to 1"):
        bins.apply([1.0, 2.0], [0, 1])
    with pytest.raises(DataError, match=r"values \(2,\) and features \(1,\)"):
        bins.apply([1.0, 2.0], [0])
    with pytest.raises(DataError, match=r"edges \(M, n_bins - 1\) and means"):
        QuantileBins(bins.edges[:, :0], bins.means)


def test_shares_are_means_from_the_lowest_to_the_highest():
    centred, counts = np.array([-2.0, -1, 2, 8]), np.array([5.0, 10, 10, 20])
    bins = QuantileBins.fit([centred, counts], n_bins=4)
    np.testing.assert_allclose(bins.shares[0], [0.2, 0, 0.1, 0.4, 1])  # bin 0 is the value 0
    np.testing.assert_allclose(bins.shares[1], [0, 0.25, 0.5, 0.5, 1])
    assert QuantileBins.fit([np.zeros(0)], n_bins=2).shares.tolist() == [[0, 0, 0]]
