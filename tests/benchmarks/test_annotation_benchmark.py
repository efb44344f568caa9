import numpy as np
import pytest

import scbioformers as bf
from benchmarks.annotation import METHODS, Problem, draw_given, read_problem


def test_a_fifth_of_each_label_is_given_and_at_least_five_cells():
    truth = np.repeat(["many", "some", "few"], [200, 12, 3])
    given = draw_given(truth, seed=0)
    assert [given[truth == name].sum() for name in ("many", "some", "few")] == [40, 5, 3]
    assert (draw_given(truth, seed=0) == given).all()
    assert (draw_given(truth, seed=1) != given).any()


def test_cells_of_a_removed_type_are_neither_fitted_nor_given(tmp_path):
    adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_types=3, rng=0)
    adata.write_h5ad(tmp_path / "pbmc3k.h5ad")
    removed = adata.obs["cell_type"].iloc[0]
    problem = read_problem(tmp_path, "unknown", "pbmc3k", removed, seed=0)
    of_type = problem.truth == removed
    assert not problem.fitted[of_type].any()
    assert not problem.given[of_type].any()
    assert problem.fitted[~of_type].all()
    assert problem.given[~of_type].any()


@pytest.mark.parametrize("method", ["ours_untrained", "knn_pca", "logistic_pca", "logistic_hvg", "majority"])
def test_no_method_sees_the_labels_of_the_test_cells(method):
    adata = bf.datasets.simulate(n_cells=120, n_genes=60, n_types=2, rng=0)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()  # fits warn of genes without counts
    adata.var["highly_variable"] = True
    truth = adata.obs["cell_type"].to_numpy(str)
    given = draw_given(truth, seed=0)
    hidden = np.where(given, truth, "nothing")
    everything = np.ones(adata.n_obs, dtype=bool)
    found = [METHODS[method](Problem(adata, labels, given, everything), 0) for labels in (truth, hidden)]
    np.testing.assert_array_equal(found[0].probabilities, found[1].probabilities)
    np.testing.assert_allclose(found[0].probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[0].unlike, found[1].unlike)
