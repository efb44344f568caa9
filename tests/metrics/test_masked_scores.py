from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import log_softmax
from scipy.stats import kstest
from sklearn.metrics import f1_score, roc_auc_score

from scbioformers.core import ConfigError, DataError
from scbioformers.metrics import masked_scores, poisson_loss, thin_counts

SHARES = ("auroc", "sensitivity", "hel", "hel_gene_mean", "npv50", "zero_specificity", "macro_f1")


def peaked(predicted, n_bins):
    """Log-probabilities: 1/2 for the predicted bin, and 1/2 divided equally between the other bins."""
    p = np.full((len(predicted), n_bins), 0.5 / (n_bins - 1))
    p[np.arange(len(predicted)), predicted] = 0.5
    return np.log(p)


def simulated(n=500, n_bins=7, seed=0, dtype=np.float64):
    """Noisy predictions of skewed bins, with all levels and many ties."""
    rng = np.random.default_rng(seed)
    y = rng.choice(n_bins, size=n, p=np.array([8, 4, 2, 1, 1, 1, 1]) / 18)
    logits = np.round(rng.normal(size=(n, n_bins)), 1) + 1.5 * np.eye(n_bins)[y]
    return log_softmax(logits, axis=1).astype(dtype), y, rng.integers(5, size=n)


def test_every_score_by_hand():
    # position     0  1  2  3  4  5  6  7  8  9
    y = np.array([0, 0, 0, 0, 1, 1, 1, 2, 4, 5])
    predicted = [0, 0, 0, 1, 1, 0, 3, 2, 5, 3]
    genes = ["a", "a", "b", "b", "a", "a", "b", "b", "a", "b"]
    scores = masked_scores(peaked(predicted, 6), y, genes, cutoff=2)
    # 5 exact positions have probability 1/2 (1 bit), 5 others 1/10
    assert scores.nll_bits == pytest.approx((5 * 1 + 5 * np.log2(10)) / 10)
    # P(0) is 1/2 for predicted 0 and 1/10 otherwise: of 4 x 6 pairs, 3 x 5 = 15 are in order, 1 x 5 + 3 x 1 tied
    assert scores.auroc == pytest.approx((15 + 8 / 2) / 24)
    assert scores.sensitivity == pytest.approx(2 / 6)
    assert scores.hel == pytest.approx(1 / 2)  # 4 predicted as 5 counts, 5 predicted as 3 does not
    assert scores.hel_gene_mean == pytest.approx((1 + 0) / 2)
    assert scores.zero_specificity == pytest.approx(3 / 4)
    assert scores.npv50 == pytest.approx((3 / 4) / (3 / 4 + 1 / 6))
    assert scores.bin_mae == pytest.approx((1 + 1 + 2 + 1 + 2) / 10)
    # F1 of bins 0, 1, 2, 4, 5: 2·3/(4+4), 2·1/(3+2), 2·1/(1+1), 0, 0; bin 3 is predicted but never true
    assert scores.macro_f1 == pytest.approx((6 / 8 + 2 / 5 + 1) / 5)
    assert scores.sensitivity_by_level == pytest.approx({"zero": 3 / 4, "one": 1 / 3, "low": 1, "high": 0})
    assert scores.predicted_for_one == pytest.approx({"zero": 1 / 3, "one": 1 / 3, "more": 1 / 3})
    assert scores.n == 10


def test_genes_have_equal_weight_in_hel_gene_mean():
    y, predicted = [3, 3, 3, 3, 0], [3, 3, 3, 0, 0]  # gene 7: 3 of 3 correct, gene 2: 0 of 1, gene 9: no high bin
    scores = masked_scores(peaked(predicted, 4), y, [7, 7, 7, 2, 9], cutoff=2)
    assert scores.hel == pytest.approx(3 / 4)
    assert scores.hel_gene_mean == pytest.approx(1 / 2)


