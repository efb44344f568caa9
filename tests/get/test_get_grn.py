"""Reading a network that is written by hand: tables, matrices and graphs, after subsets and round trips."""

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.results._slots import params_to_json, set_slot

SPECIAL = "CD4+/CD45RA+"
GENES = ["TF/1", "TF2", "A", "B", "C"]
WEIGHTS = {  # (source, target): weight; A has no weight for TF2
    SPECIAL: {("TF/1", "A"): 0.9, ("TF/1", "B"): -0.7, ("TF2", "B"): 0.5, ("TF2", "TF/1"): -0.2, ("TF/1", "C"): 0.0},
    "count": {("TF/1", "A"): -0.1, ("TF2", "C"): 0.8, ("TF2", "B"): 0.6},
}


def matrix(weights: dict[tuple[str, str], float]) -> sp.csr_matrix:
    rows, columns = ([GENES.index(pair[i]) for pair in weights] for i in (1, 0))
    return sp.csr_matrix((np.array(list(weights.values()), np.float32), (rows, columns)), shape=(5, 5))


@pytest.fixture
def network() -> ad.AnnData:
    adata = ad.AnnData(np.ones((3, 5), np.float32), var=pd.DataFrame(index=GENES))
    tables = []
    for name, weights in WEIGHTS.items():
        set_slot(adata, "varp", f"grn.{name}", matrix(weights))
        pairs = sorted(weights, key=lambda pair, weights=weights: -abs(weights[pair]))
        tables.append(
            pd.DataFrame(
                {
                    "source": [pair[0] for pair in pairs],
                    "target": [pair[1] for pair in pairs],
                    "weight": [weights[pair] for pair in pairs],
                    "rank": np.arange(1, len(pairs) + 1),
                    "support": np.linspace(1, 0, len(pairs)),
                    "count": 7,
                    "condition": name,
                }
            )
        )
    set_slot(adata, "varp", "grn_difference.count", matrix({("TF/1", "A"): -1.0, ("TF2", "B"): 0.1}))
    params = {"method": "knockout", "groupby": "cell/type", "reference": SPECIAL, "conditions": list(WEIGHTS)}
    set_slot(adata, "uns", "grn", {"edges": pd.concat(tables, ignore_index=True), "params": params_to_json(params)})
    return adata


# table


def test_table(network):
    edges = bf.get.grn(network, condition=SPECIAL)
    assert list(edges.columns) == ["source", "target", "weight", "rank", "support", "count", "condition"]
    assert edges["target"].tolist() == ["A", "B", "B", "TF/1", "C"]
    assert edges["rank"].tolist() == [1, 2, 3, 4, 5]
    assert len(bf.get.grn(network)) == 8


def test_ranks_of_a_subset_are_computed_again_for_each_condition(network):
    edges = bf.get.grn(network[:, ["B", "C", "TF2", "TF/1"]].copy())
    columns = ["source", "target", "rank"]
    found = {name: list(rows[columns].itertuples(index=False, name=None)) for name, rows in edges.groupby("condition")}
    assert found == {
        SPECIAL: [("TF/1", "B", 1), ("TF2", "B", 2), ("TF2", "TF/1", 3), ("TF/1", "C", 4)],
        "count": [("TF2", "C", 1), ("TF2", "B", 2)],
    }
    assert bf.get.grn(network)["rank"].max() == 5  # the stored table is not changed


def test_a_subset_without_edges(network):
    assert bf.get.grn(network[:, ["A", "B"]].copy()).empty
    assert bf.get.grn_graph(network[:, ["A", "B"]].copy(), condition=SPECIAL).number_of_nodes() == 0


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_round_trip(network, tmp_path, format):
    path = tmp_path / f"x.{format}"
    getattr(network, f"write_{format}")(path)
    read = getattr(ad, f"read_{format}")(path)
    for name in WEIGHTS:
        pd.testing.assert_frame_equal(
            bf.get.grn(read, condition=name), bf.get.grn(network, condition=name), check_dtype=False
        )
        pd.testing.assert_frame_equal(
            bf.get.grn_matrix(read, condition=name), bf.get.grn_matrix(network, condition=name)
        )
    assert nx.utils.graphs_equal(
        bf.get.grn_graph(read, condition=SPECIAL), bf.get.grn_graph(network, condition=SPECIAL)
    )


# matrix


def test_matrix(network):
    found = bf.get.grn_matrix(network, condition=SPECIAL)
    expected = pd.DataFrame(
        [[np.nan, -0.2], [0.9, np.nan], [-0.7, 0.5], [0.0, np.nan]],
        ["TF/1", "A", "B", "C"],
        ["TF/1", "TF2"],
        dtype=np.float32,
    )
    pd.testing.assert_frame_equal(found, expected)  # 0 is a weight; TF2 with A has no weight


