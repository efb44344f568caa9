"""Principal components of profiles with missing features, against scikit-learn on the filled matrix."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from scbioformers.core import Profiles, principal_components


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    return rng.poisson(np.exp(rng.normal(size=(60, 3)) @ rng.normal(size=(3, 30)))).astype(float)


def aligned(components, reference):
    return components * np.sign((components * reference).sum(axis=0))


@pytest.mark.parametrize("cuts", [pytest.param([], id="one part"), pytest.param([13, 40], id="three parts")])
def test_components_are_those_of_sklearn_if_all_is_measured(cells, cuts):
    parts = [Profiles(sp.csr_matrix(part), np.ones(30, bool)) for part in np.split(cells, cuts)]
    components, variance, mean = principal_components(parts, 4, seed=1)
    expected = PCA(4, svd_solver="full").fit(cells)
    np.testing.assert_allclose(aligned(components, expected.components_.T), expected.components_.T, atol=1e-8)
    np.testing.assert_allclose(variance, expected.explained_variance_)
    np.testing.assert_allclose(mean, cells.mean(axis=0))


def test_missing_values_are_replaced_by_the_mean_of_the_cells_that_have_them(cells):
    present = np.ones((2, 30), bool)
    present[0, :10], present[1, 25:] = False, False
    parts = [Profiles(sp.csr_matrix(cells[:20] * present[0]), present[0]),
             Profiles(sp.csr_matrix(cells[20:] * present[1]), present[1])]  # fmt: skip
    components, variance, mean = principal_components(parts, 3, seed=0)
    filled = np.where(np.repeat(present, [20, 40], axis=0), cells, np.nan)
    expected_mean = np.nanmean(filled, axis=0)
    expected = PCA(3, svd_solver="full").fit(np.where(np.isnan(filled), expected_mean, filled))
    np.testing.assert_allclose(mean, expected_mean)
    np.testing.assert_allclose(variance, expected.explained_variance_)
    np.testing.assert_allclose(aligned(components, expected.components_.T), expected.components_.T, atol=1e-8)


def test_a_part_that_lacks_features_is_no_component(cells):
    same = np.tile(cells[:1], (20, 1))
    present = np.arange(30) < 15
    parts = [Profiles(sp.csr_matrix(same), np.ones(30, bool)), Profiles(sp.csr_matrix(same * present), present)]
    components, variance, _ = principal_components(parts, 3, seed=0)
    assert components.shape == (30, 0) and variance.size == 0


def test_directions_in_which_cells_do_not_differ_have_no_component(cells):
    """ARPACK would draw them at random, each time others."""
    cells[:, 7] = 0
    cells[:, 8] = cells[:, 9]
    components, variance, _ = principal_components([Profiles(sp.csr_matrix(cells), np.ones(30, bool))], 50, seed=0)
    assert components.shape == (30, 28)
    assert (variance > 0).all()
    np.testing.assert_allclose(components[7], 0, atol=1e-12)