def slow_scores(logs, y, genes, cutoff):
    """The scores, computed one position at a time."""
    positions = list(zip(logs.tolist(), y.tolist(), genes.tolist(), strict=True))
    guess = [row.index(max(row)) for row, _, _ in positions]
    ranks = [(p, t) for (row, t, _) in positions for p in [1 - np.exp(row[0])]]
    wins = [(a > b) + (a == b) / 2 for a, s in ranks if s > 0 for b, t in ranks if t == 0]

    def share(condition, of):
        kept = [condition(g, t) for g, (_, t, _) in zip(guess, positions, strict=True) if of(t)]
        return sum(kept) / len(kept)

    by_gene = {}
    for g, (_, t, m) in zip(guess, positions, strict=True):
        if t > cutoff:
            by_gene.setdefault(m, []).append(abs(g - t) <= 1)
    spec = share(lambda g, t: g == 0, lambda t: t == 0)
    fnr = share(lambda g, t: g == 0, lambda t: t > 0)
    return {
        "nll_bits": sum(-row[t] / np.log(2) for row, t, _ in positions) / len(positions),
        "auroc": sum(wins) / len(wins),
        "sensitivity": share(lambda g, t: g == t, lambda t: t > 0),
        "hel": share(lambda g, t: abs(g - t) <= 1, lambda t: t > cutoff),
        "hel_gene_mean": np.mean([np.mean(close) for close in by_gene.values()]),
        "npv50": spec / (spec + fnr),
        "zero_specificity": spec,
        "bin_mae": share(lambda g, t: abs(g - t), lambda t: True),
        "sensitivity_by_level_low": share(lambda g, t: g == t, lambda t: 2 <= t <= cutoff),
        "sensitivity_by_level_high": share(lambda g, t: g == t, lambda t: t > cutoff),
        "predicted_for_one_more": share(lambda g, t: g > 1, lambda t: t == 1),
    }


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_slow_implementation_and_sklearn(seed):
    logs, y, genes = simulated(200, seed=seed)
    scores = masked_scores(logs, y, genes, cutoff=3).to_dict()
    slow = slow_scores(logs, y, genes, 3)
    assert {name: scores[name] for name in slow} == pytest.approx(slow)
    assert scores["auroc"] == pytest.approx(roc_auc_score(y > 0, 1 - np.exp(logs[:, 0])))
    f1 = f1_score(y, logs.argmax(axis=1), labels=np.unique(y), average="macro", zero_division=0.0)
    assert scores["macro_f1"] == pytest.approx(f1)


