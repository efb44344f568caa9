"""Pairs of genes by mutual attention: hand-written networks, and a network of a fitted model against a slow version."""

import warnings
from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, MissingKeyError
from scbioformers.results._slots import params_to_json, set_slot

SPECIAL = "CD4+/CD45RA+"
GENES = ["A", "B/1", "C", "D"]
# (source, target): (weight, count). No weight: D with any gene in the first condition, C to B/1 in the second one.
# The count of a pair is the same in both directions of a network; here it differs, to see which one is shown.
PAIRS = {
    SPECIAL: {
        ("A", "B/1"): (0.75, 9),
        ("B/1", "A"): (0.25, 7),
        ("A", "C"): (0.5, 5),
        ("C", "A"): (0.5, 6),
        ("B/1", "C"): (-0.5, 4),
        ("C", "B/1"): (1.0, 4),
    },
    "count": {
        ("A", "B/1"): (0.0, 3),
        ("B/1", "A"): (0.25, 3),
        ("C", "D"): (0.5, 8),
        ("D", "C"): (2.0, 8),
        ("A", "D"): (0.5, 2),
        ("D", "A"): (0.5, 2),
    },
}
EXPECTED = {  # source, target, weight, rank, count
    SPECIAL: [("A", "C", 0.5, 1, 5), ("A", "B/1", 0.25, 2, 7), ("B/1", "C", -0.5, 3, 4)],
    "count": [("A", "D", 0.5, 1, 2), ("C", "D", 0.5, 2, 8), ("A", "B/1", 0.0, 3, 3)],
}
COLUMNS = ["source", "target", "weight", "rank", "support", "count", "condition"]


def network(pairs=PAIRS, top_k: int = 10, method: str = "attention") -> ad.AnnData:
    adata = ad.AnnData(np.ones((3, 4), np.float32), var=pd.DataFrame({"id": ["g1", "g2", "g3", "g4"]}, index=GENES))
    for condition, of_condition in pairs.items():
        rows, columns = ([GENES.index(pair[end]) for pair in of_condition] for end in (1, 0))
        for at, (name, dtype) in enumerate([("grn", np.float32), ("grn_count", np.int32)]):
            values = np.array([each[at] for each in of_condition.values()], dtype)
            set_slot(adata, "varp", f"{name}.{condition}", sp.csr_matrix((values, (rows, columns)), shape=(4, 4)))
    params = {"method": method, "groupby": "cell/type", "reference": None, "conditions": list(pairs), "top_k": top_k}
    edges = pd.DataFrame({"source": ["D"], "target": ["A"], "weight": [9.0], "rank": [1], "support": [np.nan]})
    edges = edges.assign(count=3, condition=SPECIAL)  # the pairs are not read from this table
    set_slot(adata, "uns", "grn", {"edges": edges, "params": params_to_json(params)})
    return adata


