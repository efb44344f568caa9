"""Decoding: the count level of each bin in a cell of a given depth, and statistics of distributions over bins."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from scbioformers.config import Binning, bin_levels
from scbioformers.core import ConfigError, bin_normalized, deviation, expected, posterior_mean, quantile

# bins 1 to 4 hold (0, 1.5), [1.5, 2.5), [2.5, 3.5), [3.5, 4]; above the cutoff (4, 8], (8, 16], (16, 32], (32, 64]
BINNING = Binning(cutoff=4, bins_per_doubling=1).freeze(mean_depth=100.0, max_bin=8)
MEAN = np.array([0, 0.9, 2.1, 3.0, 3.8, 5.5, 11, 22, 40])


def levels(size, scale="counts", binning=BINNING, mean=MEAN):
    return bin_levels(binning, mean, np.array([size]), scale)[0]


# count levels of bins


@pytest.mark.parametrize(
    ("size", "by_bin"),
    [
        # whole counts in each bin: none, none, {1}, none, {2, 3}, {4, 5, 6}; without a count, the mean at that depth
        pytest.param(0.4, {1: 0.36, 2: 0.84, 3: 1, 4: 1.52, 5: 2.2, 6: 4.4, 8: 16}, id="shallow"),
        pytest.param(0.5, {1: 0.45, 2: 1, 3: 1.5, 4: 2, 5: 3, 6: 5.5}, id="moved above the cutoff: bin 5 has 3 and 4"),
        pytest.param(1.0, {1: 1, 2: 2, 3: 3, 4: 4, 5: 5.5, 6: 11, 7: 22, 8: 40}, id="average"),
        # {1..5}, {6..9}, {10..13}, {14..16}, {17..32}
        pytest.param(4.0, {1: 3.6, 2: 8.4, 3: 12, 4: 15.2, 5: 22, 6: 44}, id="deep"),
        pytest.param(1.9, {1: 1.71, 2: 3.99, 3: 5.7, 4: 7, 5: 10.45}, id="moved below the cutoff: bin 4 has 7"),
        # counts of 3, 5 and 7 lie on the edges between bins: {1, 2}, {3, 4}, {5, 6}, {7, 8}
        pytest.param(2.0, {1: 1.8, 2: 4, 3: 6, 4: 7.6, 5: 11}, id="counts on edges"),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 2e-7, -2e-7])  # depths are converted to float32
def test_counts(size, by_bin, noise):
    level = levels(size * (1 + noise))
    assert level[0] == 0
    np.testing.assert_allclose(level[list(by_bin)], list(by_bin.values()), rtol=1e-6)


def test_each_cell_uses_its_own_depth():
    found = bin_levels(BINNING, MEAN, np.array([4.0, 0.4]), "counts")
    assert found.shape == (2, 9)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [levels(4.0), levels(0.4)])


@pytest.mark.parametrize("size", [0.4, 1.0, 4.0])
def test_without_normalisation_a_bin_is_a_count_at_any_depth(size):
    binning = Binning(cutoff=4, bins_per_doubling=1, normalize=False).freeze(mean_depth=100.0, max_bin=8)
    np.testing.assert_allclose(levels(size, binning=binning), [0, 1, 2, 3, 4, 5.5, 11, 22, 40])
    np.testing.assert_allclose(
        levels(size, "log1p", binning), np.log1p(np.array([0, 1, 2, 3, 4, 5.5, 11, 22, 40]) / size)
    )


@pytest.mark.parametrize("size", [0.4, 1.0, 4.0])
def test_log1p_is_of_the_counts_at_the_mean_depth(size):
    np.testing.assert_allclose(levels(size, "log1p"), [math.log1p(level / size) for level in levels(size)])


@pytest.mark.parametrize("kind", ["value", "segment"])
def test_levels_on_the_scale_bins_are_the_bin_numbers(kind):
    binning = Binning(kind=kind, n_bins=5).freeze(mean_depth=3.0, max_bin=5)
    found = bin_levels(binning, np.full(6, np.nan), np.array([0.1, 9.0]), "bins")
    assert found.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize("scale", ["counts", "log1p"])
def test_segment_bins_have_no_counts(scale):
    binning = Binning(kind="segment", n_bins=5).freeze(mean_depth=3.0, max_bin=5)
    with pytest.raises(ConfigError, match=rf"ranks and cannot be decoded to '{scale}'. Use 'bins'"):
        levels(1.0, scale, binning, np.arange(6.0))


def test_unknown_scale():
    with pytest.raises(ConfigError, match=r"one of \('counts', 'log1p', 'bins', 'values'\), found 'tpm'"):
        levels(1.0, "tpm")


@st.composite
def cells(draw):
    """A frozen binning, the mean of each bin, the relative depth of a cell, counts, and their bins in this cell."""
    cutoff, per_doubling = draw(st.integers(1, 12)), draw(st.sampled_from([0.5, 1, 2, 3, 4.5]))
    mean_depth, depth = draw(st.integers(200, 5000)), draw(st.integers(50, 20_000))
    counts = np.arange(1, 150)
    normalized = counts * mean_depth / depth
    bins = bin_normalized(normalized, cutoff, per_doubling)
    binning = Binning(cutoff=cutoff, bins_per_doubling=per_doubling)
    binning = binning.freeze(mean_depth=mean_depth, max_bin=int(bins.max()) + 1)
    lower, upper = binning.edges()
    off = np.abs(normalized[:, None] / upper[1:] - 1)
    assume(((off < 1e-12) | (off > 2e-6)).all())  # on an edge, or farther from it than the rounding of the depth
    within = np.array(draw(st.lists(st.floats(0.01, 0.99), min_size=len(upper), max_size=len(upper))))
    return binning, np.append(0, (lower + within * (upper - lower))[1:]), depth / mean_depth, counts, bins


@settings(deadline=None, max_examples=200)  # the first example may include compile time
@given(cells(), st.sampled_from([np.float64, np.float32]))
def test_level_is_the_mean_limited_to_the_counts_in_the_bin(cell, dtype):
    binning, mean, size, counts, bins = cell
    level = levels(float(np.exp(dtype(np.log(size)), dtype=np.float64)), binning=binning, mean=mean)
    for b in range(1, int(bins.max())):  # `counts` has all counts of these bins
        in_bin = counts[bins == b]
        by_mean = mean[b] * size
        limited = min(max(by_mean, in_bin.min()), in_bin.max()) if in_bin.size else by_mean
        assert level[b] == pytest.approx(limited, rel=1e-5)
    assert (np.diff(level) >= -1e-5).all()  # quantiles need ordered levels


@settings(deadline=None, max_examples=50)
@given(cells())
def test_the_only_count_of_a_bin_is_decoded_exactly(cell):
    binning, mean, size, counts, bins = cell
    alone = (np.bincount(bins)[bins] == 1) & (bins < bins.max())
    one_hot = np.eye(binning.n_values, dtype=np.float32)[bins[alone]][None]
    decoded = levels(size, binning=binning, mean=mean)[None]
    assert expected(one_hot, decoded)[0].tolist() == counts[alone].tolist()
    assert not deviation(one_hot, decoded).any()
    for q in (0.01, 0.99):
        assert quantile(one_hot, decoded, q)[0].tolist() == counts[alone].tolist()


# a distribution over bins


@pytest.fixture
def predicted():
    """Distributions of 3 cells x 4 features over 6 bins, and the level of each bin in each cell."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(6, 0.5), size=(3, 4)).astype(np.float32)
    return probabilities, np.sort(random.gamma(1, 5, size=(3, 6)), axis=1)