def test_npv50_is_the_npv_with_equal_numbers_of_zeros_and_non_zeros():
    logs, y, genes = simulated()
    zeros, others = np.flatnonzero(y == 0), np.flatnonzero(y > 0)
    some = np.concatenate([zeros[:150], others[:150]])
    predicted = logs[some].argmax(axis=1)
    npv = np.mean(y[some][predicted == 0] == 0)
    assert masked_scores(logs[some], y[some], genes[some], cutoff=3).npv50 == pytest.approx(npv)
    # masking each non-zero three times changes the NPV, but not npv50
    more = np.concatenate([zeros[:150], *[others[:150]] * 3])
    assert masked_scores(logs[more], y[more], genes[more], cutoff=3).npv50 == pytest.approx(npv)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(2, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_ranges_and_order(seed, n, n_bins, cutoff):
    rng = np.random.default_rng(seed)
    logs = log_softmax(3 * rng.normal(size=(n, n_bins)), axis=1)
    y, genes, order = rng.integers(n_bins, size=n), rng.integers(4, size=n), rng.permutation(n)
    scores = masked_scores(logs, y, genes, cutoff=cutoff)
    values = scores.to_dict()
    assert scores.nll_bits >= 0
    assert 0 <= scores.bin_mae < n_bins
    shares = [values[name] for name in values if name.startswith((*SHARES, "predicted_for_one"))]
    assert len(shares) == 14
    assert all(np.isnan(share) or 0 <= share <= 1 for share in shares)
    shuffled = masked_scores(logs[order], y[order], genes[order], cutoff=cutoff).to_dict()
    assert shuffled == pytest.approx(values, nan_ok=True)


def test_perfect_and_constant_predictions():
    y = np.array([0, 0, 1, 3, 5])
    perfect = np.where(np.eye(6)[y] == 1, 0.0, -np.inf)
    scores = masked_scores(perfect, y, y, cutoff=2)
    assert scores.nll_bits == 0
    assert scores.bin_mae == 0
    assert [getattr(scores, name) for name in SHARES] == [1.0] * len(SHARES)
    # constant predictions that score well in the paper's scores: 1, where most non-zeros are 1, and 0
    ones = masked_scores(peaked([1] * 5, 6), [0, 0, 1, 1, 5], y, cutoff=2)
    assert (ones.sensitivity, ones.auroc) == (pytest.approx(2 / 3), 0.5)
    assert np.isnan(ones.npv50)
    zeros = masked_scores(peaked([0] * 5, 6), y, y, cutoff=2)
    assert (zeros.npv50, zeros.sensitivity) == (0.5, 0)
    # certain and wrong
    assert masked_scores(perfect, y[::-1], y, cutoff=2).nll_bits == np.inf


@pytest.mark.parametrize(
    ("y", "missing"),
    [
        pytest.param(
            [0, 0], ["auroc", "sensitivity", "hel", "hel_gene_mean", "npv50", "predicted_for_one_more"], id="zeros"
        ),
        pytest.param([1, 4], ["auroc", "npv50", "zero_specificity", "sensitivity_by_level_low"], id="non-zeros"),
        pytest.param([0, 2], ["hel", "hel_gene_mean", "sensitivity_by_level_high"], id="no-high"),
    ],
)
def test_a_share_of_an_empty_set_is_nan(y, missing):
    values = masked_scores(peaked([0, 1], 5), y, [0, 1], cutoff=3).to_dict()
    assert all(np.isnan(values[name]) for name in missing)
    assert np.isfinite([values["nll_bits"], values["bin_mae"], values["macro_f1"]]).all()


def test_ties_predict_the_lowest_bin_and_float32_agrees():
    uniform = np.full((2, 4), np.log(0.25))
    assert masked_scores(uniform, [0, 1], [0, 0], cutoff=2).zero_specificity == 1
    assert masked_scores(uniform, [0, 1], [0, 0], cutoff=2).nll_bits == pytest.approx(2)
    double, single = (masked_scores(*simulated(dtype=dtype), cutoff=3) for dtype in (np.float64, np.float32))
    assert single.to_dict() == pytest.approx(double.to_dict(), abs=1e-6)


def test_to_dict_is_flat():
    scores = masked_scores(*simulated(), cutoff=3)
    values = scores.to_dict()
    assert all(type(value) in (float, int) for value in values.values())
    assert values["nll_bits"] == scores.nll_bits
    assert values["sensitivity_by_level_one"] == scores.sensitivity_by_level["one"]
    assert len(values) == len(fields(scores)) - 2 + 4 + 3


@pytest.mark.parametrize(
    ("logs", "y", "genes", "message"),
    [
        pytest.param(np.zeros(3), [0, 0, 0], [0, 0, 0], r"shape \(3,\); expected \(H, V\)", id="1-D"),
        pytest.param(np.zeros((0, 3)), [], [], r"shape \(0, 3\)", id="no-position"),
        pytest.param(np.eye(3), [0, 1, 2], [0, 0, 0], "position 0 sum to 4.718", id="logits"),
        pytest.param(np.full((1, 3), 1e4), [0], [0], "sum to inf", id="large-logits"),
        pytest.param(peaked([0, 1], 3) + np.array([[0], [np.nan]]), [0, 1], [0, 0], "position 1 sum to nan", id="nan"),
        pytest.param(peaked([0, 1], 3), [0], [0, 0], r"`target` has the shape \(1,\); expected \(2,\)", id="target"),
        pytest.param(peaked([0, 1], 3), [0, 1], [0], r"`genes` has the shape \(1,\)", id="genes"),
        pytest.param(peaked([0, 1], 3), [0.0, 1.0], [0, 0], "integer bins, found dtype float64", id="float"),
        pytest.param(peaked([0, 1], 3), [0, 3], [0, 0], "bins 0 to 3, but .* bins 0 to 2", id="bin-too-high"),
        pytest.param(peaked([0, 1], 3), [-1, 1], [0, 0], "bins -1 to 1", id="negative-bin"),
    ],
)
def test_bad_input_raises(logs, y, genes, message):
    with pytest.raises(DataError, match=message):
        masked_scores(logs, y, genes, cutoff=2)


def test_bad_cutoff_raises():
    with pytest.raises(ConfigError, match="at least 1, found 0"):
        masked_scores(peaked([0], 3), [0], [0], cutoff=0)


def test_bad_probabilities_in_a_later_block_raise():
    logs = peaked(np.zeros(20_000, dtype=int), 3)
    logs[15_000, 1] = 0
    with pytest.raises(DataError, match="position 15000"):
        masked_scores(logs, np.zeros(20_000, dtype=int), np.zeros(20_000), cutoff=2)


# molecular cross-validation


def poisson_counts(mean=2.0, shape=(300, 40), seed=0, dtype=np.float32):
    return sparse.csr_matrix(np.random.default_rng(seed).poisson(mean, size=shape).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, bool])
