"""The parameters of a binning, the edges that they imply, and their application to rows."""

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scbioformers.config import Binning, bin_levels, bin_rows
from scbioformers.core import ConfigError, DataError, QuantileBins, bin_normalized, bin_segment_dense

# the first example may have to wait for the compiler
no_deadline = settings(deadline=None)

CUTOFFS = st.integers(1, 40)
COUNT_ROWS = st.lists(st.lists(st.integers(0, 5000), max_size=30), min_size=1, max_size=5)


# --- the dispatch --------------------------------------------------------------------------------------------------


@no_deadline
@given(COUNT_ROWS, st.integers(1, 5000))
def test_rows_are_scaled_to_the_mean_depth(rows, mean_depth):
    depth = [max(sum(row), 1) for row in rows]
    scaled = [x * mean_depth / d for row, d in zip(rows, depth, strict=True) for x in row]
    counts = [x for row in rows for x in row]
    indptr = np.cumsum([0, *map(len, rows)])
    bins = bin_rows(Binning(), counts, indptr, depth, float(mean_depth))
    assert bins.dtype == np.int16
    assert bins.tolist() == bin_normalized(scaled, 8, 3).tolist()


def test_raw_counts_are_binned_without_depths():
    binning = Binning(normalize=False)
    assert bin_rows(binning, [1, 9, 16, 0], [0, 2, 4]).tolist() == [1, 9, 11, 0]


def test_the_mean_depth_passed_wins_over_the_frozen_one():
    binning = Binning().freeze(mean_depth=10.0, max_bin=30)
    assert bin_rows(binning, [2], [0, 1], [10.0]).tolist() == [2]
    assert bin_rows(binning, [2], [0, 1], [10.0], 20.0).tolist() == [4]


def test_a_frozen_binning_clips_and_logs(caplog):
    binning = Binning(normalize=False).freeze(mean_depth=10.0, max_bin=9)
    with caplog.at_level(logging.DEBUG, logger="scbioformers"):
        assert bin_rows(binning, [3, 9, 500, 64], [0, 2, 4]).tolist() == [3, 9, 9, 9]
    assert "2 values are above the highest bin (9)" in caplog.text


def test_faulty_depths():
    with pytest.raises(DataError, match=r"Row 1 has counts, but its depth is 0\.0"):
        bin_rows(Binning(), [1, 2], [0, 1, 2], [1.0, 0.0], 5.0)
    with pytest.raises(DataError, match="one depth for each of 2 rows"):
        bin_rows(Binning(), [1, 2], [0, 1, 2], [1.0], 5.0)
    with pytest.raises(ConfigError, match="need `depth` and `mean_depth`"):
        bin_rows(Binning(), [1, 2], [0, 1, 2], [1.0, 2.0])
    with pytest.raises(ConfigError, match="`mean_depth` must be a positive"):
        bin_rows(Binning(), [1, 2], [0, 1, 2], [1.0, 2.0], 0.0)


def test_an_empty_row_needs_no_depth():
    assert bin_rows(Binning(), [0.0, 4.0], [0, 1, 1, 2], [0.0, 0.0, 4.0], 4.0).tolist() == [0, 4]


@no_deadline
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_both_kinds_are_equivariant_under_permutation(counts, random):
    order = list(range(len(counts)))
    random.shuffle(order)
    x = np.array(counts, dtype=np.float32)
    depth = [max(x.sum(), 1.0)]
    for binning in (Binning(), Binning(kind="segment")):
        bins = bin_rows(binning, x, [0, x.size], depth, 500.0)
        assert np.array_equal(bin_rows(binning, x[order], [0, x.size], depth, 500.0), bins[order])


def test_inputs_are_not_written():
    data, indptr = np.array([3, 1, 2, 5], dtype=np.float32), np.array([0, 3, 4])
    data.setflags(write=False)
    indptr.setflags(write=False)
    for binning in (Binning(), Binning(kind="segment", n_bins=5)):
        assert bin_rows(binning, data, indptr, np.array([6.0, 5.0]), 6.0).max() > 4
    bin_segment_dense(data.reshape(2, 2), 5)


