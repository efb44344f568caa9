"""Gene regulatory networks: results, invariances, conditions, and errors."""

import warnings

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tqdm.auto import tqdm

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.data import AnnDataSource, MemorySource
from scbioformers.results._slots import get_slot, params_from_json
from scbioformers.tasks import EdgeScorer
from scbioformers.tasks._grn import sum_attention

METHODS = ("knockout", "embedding", "attention")
SPECIAL = "CD4+/CD45RA+"
CONFIG = bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=3, batch_size=16)


@pytest.fixture(scope="module")
def fitted_once() -> ad.AnnData:
    """90 cells: 4 conditions (40, 25, 20 and 3 cells), 2 cells without. No cell expresses both G1 and G2."""
    adata = bf.datasets.simulate(90, 25, n_regulators=5, rng=0)
    names = [SPECIAL] * 40 + ["count"] * 25 + ["."] * 20 + ["few"] * 3 + [None] * 2
    order = np.random.default_rng(0).permutation(90)
    adata.obs["condition"] = pd.Categorical(np.array(names, dtype=object)[order], [SPECIAL, "count", ".", "few"])
    x = adata.X.toarray()
    at = adata.var_names.get_indexer(["G1", "G2"])
    x[:, at] = np.maximum(x[:, at], 1) * np.array([np.arange(90) % 2, (np.arange(90) + 1) % 2]).T
    adata.X = sp.csr_matrix(x)
    bf.tl.fit(adata, config=CONFIG, train=TRAIN, n_models=2)
    return adata


@pytest.fixture
def fitted(fitted_once) -> ad.AnnData:
    return fitted_once.copy()