def test_thinned_parts_sum_to_the_counts(dtype):
    counts = poisson_counts(dtype=dtype)
    before = counts.copy()
    kept, held = thin_counts(counts, 0.7, seed=3)
    np.testing.assert_array_equal(kept.toarray().astype(int) + held.toarray(), counts.toarray())
    assert kept.dtype == held.dtype == dtype
    for part in (kept, held):
        assert part.has_canonical_format
        assert part.data.min() > 0
    np.testing.assert_array_equal(counts.data, before.data)
    np.testing.assert_array_equal(counts.indices, before.indices)


def test_thinning_is_binomial_and_parts_are_independent():
    counts = poisson_counts()
    kept, held = (part.toarray().ravel() for part in thin_counts(counts, 0.8, seed=1))
    # 12,000 Poisson counts of mean 2: the parts are Poisson with means 1.6 and 0.4 (standard errors 0.012 and 0.006)
    assert kept.mean() == pytest.approx(1.6, abs=0.05)
    assert held.mean() == pytest.approx(0.4, abs=0.025)
    assert held.var() == pytest.approx(0.4, abs=0.03)
    assert abs(np.corrcoef(kept, held)[0, 1]) < 0.04
    large = sparse.csr_matrix(np.full((1, 2000), 10_000))
    drawn = thin_counts(large, 0.5, seed=2)[0].toarray().ravel()
    assert kstest((drawn - 5000) / 50, "norm").pvalue > 1e-3


def test_thinning_depends_only_on_seed_row_column_and_count():
    counts = poisson_counts()
    first = thin_counts(counts, 0.5, seed=1)[0].toarray()
    np.testing.assert_array_equal(thin_counts(counts[:50], 0.5, seed=1)[0].toarray(), first[:50])
    assert (thin_counts(counts, 0.5, seed=2)[0].toarray() != first).any()
    # duplicate entries and unsorted columns give the same counts
    messy = sparse.csr_matrix((np.array([1.0, 3, 2]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    tidy = sparse.csr_matrix([[3.0, 0, 3]])
    np.testing.assert_array_equal(
        thin_counts(messy, 0.5, seed=0)[0].toarray(), thin_counts(tidy, 0.5, seed=0)[0].toarray()
    )
    assert messy.nnz == 3


def test_thinning_an_empty_matrix():
    kept, held = thin_counts(sparse.csr_matrix((3, 4)), 0.5, seed=0)
    assert kept.shape == held.shape == (3, 4)
    assert kept.nnz == held.nnz == 0


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_thinning_other_values_than_counts_raises(value):
    with pytest.raises(DataError, match="negative or not whole"):
        thin_counts(sparse.csr_matrix([[1.0, value]]), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, np.nan])
def test_bad_fraction_raises(fraction):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        thin_counts(poisson_counts(shape=(2, 2)), fraction, seed=0)


def test_poisson_loss_by_hand():
    rate = [[1.0, 2.0], [0.0, 0.0]]
    held = sparse.csr_matrix([[3, 2], [0, 1]])
    # 1 - 3 ln 1; 2 - 2 ln 2; 0; 0 - ln 1e-8
    assert poisson_loss(rate, held) == pytest.approx((1 + 2 - 2 * np.log(2) + 8 * np.log(10)) / 4)


def test_poisson_loss_in_blocks_equals_a_dense_sum():
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, size=(20_000, 3)).astype(np.float32)
    held = rng.poisson(rate)
    dense = (rate.astype(float) - held * np.log(rate.astype(float))).mean()
    assert poisson_loss(rate, sparse.csr_matrix(held)) == pytest.approx(dense)


def test_poisson_loss_is_lowest_at_the_true_rate():
    held = poisson_counts(0.4)
    losses = [poisson_loss(np.full(held.shape, rate), held) for rate in (0.3, 0.4, 0.5)]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        pytest.param(np.ones((2, 3)), r"shape \(2, 3\); expected .* \(2, 2\)", id="shape"),
        pytest.param([[1.0, 1.0], [1.0, -0.1]], "negative, NaN or infinite values in rows 0 to 1", id="negative"),
        pytest.param([[1.0, 1.0], [1.0, np.nan]], "negative, NaN", id="nan"),
        pytest.param([[1.0, 1.0], [1.0, np.inf]], "infinite", id="inf"),
    ],
)
def test_bad_rates_raise(rate, message):
    with pytest.raises(DataError, match=message):
        poisson_loss(rate, poisson_counts(shape=(2, 2)))
