"""Baselines of networks: comparison with scipy and explicit forests, and invariances."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import pearsonr, spearmanr
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

import scbioformers as bf
from scbioformers.core import ConfigError, DataError

FORMATS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc_array": sparse.csc_array,
    "coo": sparse.coo_matrix,
    "float32": lambda X: X.astype(np.float32),
}
REGULATORS = [4, 0, 2]


@pytest.fixture(scope="module")
def X():
    """Sparse expression with ties and one constant gene."""
    rng = np.random.default_rng(0)
    X = np.log1p(rng.poisson(0.8, size=(60, 7))).astype(float)
    X[:, 5] = np.log1p(2)
    return X


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("edges", "reference"), [("pearson", pearsonr), ("spearman", spearmanr)])
@pytest.mark.parametrize("shift", [0, -1.0])
def test_correlations_equal_scipy(X, form, edges, reference, shift):
    shifted = np.where(X > 0, X + shift, 0)  # includes negative values
    found = getattr(bf.metrics, f"{edges}_edges")(FORMATS[form](shifted), REGULATORS)
    assert found.shape == (7, 3)
    for gene in range(7):
        for column, regulator in enumerate(REGULATORS):
            if gene == regulator or gene == 5:
                assert found[gene, column] == 0
            else:
                expected = reference(shifted[:, gene], shifted[:, regulator]).statistic
                assert found[gene, column] == pytest.approx(expected, abs=1e-5 if form == "float32" else 1e-12)


def test_all_genes_regulate_by_default(X):
    found = bf.metrics.pearson_edges(X)
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 0)
    np.testing.assert_allclose(found[:, REGULATORS], bf.metrics.pearson_edges(X, REGULATORS))


def test_stored_zeros_and_duplicate_entries_are_handled(X):
    half = sparse.coo_matrix(X)
    doubled = sparse.coo_matrix(
        (np.r_[half.data / 2, half.data / 2, 0], (np.r_[half.row, half.row, 3], np.r_[half.col, half.col, 1])), X.shape
    )
    before = doubled.data.copy()
    np.testing.assert_allclose(bf.metrics.spearman_edges(doubled), bf.metrics.spearman_edges(X), atol=1e-12)
    np.testing.assert_array_equal(doubled.data, before)
    explicit = sparse.csc_matrix(X)
    explicit.data[:3] = 0
    n_stored = explicit.nnz
    np.testing.assert_allclose(bf.metrics.spearman_edges(explicit), bf.metrics.spearman_edges(explicit.toarray()))
    assert explicit.nnz == n_stored


def test_spearman_depends_only_on_ranks(X):
    np.testing.assert_allclose(bf.metrics.spearman_edges(np.expm1(X)), bf.metrics.spearman_edges(X), atol=1e-12)
    assert not np.allclose(bf.metrics.pearson_edges(np.expm1(X)), bf.metrics.pearson_edges(X), atol=1e-3)


def test_expression_by_hand():
    X = np.array([[1.0, 0, 4], [3, 2, 0]])
    found = bf.metrics.expression_edges(X, [0, 1])  # means 2, 1, 2
    assert found.tolist() == [[0, 2], [2, 0], [4, 2]]
    assert bf.metrics.expression_edges(sparse.csr_matrix(X), [0, 1]).tolist() == found.tolist()
    assert bf.metrics.expression_edges(X, [0, 1], of="target").tolist() == [[0, 2], [1, 0], [2, 2]]
    assert bf.metrics.expression_edges(X, [0, 1], of="regulator").tolist() == [[0, 1], [2, 0], [2, 1]]
    with pytest.raises(ConfigError, match="`of`"):
        bf.metrics.expression_edges(X, of="genome")


@pytest.mark.parametrize(
    ("forest", "model"), [("extra_trees", ExtraTreesRegressor), ("random_forest", RandomForestRegressor)]
)
def test_genie3_weights_are_the_explained_variance(X, forest, model):
    found = bf.metrics.genie3_edges(X, REGULATORS, forest=forest, n_trees=12, seed=3)
    assert (found >= 0).all()
    assert found[5].tolist() == [0, 0, 0]
    for gene in (0, 3):
        others = [regulator for regulator in REGULATORS if regulator != gene]
        y = X[:, gene] / X[:, gene].std()
        grown = model(12, max_features="sqrt", random_state=np.random.RandomState([3, gene]))
        grown.fit(X[:, others].astype(np.float32), y)
        expected = {regulator: 0.0 for regulator in REGULATORS}
        for tree in grown.estimators_:
            t = tree.tree_
            for node in np.flatnonzero(t.children_left >= 0):
                children = t.children_left[node], t.children_right[node]
                left = [t.weighted_n_node_samples[c] * t.impurity[c] for c in children]
                gain = t.weighted_n_node_samples[node] * t.impurity[node] - sum(left)
                expected[others[t.feature[node]]] += gain / t.weighted_n_node_samples[0] / 12
        np.testing.assert_allclose(found[gene], [expected[regulator] for regulator in REGULATORS], atol=1e-6)
        # the total variance is 1; a bootstrap sample can exceed it
        assert found[gene].sum() <= 1 + (forest == "random_forest")


def test_genie3_finds_regulators_that_correlations_miss():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 6))
    X[:, 5] = X[:, 1] ** 2 + 0.1 * rng.normal(size=300)
    trees, linear = bf.metrics.genie3_edges(X, range(5), n_trees=30), bf.metrics.pearson_edges(X, range(5))
    assert trees[5].argmax() == 1
    assert trees[5, 1] > 0.5 > 0.3 > abs(linear[5, 1])


def test_genie3_depends_on_the_seed_but_not_on_threads_or_format(X):
    first = bf.metrics.genie3_edges(X, REGULATORS, n_trees=5)
    np.testing.assert_array_equal(first, bf.metrics.genie3_edges(X, REGULATORS, n_trees=5, n_jobs=3))
    np.testing.assert_array_equal(first, bf.metrics.genie3_edges(sparse.csr_matrix(X), REGULATORS, n_trees=5))
    assert not np.array_equal(first, bf.metrics.genie3_edges(X, REGULATORS, n_trees=5, seed=1))
    some = bf.metrics.genie3_edges(X, REGULATORS, targets=[6, 1], n_trees=5)
    np.testing.assert_array_equal(some[[1, 6]], first[[1, 6]])
    assert not np.delete(some, [1, 6], axis=0).any()
    state = np.random.get_state()[1].copy()
    bf.metrics.genie3_edges(X, REGULATORS, n_trees=2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_reordered_cells_genes_and_regulators_give_reordered_weights(X):
    rng = np.random.default_rng(2)
    genes, cells = rng.permutation(7), rng.permutation(60)
    new_column = np.argsort(genes)
    for edges in (bf.metrics.pearson_edges, bf.metrics.spearman_edges, bf.metrics.expression_edges):
        moved = edges(X[np.ix_(cells, genes)], new_column[REGULATORS])
        np.testing.assert_allclose(moved, edges(X, REGULATORS)[genes], atol=1e-12)


def test_edges_of_a_linear_network_are_found():
    rng = np.random.default_rng(3)
    true = (rng.random((24, 6)) < 0.3) * rng.choice([-1.0, 1.0], (24, 6))
    X = rng.normal(size=(400, 30))
    X[:, 6:] = X[:, :6] @ true.T + 0.5 * X[:, 6:]
    names = [f"g{i}" for i in range(30)]
    target, source = np.nonzero(true)
    truth = pd.DataFrame({
        "source": np.array(names)[source], "target": np.array(names)[target + 6], "weight": true[target, source]
    })  # fmt: skip
    keywords = {"genes": names, "regulators": names[:6]}
    for edges in (bf.metrics.pearson_edges, bf.metrics.spearman_edges):
        found = bf.metrics.grn_scores(edges(X, range(6)), truth, **keywords)
        assert found.auprc > 0.95
        assert found.sign_accuracy == 1
    for forest in ("extra_trees", "random_forest"):
        weights = bf.metrics.genie3_edges(X, range(6), forest=forest, n_trees=20)
        assert bf.metrics.grn_scores(weights, truth, **keywords).auprc > 0.95


def test_edges_of_simulated_cells_are_found_with_their_signs():
    adata = bf.datasets.simulate(n_cells=600, n_genes=80, n_regulators=8, n_types=1)
    names, regulators = adata.var_names.to_numpy(), np.flatnonzero(adata.var["regulator"])
    weights = bf.metrics.pearson_edges(bf.metrics.log1p_normalize(adata.X), regulators)
    found = bf.metrics.grn_scores(weights, adata.uns["grn_true"], genes=names, regulators=names[regulators])
    assert found.auprc_ratio > 1.25
    assert found.sign_accuracy > 0.85


# errors


@pytest.mark.parametrize(
    ("matrix", "regulators", "message"),
    [
        (np.array([[1.0, np.nan]]), None, "1 values of the expression are not finite"),
        (sparse.csr_matrix([[1.0, np.inf]]), None, "1 values of the expression are not finite"),
        (np.zeros((0, 3)), None, r"has the shape \(0, 3\)"),
        (np.zeros(3), None, r"has the shape \(3,\); expected \(N, M\)"),
        (np.zeros((2, 3)), [3], "between 0 and 2"),
        (np.zeros((2, 3)), [-1], "between 0 and 2"),
        (np.zeros((2, 3)), np.zeros(0, int), "between 0 and 2"),
        (np.zeros((2, 3)), [1, 1], "distinct"),
        (np.zeros((2, 3)), [0.5], "get_indexer"),
        (np.zeros((2, 3)), ["STAT1"], "get_indexer"),
    ],
)
@pytest.mark.parametrize("edges", ["pearson_edges", "spearman_edges", "genie3_edges", "expression_edges"])
def test_bad_input_raises(edges, matrix, regulators, message):
    with pytest.raises(DataError, match=message):
        getattr(bf.metrics, edges)(matrix, regulators)


@pytest.mark.parametrize("changes", [{"forest": "random"}, {"n_trees": 0}, {"n_jobs": 0}])
def test_bad_parameters_raise(changes):
    with pytest.raises(ConfigError, match=f"`{next(iter(changes))}`"):
        bf.metrics.genie3_edges(np.eye(3), **changes)


def test_one_cell_and_one_regulator_give_zero_weights():
    for edges in (bf.metrics.pearson_edges, bf.metrics.spearman_edges, bf.metrics.genie3_edges):
        assert edges(np.ones((1, 3)), [1]).tolist() == [[0], [0], [0]]