# --- the parameters ------------------------------------------------------------------------------------------------


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n_bins": 0}, "`n_bins` must be an integer from 1", id="no bins"),
        pytest.param({"n_bins": 40000}, "to 32767", id="more bins than int16 holds"),
        pytest.param({"cutoff": 0}, "`cutoff` must be an integer from 1", id="cutoff 0"),
        pytest.param({"cutoff": 2.5}, "must be an integer, found 2.5 ", id="fractional cutoff"),
        pytest.param({"cutoff": True}, "found True", id="boolean cutoff"),
        pytest.param({"bins_per_doubling": 0}, "`bins_per_doubling` must be a positive", id="b 0"),
        pytest.param({"bins_per_doubling": -1.0}, "`bins_per_doubling` must be a positive", id="b negative"),
        pytest.param({"bins_per_doubling": math.nan}, "found nan", id="b NaN"),
        pytest.param({"kind": "log"}, "must be 'value', 'segment' or 'quantile', found 'log'", id="kind"),
        pytest.param({"normalize": "yes"}, "`Binning.normalize` must be True or False, found 'yes'", id="normalize"),
        pytest.param({"mean_depth": 0.0}, "`mean_depth` must be a positive", id="mean depth"),
        pytest.param({"max_bin": 0}, "`max_bin` must be an integer from 1", id="highest bin"),
    ],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Binning(**arguments)


def test_freezing():
    value = Binning().freeze(mean_depth=7, max_bin=12)
    assert (value.mean_depth, value.max_bin, value.n_values) == (7.0, 12, 13)
    segment = Binning(kind="segment", n_bins=20).freeze(mean_depth=7, max_bin=3)
    assert (segment.max_bin, segment.n_values) == (20, 21)
    assert Binning(kind="segment").n_values == 51


def test_what_needs_a_frozen_value_binning_says_so():
    with pytest.raises(ConfigError, match="freeze"):
        _ = Binning().n_values
    with pytest.raises(ConfigError, match="freeze"):
        Binning().edges()
    with pytest.raises(ConfigError, match="no fixed edges"):
        Binning(kind="segment").edges()


@pytest.mark.parametrize("binning", [Binning(), Binning(kind="segment", n_bins=9).freeze(mean_depth=2.5, max_bin=9)])
def test_round_trip_through_json(binning):
    assert Binning.from_dict(json.loads(json.dumps(binning.to_dict()))) == binning


def test_numpy_scalars_become_plain_numbers():
    binning = Binning(
        cutoff=np.int64(4), bins_per_doubling=np.float32(2), mean_depth=np.float64(3), max_bin=np.int16(7)
    )
    assert json.loads(json.dumps(binning.to_dict()))["max_bin"] == 7


def test_unknown_fields_are_refused():
    with pytest.raises(ConfigError, match=r"Unknown fields of a binning: \['colour'\]"):
        Binning.from_dict({"colour": 1})


@no_deadline
@given(CUTOFFS, st.floats(0.1, 12), st.integers(1, 80))
def test_edges_enclose_their_bins(c, b, max_bin):
    lower, upper = Binning(cutoff=c, bins_per_doubling=b).freeze(mean_depth=100.0, max_bin=max_bin).edges()
    assert lower.shape == upper.shape == (max_bin + 1,)
    assert lower[0] == upper[0] == 0
    assert np.array_equal(lower[1:], upper[:-1])
    bins = np.arange(1, max_bin + 1)
    width = upper[1:] - lower[1:]
    assert (width > 0).all()
    for share in (0.001, 0.5, 0.999):
        assert np.array_equal(bin_normalized(lower[1:] + share * width, c, b), bins)


def test_edges_by_hand():
    lower, upper = Binning(cutoff=3, bins_per_doubling=2).freeze(mean_depth=1.0, max_bin=5).edges()
    assert lower == pytest.approx([0, 0, 1.5, 2.5, 3, 3 * 2**0.5])
    assert upper == pytest.approx([0, 1.5, 2.5, 3, 3 * 2**0.5, 6])


