"""Scores of networks: hand-computed cases, comparison with other implementations, and invariances."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, false_discovery_control, fisher_exact
from sklearn.metrics import average_precision_score

import scbioformers as bf
from scbioformers.core import ConfigError, DataError

GENES = list("ABCDEF")
# A regulates B (up) and C (down), B regulates C (up)
TRUTH = pd.DataFrame({"source": ["A", "A", "B"], "target": ["B", "C", "C"], "weight": [1, -1, 2.5]})


def square(**edges):
    """Return a 6 x 6 weight matrix; ``AB=1`` is an edge from A to B."""
    w = np.zeros((6, 6))
    for edge, weight in edges.items():
        w[GENES.index(edge[1]), GENES.index(edge[0])] = weight
    return w


def random_network(rng, n=30, n_regulators=8, share=0.15):
    names = [f"g{i}" for i in range(n)]
    linked = rng.random((n, n_regulators)) < share
    linked[np.arange(n_regulators), np.arange(n_regulators)] = False
    target, source = np.nonzero(linked)
    signs = rng.choice([-1, 1], len(target))
    truth = pd.DataFrame({"source": np.array(names)[source], "target": np.array(names)[target], "weight": signs})
    return names, names[:n_regulators], truth


# ranking and universe


def test_ranking_by_hand():
    # universe: regulators A, B and target genes A, B, C; ranked pairs AB, AC, BA, BC; true edges AB, AC, BC
    w = square(AB=4, BA=3, AC=-2, BC=-1, AD=99, CA=99, AA=99)
    found = bf.metrics.grn_scores(w, TRUTH, genes=GENES)
    assert (found.n_true, found.n_pairs, found.n_regulators, found.density) == (3, 4, 2, 0.75)
    assert found.auprc == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert found.auprc_ratio == pytest.approx(found.auprc / 0.75)
    assert found.early_precision == pytest.approx(2 / 3)
    assert found.epr == pytest.approx(2 / 3 / 0.75)
    assert found.n_recovered == 2
    assert found.sign_accuracy == 1  # AB and AC have the true sign; BC has the wrong sign but is not recovered


def test_universe_data_ranks_more_pairs():
    w = square(AB=4, AD=3, AC=-2, BC=-1)
    found = bf.metrics.grn_scores(w, TRUTH, genes=GENES, universe="data")
    assert (found.n_true, found.n_pairs) == (3, 10)
    assert found.auprc == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # an unknown regulator (ZZZ) and an unknown target (YYY) do not change the scores
    more = pd.concat([TRUTH, pd.DataFrame({"source": ["ZZZ", "A"], "target": ["B", "YYY"], "weight": [1, 1]})])
    assert bf.metrics.grn_scores(w, more, genes=GENES, universe="data") == found


def test_self_loops_and_duplicates_do_not_count():
    more = pd.concat([TRUTH, TRUTH, pd.DataFrame({"source": ["A"], "target": ["A"], "weight": [1]})])
    w = square(AB=4, BA=3, AC=-2, BC=-1, AA=99, BB=99)
    assert bf.metrics.grn_scores(w, more, genes=GENES) == bf.metrics.grn_scores(w, TRUTH, genes=GENES)


def test_ties_are_expanded():
    # AB is first; AC, BA and BC are tied on ranks 2 to 4, and two of them fit into the top three
    found = bf.metrics.grn_scores(square(AB=2, AC=1, BA=1, BC=-1), TRUTH, genes=GENES)
    assert found.n_recovered == pytest.approx(1 + 2 * 2 / 3)
    assert found.early_precision == pytest.approx((1 + 4 / 3) / 3)
    assert found.auprc == pytest.approx((1 + 2 * 3 / 4) / 3)
    # recovered: AB with the true sign; 2/3 of AC and 2/3 of BC with the wrong sign
    assert found.sign_accuracy == pytest.approx(1 / (1 + 4 / 3))


def test_early_precision_is_the_mean_over_all_orders_of_tied_edges():
    rng = np.random.default_rng(0)
    sizes, true = rng.integers(0, 3, 7), np.array([1, 0, 1, 1, 0, 0, 0], bool)
    names = ["R", *(f"t{i}" for i in range(7))]
    truth = pd.DataFrame({"source": "R", "target": np.array(names[1:])[true]})
    w = np.concatenate([[5], sizes])[:, None]
    found = bf.metrics.grn_scores(w, truth, genes=names, regulators=["R"], universe="data")
    orders = [order for order in itertools.permutations(range(7)) if (np.diff(sizes[list(order)]) <= 0).all()]
    assert found.early_precision == pytest.approx(np.mean([true[list(order[:3])].mean() for order in orders]))


def test_equal_weights_score_at_chance():
    found = bf.metrics.grn_scores(np.ones((6, 6)), TRUTH, genes=GENES, universe="data")
    assert (found.auprc_ratio, found.epr) == pytest.approx((1, 1))


def test_pairs_without_weight_rank_below_pairs_of_weight_zero():
    w = square(AB=1, AC=1)
    w[2, 1] = np.nan  # the true edge B to C now ranks below B to A, which has weight 0
    found = bf.metrics.grn_scores(w, TRUTH, genes=GENES)
    assert found.auprc == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found.early_precision == pytest.approx(2 / 3)
    assert np.isnan(bf.metrics.grn_scores(np.full((6, 6), np.nan), TRUTH, genes=GENES).sign_accuracy)


def test_auprc_equals_scikit_learn_on_listed_pairs():
    rng = np.random.default_rng(3)
    names, regulators, truth = random_network(rng)
    w = rng.normal(size=(30, 8)).round(1)
    edges = set(zip(truth["source"], truth["target"], strict=True))
    known = set(truth["source"]) | set(truth["target"])
    y, size = [], []
    for (i, target), (j, source) in itertools.product(enumerate(names), enumerate(regulators)):
        if target != source and target in known and source in set(truth["source"]):
            y.append((source, target) in edges)
            size.append(abs(w[i, j]))
    found = bf.metrics.grn_scores(w, truth, genes=names, regulators=regulators)
    assert found.auprc == pytest.approx(average_precision_score(y, size))
    assert (found.n_pairs, found.n_true) == (len(y), sum(y))


def test_order_of_rows_columns_and_edges_does_not_matter():
    rng = np.random.default_rng(4)
    names, regulators, truth = random_network(rng)
    w = rng.normal(size=(30, 8)).round(1)
    rows, columns = rng.permutation(30), rng.permutation(8)
    first = bf.metrics.grn_scores(w, truth, genes=names, regulators=regulators).to_dict()
    second = bf.metrics.grn_scores(
        w[np.ix_(rows, columns)],
        truth.sample(frac=1, random_state=0),
        genes=np.array(names)[rows],
        regulators=np.array(regulators)[columns],
    ).to_dict()
    assert first == pytest.approx(second)


def test_a_square_matrix_and_its_columns_score_the_same():
    rng = np.random.default_rng(5)
    names, regulators, truth = random_network(rng)
    w = rng.normal(size=(30, 30))
    assert bf.metrics.grn_scores(w, truth, genes=names) == bf.metrics.grn_scores(
        w[:, :8], truth, genes=names, regulators=regulators
    )


@pytest.mark.parametrize("universe", ["truth", "data"])
def test_random_weights_score_at_chance_on_average(universe):
    rng = np.random.default_rng(6)
    names, regulators, truth = random_network(rng, n=200)
    draws = [rng.normal(size=(200, 8)) for _ in range(200)]
    scores = [bf.metrics.grn_scores(w, truth, genes=names, regulators=regulators, universe=universe) for w in draws]
    assert np.mean([s.epr for s in scores]) == pytest.approx(1, abs=0.03)
    assert np.mean([s.auprc_ratio for s in scores]) == pytest.approx(1, abs=0.04)
    assert np.mean([s.sign_accuracy for s in scores]) == pytest.approx(0.5, abs=0.03)


def test_true_weights_score_best():
    names, regulators, truth = random_network(np.random.default_rng(7))
    w = np.zeros((30, 8))
    for edge in truth.itertuples():
        w[names.index(edge.target), regulators.index(edge.source)] = edge.weight
    found = bf.metrics.grn_scores(w, truth, genes=names, regulators=regulators)
    assert (found.auprc, found.early_precision, found.sign_accuracy) == (1, 1, 1)
    wrong = bf.metrics.grn_scores(-w, truth, genes=names, regulators=regulators)
    assert (wrong.auprc, wrong.early_precision, wrong.sign_accuracy) == (1, 1, 0)


@pytest.mark.parametrize(
    ("w", "truth"),
    [
        pytest.param(square(AB=1, AC=1, BC=1), TRUTH, id="weights"),
        pytest.param(square(AB=1, AC=-1), TRUTH.drop(columns="weight"), id="truth"),
        pytest.param(square(AB=1, AC=-1), TRUTH.assign(weight=[171, 154, 3]), id="truth-of-scores"),
    ],
)
def test_no_sign_accuracy_without_signs(w, truth):
    assert np.isnan(bf.metrics.grn_scores(w, truth, genes=GENES).sign_accuracy)


def test_contradictory_signs_count_as_edges_without_a_sign():
    both = pd.concat([TRUTH, TRUTH.iloc[:1].assign(weight=-1)])
    found = bf.metrics.grn_scores(square(AB=-3, AC=-2, BC=1), both, genes=GENES)
    assert (found.n_true, found.sign_accuracy) == (3, 1)


# errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.zeros((6, 5))}, r"\(6, 5\) do not match 6 genes .* 6 regulators"),
        (
            {"weights": np.zeros((6, 1)), "regulators": ["stat1"], "genes": ["STAT1", *GENES[1:]]},
            "'stat1' .near 'stat1': STAT1",
        ),
        ({"weights": np.full((6, 6), np.inf)}, "36 weights are infinite"),
        ({"genes": list("ABCDEA")}, "'A' more than once"),
        ({"truth": TRUTH.iloc[:0]}, "no edges"),
        ({"truth": pd.DataFrame({"source": ["A"], "target": ["A"]})}, "no edges"),
        ({"truth": pd.DataFrame({"Gene1": ["A"], "Gene2": ["B"]})}, "no column 'source', only .*Gene1"),
        ({"truth": TRUTH.assign(source=["a", "a", "b"])}, "None of the 3 true edges.*near 'a': A"),
        ({"truth": TRUTH.assign(target=["b1", "c1", "c1"])}, "None of the 3 true edges.*'b1'"),
    ],
)
def test_bad_input_raises(changes, message):
    arguments = {"weights": np.zeros((6, 6)), "truth": TRUTH, "genes": GENES} | changes
    with pytest.raises(DataError, match=message):
        bf.metrics.grn_scores(**arguments)


def test_unknown_universe():
    with pytest.raises(ConfigError, match="'genome'"):
        bf.metrics.grn_scores(np.zeros((6, 6)), TRUTH, genes=GENES, universe="genome")


# overlap of top edges


def test_jaccard_by_hand():
    a, b = square(AB=3, AC=-2, AD=1, AA=9), square(AB=-1, AD=2, BC=3, BB=9)
    assert bf.metrics.jaccard_top(a, b, 1) == 0
    assert bf.metrics.jaccard_top(a, b, 2) == 0  # AB, AC against BC, AD
    assert bf.metrics.jaccard_top(a, b, 3) == 2 / 4  # AB, AC, AD against BC, AD, AB
    assert bf.metrics.jaccard_top(a, b, 1000) == 2 / 4  # `k` exceeds the number of edges
    assert bf.metrics.jaccard_top(a, a, 2) == 1


def test_jaccard_finds_self_loops_by_name():
    a, b = np.array([[1.0, 9], [9, 2], [3, 4]]), np.array([[5.0, 9], [9, 2], [0, 0]])
    assert bf.metrics.jaccard_top(a, b, 3, genes=list("ABC"), regulators=["B", "A"]) == 1 / 4
    with pytest.raises(DataError, match="not square"):
        bf.metrics.jaccard_top(a, b, 1)


def test_jaccard_without_edges_and_with_ties():
    empty = np.full((3, 3), np.nan)
    assert np.isnan(bf.metrics.jaccard_top(empty, np.zeros((3, 3)), 2))
    assert bf.metrics.jaccard_top(empty, np.ones((3, 3)), 2) == 0
    # among ties the edges of the first row are taken: (0, 1) and (0, 2)
    first = np.zeros((3, 3))
    first[0] = 7
    assert bf.metrics.jaccard_top(np.ones((3, 3)), first, 2) == 1
    with pytest.raises(DataError, match=r"`b` has the shape \(2, 2\); expected \(3, 3\)"):
        bf.metrics.jaccard_top(empty, np.ones((2, 2)), 1)
    with pytest.raises(ConfigError, match="`k`"):
        bf.metrics.jaccard_top(empty, empty, 0)


# random networks


def test_degrees_are_preserved_and_edges_are_not():
    _, _, truth = random_network(np.random.default_rng(8), n=60)
    original = set(zip(truth["source"], truth["target"], strict=True))
    networks = list(bf.metrics.degree_preserving_null(truth, n=20, rng=1))
    assert len(networks) == 20
    for null in networks:
        edges = set(zip(null["source"], null["target"], strict=True))
        assert len(edges) == len(truth)  # no duplicates
        assert all(source != target for source, target in edges)
        for end in ("source", "target"):
            assert null[end].value_counts().to_dict() == truth[end].value_counts().to_dict()
        signs = null.groupby("source")["weight"].sum()
        assert signs.to_dict() == truth.groupby("source")["weight"].sum().to_dict()
        assert len(edges & original) < 0.5 * len(original)


def test_all_networks_with_the_same_degrees_are_equally_likely():
    # three regulators with one target each: 6 possible networks
    truth = pd.DataFrame({"source": list("ABC"), "target": list("XYZ")})
    drawn = ["".join(null["target"]) for null in bf.metrics.degree_preserving_null(truth, n=3000, rng=0)]
    counts = pd.Series(drawn).value_counts()
    assert len(counts) == 6
    assert counts.between(*binom(3000, 1 / 6).interval(0.9999)).all()


def test_null_is_reproducible_and_does_not_modify_the_truth():
    _, _, truth = random_network(np.random.default_rng(9))
    before = truth.copy()
    first, second, other = (
        next(bf.metrics.degree_preserving_null(truth, n=1, rng=rng)) for rng in (3, 3, np.random.default_rng(3))
    )
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(other)
    pd.testing.assert_frame_equal(truth, before)


def test_score_of_degrees_alone_does_not_exceed_the_null():
    rng = np.random.default_rng(10)
    names, regulators, truth = random_network(rng, n=80)
    in_degree = truth["target"].value_counts().reindex(names, fill_value=0).to_numpy()
    hubs = np.tile(in_degree[:, None] + 0.1 * rng.random((80, 8)), 1)

    def score(edges):
        return bf.metrics.grn_scores(hubs, edges, genes=names, regulators=regulators, universe="data").auprc

    null = [score(edges) for edges in bf.metrics.degree_preserving_null(truth, n=50)]
    found = bf.metrics.compare_with_null(score(truth), null)
    density = bf.metrics.grn_scores(hubs, truth, genes=names, regulators=regulators, universe="data").density
    assert found.mean > 1.2 * density  # hubs score above random pairs
    assert found.p > 0.05
    assert found.ratio == pytest.approx(1, abs=0.15)


def test_comparison_with_null_by_hand():
    found = bf.metrics.compare_with_null(5, [1, 2, 5, 8], level=0.5)
    assert (found.mean, found.ratio, found.p) == (4, 1.25, 3 / 5)
    assert (found.low, found.high) == tuple(np.quantile([1, 2, 5, 8], [0.25, 0.75]))
    for bad in ([], [[1.0]], [np.nan]):
        with pytest.raises(DataError, match="finite scores"):
            bf.metrics.compare_with_null(1, bad)
    with pytest.raises(ConfigError, match="level"):
        bf.metrics.compare_with_null(1, [1], level=1)


def test_null_raises_without_edges_or_networks():
    with pytest.raises(DataError, match="no edges"):
        bf.metrics.degree_preserving_null(TRUTH.iloc[:0])
    with pytest.raises(ConfigError, match="`n`"):
        bf.metrics.degree_preserving_null(TRUTH, n=0)


# enrichment


def test_enrichment_equals_fishers_exact_test():
    rng = np.random.default_rng(11)
    background = [f"g{i}" for i in range(120)]
    groups = {f"p{i}": list(rng.choice(background, 15, replace=False)) for i in range(3)}
    sets = {f"s{i}": {*rng.choice(background, 30, replace=False), "elsewhere"} for i in range(4)}
    found = bf.metrics.enrichment(groups, sets | {"foreign": {"elsewhere"}}, background)
    assert len(found) == 12
    for row in found.itertuples():
        a, b = set(groups[row.group]), sets[row.gene_set] - {"elsewhere"}
        table = [[len(a & b), len(a - b)], [len(b - a), 120 - len(a | b)]]
        assert row.p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
        assert (row.hits, row.size, row.set_size) == (len(a & b), 15, 30)
        assert row.expected == pytest.approx(15 * 30 / 120)
    np.testing.assert_allclose(found["p_adjusted"], false_discovery_control(found["p"]))


def test_repeated_genes_count_once():
    once = bf.metrics.enrichment({"p": ["A", "B"]}, {"s": ["A", "C"]}, list("ABCD"))
    again = bf.metrics.enrichment({"p": ["A", "B", "A"]}, {"s": ["A", "C", "C"]}, list("AABCD"))
    pd.testing.assert_frame_equal(again, once)
    assert bf.metrics.enrichment({"p": ["A"]}, {}, list("AB")).empty


def test_a_set_of_nearly_all_genes_is_not_significant():
    background = [f"g{i}" for i in range(100)]
    found = bf.metrics.enrichment({"top": background[:10]}, {"chip": set(background[:90])}, background)
    assert found["hits"][0] == 10
    assert found["p"][0] > 0.3


def test_top_targets_by_hand():
    # the top two targets of A are B and C, both known; F has no weight, E has weight 0; A itself is not a target
    w = square(AB=-3, AC=2, AD=1, AA=9, BC=1, BD=1, BE=1)
    w[5, 0] = np.nan
    truth = pd.DataFrame({"source": ["A", "A", "B", "D"], "target": ["B", "C", "E", "elsewhere"]})
    found = bf.metrics.edge_enrichment(w, truth, genes=GENES, k=(2, 4)).set_index(["k", "regulator"])
    assert found.index.tolist() == [(2, "A"), (2, "B"), (4, "A"), (4, "B")]
    assert found.loc[(2, "A"), ["size", "set_size", "hits"]].tolist() == [2, 2, 2]
    assert found.loc[(2, "A"), "p"] == pytest.approx(1 / 10)  # 1 of the 10 pairs of 5 genes
    assert found.loc[(4, "A"), "size"] == 3  # E and F are not targets
    assert found.loc[(4, "A"), "p"] == pytest.approx(3 / 10)
    assert found.loc[(2, "B"), ["hits", "p"]].tolist() == [0, 1]  # among tied targets the first rows are taken
    assert found.loc[(4, "B"), "p"] == pytest.approx(3 / 5)
    assert found.loc[(2, "A"), "p_adjusted"] == pytest.approx(2 / 10)
    assert found["genes"].tolist() == ["B, C", "", "B, C", "E"]  # the strongest first


def test_background_limits_the_top_targets():
    w = square(AB=3, AC=2, AD=1)
    truth = pd.DataFrame({"source": ["A", "A"], "target": ["C", "B"]})
    found = bf.metrics.edge_enrichment(w, truth, genes=GENES, k=1, background=["A", "C", "D"])
    assert found[["hits", "set_size", "p"]].to_numpy().tolist() == [[1, 1, 0.5]]
    none = bf.metrics.edge_enrichment(w, truth, genes=GENES, k=1, background=["D", "E"])
    assert none.empty
    assert none.columns.tolist() == found.columns.tolist()


def test_enrichment_raises_on_unknown_genes_and_bad_k():
    with pytest.raises(DataError, match=r"outside the background: 'b' .*near 'b': B"):
        bf.metrics.enrichment({"p": ["A", "b"]}, {}, GENES)
    with pytest.raises(DataError, match="'p' has no genes"):
        bf.metrics.enrichment({"p": []}, {}, GENES)
    with pytest.raises(DataError, match="no row: 'a'"):
        bf.metrics.edge_enrichment(square(), TRUTH, genes=GENES, background=["a"])
    for k in (0, 1.5, [10, -1]):
        with pytest.raises(ConfigError, match="`k`"):
            bf.metrics.edge_enrichment(square(), TRUTH, genes=GENES, k=k)