def test_mean_and_deviation(predicted):
    probabilities, at = predicted
    mean, sd = expected(probabilities, at), deviation(probabilities, at)
    assert mean.shape == sd.shape == (3, 4)
    for b in range(3):
        for h in range(4):
            slow = sum(float(p) * x for p, x in zip(probabilities[b, h], at[b], strict=True))
            variance = sum(float(p) * (x - slow) ** 2 for p, x in zip(probabilities[b, h], at[b], strict=True))
            assert mean[b, h] == pytest.approx(slow, rel=1e-6)
            assert sd[b, h] == pytest.approx(math.sqrt(variance), rel=1e-4)


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_quantiles(predicted, q):
    probabilities, at = predicted
    decoded = quantile(probabilities, at, q)
    assert decoded.shape == (3, 4)
    for b in range(3):
        for h in range(4):
            total, v = float(probabilities[b, h, 0]), 0
            while total < q:
                v += 1
                total += float(probabilities[b, h, v])
            assert decoded[b, h] == at[b, v]


def test_quantile_equal_to_a_cumulative_sum():
    probabilities, at = np.array([[[0.5, 0.25, 0.25]]], np.float32), np.array([[0.0, 1.0, 7.0]])
    assert [float(quantile(probabilities, at, q).item()) for q in (0.5, 0.51, 0.75, 0.76)] == [0, 1, 1, 7]


def test_quantile_if_probabilities_sum_to_less_than_1():
    probabilities = np.array([[[0.1, 0.9 - 1e-4]]], np.float32)
    assert quantile(probabilities, np.array([[0.0, 3.0]]), 0.99999).item() == 3


def test_variance_of_a_certain_prediction_is_not_negative():
    probabilities = np.zeros((1, 1, 3), np.float32)
    probabilities[..., 2] = 1 + 1e-7
    assert deviation(probabilities, np.array([[0.0, 1.0, 1000.0]])).item() >= 0


# posterior mean given a count


@pytest.mark.parametrize(("rate", "shape", "count"), [(2.0, 3.0, 0), (2.0, 3.0, 9), (0.1, 1.5, 1), (40.0, 20.0, 55)])
def test_posterior_mean_equals_integration_of_gamma_prior_and_poisson_likelihood(rate, shape, count):
    rates = np.linspace(1e-9, 40 * (rate + count + 1), 2_000_000)
    weight = stats.gamma(shape, scale=rate / shape).pdf(rates) * stats.poisson.pmf(count, rates)
    slow = (rates * weight).sum() / weight.sum()
    found = posterior_mean(np.array([[rate]]), np.array([shape]), np.array([[count]]))
    assert found.item() == pytest.approx(slow, rel=1e-3)


def test_dispersion_weights_prediction_and_count():
    rate, counts = np.full((2, 3), 2.0), np.array([[8.0] * 3, [0.0] * 3])
    found = posterior_mean(rate, np.array([1e-3, 2.0, 1e6]), counts)
    np.testing.assert_allclose(found, [[8, 5, 2], [0, 1, 2]], rtol=1e-2, atol=1e-2)
