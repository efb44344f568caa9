import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from scbioformers.baselines import log1p_normalize, pca, pca_binned, pca_log1p
from scbioformers.core._errors import ConfigError, DataError


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.5, size=20), size=(40, 20)).astype(float)


def test_log1p_normalize_by_hand():
    counts = np.array([[1, 3], [2, 6], [0, 0]])
    # the median depth of the two cells with counts is 6
    np.testing.assert_allclose(log1p_normalize(counts), np.log1p([[1.5, 4.5], [1.5, 4.5], [0, 0]]), rtol=1e-6)
    np.testing.assert_allclose(
        log1p_normalize(counts, depth=[10, 16, 5], target_sum=20), np.log1p([[2, 6], [2.5, 7.5], [0, 0]]), rtol=1e-6
    )


def test_log1p_normalize_equals_scanpy(counts):
    import scanpy as sc

    adata = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    ours = log1p_normalize(sparse.csr_matrix(counts))
    assert isinstance(ours, sparse.csr_matrix)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours.toarray(), adata.X.toarray(), rtol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(sparse.csr_matrix, id="csr"),
        pytest.param(sparse.csc_matrix, id="csc"),
        pytest.param(sparse.csr_array, id="csr_array"),
        pytest.param(lambda X: sparse.csr_matrix(X.astype(np.int64)), id="integer"),
    ],
)
def test_formats_agree_and_input_is_not_changed(counts, convert):
    given = convert(counts)
    before = given.toarray().copy()
    np.testing.assert_allclose(log1p_normalize(given).toarray(), log1p_normalize(counts), rtol=1e-6)
    np.testing.assert_allclose(pca_log1p(given, 5), pca_log1p(counts, 5), atol=1e-4)
    np.testing.assert_allclose(pca_binned(given, 5), pca_binned(counts, 5), atol=1e-4)
    np.testing.assert_array_equal(given.toarray(), before)


def test_counts_of_zero_stay_zero():
    np.testing.assert_array_equal(log1p_normalize(np.zeros((3, 2))), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        pytest.param(np.ones(3), r"`depth` has the shape \(3,\); expected \(40,\)", id="length"),
        pytest.param(np.full(40, -1.0), "not negative", id="negative"),
        pytest.param(np.full(40, np.nan), "finite", id="nan"),
    ],
)
def test_bad_depth_raises(counts, depth, message):
    with pytest.raises(DataError, match=message):
        log1p_normalize(counts, depth=depth)


def test_pca_equals_svd_of_the_centred_matrix(counts):
    ours = pca(counts, 6)
    left, singular, _ = np.linalg.svd(counts - counts.mean(axis=0), full_matrices=False)
    expected = left[:, :6] * singular[:6]
    expected *= np.sign((expected * ours).sum(axis=0))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert ours.dtype == np.float32


def test_pca_does_not_depend_on_the_seed(counts):
    np.testing.assert_allclose(pca(counts, 4, seed=0), pca(counts, 4, seed=1), atol=1e-4)


def test_pca_log1p_uses_the_depth_given(counts):
    depth = np.linspace(10, 1000, len(counts))
    np.testing.assert_allclose(
        pca_log1p(counts, 3, depth=depth), pca(log1p_normalize(counts, depth=depth), 3), atol=1e-5
    )
    assert np.abs(pca_log1p(counts, 3, depth=depth) - pca_log1p(counts, 3)).max() > 0.1


@pytest.mark.parametrize("n_components", [0, 20, 50])
def test_bad_number_of_components_raises(counts, n_components):
    with pytest.raises(ConfigError, match=rf"n_components={n_components} is outside 1…19"):
        pca(counts, n_components)
