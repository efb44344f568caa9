"""Scores of responses against values computed by hand, and baselines against their definitions."""

import numpy as np
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError, DataError

OBSERVED = np.array([[-2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -2.0]])
OWN = np.array([[True, False, False, False], [False, False, False, True]])


def score(predicted, **changes):
    keywords = {"control": np.array([3.0, 1, 2, 4]), "perturbed_mean": np.zeros(4), "own": OWN, "n_top": 2} | changes
    return bf.metrics.perturbation(predicted, OBSERVED, **keywords)


def test_off_target_scores_leave_out_the_target():
    falls = bf.metrics.target_falls(OWN)
    scores = score(falls)
    # correlation of (-1, 0, 0, 0) and (-2, 1, 0, 0)
    np.testing.assert_allclose(scores.delta[0], (0.75 * 1.75 + 0.25 * 1.75) / np.sqrt(0.75 * 4.75))
    np.testing.assert_allclose(scores.delta_off, [0, 0])
    np.testing.assert_allclose(scores.rmse, np.sqrt(2 / 4) * np.ones(2))


def test_perfect_and_opposite_predictions():
    assert score(OBSERVED).delta_off.tolist() == pytest.approx([1, 1])
    assert score(-OBSERVED).delta_off.tolist() == pytest.approx([-1, -1])
    assert score(OBSERVED).centroid.tolist() == [1, 1]
    assert score(OBSERVED[::-1]).centroid.tolist() == [0, 0]
    assert score(np.zeros((2, 4))).centroid.tolist() == [0.5, 0.5]  # without the two targets, both distances are equal


def test_top_genes_follow_the_ranking():
    predicted = np.array([[-2.0, 1.0, 5.0, 0.0], [0.0, 0.0, 1.0, -2.0]])
    assert score(predicted).delta_de[0] == pytest.approx(1)
    ranked = score(predicted, ranking=np.array([[0, 1, 2, 0], [1, 1, 1, 1.0]]))
    assert ranked.delta_de[0] == pytest.approx(-1)


def test_systema_uses_the_perturbed_mean_as_reference():
    mean = OBSERVED.mean(axis=0)
    scores = score(np.tile(mean, (2, 1)), perturbed_mean=mean)
    np.testing.assert_allclose(scores.systema, [0, 0])


def test_values_that_are_not_finite_raise():
    with pytest.raises(DataError, match="`predicted` has 1 values"):
        score(np.where(np.arange(8).reshape(2, 4) == 3, np.nan, OBSERVED))


def test_noise_does_not_increase_lengths_or_similarities():
    random = np.random.default_rng(0)
    truth = random.normal(size=(3, 4000))
    truth[1] = 0.6 * truth[0] + 0.8 * truth[1]
    shared = 2 * random.normal(size=(2, 4000))  # noise of the control cells of each half
    halves = [truth + noise + random.normal(size=truth.shape) for noise in shared]
    found = bf.metrics.similarity_between(*halves)
    assert found[0, 1] == pytest.approx(0.6, abs=0.15)
    assert abs(found[0, 2]) < 0.15
    assert np.corrcoef(halves[0])[0, 2] > 0.5


def test_split_half_and_bootstrap():
    assert bf.metrics.split_half(OBSERVED, OBSERVED, own=OWN).tolist() == pytest.approx([1, 1])
    mean, low, high = bf.metrics.paired_bootstrap(np.arange(20) + 0.5, np.arange(20))
    assert mean == low == high == 0.5
    mean, low, high = bf.metrics.paired_bootstrap([1.0, -1.0] * 10, [0.0] * 20)
    assert low < mean == 0 < high
    with pytest.raises(ConfigError, match="level"):
        bf.metrics.paired_bootstrap([1.0], [1.0], level=1)


def test_linear_bilinear_solves_its_normal_equations():
    random = np.random.default_rng(1)
    effects, own = random.normal(size=(6, 9)), np.eye(6, 9, dtype=bool)
    new = np.eye(9, dtype=bool)[7:8]
    found = bf.metrics.linear_bilinear(effects, own, new, n_components=3, ridge=0.1)
    centred = (effects - effects.mean(axis=0)).T
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    g = u[:, :3] * s[:3]
    p = own @ g
    w = np.linalg.inv(g.T @ g + 0.1 * np.eye(3)) @ g.T @ centred @ p @ np.linalg.inv(p.T @ p + 0.1 * np.eye(3))
    np.testing.assert_allclose(found[0], g @ w @ g[7] + effects.mean(axis=0))
    without_target = bf.metrics.linear_bilinear(effects, own, np.zeros((1, 9), bool))
    np.testing.assert_allclose(without_target[0], effects.mean(axis=0))


def test_simple_baselines():
    training = np.array([[1.0, 3], [3, 5]])
    assert bf.metrics.no_change(training, 2).tolist() == [[0, 0]] * 2
    assert bf.metrics.training_mean(training, 1).tolist() == [[2, 4]]
    assert bf.metrics.additive([training]).tolist() == [[4, 8]]
    features = np.eye(2)
    assert bf.metrics.knn_features(training, features, features, n_neighbors=1).tolist() == training.tolist()
    strong = bf.metrics.ridge_features(training, features, features[:1], penalty=1e9)
    np.testing.assert_allclose(strong, [[2, 4]], atol=1e-6)
    assert bf.metrics.mlp_features(training, features, features).shape == (2, 2)
    with pytest.raises(DataError, match="at least one"):
        bf.metrics.training_mean(np.zeros((0, 2)), 1)
