"""How many features are masked, and which."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scbioformers.config import Masking
from scbioformers.core import ConfigError, uniform

MASKINGS = [
    pytest.param(Masking(), id="default"),
    pytest.param(Masking(ratio=0.4, nonzero_share=0.25), id="many-zeros"),
    pytest.param(Masking(ratio=0.9, nonzero_share=0.8), id="nearly-all"),
    pytest.param(Masking(rule="paper", ratio=0.1), id="paper"),
    pytest.param(Masking(rule="paper", ratio=0.6, nonzero_share=0.75), id="paper-capped"),
]


def run(masking, x, rows=None, *, seed=5, epoch=2):
    """Masked expressed features and masked zeros of each row, as two lists of lists."""
    x = sp.csr_matrix(x)
    rows = np.arange(x.shape[0]) if rows is None else np.asarray(rows)
    masked, zero_indptr, zeros = masking.choose(
        x.indptr.astype(np.int64), x.indices.astype(np.int32), rows, np.ones(x.shape[1], bool), seed=seed, epoch=epoch
    )
    assert masked.shape == (x.nnz,)
    expressed = [x.indices[a:b][masked[a:b]].tolist() for a, b in pairwise(x.indptr)]
    return expressed, [zeros[a:b].tolist() for a, b in pairwise(zero_indptr)]


@pytest.fixture(scope="module")
def counts():
    """Rows from empty to wholly expressed, among 50 features."""
    random = np.random.default_rng(0)
    share = np.array([0, 0.02, 0.04, 0.1, 0.3, 0.3, 0.5, 0.8, 0.96, 1.0])[:, None]
    keys = random.random((10, 50)).argsort(axis=1).argsort(axis=1)
    return np.where(keys < share * 50, random.integers(1, 9, size=(10, 50)), 0)


# --- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_expressed", "n_features", "expected"),
    [
        pytest.param(100, 2000, (15, 15), id="15-of-100"),
        pytest.param(184, 2000, (28, 28), id="27.6-rounds-up"),
        pytest.param(30, 2000, (5, 5), id="4.5-rounds-half-up"),
        pytest.param(3, 2000, (1, 1), id="at-least-one"),
        pytest.param(2, 2000, (1, 1), id="two-expressed"),
        pytest.param(1, 2000, (0, 0), id="the-only-one-stays-visible"),
        pytest.param(0, 2000, (0, 0), id="empty"),
        pytest.param(100, 105, (15, 5), id="few-zeros"),
        pytest.param(100, 100, (15, 0), id="no-zeros"),
    ],
)
def test_counts_of_the_default_rule(n_expressed, n_features, expected):
    assert Masking().counts(n_expressed, n_features) == expected


@pytest.mark.parametrize(("nonzero_share", "n_zero"), [(0.75, 5), (0.25, 45), (0.6, 10), (0.1, 135)])
def test_zeros_follow_the_nonzero_share(nonzero_share, n_zero):
    assert Masking(nonzero_share=nonzero_share).counts(100, 2000) == (15, n_zero)


@pytest.mark.parametrize(
    ("ratio", "nonzero_share", "n_expressed", "n_features", "expected"),
    [
        # SPEC 4: asks for 100 of the 184 that a PBMC expresses, gets half of them and does not back-fill with zeros
        pytest.param(0.1, 0.5, 184, 2000, (92, 100), id="parity-example"),
        pytest.param(0.1, 0.75, 184, 2000, (92, 50), id="p-75"),
        pytest.param(0.1, 0.25, 184, 2000, (50, 150), id="p-25-needs-no-cap"),
        pytest.param(0.1, 0.5, 1000, 2000, (100, 100), id="deep-cell"),
        pytest.param(0.025, 0.5, 184, 2000, (25, 25), id="m-2.5-percent"),
        pytest.param(0.1, 0.5, 7, 2000, (3, 100), id="odd-number-of-expressed"),
        pytest.param(0.1, 0.5, 1, 2000, (0, 100), id="the-only-one-stays-visible"),
        pytest.param(0.1, 0.5, 0, 2000, (0, 100), id="empty"),
        pytest.param(0.1, 0.5, 1950, 2000, (100, 50), id="few-zeros"),
    ],
)
def test_counts_of_the_papers_rule(ratio, nonzero_share, n_expressed, n_features, expected):
    masking = Masking(ratio=ratio, nonzero_share=nonzero_share, rule="paper")
    assert masking.counts(n_expressed, n_features) == expected


SHARES = st.floats(0.01, 0.99)


@settings(deadline=None)  # the first example may have to wait for the compiler
@given(SHARES, SHARES, st.sampled_from(["expressed", "paper"]), st.integers(0, 500), st.integers(0, 500))
def test_something_stays_visible_and_no_more_is_masked_than_there_is(ratio, share, rule, n_expressed, n_zeros):
    masking = Masking(ratio=ratio, nonzero_share=share, rule=rule)
    nonzero, zero = masking.counts(n_expressed, n_expressed + n_zeros)
    assert 0 <= nonzero <= max(n_expressed - 1, 0)
    assert 0 <= zero <= n_zeros
    if rule == "paper":
        assert nonzero <= n_expressed / 2


# --- which ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", MASKINGS)
def test_it_is_the_smallest_random_keys_that_are_hidden(masking, counts):
    expressed, zeros = run(masking, counts, seed=5, epoch=2)
    for row, x in enumerate(counts):
        n_nonzero, n_zero = masking.counts(int((x > 0).sum()), x.size)
        by_key = np.argsort(uniform(5, 2, row, np.arange(x.size)))
        assert expressed[row] == sorted([j for j in by_key if x[j] > 0][:n_nonzero])
        assert zeros[row] == sorted([j for j in by_key if x[j] == 0][:n_zero])


@pytest.mark.parametrize("masking", MASKINGS)
def test_exactly_the_wanted_numbers_are_hidden(masking, counts):
    expressed, zeros = run(masking, counts)
    found = [(len(a), len(b)) for a, b in zip(expressed, zeros, strict=True)]
    assert found == [masking.counts(int(n), 50) for n in (counts > 0).sum(axis=1)]


@pytest.mark.parametrize("masking", MASKINGS)
def test_one_expressed_feature_stays_visible_and_masked_zeros_are_zeros(masking, counts):
    expressed, zeros = run(masking, counts)
    for x, masked, hidden_zeros in zip(counts, expressed, zeros, strict=True):
        assert len(set(np.flatnonzero(x)) - set(masked)) >= min(1, (x > 0).sum())
        assert (x[masked] > 0).all()
        assert (x[hidden_zeros] == 0).all()
        assert len(set(hidden_zeros)) == len(hidden_zeros)


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_mask_does_not_depend_on_the_other_cells_of_the_batch(masking, counts):
    rows = np.arange(10) + 1000
    expressed, zeros = run(masking, counts, rows)
    some = np.array([7, 2, 9, 4])
    assert run(masking, counts[some], rows[some]) == ([expressed[i] for i in some], [zeros[i] for i in some])
    for i in some:
        assert run(masking, counts[[i]], rows[[i]]) == ([expressed[i]], [zeros[i]])


def test_a_mask_does_not_depend_on_the_size_of_the_counts(counts):
    assert run(Masking(), counts) == run(Masking(), counts * 7)


@pytest.mark.parametrize("changed", [{"seed": 6}, {"epoch": 3}, {"rows": np.arange(10) + 1}])
def test_seed_epoch_and_row_each_change_the_mask(changed, counts):
    before, after = run(Masking(ratio=0.5), counts), run(Masking(ratio=0.5), counts, **changed)
    assert before != after
    assert [list(map(len, part)) for part in before] == [list(map(len, part)) for part in after]


def test_every_feature_is_masked_equally_often():
    n, epochs = 400, 25
    x = np.tile(np.arange(20) < 10, (n, 1)).astype(int)
    times = np.zeros(20)
    for epoch in range(epochs):
        expressed, zeros = run(Masking(ratio=0.2), x, epoch=epoch)
        times += np.bincount(np.concatenate([*expressed, *zeros]).astype(int), minlength=20)
    share, sd = times / (n * epochs), math.sqrt(0.2 * 0.8 / (n * epochs))
    np.testing.assert_allclose(share, 0.2, atol=5 * sd)


# --- the parameters ------------------------------------------------------------------------------------------------


@pytest.mark.fault(39)
@pytest.mark.parametrize("name", ["ratio", "nonzero_share"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_shares_lie_strictly_between_0_and_1(name, value):
    with pytest.raises(ConfigError, match=rf"Masking\.{name} must lie strictly between 0 and 1"):
        Masking(**{name: value})


def test_an_unknown_rule_is_named():
    with pytest.raises(ConfigError, match="'expressed' or 'paper', found 'all'"):
        Masking(rule="all")


def test_round_trip_through_json():
    masking = Masking(ratio=0.3, nonzero_share=0.25, rule="paper")
    assert Masking.from_dict(json.loads(json.dumps(masking.to_dict()))) == masking


# --- odds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masking", "n_expressed", "expected"),
    [
        pytest.param(Masking(), 100, (15 / 1900) / (15 / 100), id="default"),
        pytest.param(Masking(nonzero_share=0.25), 100, (45 / 1900) / (15 / 100), id="more-zeros"),
        pytest.param(Masking(rule="paper", ratio=0.1), 400, (100 / 1600) / (100 / 400), id="paper"),
        pytest.param(Masking(rule="paper", ratio=0.1), 100, (100 / 1900) / (50 / 100), id="paper-capped"),
        pytest.param(Masking(), 100.4, (15 / 1899.6) / (15 / 100.4), id="between-two-numbers"),
    ],
)
def test_odds_by_hand(masking, n_expressed, expected):
    assert masking.odds(np.array([n_expressed]), 2000).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("masking", MASKINGS)
def test_odds_are_how_much_oftener_zeros_are_hidden(masking, counts):
    odds = masking.odds((counts > 0).sum(axis=1), 50)
    masked = np.zeros((10, 2))
    for epoch in range(20):
        for kind, lists in enumerate(run(masking, counts, epoch=epoch)):
            masked[:, kind] += [len(each) for each in lists]
    n = (counts > 0).sum(axis=1)
    usual = (n > 2) & (n < 48)  # of these both kinds are masked
    share = masked[usual] / 20 / np.stack([n[usual], 50 - n[usual]], axis=1)
    np.testing.assert_allclose(odds[usual], share[:, 1] / share[:, 0], rtol=1e-9)


@pytest.mark.parametrize("masking", MASKINGS)
def test_odds_are_finite_and_positive_for_any_cell(masking):
    odds = masking.odds(np.array([0.0, 0.3, 1, 49.9, 50, 80]), 50)
    assert np.isfinite(odds).all()
    assert (odds > 0).all()
    assert masking.odds(np.array([]), 50).shape == (0,)


def test_absent_features_are_never_masked():
    """They are no zeros: the numbers of a mask are those of the features that were measured."""
    random = np.random.default_rng(1)
    present = random.random(50) < 0.6
    x = sp.csr_matrix((random.random((40, 50)) < 0.3) & present, dtype=float)
    for masking in (Masking(), Masking(rule="paper", ratio=0.4)):
        masked, zero_indptr, zeros = masking.choose(
            x.indptr.astype(np.int64), x.indices.astype(np.int32), np.arange(40), present, seed=0, epoch=0
        )
        assert present[zeros].all()
        for row, n_expressed in enumerate(np.diff(x.indptr)):
            entries = slice(x.indptr[row], x.indptr[row + 1])
            wanted = masking.counts(int(n_expressed), int(present.sum()))
            assert (int(masked[entries].sum()), int(zero_indptr[row + 1] - zero_indptr[row])) == wanted
