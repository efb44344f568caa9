import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import scbioformers as bf
from benchmarks._masked_methods import Problem
from benchmarks.decoder import GENERATORS, auroc, compare, draw_counts


@pytest.fixture(scope="module")
def problem():
    adata = bf.datasets.simulate(n_cells=400, n_genes=60, rng=0)
    return Problem.make(adata[:, adata.X.sum(axis=0).A1 > 0].copy(), 0)


@pytest.mark.parametrize("method", ["independent", "training_cells"])
def test_generated_cells_have_the_depths_of_the_test_cells(problem, method):
    drawn, _ = GENERATORS[method](problem)
    real = problem.test_cells.counts.toarray()
    assert drawn.shape == real.shape
    assert (drawn == np.rint(drawn)).all()
    assert np.corrcoef(drawn.sum(axis=1), real.sum(axis=1))[0, 1] > (0.9 if method == "training_cells" else 0.6)


def test_genes_that_are_drawn_alone_have_no_correlations(problem):
    real = problem.test_cells.counts.toarray().astype(float)
    scores = {name: compare(GENERATORS[name](problem)[0], real, problem) for name in ("independent", "training_cells")}
    assert scores["training_cells"]["correlations"] > scores["independent"]["correlations"] + 0.2
    same = compare(real, real, problem)
    assert (same["variance"], same["zeros"], same["distance"]) == (0, 0, 1)
    assert same["correlations"] == pytest.approx(1)


def test_cells_that_differ_are_told_apart():
    random = np.random.default_rng(0)
    x, is_real = random.normal(size=(200, 3)), np.repeat([0, 1], 100)
    assert abs(auroc(LogisticRegression(), x, is_real) - 0.5) < 0.12
    assert auroc(LogisticRegression(), x + 3 * is_real[:, None], is_real) > 0.99


def test_counts_have_the_mean_and_the_variance_of_a_negative_binomial():
    drawn = draw_counts(np.full((50_000, 2), [4.0, 0.5]), np.array([2.0, 10.0]), 0)
    np.testing.assert_allclose(drawn.mean(axis=0), [4, 0.5], rtol=0.03)
    np.testing.assert_allclose(drawn.var(axis=0), [4 + 16 / 2, 0.5 + 0.25 / 10], rtol=0.04)