# --- quantile bins -------------------------------------------------------------------------------------------------


@pytest.fixture
def quantile() -> Binning:
    """Two proteins: one with the values 1 to 4, one that is constant."""
    fitted = QuantileBins.fit([np.arange(1.0, 5), np.full(3, 7.0)], 4)
    return Binning(kind="quantile", n_bins=4).freeze(mean_depth=20.0, max_bin=99, quantiles=fitted)


def test_rows_are_binned_by_feature(quantile):
    bins = bin_rows(quantile, [2, 7, 4, 0, 8], [0, 2, 5], features=[0, 1, 0, 0, 1])
    assert bins.dtype == np.int16
    assert bins.tolist() == [2, 4, 4, 0, 4]
    assert (quantile.max_bin, quantile.n_values) == (4, 5)


def test_quantile_bins_are_stored_in_two_parts(quantile):
    stored, arrays = json.loads(json.dumps(quantile.to_dict())), quantile.to_arrays()
    assert {name: (x.dtype, x.shape) for name, x in arrays.items()} == {
        "edges": (np.float32, (2, 3)),
        "means": (np.float32, (2, 5)),
    }
    restored = Binning.from_dict(stored, arrays)
    assert restored == quantile
    assert hash(restored) == hash(quantile)
    other = QuantileBins.fit([np.arange(1.0, 5), np.full(3, 8.0)], 4)
    assert Binning.from_dict(stored, {"edges": other.edges, "means": other.means}) != quantile
    assert Binning.from_dict(stored) != quantile


def test_the_other_kinds_are_stored_as_before():
    for binning in (Binning(), Binning(kind="segment")):
        assert binning.to_arrays() == {}
        assert list(binning.to_dict()) == [
            "kind", "n_bins", "bins_per_doubling", "cutoff", "normalize", "mean_depth", "max_bin"
        ]  # fmt: skip


def test_quantile_bins_are_decoded_by_feature(quantile):
    size, features = np.array([0.5, 2.0]), np.array([[0, 1], [1, 0]])
    values = bin_levels(quantile, np.zeros(5), size, "values", features)
    first, second = [0, 1, 2, 3, 4], [0, 7, 7, 7, 7]
    assert values.tolist() == [[first, second], [second, first]]
    assert np.array_equal(bin_levels(quantile, np.zeros(5), size, "counts", features), values)
    log1p = bin_levels(quantile, np.zeros(5), size, "log1p", features)
    assert log1p[0, 0] == pytest.approx([math.log(1 + 2 * x) for x in first])
    assert bin_levels(quantile, np.zeros(5), size, "bins", features).tolist() == [first, first]


def test_values_of_counts_are_counts():
    binning, mean, size = Binning().freeze(mean_depth=9.0, max_bin=9), np.arange(10.0), np.array([1.0, 3.0])
    counts = bin_levels(binning, mean, size, "counts")
    assert np.array_equal(bin_levels(binning, mean, size, "values"), counts)
    with pytest.raises(ConfigError, match="cannot be decoded to 'values'"):
        bin_levels(Binning(kind="segment"), mean, size, "values")


def test_what_quantile_bins_need(quantile):
    with pytest.raises(ConfigError, match="Pass `features=`"):
        bin_rows(quantile, [1.0], [0, 1])
    with pytest.raises(ConfigError, match="Pass `features=`"):
        bin_levels(quantile, np.zeros(5), np.ones(1), "values")
    with pytest.raises(ConfigError, match="have no quantiles"):
        bin_rows(Binning(kind="quantile"), [1.0], [0, 1], features=[0])
    with pytest.raises(ConfigError, match="other edges for each feature"):
        quantile.edges()
    for arguments in ({"n_bins": 3}, {"kind": "segment", "n_bins": 4}):
        with pytest.raises(ConfigError, match="`quantiles` has 4 bins"):
            Binning(**{"kind": "quantile"} | arguments, quantiles=quantile.quantiles)