def grn(adata, **kwargs):
    """A copy with the network. The warning about a small condition is ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)
        return bf.tl.grn(adata, copy=True, **kwargs)


def same(one: ad.AnnData, other: ad.AnnData, *, exact=True) -> None:
    """Assert that the stored networks are the same."""
    names = {name for name in one.varp if name.startswith("grn")}
    assert names == {name for name in other.varp if name.startswith("grn")}
    for name in names:
        a, b = one.varp[name].toarray(), other.varp[name].toarray()
        np.testing.assert_allclose(a, b, atol=0 if exact else 2e-5)
        assert one.varp[name].nnz == other.varp[name].nnz
    if exact:
        pd.testing.assert_frame_equal(bf.get.grn(one), bf.get.grn(other))


# results


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_means_over_the_members(fitted, method):
    regulators = ["TF1", "TF4", "G1"]
    found = grn(fitted, method=method, regulators=regulators, n_cells=None, min_count=1)
    model = bf.get.model(fitted)
    chosen = np.array([model.vocabulary.feature_names().index(gene) for gene in regulators])
    scorer, cells = EdgeScorer(model, method, chosen), AnnDataSource(fitted).read(0, 90)
    pairs = [scorer.score(network, MemorySource(cells), 0, tqdm(disable=True)) for network in model.members]
    expected = np.mean([member.weight for member in pairs], axis=0)
    table = bf.get.grn_matrix(found).reindex(index=model.vocabulary.feature_names(), columns=regulators)
    np.testing.assert_allclose(table, expected, atol=1e-6)
    count = found.varp["grn_count"].toarray()[:, fitted.var_names.get_indexer(regulators)]
    seen = ~np.eye(25, dtype=bool)[:, chosen]
    assert np.array_equal(count[seen], pairs[0].count[seen])
    assert found.varp["grn"].dtype == np.float32
    assert found.varp["grn_count"].dtype == np.int32
    assert set(found.varp) == {"grn", "grn_count"}


def test_attention_that_each_regulator_receives(fitted):
    """Compare with a loop over cells: sum over the expressed genes, mean over cells and members."""
    regulators = ["TF1", "G1"]
    found = grn(fitted, method="attention", regulators=regulators, groupby="condition", n_cells=None)
    model, rows = bf.get.model(fitted), np.flatnonzero(fitted.obs["condition"] == ".")
    at = [model.vocabulary.feature_names().index(gene) for gene in regulators]
    received = np.zeros(2)
    for network in model.members:
        for row in rows:
            total, _ = sum_attention(
                model, network, [AnnDataSource(fitted).read(row, row + 1)], None, None, tqdm(disable=True)
            )
            received += total.sum(axis=0)[at] / len(rows) / 2
    stored = {name: get_slot(found, "var", f"grn_attention.{name}", hint="") for name in (SPECIAL, "count", ".")}
    np.testing.assert_allclose(stored["."][regulators], received, rtol=1e-4)
    assert [column.notna().sum() for column in stored.values()] == [2, 2, 2]


@pytest.mark.fault(80)
def test_support_is_the_share_of_members_with_the_edge(fitted):
    """A single member cannot support its own edges: the support is NaN."""
    found = grn(fitted, top_k=10, n_cells=None)
    model, held = bf.get.model(fitted), []
    for member in range(2):
        alone = ad.AnnData(fitted.X, obs=fitted.obs, var=fitted.var)
        only = bf.BioFormer(**{**model.__dict__, "members": (model.members[member],)})
        table = bf.get.grn(grn(alone, model=only, top_k=10, n_cells=None))
        assert table["support"].isna().all()
        held.append(set(zip(table["source"], table["target"], strict=True)))
    edges = bf.get.grn(found)
    assert len(edges) == 10
    for edge in edges.itertuples():
        assert edge.support == sum((edge.source, edge.target) in member_edges for member_edges in held) / 2
    assert 0 < len(held[0] & held[1]) < 10


def test_the_table_holds_the_strongest_edges_of_each_condition(fitted):
    found = grn(fitted, groupby="condition", top_k=30, n_cells=None, method="knockout")
    edges = bf.get.grn(found)
    assert edges.groupby("condition").size().to_dict() == {SPECIAL: 30, "count": 30, ".": 30}
    for name, rows in edges.groupby("condition"):
        matrix = bf.get.grn_matrix(found, condition=name)
        assert rows["rank"].tolist() == list(range(1, 31))
        weights = [matrix.loc[edge.target, edge.source] for edge in rows.itertuples()]
        np.testing.assert_allclose(rows["weight"], weights, rtol=1e-6)
        assert (rows["source"] != rows["target"]).all()
    params = params_from_json(found.uns["grn"]["params"])
    assert params["conditions"] == [SPECIAL, "count", "."]
    assert params["n_cells"] == {SPECIAL: 40, "count": 25, ".": 20}
    assert params["model_hash"] == bf.get.model(fitted).hash


def test_difference_from_the_reference(fitted):
    found = grn(fitted, groupby="condition", reference="count", method="attention", n_cells=None)
    for name in (SPECIAL, "."):
        one, two = (bf.get.grn_matrix(found, condition=each) for each in (name, "count"))
        difference = bf.get.grn_matrix(found, condition=name, difference=True)
        expected = (one - two).reindex(index=difference.index, columns=difference.columns)
        np.testing.assert_allclose(difference, expected, atol=1e-7)
        assert np.isfinite(expected.to_numpy()).sum() == np.isfinite((one - two).to_numpy()).sum()
    assert sum("difference" in key for key in found.varp) == 2


def test_earlier_networks_of_the_same_key_are_removed(fitted):
    found = grn(fitted, method="attention", groupby="condition", reference="count")
    found.varp["grn_mine"] = found.varp["grn.count"]
    bf.tl.grn(found, method="attention", key_added="other")
    bf.tl.grn(found, method="embedding")
    assert set(found.varp) == {"grn", "grn_count", "grn_mine", "other", "other_count"}
    assert [name for name in found.var if "attention" in name] == ["other_attention"]
    found.uns["grn"] = {"params": {"of": "another package"}}
    bf.tl.grn(found, method="embedding")
    assert not bf.get.grn(found).empty


@pytest.mark.fault(43)
def test_genes_that_are_never_expressed_together_have_no_weight(fitted):
    found = grn(fitted, method="attention", n_cells=None)
    a, b = fitted.var_names.get_indexer(["G1", "G2"])
    weight, count = found.varp["grn"].tocoo(), found.varp["grn_count"]
    stored = set(zip(weight.row, weight.col, strict=True))
    assert not {(a, b), (b, a), (a, a)} & stored
    assert count[a, b] == count[b, a] == 0
    matrix = bf.get.grn_matrix(found)
    assert np.isnan(matrix.loc["G1", "G2"])
    assert np.isnan(matrix.loc["G1", "G1"])
    assert np.isfinite(matrix.loc["G1", "TF1"])
    expressed = fitted.X.toarray() > 0
    together = expressed.T.astype(int) @ expressed
    np.fill_diagonal(together, 0)
    assert np.array_equal(count.toarray(), together)


@pytest.mark.fault(80)
@pytest.mark.parametrize("method", METHODS)
def test_edges_from_few_cells_do_not_rank(fitted, method):
    """Genes that one, two and three cells express: only the last one has edges, unless the user asks for all."""
    x = fitted.X.toarray()
    x[:, 5:8] = 0
    x[4, 5], x[[4, 7], 6], x[[4, 7, 9], 7] = 30, 30, 30
    fitted.X = sp.csr_matrix(x)
    genes = list(fitted.var_names[5:8])
    every = grn(fitted, method=method, regulators=[*genes, "TF1"], n_cells=None, min_count=1)
    found = grn(fitted, method=method, regulators=[*genes, "TF1"], n_cells=None)
    count = found.varp["grn_count"].toarray()
    together = (x > 0).T.astype(int) @ (x > 0)
    assert np.array_equal(count, every.varp["grn_count"].toarray())
    assert [count[:, at].max() for at in (5, 6, 7)] == [1, 2, 3]
    np.fill_diagonal(together, 0)
    assert method != "attention" or np.array_equal(count[:, 5:8], together[:, 5:8])
    edges = bf.get.grn(found)
    assert edges["count"].min() >= 3
    assert not set(genes[:2]) & {*edges["source"], *edges["target"]}
    one, all_weights = bf.get.grn_matrix(found), bf.get.grn_matrix(every)
    assert genes[0] in all_weights and genes[0] not in one and genes[2] in one
    pd.testing.assert_frame_equal(one, all_weights.loc[one.index, one.columns].where(one.notna()))
    bf.tl.regulators(found)
    assert set(bf.get.regulators(found)["regulator"]) == {genes[2], "TF1"}


@pytest.mark.fault(80)
def test_a_network_without_a_weight_raises_a_warning(fitted):
    with pytest.warns(BioformersWarning, match=r"networks of \['all cells'\] are empty.*at least 500 cells"):
        bf.tl.grn(fitted, regulators=["TF1"], min_count=500)
    assert bf.get.grn(fitted).empty
    assert fitted.varp["grn"].nnz == 0 < fitted.varp["grn_count"].nnz


@pytest.mark.fault(74)
def test_equal_numbers_of_cells_only_with_a_reference(fitted):
    kwargs = {"groupby": "condition", "regulators": ["TF1"]}

    def n_cells(adata) -> dict[str, int]:
        return params_from_json(adata.uns["grn"]["params"])["n_cells"]

    own = grn(fitted, **kwargs)
    assert n_cells(own) == {SPECIAL: 40, "count": 25, ".": 20}
    assert n_cells(grn(fitted, n_cells=22, **kwargs)) == {SPECIAL: 22, "count": 22, ".": 20}
    assert n_cells(grn(fitted, reference="count", **kwargs)) == {SPECIAL: 20, "count": 20, ".": 20}
    assert n_cells(grn(fitted, reference="count", n_cells=12, **kwargs)) == {SPECIAL: 12, "count": 12, ".": 12}
    alone = grn(fitted[fitted.obs["condition"] == "count"].copy(), regulators=["TF1"])
    np.testing.assert_allclose(bf.get.grn_matrix(own, condition="count"), bf.get.grn_matrix(alone), atol=1e-6)


@pytest.mark.fault(74)
def test_the_condition_that_limits_all_networks_is_named(fitted):
    fitted.obs["type"] = pd.Categorical(["rare"] * 11 + ["other"] * 34 + ["most"] * 45)
    message = r"All networks are computed from 11 cells, because 'rare' .*45 cells. Pass `min_cells=12` to leave it out"
    with pytest.warns(BioformersWarning, match=message):
        bf.tl.grn(fitted, groupby="type", reference="other", regulators=["TF1"])
    with pytest.warns(BioformersWarning, match=r"\(`min_cells`\) are skipped: \{'rare': 11\}"):
        bf.tl.grn(fitted, groupby="type", reference="other", regulators=["TF1"], min_cells=12)  # as the message says
    assert params_from_json(fitted.uns["grn"]["params"])["n_cells"] == {"most": 34, "other": 34}
    with pytest.warns(BioformersWarning, match=r"It is the reference. Pass another `reference=` with `min_cells=12`"):
        bf.tl.grn(fitted, groupby="type", reference="rare", regulators=["TF1"])
    bf.tl.grn(fitted, groupby="type", reference="other", regulators=["TF1"], n_cells=20)  # 11 of 20: no warning
    bf.tl.grn(fitted, groupby="type", regulators=["TF1"])
    fitted.obs["type"] = pd.Categorical(["tiny"] * 4 + ["most"] * 86)
    bf.tl.grn(fitted, groupby="type", regulators=["TF1"], min_cells=3)
    assert params_from_json(fitted.uns["grn"]["params"])["n_cells"] == {"most": 86, "tiny": 4}


# without directions


def test_without_regulators_each_edge_has_one_row(fitted):
    found = grn(fitted, top_k=400)
    weight = found.varp["grn"]
    assert weight.nnz > 500 and abs(weight - weight.T).max() == 0
    edges = bf.get.grn(found)
    pairs = [frozenset(pair) for pair in zip(edges["source"], edges["target"], strict=True)]
    matrix = bf.get.grn_matrix(found)
    upper = np.triu(matrix.loc[matrix.columns].abs().to_numpy(), 1)
    assert len(set(pairs)) == len(pairs) == np.isfinite(upper[np.triu_indices(len(upper), 1)]).sum() <= 300
    assert edges["rank"].tolist() == list(range(1, len(pairs) + 1))
    weights = [matrix.loc[target, source] for source, target in zip(edges["source"], edges["target"], strict=True)]
    np.testing.assert_allclose(edges["weight"], weights, rtol=1e-6)
    single = bf.BioFormer(**{**bf.get.model(fitted).__dict__, "members": bf.get.model(fitted).members[:1]})
    ranked = bf.get.grn(grn(fitted, model=single, top_k=400))["weight"].abs()
    assert ranked.is_monotonic_decreasing  # with one member the rank is that of the weight
    directed = grn(fitted, regulators=list(fitted.var_names), top_k=10_000)
    assert len(bf.get.grn(directed)) == weight.nnz == directed.varp["grn"].nnz
    np.testing.assert_allclose(directed.varp["grn"].toarray(), weight.toarray(), atol=1e-6)
    for method in ("knockout", "attention"):
        assert isinstance(bf.get.grn_graph(grn(fitted, method=method, n_cells=20)), nx.DiGraph)


def test_the_graph_without_directions(fitted):
    found = grn(fitted, top_k=60)
    edges = bf.get.grn(found)
    graph = bf.get.grn_graph(found, known=edges[["target", "source"]].set_axis(["source", "target"], axis=1).head(3))
    assert not graph.is_directed() and graph.number_of_edges() == 60
    assert not any(dict(graph.nodes(data="regulator")).values())
    assert sum(edge["known"] for edge in graph.edges.values()) == 3  # in the other order
    gene = edges["target"].value_counts().index[0]  # often the second gene of an edge
    touching = edges[(edges["source"] == gene) | (edges["target"] == gene)]
    part = bf.get.grn_graph(found, regulators=[gene])
    assert {edge["rank"] for edge in part.edges.values()} == set(touching["rank"])
    part = bf.get.grn_graph(found, regulators=gene, n_top=2)
    assert {edge["rank"] for edge in part.edges.values()} == set(touching["rank"].nsmallest(2))


# invariances


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_network(fitted, method):
    kwargs = {"method": method, "groupby": "condition", "n_cells": 12, "regulators": ["TF1", "TF2"]}
    first = grn(fitted, rng=1, **kwargs)
    state = np.random.get_state()[1].copy()
    same(first, grn(fitted, rng=1, **kwargs))
    assert np.array_equal(np.random.get_state()[1], state)
    other = bf.get.grn_matrix(grn(fitted, rng=2, **kwargs), condition=SPECIAL)
    assert not np.array_equal(other, bf.get.grn_matrix(first, condition=SPECIAL), equal_nan=True)


def test_the_order_of_conditions_cells_genes_and_regulators(fitted):
    kwargs = {"groupby": "condition", "n_cells": 20, "regulators": ["TF1", "TF2"], "reference": "count"}
    expected = grn(fitted, **kwargs)
    turned = fitted.copy()
    turned.obs["condition"] = turned.obs["condition"].cat.reorder_categories(["few", ".", "count", SPECIAL])
    found = grn(turned, **kwargs)
    for name in (SPECIAL, "count", "."):
        one, two = (bf.get.grn_matrix(each, condition=name) for each in (found, expected))
        pd.testing.assert_frame_equal(one, two)
    same(grn(fitted, **(kwargs | {"regulators": ["TF2", "TF1", "TF2"]})), expected)  # duplicates have no effect
    shuffled = fitted[:, np.random.default_rng(0).permutation(25)].copy()
    for name in (SPECIAL, "count", "."):
        one, two = (bf.get.grn_matrix(each, condition=name) for each in (grn(shuffled, **kwargs), expected))
        np.testing.assert_allclose(one.loc[two.index, two.columns], two, atol=1e-6)


@pytest.mark.fault(53)
@pytest.mark.fault(53)
def test_names_of_conditions_survive_files(fitted, tmp_path):
    found = grn(fitted, groupby="condition", reference=SPECIAL, regulators=["TF1"])
    for format in ("h5ad", "zarr"):
        path = tmp_path / f"x.{format}"
        getattr(found, f"write_{format}")(path)
        read = getattr(ad, f"read_{format}")(path)
        for name in (SPECIAL, "count", "."):
            one, two = (bf.get.grn_matrix(each, condition=name) for each in (read, found))
            pd.testing.assert_frame_equal(one, two)
            one, two = (bf.get.grn(each, condition=name) for each in (read, found))
            pd.testing.assert_frame_equal(one, two, check_dtype=False)
        bf.get.grn_matrix(read, condition="count", difference=True)


@pytest.mark.fault(14)
def test_backed(fitted, tmp_path):
    fitted.write_h5ad(tmp_path / "x.h5ad")
    before = (tmp_path / "x.h5ad").read_bytes()
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    bf.tl.grn(backed, regulators=["TF1", "TF2"])
    same(backed, grn(fitted, regulators=["TF1", "TF2"]))
    backed.file.close()
    assert (tmp_path / "x.h5ad").read_bytes() == before


@pytest.mark.fault(17)
def test_a_view_is_copied_without_a_warning(fitted):
    view = fitted[:50]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bf.tl.grn(view, regulators=["TF1"])
    assert not view.is_view
    assert "grn" in view.varp
    assert "grn" not in fitted.varp


def test_a_copy_does_not_change_the_input(fitted):
    before = fitted.copy()
    grn(fitted, groupby="condition", reference="count")
    assert set(fitted.varp) == set(before.varp)
    assert set(fitted.uns) == set(before.uns)
    assert np.array_equal(fitted.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(fitted.obs, before.obs)


@pytest.mark.parametrize("method", METHODS)
def test_genes_that_are_not_measured(fitted, method):
    query = fitted[:, [g for g in fitted.var_names if g not in ("TF2", "G3")]].copy()
    del query.uns["bioformer"]
    found = grn(query, model=fitted, method=method, n_cells=None)
    edges = bf.get.grn(found)
    assert not {"TF2", "G3"} & {*edges["source"], *edges["target"]}
    assert {"TF1", "G4"} <= {*edges["source"], *edges["target"]}
    assert found.varp["grn"].shape == (23, 23)
    assert np.isfinite(edges["weight"]).all()
    with pytest.raises(DataError, match=r"1 modelled but not measured, such as \['TF2'\]"):
        grn(query, model=fitted, regulators=["TF2"])


@pytest.mark.parametrize("method", METHODS)
def test_genes_that_are_not_modelled(fitted, method):
    extra = ad.AnnData(sp.csr_matrix(np.ones((90, 2))), obs=fitted.obs[[]], var=pd.DataFrame(index=["new/1", "new2"]))
    wider = ad.concat([extra, fitted], axis=1, merge="first")
    found = grn(wider, model=fitted, method=method, regulators=["TF1"], n_cells=None)
    assert found.varp["grn"].shape == (27, 27)
    assert found.varp["grn"][:2].nnz == 0
    assert found.varp["grn"][:, :2].nnz == 0
    assert bf.get.grn_matrix(found).columns.tolist() == ["TF1"]


# conditions


def test_small_conditions_are_skipped_with_a_warning(fitted):
    with pytest.warns(BioformersWarning, match=r"fewer than 10 cells \(`min_cells`\) are skipped: \{'few': 3\}"):
        bf.tl.grn(fitted, groupby="condition", regulators=["TF1"])
    assert not any("few" in name for name in fitted.varp)
    assert set(bf.get.grn(fitted)["condition"]) == {SPECIAL, "count", "."}
    with pytest.raises(MissingKeyError, match="`condition='few'` is not among"):
        bf.get.grn(fitted, condition="few")


def test_cells_without_a_condition_are_ignored(fitted):
    kwargs = {"groupby": "condition", "n_cells": None, "method": "attention"}
    kept = fitted[fitted.obs["condition"].notna()].copy()
    one, two = grn(fitted, **kwargs), grn(kept, **kwargs)
    for name in ("grn_count.count", "grn_count.."):
        assert name in one.varp
        assert one.varp[name].sum() > 0
    smallest = "."  # all of its cells are used
    pd.testing.assert_frame_equal(
        bf.get.grn_matrix(one, condition=smallest), bf.get.grn_matrix(two, condition=smallest), atol=1e-6
    )


# errors


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"groupby": "kind"}, MissingKeyError, r"obs\['kind'\].*condition"),
        ({"reference": "count"}, ConfigError, "`reference` requires `groupby`"),
        ({"groupby": "condition", "reference": "B"}, DataError, r"reference='B'` is not among.*CD4\+/CD45RA\+"),
        ({"groupby": "condition", "reference": "few"}, DataError, r"at least 10 cells.*'few': 3"),
        ({"groupby": "cell"}, DataError, "at least 10 cells of a condition"),
        ({"regulators": ["tf1"]}, DataError, r"`regulators`: 0 of 1 name can be used.*near 'tf1': TF1"),
        ({"top_k": 0}, ConfigError, "`top_k` and `min_count` must be at least 1"),
        ({"min_count": 0}, ConfigError, "`top_k` and `min_count` must be at least 1"),
        ({"min_cells": 1}, ConfigError, "`min_cells` at least 2"),
        ({"n_cells": 9}, ConfigError, r"`n_cells` must be at least `min_cells` \(10\), found 9"),
        ({"method": "cosine"}, ConfigError, "'knockout', 'embedding' or 'attention', found 'cosine'"),
        ({"method": "attention", "heads": [2]}, ConfigError, "numbers from 0 to 1"),
        ({"key": "other"}, MissingKeyError, r"Run `bf\.tl\.fit\(adata\)` first"),
    ],
)
def test_errors(fitted, kwargs, error, message):
    fitted.obs["cell"] = fitted.obs_names
    with pytest.raises(error, match=message):
        bf.tl.grn(fitted, **kwargs)
    assert not len(fitted.varp)
    assert "grn" not in fitted.uns


def test_too_few_cells(fitted):
    with pytest.raises(DataError, match=r"at least 10 cells \(`min_cells`\), found 9"):
        bf.tl.grn(fitted[:9].copy())


def test_a_model_without_attention(simulated):
    config = bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8, attention=False)
    bf.tl.fit(simulated, config=config, train=TRAIN)
    with pytest.raises(ConfigError, match=r"fitted without attention.*Pass `method='knockout'`"):
        bf.tl.grn(simulated, method="attention")
    bf.tl.grn(simulated, regulators=["TF1"])
    rare = (simulated.X.toarray() > 0).sum(axis=0) < 3
    assert bf.get.grn_matrix(simulated).shape == (39 - rare.sum(), 1)  # without the pair of TF1 with itself
