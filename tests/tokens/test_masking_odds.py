"""By how much the masks prefer expressed features, against masks that were drawn."""

import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.config import Masking

N_FEATURES = 60
MASKINGS = [
    pytest.param(Masking(), id="default"),
    pytest.param(Masking(ratio=0.4, nonzero_share=0.25), id="many-zeros"),
    pytest.param(Masking(ratio=0.5, nonzero_share=0.8), id="few-zeros"),
    pytest.param(Masking(rule="paper", ratio=0.2), id="paper"),
    pytest.param(Masking(rule="paper", ratio=0.6, nonzero_share=0.75), id="paper-capped"),
]

PRESENT = np.ones(N_FEATURES, bool)


def drawn(masking, n_expressed, n_cells=2000):
    """How often each expressed feature and each zero was masked, over cells that express the first features."""
    x = sp.csr_matrix(np.tile(np.arange(N_FEATURES) < n_expressed, (n_cells, 1)).astype(float))
    masked, _, zeros = masking.choose(
        x.indptr.astype(np.int64),
        x.indices.astype(np.int32),
        np.arange(n_cells),
        np.ones(N_FEATURES, bool),
        seed=1,
        epoch=0,
    )
    times = np.bincount(np.concatenate((x.indices[masked], zeros)), minlength=N_FEATURES) / n_cells
    return times[:n_expressed], times[n_expressed:]


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("n_expressed", [6, 9, 20, 41])
def test_odds_are_those_of_masks_that_were_drawn(masking, n_expressed):
    expressed, zeros = drawn(masking, n_expressed)
    odds = masking.odds(np.array([float(n_expressed)]), N_FEATURES).item()
    assert odds == pytest.approx(zeros.mean() / expressed.mean(), rel=1e-9)
    # and for any two features, within the chance of so many draws
    sd = np.sqrt(1 / expressed.min() / 2000 + 1 / zeros.min() / 2000)
    np.testing.assert_allclose(np.log(zeros[:, None] / expressed), np.log(odds), atol=5 * sd)


def test_dividing_by_the_odds_gives_the_natural_share_of_zeros():
    n_expressed, masking = 12, Masking()
    hidden_expressed, hidden_zeros = (each.sum() for each in drawn(masking, n_expressed))
    seen = hidden_zeros / hidden_expressed
    assert seen == pytest.approx(1)  # half of the masked are expressed
    natural = seen / masking.odds(np.array([n_expressed]), N_FEATURES)
    assert natural == pytest.approx((N_FEATURES - n_expressed) / n_expressed)


@pytest.mark.parametrize("masking", MASKINGS)
def test_each_cell_by_itself(masking):
    n = np.array([41.0, 4.0, 9.0, 20.0])
    odds = masking.odds(n, N_FEATURES)
    assert odds.shape == (4,)
    assert odds.dtype == np.float64
    assert odds.tolist() == [masking.odds(n[i : i + 1], N_FEATURES).item() for i in range(4)]


def test_numbers_between_two_integers():
    """The number of expressed features is an estimate."""
    n = np.linspace(1000.0, 1001.0, 11)
    odds = Masking().odds(n, 3000)
    assert (np.abs(np.diff(odds)) / odds[0] < 0.01).all()
    assert odds[0] < odds[-1]  # the more are expressed, the fewer zeros there are to choose from


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("n_features", [1, 2, 3, 60])
def test_unusual_cells_have_finite_odds(masking, n_features):
    odds = masking.odds(np.array([0.0, 0.3, 1.0, n_features, n_features + 5.5, 1e9]), n_features)
    assert np.isfinite(odds).all()
    assert (odds > 0).all()


def test_no_cells():
    assert Masking().odds(np.zeros(0), 60).shape == (0,)


def test_shares_are_those_of_masks_that_were_drawn():
    """Over cells that differ in how many features they express."""
    masking, random = Masking(ratio=0.3), np.random.default_rng(2)
    x = sp.csr_matrix(random.random((300, N_FEATURES)) < random.uniform(0.1, 0.8, (300, 1)), dtype=float)
    masked, _, zeros = masking.choose(
        x.indptr.astype(np.int64),
        x.indices.astype(np.int32),
        np.arange(300),
        np.ones(N_FEATURES, bool),
        seed=1,
        epoch=0,
    )
    expected = masked.sum() / x.nnz, zeros.size / (x.shape[0] * N_FEATURES - x.nnz)
    assert masking.shares(np.diff(x.indptr), N_FEATURES) == pytest.approx(expected)
