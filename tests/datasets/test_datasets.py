import socket

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scbioformers.baselines import log1p_normalize, pca
from scbioformers.core._errors import ConfigError
from scbioformers.datasets import pbmc68k, simulate
from scbioformers.metrics import embedding_scores


@pytest.fixture(scope="module")
def pbmc():
    return pbmc68k()


@pytest.fixture(scope="module")
def stored():
    return sc.datasets.pbmc68k_reduced()


@pytest.fixture(scope="module")
def simulated():
    return simulate(n_cells=1500, n_genes=200, n_batches=3, n_regulators=8, perturbations=["TF1", "TF2", "TF1+TF2"])


def test_pbmc68k_holds_counts(pbmc, stored):
    assert isinstance(pbmc.X, sparse.csr_matrix)
    assert pbmc.X.dtype == np.float32
    assert pbmc.shape == (700, 765)
    np.testing.assert_array_equal(pbmc.X.data, np.rint(pbmc.X.data))
    assert (pbmc.X.max(axis=1).toarray() >= 1).all()
    assert pbmc.X.data.min() == 1
    assert list(pbmc.obs["bulk_labels"]) == list(stored.obs["bulk_labels"])
    assert pbmc.obs["bulk_labels"].nunique() == 10
    assert list(pbmc.var_names) == list(stored.raw.var_names)


def test_pbmc68k_counts_reproduce_the_stored_values(pbmc, stored):
    normalized = np.expm1(stored.raw.X.toarray().astype(float))
    unit = np.where(normalized > 0, normalized, np.inf).min(axis=1, keepdims=True)
    assert np.abs(pbmc.X.toarray() - normalized / unit).max() < 0.12
    np.testing.assert_allclose(np.log1p(pbmc.X.toarray() * unit), stored.raw.X.toarray(), atol=2e-3)


def test_pbmc68k_smallest_value_is_one_count_of_the_whole_transcriptome(pbmc, stored):
    # the stored values were normalised to 10,000 counts per cell, which is an independent check of the counts
    again = log1p_normalize(pbmc.X, depth=pbmc.obs["n_counts"], target_sum=1e4)
    np.testing.assert_allclose(again.toarray(), stored.raw.X.toarray(), atol=2e-3)
    assert (np.asarray(pbmc.X.sum(axis=1)).ravel() < pbmc.obs["n_counts"]).all()