def rows(table: pd.DataFrame) -> list[tuple]:
    return list(table[["source", "target", "weight", "rank", "count"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("condition", PAIRS)
def test_the_smaller_weight_and_count_of_each_pair(condition):
    found = bf.get.grn(network(), condition=condition, mutual=True)
    assert list(found.columns) == COLUMNS
    assert rows(found) == EXPECTED[condition]
    assert found["support"].isna().all()
    assert set(found["condition"]) == {condition}
    assert found.index.tolist() == [0, 1, 2]


def test_all_conditions():
    adata = network()
    both = bf.get.grn(adata, mutual=True)
    assert rows(both) == EXPECTED[SPECIAL] + EXPECTED["count"]
    assert both["condition"].tolist() == [SPECIAL] * 3 + ["count"] * 3
    assert rows(bf.get.grn(adata)) == [("D", "A", 9.0, 1, 3)]  # the table of edges is not changed


def test_the_strongest_pairs_of_each_condition():
    found = bf.get.grn(network(top_k=2), mutual=True)
    assert rows(found) == EXPECTED[SPECIAL][:2] + EXPECTED["count"][:2]


def test_names_in_a_column():
    found = bf.get.grn(network(), condition="count", mutual=True, gene_symbols="id")
    assert list(zip(found["source"], found["target"], strict=True)) == [("g1", "g4"), ("g3", "g4"), ("g1", "g2")]


def test_a_subset_has_the_strongest_pairs_of_the_remaining_genes():
    adata = network(top_k=1)[:, ["D", "C", "B/1"]].copy()
    assert rows(bf.get.grn(adata, condition=SPECIAL, mutual=True)) == [("C", "B/1", -0.5, 1, 4)]
    assert rows(bf.get.grn(adata, condition="count", mutual=True)) == [("D", "C", 0.5, 1, 8)]
    assert bf.get.grn(adata[:, ["D", "B/1"]].copy(), mutual=True).empty


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_round_trip(tmp_path, format):
    adata, path = network(), tmp_path / f"x.{format}"
    getattr(adata, f"write_{format}")(path)
    read = getattr(ad, f"read_{format}")(path)
    pd.testing.assert_frame_equal(bf.get.grn(read, mutual=True), bf.get.grn(adata, mutual=True))


# networks of some regulators


ONE_WAY = {SPECIAL: {**PAIRS[SPECIAL], ("A", "D"): (3.0, 9), ("C", "D"): (2.0, 9)}}


def test_pairs_in_one_direction_are_left_out_with_a_warning():
    message = (
        r"two regulators.*The other 2 pairs are left out.*`bf\.tl\.grn\(adata, method=\"attention\"\)` without `reg"
    )
    with pytest.warns(BioformersWarning, match=message):
        found = bf.get.grn(network(ONE_WAY), mutual=True)
    assert rows(found) == EXPECTED[SPECIAL]


def test_a_network_of_one_regulator_has_no_pair():
    pairs = {SPECIAL: {("A", "D"): (3.0, 9), ("A", "C"): (2.0, 9)}}
    with pytest.warns(BioformersWarning, match="The other 2 pairs are left out"):
        found = bf.get.grn(network(pairs), mutual=True)
    assert found.empty
    assert list(found.columns) == COLUMNS


# errors


@pytest.mark.parametrize("method", ["embedding", "knockout"])
@pytest.mark.parametrize("read", [bf.get.grn, bf.get.grn_graph, bf.pl.grn_network])
def test_other_methods_are_refused(method, read):
    adata = network(method=method)
    message = (
        rf"requires a network by attention, found one by '{method}'. Run `bf\.tl\.grn\(adata, method=\"attention\"\)`"
    )
    with pytest.raises(ConfigError, match=message):
        read(adata, condition=SPECIAL, mutual=True)


def test_the_suggested_call_keeps_the_key():
    adata = network(method="embedding")
    adata.uns["other"] = adata.uns.pop("grn")
    with pytest.raises(ConfigError, match=r"method=\"attention\", key_added='other'\)`"):
        bf.get.grn(adata, mutual=True, key="other")


def test_unknown_conditions_and_values():
    with pytest.raises(MissingKeyError, match="`condition='B cell'` is not among"):
        bf.get.grn(network(), condition="B cell", mutual=True)
    with pytest.raises(ConfigError, match="`mutual` must be"):
        bf.get.grn(network(), mutual="yes")


# graph and figure


def test_graph():
    known = pd.DataFrame({"source": ["C"], "target": ["A"]})
    graph = bf.get.grn_graph(network(), condition=SPECIAL, mutual=True, known=known)
    assert not graph.is_directed()
    assert list(graph.edges) == [("A", "C"), ("A", "B/1"), ("B/1", "C")]
    assert [graph.edges[pair]["weight"] for pair in graph.edges] == [0.5, 0.25, -0.5]
    assert [graph.edges[pair]["known"] for pair in graph.edges] == [True, False, False]
    assert not any(regulator for _, regulator in graph.nodes(data="regulator"))
    of_b = bf.get.grn_graph(network(), condition=SPECIAL, mutual=True, regulators="B/1", n_top=1)
    assert [set(pair) for pair in of_b.edges] == [{"A", "B/1"}]


def test_figure_has_lines_without_arrows():
    ax = bf.pl.grn_network(network(), condition=SPECIAL, mutual=True, n_top=2, show=False)
    assert ax.get_title() == f"2 strongest mutual pairs in {SPECIAL}"
    heads = [type(patch.get_arrowstyle()).__name__ for patch in ax.patches]
    assert heads == ["Curve", "Curve"]
    assert "regulator" not in [text.get_text() for text in ax.get_legend().get_texts()]


# a fitted model


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    adata = bf.datasets.simulate(n_cells=60, n_genes=24, n_regulators=4, rng=3)
    bf.tl.fit(adata, n_models=2, train=bf.TrainConfig(max_steps=3), progress_bar=False)
    return adata


@pytest.mark.parametrize("regulators", [None, ["TF3", "TF1", "TF2"]])
@pytest.mark.filterwarnings("ignore:Only pairs of two regulators")
def test_against_a_slow_version(fitted, regulators):
    adata = fitted.copy()
    bf.tl.grn(adata, method="attention", regulators=regulators, top_k=50, progress_bar=False)
    weight = bf.get.grn_matrix(adata)
    slow = {}
    for a, b in combinations(adata.var_names, 2):
        if {a, b} <= set(weight.columns) & set(weight.index):
            smaller = min(weight.loc[a, b], weight.loc[b, a])
            if np.isfinite(smaller):
                slow[a, b] = smaller
    found = bf.get.grn(adata, mutual=True)
    pairs = list(zip(found["source"], found["target"], strict=True))
    assert len(pairs) == len(set(pairs)) == min(50, len(slow)) == (50 if regulators is None else 3)
    assert found["weight"].tolist() == pytest.approx(sorted(slow.values(), reverse=True)[:50])
    assert found["weight"].tolist() == pytest.approx([slow[pair] for pair in pairs])
    counts = pd.DataFrame(adata.varp["grn_count"].toarray(), adata.var_names, adata.var_names)
    assert found["count"].tolist() == [counts.loc[a, b] for a, b in pairs] == [counts.loc[b, a] for a, b in pairs]


def test_all_genes_as_regulators_give_no_warning(fitted):
    """A pair has the same number of cells in both directions, so only regulators= leaves pairs with one weight."""
    adata = fitted.copy()
    bf.tl.grn(adata, method="attention", top_k=50, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BioformersWarning)
        pairs = bf.get.grn(adata, mutual=True)
    assert len(pairs) == min(50, adata.varp["grn"].nnz // 2)
