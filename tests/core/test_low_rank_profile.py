import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scbioformers.core import LowRankProfile, MaskedRows

N, M = 1100, 30


@pytest.fixture(scope="module")
def cells():
    """Counts of cells along four programs, with some entries masked, and an estimate of their depth."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, size=(N, 4)) @ rng.gamma(0.5, size=(4, M)) + 0.1
    counts = rng.poisson(3 * rates).astype(float)
    masked = rng.random((N, M)) < 0.2
    masked[5] = False
    visible = np.where(masked, 0, counts)
    rows = MaskedRows(csr_matrix(visible), visible.sum(axis=1), *np.nonzero(masked))
    return csr_matrix(counts), rows, rows.depth * 1.2 + 1


@pytest.fixture(scope="module")
def profile(cells):
    counts = cells[0]
    return LowRankProfile.fit(counts, counts.toarray().sum(axis=1), 40.0)


@pytest.mark.parametrize("n_absent", [pytest.param(0, id="all measured"), pytest.param(4, id="some absent")])
def test_scores_and_levels_are_the_expectation_given_visible_features(cells, profile, n_absent):
    _, rows, depth = cells
    absent = np.arange(M) < n_absent
    visible, measured = rows.visible.toarray() * ~absent, ~absent[rows.features]
    rows = MaskedRows(csr_matrix(visible), rows.depth, rows.cells[measured], rows.features[measured])
    scores = profile.scores(dataclasses.replace(rows, absent=absent), depth)
    levels = profile.levels(rows, scores)
    W, mean = profile.loadings.astype(float), profile.mean.astype(float)
    covariance = W @ W.T + profile.noise * np.eye(M)
    profiles = np.log1p(visible * 40 / depth[:, None])
    for i in (0, 5, 600, N - 1):
        masked = rows.features[rows.cells == i]
        seen = np.setdiff1d(np.flatnonzero(~absent), masked)
        difference = profiles[i, seen] - mean[seen]
        # conditional mean of a joint normal distribution, from the covariance of the visible features
        solved = np.linalg.solve(covariance[np.ix_(seen, seen)], difference)
        np.testing.assert_allclose(scores[i], W[seen].T @ solved, atol=1e-8)
        expected = mean[masked] + covariance[np.ix_(masked, seen)] @ solved
        np.testing.assert_allclose(levels[rows.cells == i], expected, atol=1e-8)


def test_leading_components_are_those_of_a_smaller_model(cells, profile):
    counts, rows, depth = cells
    smaller = LowRankProfile.fit(counts, counts.toarray().sum(axis=1), 40.0, n_components=3)
    leading = profile.leading(3)
    assert leading.loadings.shape == (M, 3)
    assert leading.noise == pytest.approx(smaller.noise, rel=1e-5)
    covariance = smaller.loadings @ smaller.loadings.T  # the sign of a component is arbitrary
    np.testing.assert_allclose(leading.loadings @ leading.loadings.T, covariance, atol=1e-4 * np.abs(covariance).max())
    np.testing.assert_allclose(
        leading.levels(rows, leading.scores(rows, depth)), smaller.levels(rows, smaller.scores(rows, depth)), atol=1e-4
    )
    np.testing.assert_allclose(profile.leading(99).loadings, profile.loadings, rtol=1e-6)


def test_scores_of_a_cell_do_not_depend_on_the_other_cells(cells, profile):
    _, rows, depth = cells
    scores = profile.scores(rows, depth)
    for i in (0, 1023, 1024, N - 1):
        features = rows.features[rows.cells == i]
        alone = MaskedRows(rows.visible[[i]], rows.depth[[i]], np.zeros(features.size, np.int64), features)
        np.testing.assert_array_equal(profile.scores(alone, depth[[i]])[0], scores[i])
