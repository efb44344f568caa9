"""Binning kernels: worked examples, independent slow implementations, and properties."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scbioformers.core import ConfigError, bin_normalized, bin_segment_dense, bin_segment_rows

# the first example may include compile time
no_deadline = settings(deadline=None)

CUTOFFS = st.integers(1, 40)
PER_DOUBLING = st.integers(1, 12)
COUNT_ROWS = st.lists(st.lists(st.integers(0, 5000), max_size=30), min_size=1, max_size=5)


def slow_value_bin(x: Fraction, c: int, b: int) -> int:
    """The formula in exact arithmetic: ceil(b log2(x/c)) is the least k with (x/c)**b <= 2**k."""
    if x == 0:
        return 0
    if x <= 1:
        return 1
    if x <= c:
        return math.floor(x + Fraction(1, 2))
    ratio, k = (x / c) ** b, 0
    while ratio > 2**k:
        k += 1
    return c + k


def slow_segment_row(row: list[float], n_bins: int) -> list[int]:
    nonzero = [Fraction(x) for x in row if x != 0]
    return [
        0 if x == 0 else math.ceil(Fraction(n_bins * sum(y <= Fraction(x) for y in nonzero), len(nonzero))) for x in row
    ]


def as_csr(rows: list[list[float]], dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Stored values and row bounds; zeros are stored too."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return np.array([x for row in rows for x in row], dtype=dtype), indptr


def near_edge(x: float, c: int, b: float) -> bool:
    """Whether the value is closer to a doubling edge than the tolerance."""
    position = b * math.log2(x / c)
    return abs(position - round(position)) < 1e-7


# --- value bins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0, 0), (0.01, 1), (1, 1), (1.49, 1), (1.5, 2), (2.5, 3), (7.5, 8), (8, 8), (9, 9), (12, 10), (16, 11), (32, 14)],
)
def test_value_bins_by_hand(x, expected):
    assert bin_normalized(x, cutoff=8, bins_per_doubling=3) == expected


def test_value_bins_have_the_shape_of_their_input_and_dtype_int16():
    x = np.arange(12).reshape(3, 4)[:, ::2]
    bins = bin_normalized(x, 8, 3)
    assert bins.shape == (3, 2)
    assert bins.dtype == np.int16
    assert bins.tolist() == [[0, 2], [4, 6], [8, 9]]


@no_deadline
@given(st.lists(st.integers(0, 10**6), max_size=40), CUTOFFS, PER_DOUBLING)
def test_value_bins_of_counts_equal_exact_arithmetic(counts, c, b):
    kept = [x for x in counts if x <= c or x % c == 0 or not near_edge(x, c, b)]
    assert bin_normalized(kept, c, b).tolist() == [slow_value_bin(Fraction(x), c, b) for x in kept]


@no_deadline
@given(CUTOFFS, PER_DOUBLING, st.integers(0, 20))
def test_exact_doublings_stay_in_the_lower_bin(c, b, doublings):
    assert bin_normalized(c * 2**doublings, c, b) == c + b * doublings


def test_rounding_error_above_a_doubling_stays_in_the_lower_bin():
    assert bin_normalized([np.nextafter(16, 17), 16 * (1 + 1e-6)], 8, 3).tolist() == [11, 12]


@no_deadline
@given(st.lists(st.floats(0, 1e12), min_size=2), CUTOFFS, st.floats(0.05, 20))
def test_value_bins_are_monotone_and_only_zero_is_zero(x, c, b):
    x = np.sort(np.array(x))
    bins = bin_normalized(x, c, b)
    assert (np.diff(bins) >= 0).all()
    assert ((bins == 0) == (x == 0)).all()


def test_value_bins_saturate_instead_of_overflowing():
    assert bin_normalized([np.inf, 1e300], 8, 1000).tolist() == [32767, 32767]


# --- segment bins --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int64])
def test_segment_bins_by_hand(dtype):
    counts = np.array([1] * 150 + [2] * 40 + [10] * 10, dtype=dtype)
    bins = bin_segment_rows(counts, [0, 200], 50)
    assert bins.dtype == np.int16
    assert bins.tolist() == [38] * 150 + [48] * 40 + [50] * 10


@pytest.mark.fault(37)
@no_deadline
@given(COUNT_ROWS, st.integers(1, 120), st.sampled_from([np.float32, np.int64]))
def test_segment_bins_of_counts_equal_exact_arithmetic(rows, n_bins, dtype):
    expected = [bin_ for row in rows for bin_ in slow_segment_row(row, n_bins)]
    assert bin_segment_rows(*as_csr(rows, dtype), n_bins).tolist() == expected


@no_deadline
@given(
    st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(0, 2.0**127, width=32, exclude_min=True)), max_size=30),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 120),
)
def test_segment_bins_of_other_scales_equal_exact_arithmetic(rows, n_bins):
    expected = [bin_ for row in rows for bin_ in slow_segment_row(row, n_bins)]
    assert bin_segment_rows(*as_csr(rows), n_bins).tolist() == expected


@pytest.mark.fault(37)
@no_deadline
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(1, 200), st.booleans())
def test_segment_properties(counts, n_bins, log_scale):
    x = np.array(counts, dtype=np.float64)
    x = np.log1p(x) if log_scale else x
    bins = bin_segment_rows(x, [0, x.size], n_bins)
    assert ((bins == 0) == (x == 0)).all()
    if x.any():
        assert bins.max() == bins[np.argmax(x)] == n_bins
    order = np.argsort(x)
    assert (np.diff(bins[order]) >= 0).all()
    same = np.diff(x[order]) == 0
    assert (np.diff(bins[order])[same] == 0).all()


def test_histogram_and_sort_give_the_same_bins_at_their_boundary():
    x = np.arange(1, 1024, dtype=np.float32)
    below = bin_segment_rows(x, [0, x.size], 50)
    sorted_instead = bin_segment_rows(x + 0.5, [0, x.size], 50)
    assert np.array_equal(below, sorted_instead)
    # 1024 is too large for the histogram
    assert bin_segment_rows([1024, 3], [0, 2], 4).tolist() == [4, 2]


def test_rows_are_independent_and_can_be_empty():
    data, indptr = as_csr([[], [1, 1, 5], [], [900], [0, 0], [0.5, 0.25], [1, 2]])
    assert bin_segment_rows(data, indptr, 4).tolist() == [3, 3, 4, 4, 0, 0, 4, 2, 2, 4]
    assert bin_segment_rows([], [0, 0], 4).tolist() == []


@no_deadline
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_centred_data_ranks_all_values_including_zero(values, n_bins):
    bins = bin_segment_dense([values, values[::-1]], n_bins)
    n = len(values)
    expected = [math.ceil(Fraction(n_bins * sum(y <= x for y in values), n)) for x in values]
    assert bins.tolist() == [expected, expected[::-1]]
    assert bins.min() >= 1


def test_all_negative_rows_reach_the_highest_bin():
    assert bin_segment_dense([[-3.0, -1.0, -2.0]], 6).tolist() == [[2, 6, 4]]


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.fault(38)
@pytest.mark.parametrize("call", [lambda: bin_normalized([1], 0, 3), lambda: bin_normalized([1], 8, 0)])
def test_kernels_check_their_parameters(call):
    with pytest.raises(ConfigError):
        call()


@pytest.mark.fault(38)
def test_kernels_check_the_number_of_bins():
    with pytest.raises(ConfigError, match="`n_bins`"):
        bin_segment_rows([1], [0, 1], 0)
    with pytest.raises(ConfigError, match="`n_bins`"):
        bin_segment_dense([[1]], 0)
