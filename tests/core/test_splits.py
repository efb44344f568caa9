"""Validation rows: share, reproducibility, and edge cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scbioformers.core import ConfigError, uniform, validation_rows

no_deadline = settings(deadline=None)


@no_deadline
@given(st.integers(2, 200), st.floats(0, 1, exclude_max=True, allow_subnormal=False), st.integers(0, 2**31))
def test_neither_side_is_empty(n, fraction, seed):
    rows = validation_rows(n, fraction, seed)
    assert rows.shape == (n,)
    assert rows.dtype == np.bool_
    assert not rows.all()
    assert rows.any() == (fraction > 0)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_share(fraction):
    n = 20_000
    spread = np.sqrt(n * fraction * (1 - fraction))
    assert abs(validation_rows(n, fraction, seed=3).sum() - n * fraction) < 5 * spread


def test_rows_equal_the_counter_based_draw():
    assert np.array_equal(validation_rows(500, 0.2, 7), uniform(7, np.arange(500)) < 0.2)


def test_more_rows_do_not_change_the_first_ones():
    assert np.array_equal(validation_rows(1000, 0.1, 0)[:400], validation_rows(400, 0.1, 0))


def test_seeds_differ():
    assert not np.array_equal(validation_rows(1000, 0.1, 0), validation_rows(1000, 0.1, 1))


@pytest.mark.parametrize("n", [0, 1])
def test_no_row_is_held_out_if_there_are_fewer_than_two(n):
    assert validation_rows(n, 0.9, 0).tolist() == [False] * n


def test_at_least_one_row_is_held_out_and_one_kept():
    draws = uniform(0, np.arange(5))
    assert np.flatnonzero(validation_rows(5, 1e-9, 0)).tolist() == [int(np.argmin(draws))]
    assert np.flatnonzero(~validation_rows(5, 1 - 1e-9, 0)).tolist() == [int(np.argmax(draws))]


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fraction_out_of_range_raises(fraction):
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\)"):
        validation_rows(10, fraction, 0)