@pytest.mark.filterwarnings("ignore:.*future.infer_string:DeprecationWarning")  # raised by anndata 0.13 with pandas 3.1
@pytest.mark.filterwarnings("error")
def test_pbmc68k_needs_no_network_and_does_not_warn(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert pbmc68k().n_obs == 700


def test_simulate_returns_counts_and_annotations(simulated):
    assert isinstance(simulated.X, sparse.csr_matrix)
    assert simulated.X.dtype == np.float32
    assert simulated.shape == (1500, 200)
    assert simulated.X.data.min() >= 1
    np.testing.assert_array_equal(simulated.X.data, np.rint(simulated.X.data))
    assert simulated.var["regulator"].sum() == 8
    assert list(simulated.obs["cell_type"].cat.categories) == [f"type_{k}" for k in range(1, 6)]
    assert list(simulated.obs["perturbation"].value_counts().index) == ["control", "TF1", "TF2", "TF1+TF2"]
    assert simulated.obs["perturbation"].value_counts().max() <= 375


def test_simulate_is_deterministic():
    first, again = simulate(100, 40, n_regulators=5, rng=3), simulate(100, 40, n_regulators=5, rng=3)
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())
    pd.testing.assert_frame_equal(first.uns["grn_true"], again.uns["grn_true"])
    generator = simulate(100, 40, n_regulators=5, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(first.X.toarray(), generator.X.toarray())
    assert (first.X != simulate(100, 40, n_regulators=5, rng=4).X).nnz > 0


def test_simulate_without_perturbations_or_batches():
    adata = simulate(100, 40, n_regulators=5)
    assert set(adata.obs["perturbation"]) == {"control"}
    assert set(adata.obs["batch"]) == {"batch_1"}
    assert "perturbation_true" not in adata.uns


def test_simulated_batches_differ_in_depth(simulated):
    depth = pd.Series(np.asarray(simulated.X.sum(axis=1)).ravel(), index=simulated.obs_names)
    median = depth.groupby(simulated.obs["batch"], observed=True).median()
    assert median["batch_1"] == pytest.approx(2 * 200, rel=0.1)
    assert median["batch_2"] / median["batch_1"] == pytest.approx(0.5, rel=0.1)
    assert median["batch_3"] / median["batch_1"] == pytest.approx(0.25, rel=0.1)


def test_simulated_types_are_distinguishable(simulated):
    X = pca(log1p_normalize(simulated.X), 20)
    assert embedding_scores(X, simulated.obs["cell_type"]).linear_f1 > 0.9


def test_simulated_counts_are_overdispersed():
    adata = simulate(4000, 60, n_types=1, n_regulators=2)
    X = log1p_normalize(adata.X)
    counts = np.expm1(X.toarray())
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    high = mean > 1
    assert high.sum() >= 10
    assert np.median(variance[high] / mean[high]) > 1.3


def test_simulated_edges_are_signed_correlations():
    adata = simulate(3000, 200, n_types=1, n_regulators=10, rng=1)
    names = pd.Index(adata.var_names)
    correlation = np.corrcoef(log1p_normalize(adata.X).toarray().T)
    edges = adata.uns["grn_true"]
    expressed = np.asarray(adata.X.mean(axis=0)).ravel() > 0.5
    source, target = names.get_indexer(edges["source"]), names.get_indexer(edges["target"])
    seen = expressed[source] & expressed[target]
    assert seen.sum() > 50
    of_edges = correlation[source, target][seen]
    assert (np.sign(of_edges) == np.sign(edges["weight"].to_numpy()[seen])).mean() > 0.9
    others = np.abs(correlation[:10][:, expressed])
    assert np.median(np.abs(of_edges)) > 3 * np.median(others)


def test_simulated_network_is_acyclic_and_signed(simulated):
    edges = simulated.uns["grn_true"]
    assert list(edges.columns) == ["source", "target", "weight"]
    assert nx.is_directed_acyclic_graph(nx.from_pandas_edgelist(edges, create_using=nx.DiGraph))
    assert edges["weight"].abs().between(0.5, 1.5).all()
    assert 0.35 < (edges["weight"] > 0).mean() < 0.65
    assert set(edges["source"]) <= set(simulated.var_names[simulated.var["regulator"]])
    targets = edges[edges["target"].str.startswith("G")].groupby("target").size()
    assert len(targets) == 192
    assert targets.between(1, 3).all()


def test_simulated_effects_follow_the_edges(simulated):
    effects = simulated.uns["perturbation_true"]
    edges = simulated.uns["grn_true"]
    network = nx.from_pandas_edgelist(edges, edge_attr="weight", create_using=nx.DiGraph)
    for name in ("TF1", "TF2"):
        reached = nx.descendants(network, name) | {name}
        assert set(effects.index[effects[name] != 0]) == reached
        assert effects.loc[name, name] < -1
        direct_only = [gene for gene in network.successors(name) if len(nx.ancestors(network, gene) & reached) == 1]
        assert len(direct_only) > 5
        direct = effects.loc[direct_only, name]
        assert (np.sign(direct) == [-np.sign(network[name][gene]["weight"]) for gene in direct_only]).all()
        assert (direct.abs() <= 3.0).all()


def test_simulated_combinations_are_not_additive(simulated):
    effects = simulated.uns["perturbation_true"]
    both = (effects["TF1"] != 0) & (effects["TF2"] != 0)
    assert both.sum() > 5
    excess = (effects["TF1+TF2"] - effects["TF1"] - effects["TF2"]).abs()
    assert excess[both].max() > 0.3
    assert excess[(effects["TF1"] == 0) | (effects["TF2"] == 0)].max() < 1e-12


def test_simulated_effects_are_visible_in_the_counts(simulated):
    effects = simulated.uns["perturbation_true"]
    X = log1p_normalize(simulated.X).toarray()
    perturbation = simulated.obs["perturbation"].to_numpy()
    expressed = X.mean(axis=0) > 0.3
    for name in effects.columns:
        seen = X[perturbation == name].mean(axis=0) - X[perturbation == "control"].mean(axis=0)
        assert np.corrcoef(seen[expressed], effects.loc[expressed, name])[0, 1] > 0.6, name


def test_simulated_data_are_equal_after_write_and_read(simulated, tmp_path):
    simulated.write_h5ad(tmp_path / "simulated.h5ad")
    read = ad.read_h5ad(tmp_path / "simulated.h5ad")
    for key in ("grn_true", "perturbation_true"):
        pd.testing.assert_frame_equal(read.uns[key], simulated.uns[key], check_names=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n_cells": 0}, "n_cells=0 must be at least 1", id="no-cells"),
        pytest.param({"n_regulators": 500}, "n_regulators=500 must be below n_genes=500", id="no-targets"),
        pytest.param({"perturbations": ["TF21"]}, "'TF21', which is not a regulator", id="unknown"),
        pytest.param({"perturbations": ["TF1+G3"]}, "'G3', which is not a regulator", id="not-a-regulator"),
    ],
)
def test_bad_parameters_of_simulate_raise(arguments, message):
    with pytest.raises(ConfigError, match=message):
        simulate(**arguments)
