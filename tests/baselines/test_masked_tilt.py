import numpy as np
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax

from scbioformers.baselines._masked_features import value_basis
from scbioformers.baselines._masked_regressions import _newton
from scbioformers.baselines._masked_tilt import Tilt, _loss, _newton_step
from scbioformers.config import Binning


def random_entries(rng, n=60, n_values=5, n_features=2):
    offset, X = rng.normal(size=(n, n_values)), rng.normal(size=(n, n_features))
    basis = value_basis(Binning().freeze(mean_depth=1.0, max_bin=n_values - 1))
    return offset, X, rng.integers(n_values, size=n), basis


def test_newton_finds_the_optimum():
    offset, X, bins, basis = random_entries(np.random.default_rng(0), n_features=3)
    penalty = np.array([[5.0], [2.0], [2.0]])

    def loss(flat):
        slopes = flat.reshape(3, 2)
        log_p = log_softmax(offset + X @ slopes @ basis.T, axis=1)
        return -log_p[np.arange(len(bins)), bins].sum() + 0.5 * (penalty * slopes**2).sum()

    expected = minimize(loss, np.zeros(6)).x.reshape(3, 2)
    np.testing.assert_allclose(_newton(X, offset, basis, bins, 2.0), expected, atol=1e-2)
    assert np.abs(expected).max() > 0.05


def test_tilt_finds_the_optimum():
    rng = np.random.default_rng(1)
    offset, X, bins, basis = random_entries(rng)
    depth = rng.lognormal(size=60)
    fitted = Tilt.fit(offset, depth, X, bins, basis, n_groups=3)
    group = np.searchsorted(np.quantile(depth, [1 / 3, 2 / 3]), depth)
    parts = [(offset[group == g], X[group == g], bins[group == g]) for g in range(3)]

    def loss(flat):
        return _loss(parts, flat[:15].reshape(3, 5), flat[15:].reshape(2, 2), basis)

    solution = np.concatenate([fitted.effects.ravel(), fitted.weights.ravel()])
    np.testing.assert_allclose(approx_fprime(solution, loss), 0, atol=0.02)
    assert np.abs(approx_fprime(0 * solution, loss)).max() > 1
    expected = minimize(loss, np.zeros(19)).x
    np.testing.assert_allclose(solution, expected, atol=5e-3)
    logits = fitted.logits(offset[:3], depth[:3], X[:3])
    by_hand = [offset[i] + fitted.effects[group[i]] + basis @ fitted.weights.T @ X[i] for i in range(3)]
    np.testing.assert_allclose(logits, by_hand)


def test_newton_step_lowers_the_loss_from_a_random_start():
    rng = np.random.default_rng(2)
    offset, X, bins, basis = random_entries(rng)
    effects, weights = 0.2 * rng.normal(size=(1, 5)), 0.2 * rng.normal(size=(2, 2))
    steps = _newton_step([(offset, X, bins)], effects, weights, basis)
    before = _loss([(offset, X, bins)], effects, weights, basis)
    assert _loss([(offset, X, bins)], effects - steps[0], weights - steps[1], basis) < before