def test_matrix_of_differences(network):
    found = bf.get.grn_matrix(network, condition="count", difference=True)
    pd.testing.assert_frame_equal(
        found, pd.DataFrame([[-1.0, np.nan], [np.nan, 0.1]], ["A", "B"], ["TF/1", "TF2"], dtype=np.float32)
    )
    with pytest.raises(MissingKeyError, match=r"CD4\+/CD45RA\+' is the reference.*`condition=`: \['count'\]"):
        bf.get.grn_matrix(network, condition=SPECIAL, difference=True)


# graph


def test_graph(network):
    known = pd.DataFrame({"source": ["TF/1", "TF2"], "target": ["B", "A"], "resource": "x"})
    graph = bf.get.grn_graph(network, condition=SPECIAL, n_top=3, known=known)
    assert list(graph.edges) == [("TF/1", "A"), ("TF/1", "B"), ("TF2", "B")]
    assert graph.edges["TF/1", "B"] == {
        "weight": -0.7,
        "rank": 2,
        "support": pytest.approx(0.75),
        "count": 7,
        "known": True,
    }
    assert [pair for pair, marked in graph.edges.items() if marked["known"]] == [("TF/1", "B")]
    assert dict(graph.nodes(data="regulator")) == {"TF/1": True, "TF2": True, "A": False, "B": False}
    assert graph.graph == {"method": "knockout", "condition": SPECIAL}


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({"n_top": 1}, [("TF/1", "A")], id="of the whole network"),
        pytest.param({"n_top": 1, "regulators": ["TF2", "TF/1"]}, [("TF/1", "A"), ("TF2", "B")], id="of each"),
        pytest.param({"regulators": "TF2"}, [("TF2", "B"), ("TF2", "TF/1")], id="one name, all edges"),
    ],
)
def test_edges_of_the_graph(network, kwargs, expected):
    assert sorted(bf.get.grn_graph(network, condition=SPECIAL, **kwargs).edges) == sorted(expected)


def test_regulators_without_an_edge_are_left_out_with_a_warning(network):
    """C has no weight at all. B has a weight, but no edge in the table."""
    set_slot(network, "varp", "grn.count", matrix(WEIGHTS["count"] | {("B", "A"): 0.01}))
    message = r"\['B'\] have no edge among the strong.*larger `top_k`. \['C'\] have no edge in .*regulators=\['C'\]\)"
    with pytest.warns(BioformersWarning, match=message):
        graph = bf.get.grn_graph(network, condition="count", regulators=["B", "C", "TF2"])
    assert sorted(graph.edges) == [("TF2", "B"), ("TF2", "C")]
    with pytest.raises(DataError, match=message):
        bf.get.grn_graph(network, condition="count", regulators=["B", "C"])


def test_graphml(network, tmp_path):
    graph = bf.get.grn_graph(network, condition=SPECIAL, known=pd.DataFrame({"source": ["TF2"], "target": ["B"]}))
    nx.write_graphml(graph, tmp_path / "x.graphml")
    read = nx.read_graphml(tmp_path / "x.graphml")
    assert dict(read.edges) == dict(graph.edges)
    assert dict(read.nodes) == dict(graph.nodes)
    assert read.graph["condition"] == SPECIAL


# errors


READERS = {"table": bf.get.grn, "matrix": bf.get.grn_matrix, "graph": bf.get.grn_graph}


@pytest.mark.parametrize("name", READERS)
def test_missing_results(network, name):
    with pytest.raises(MissingKeyError, match=r"uns\['other'\].*Run `bf\.tl\.grn\(adata\)` first.*\['grn'\]"):
        READERS[name](network, key="other")
    with pytest.raises(MissingKeyError, match=r"`condition='B cell'` is not among.*CD4\+/CD45RA\+"):
        READERS[name](network, condition="B cell")


@pytest.mark.parametrize("name", ["matrix", "graph"])
def test_one_condition_at_a_time(network, name):
    with pytest.raises(ConfigError, match=r"`condition=`: .*CD4\+/CD45RA\+"):
        READERS[name](network)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"regulators": ["tf/1"]}, DataError, r"Not genes of the data: \['tf/1'\]. Similar names: \['TF/1'"),
        (
            {"regulators": ["A"]},
            DataError,
            r"\['A'\] have no edge in the network: .*`bf\.tl\.grn\(adata, regulators=\['A'",
        ),
        ({"n_top": 0}, ConfigError, "`n_top` must be at least 1, found 0"),
        ({"known": pd.DataFrame({"source": ["TF2"]})}, DataError, "columns 'source' and 'target'"),
        ({"known": [("TF2", "B")]}, ConfigError, "`known` must be a DataFrame"),
    ],
)
def test_graph_errors(network, kwargs, error, message):
    with pytest.raises(error, match=message):
        bf.get.grn_graph(network, condition=SPECIAL, **kwargs)
