"""Networks and gene programs of a MuData: among the features of one modality, and between two."""

import re

import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics.pairwise import cosine_similarity

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, MissingKeyError, tqdm
from scbioformers.results import open_parts
from scbioformers.tasks import EdgeScorer
from scbioformers.tasks import _gene_signals as signals

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
METHODS = ("embedding", "knockout", "attention")
PAIR = ("rna", "prot")
BAR = tqdm(disable=True)


def simulated(rna: slice = slice(12, None), prot: slice = slice(0, 80)) -> mudata.MuData:
    """100 samples of 2 types x (30 genes + 6 proteins); 12 lack RNA, 20 lack proteins. Proteins "G1" and "G2"."""
    whole = bf.datasets.simulate(100, 30, n_regulators=4, n_types=2, n_proteins=4, rng=0)
    mdata = mudata.MuData({"rna": whole["rna"][rna].copy(), "prot": whole["prot"][prot].copy()})
    mdata["prot"].var_names = ["G1", "G2", *(f"P{i}" for i in range(3, 7))]
    mdata = mudata.MuData({name: mdata[name] for name in ("rna", "prot")})
    mdata.obs["type"] = whole.obs["cell_type"].cat.rename_categories(["a/b", "c"]).reindex(mdata.obs_names)
    return mdata


@pytest.fixture(scope="module")
def _fitted_once() -> mudata.MuData:
    mdata = simulated()
    binning = {"rna": "value", "prot": "quantile"}
    bf.tl.fit(mdata, binning=binning, config=CONFIG, train=bf.TrainConfig(max_steps=8, batch_size=16))
    return mdata


@pytest.fixture
def fitted(_fitted_once):
    return _fitted_once.copy()


@pytest.fixture(autouse=True)
def _close():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def parts_of(mdata, modality, model=None):
    options = {"layer": None, "gene_symbols": None, "feature_map": None, "key": "bioformer", "device": "cpu"}
    return open_parts(mdata, model, modality, **options)


def expressed(mdata, names) -> dict[str, np.ndarray]:
    """Whether the samples that have all of the modalities express each feature."""
    shared = [name for name in mdata.obs_names if all(name in mdata[each].obs_names for each in names)]
    return {each: (mdata[each][shared].X.toarray() > 0).astype(int) for each in names}


def test_one_modality_gives_the_networks_and_programs_of_its_anndata():
    adata = simulated()["rna"].copy()
    alone = mudata.MuData({"rna": adata.copy()})
    for data in (adata, alone):
        bf.tl.fit(data, binning="value", config=CONFIG, train=bf.TrainConfig(max_steps=8, batch_size=16))
        for method in METHODS:
            bf.tl.grn(data, method=method, key_added=method)
        bf.tl.gene_programs(data, use="attention", min_genes=2)
    assert len(bf.get.gene_programs(adata))
    for method in METHODS:
        pd.testing.assert_frame_equal(bf.get.grn(alone, key=method), bf.get.grn(adata, key=method))
        assert (alone["rna"].varp[method] != adata.varp[method]).nnz == 0
    np.testing.assert_array_equal(alone["rna"].obsm["gene_program_scores"], adata.obsm["gene_program_scores"])


# what the weights are


@pytest.mark.parametrize("modality", ["rna", "prot", PAIR])
@pytest.mark.parametrize("method", METHODS)
def test_no_batch_size_matters(fitted, modality, method, monkeypatch):
    """Tokens of a modality are padded, also in the middle. In a batch of one sample nothing is padded."""
    bf.tl.grn(fitted, modality=modality, method=method, n_cells=None, min_count=1)
    expected = bf.get.grn_matrix(fitted, modality=modality)
    monkeypatch.setattr(signals, "_BATCH", 1)
    bf.tl.grn(fitted, modality=modality, method=method, n_cells=None, min_count=1)
    found = bf.get.grn_matrix(fitted, modality=modality)
    pd.testing.assert_frame_equal(found, expected, atol=1e-5)
    assert np.isfinite(expected.to_numpy()).any()


@pytest.mark.parametrize("modality", ["rna", "prot", PAIR])
def test_samples_that_have_the_modalities_are_counted(fitted, modality):
    bf.tl.grn(fitted, modality=modality, method="attention", n_cells=None, min_count=1, top_k=1000)
    names = [modality] if isinstance(modality, str) else list(modality)
    own = expressed(fitted, names)
    first, second = own[names[0]], own[names[-1]]
    together = pd.DataFrame(first.T @ second, fitted[names[0]].var_names, fitted[names[-1]].var_names)
    table = bf.get.grn(fitted, modality=modality)
    assert len(table) > 20
    for edge in table.itertuples():
        source, target = edge.source.split(":")[-1], edge.target.split(":")[-1]
        assert edge.count == together.loc[source, target]


@pytest.mark.parametrize("modality", ["rna", "prot", PAIR])
def test_a_knock_out_of_any_feature_is_that_of_changed_data(fitted, modality):
    """Slow: the value is set to 0 in the data of its modality, and all is read again."""
    first, last = (modality, modality) if isinstance(modality, str) else modality
    part = parts_of(fitted, last)[0]
    both = np.flatnonzero(part.measured & parts_of(fitted, first)[0].measured)[:24]
    model, gene = part.model, "G1"
    scorer = EdgeScorer(model, "knockout", np.arange(len(fitted[first].var)), modality=last, regulator_modality=first)
    cells = part.source.rows(both)
    found = scorer._knockout(model.members[0], cells, 0, BAR)
    at = fitted[first].var_names.get_loc(gene)
    changed = fitted.copy()
    x = changed[first].X.tolil()
    has = np.flatnonzero(np.asarray(x[:, at].todense()).ravel() > 0)
    has_names = set(changed[first].obs_names[has])
    x[:, at] = 0
    total = np.asarray(fitted[first].X.sum(axis=1)).ravel()
    changed[first].X = x.tocsr()
    after_part = parts_of(changed, last, model)[0]
    number = model.modalities.index(first)
    after_cells = after_part.source.rows(both)
    after_cells.modalities[number].total[:] = cells.modalities[number].total  # the depth is that before the knock-out
    before, after = (signals.log_rates(model, model.members[0], each, BAR) for each in (cells, after_cells))
    here = [i for i, name in enumerate(fitted.obs_names[both]) if name in has_names]
    assert len(here) > 3
    assert total.min() > 0
    columns = model.columns(last)
    effect = (before - after)[here].mean(axis=0)[columns]
    if first == last:
        effect[at] = 0
    shares = [signals.explained_share(signals.Features.of(model, name), cells, before) for name in (last, first)]
    effect *= shares[0]
    expected = effect / np.linalg.norm(effect) * shares[1][at]
    np.testing.assert_allclose(found.weight[:, at], expected, atol=1e-4)
    assert found.count[0, at] == len(here)


def test_embeddings_of_two_modalities_are_centred_apart(fitted):
    bf.tl.grn(fitted, modality=PAIR, contextual=False, min_count=1, top_k=1000)
    vectors = {name: bf.get.gene_embeddings(fitted, modality=name) for name in PAIR}
    centred = {name: table - table.mean() for name, table in vectors.items()}
    expected = pd.DataFrame(
        cosine_similarity(centred["prot"], centred["rna"]),
        [f"prot:{name}" for name in vectors["prot"].index],
        [f"rna:{name}" for name in vectors["rna"].index],
    )
    found = bf.get.grn_matrix(fitted, modality=PAIR)
    known = found.notna()
    assert known.to_numpy().mean() > 0.9
    np.testing.assert_allclose(found[known], expected.loc[found.index, found.columns][known], atol=1e-5)


def test_what_is_explained_is_that_of_the_samples_of_the_modality(fitted):
    """A sample that lacks RNA has no measured expression, which is not an expression of 0."""
    bf.tl.grn(fitted, modality="rna", n_cells=None)
    without = mudata.MuData({name: fitted[name].copy() for name in PAIR})
    shared = without["rna"].obs_names
    without = mudata.MuData(
        {"rna": without["rna"], "prot": without["prot"][without["prot"].obs_names.isin(shared)].copy()}
    )
    bf.tl.grn(without, modality="rna", n_cells=None, model=fitted)
    np.testing.assert_allclose(
        without["rna"].varp["grn"].toarray(), fitted["rna"].varp["grn"].toarray(), rtol=1e-4, atol=1e-5
    )


# where results are


def test_a_network_of_a_modality_is_in_it_alone(fitted):
    bf.tl.grn(fitted, modality="prot", method="attention", regulators=["G1", "P3"])
    assert set(fitted["prot"].varp) == {"grn", "grn_count"}
    assert fitted["prot"].var["grn_attention"].notna().sum() == 2
    assert "grn" not in {*fitted.uns, *fitted["rna"].uns}
    assert not len(fitted.varp)
    assert not len(fitted["rna"].varp)
    assert set(bf.get.grn(fitted, modality="prot")["source"]) == {"G1", "P3"}
    graph = bf.get.grn_graph(fitted, modality="prot")
    assert graph.nodes["G1"]["regulator"]
    assert set(graph) <= set(fitted["prot"].var_names)


def test_a_gene_and_a_protein_of_one_name_are_two_nodes(fitted):
    bf.tl.grn(fitted, modality=PAIR, method="knockout", top_k=1000, min_count=1, regulators=["G1", "G2"])
    table = bf.get.grn(fitted, modality=PAIR)
    assert set(table["source"]) == {"rna:G1", "rna:G2"}
    assert set(table["target"]) == {f"prot:{name}" for name in fitted["prot"].var_names}
    assert ((table["source"] == "rna:G1") & (table["target"] == "prot:G1")).sum() == 1
    assert set(bf.get.grn_graph(fitted, modality=PAIR, n_top=3)) <= {*table["source"], *table["target"]}
    for data in (fitted, fitted["rna"], fitted["prot"]):
        assert not len(data.varp)
    other = bf.tl.grn(fitted, modality=("prot", "rna"), method="knockout", top_k=1000, min_count=1, copy=True)
    assert set(bf.get.grn(other, modality=("prot", "rna"))["source"]) <= set(table["target"])
    assert bf.get.grn(fitted, modality=PAIR).equals(table)


@pytest.mark.parametrize("modality", ["rna", PAIR])
def test_networks_of_conditions_are_equal_after_write_and_read(fitted, modality, tmp_path):
    """Also names of conditions with a slash. A later result leaves nothing of the earlier one."""
    options = {"modality": modality, "method": "attention"}
    bf.tl.grn(fitted, groupby="type", reference="c", min_count=1, **options)
    fitted.write_h5mu(tmp_path / "cells.h5mu")
    read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    pd.testing.assert_frame_equal(bf.get.grn(read, modality=modality), bf.get.grn(fitted, modality=modality))
    for condition, difference in (("a/b", False), ("c", False), ("a/b", True)):
        tables = [
            bf.get.grn_matrix(data, modality=modality, condition=condition, difference=difference)
            for data in (read, fitted)
        ]
        pd.testing.assert_frame_equal(*tables)
        assert tables[0].notna().to_numpy().any()
    bf.tl.grn(read, **options)
    assert bf.get.grn(read, modality=modality)["condition"].unique().tolist() == ["all cells"]
    with pytest.raises(MissingKeyError, match="condition"):
        bf.get.grn(read, modality=modality, condition="c")


def test_programs_regulators_and_enrichment_are_in_the_modality(fitted):
    bf.tl.gene_programs(fitted, modality="rna", min_genes=2)
    programs = bf.get.gene_programs(fitted, modality="rna")
    assert len(programs)
    assert bf.get.gene_program_scores(fitted, modality="rna").shape[0] == fitted["rna"].n_obs == 88
    bf.tl.grn(fitted, modality="rna")
    result = bf.tl.regulators(fitted, modality="rna", gene_sets="gene_program", copy=True)
    assert "regulators" not in fitted["rna"].uns
    pd.testing.assert_frame_equal(
        bf.get.set_regulators(result, modality="rna"),
        bf.get.set_regulators(bf.tl.regulators(fitted["rna"], gene_sets="gene_program", copy=True)),
    )
    bf.tl.program_enrichment(fitted, {"one": list(programs["gene"][:5])}, modality="rna", min_genes=2)
    assert bf.get.program_enrichment(fitted, modality="rna")["hits"].max() >= 2
    assert not {"gene_program", "regulators", "program_enrichment"} & {*fitted.uns, *fitted["prot"].uns}
    assert bf.pl.gene_programs(fitted, modality="rna", show=False).get_yticklabels()


# figures


def test_the_heat_map_of_a_network_between_modalities(fitted):
    bf.tl.grn(fitted, modality=PAIR, method="attention", min_count=1)
    matrix = bf.get.grn_matrix(fitted, modality=PAIR)
    (ax,) = bf.pl.attention_heatmap(fitted, modality=PAIR, n_top=5, show=False)
    shown = ax.images[0].get_array()
    targets, regulators = (
        [label.get_text() for label in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels())
    )
    assert shown.shape == (5, 5)
    assert all(name.startswith("prot:") for name in targets)
    assert all(name.startswith("rna:") for name in regulators)
    np.testing.assert_allclose(shown.filled(np.nan), matrix.loc[targets, regulators], rtol=1e-6)
    assert shown.max() == pytest.approx(np.nanmax(matrix))
    (ax,) = bf.pl.attention_heatmap(fitted, "rna:G1", modality=PAIR, show=False)
    assert ax.get_title() == "targets of rna:G1"
    assert bf.pl.grn_network(fitted, modality=PAIR, n_top=4, show=False).get_title() == "4 strongest edges"


def test_a_cosine_between_modalities_is_not_called_activation(fitted):
    bf.tl.grn(fitted, modality=PAIR, min_count=1)
    (ax,) = bf.pl.attention_heatmap(fitted, modality=PAIR, n_top=5, show=False)
    label = ax.images[0].colorbar.ax.get_ylabel()
    assert "positive: regulator and target rise and fall together" in label
    assert "activates" not in label
    legend = bf.pl.grn_network(fitted, modality=PAIR, n_top=4, show=False).get_legend()
    words = [text.get_text() for text in legend.get_texts()]
    assert {"positive", "negative"} < {*words}
    bf.tl.grn(fitted, modality=PAIR, method="knockout", min_count=1)
    (ax,) = bf.pl.attention_heatmap(fitted, modality=PAIR, n_top=5, show=False)
    assert "positive: activates, a knock-out lowers the target" in ax.images[0].colorbar.ax.get_ylabel()


def test_the_heat_map_without_a_regulator(fitted):
    bf.tl.grn(fitted, modality="rna", method="knockout", groupby="type", min_count=1)
    with pytest.raises(ConfigError, match=r"several conditions, \['a/b', 'c'\]. Pass one of them as `conditions=`"):
        bf.pl.attention_heatmap(fitted, modality="rna", show=False)
    (ax,) = bf.pl.attention_heatmap(fitted, modality="rna", conditions="c", n_top=3, show=False)
    assert ax.get_title() == "highest weights in c"
    matrix = bf.get.grn_matrix(fitted, modality="rna", condition="c").abs()
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == matrix.max().sort_values(ascending=False, kind="stable").index[:3].tolist()


# faults


@pytest.mark.fault("modality-pair")
@pytest.mark.parametrize(
    ("modality", "error", "message"),
    [
        (None, ConfigError, "The model has the modalities ['rna', 'prot']. Pass one of them as `modality=`"),
        ("atac", MissingKeyError, "The model has no modality 'atac'. It has ['rna', 'prot']."),
        (("rna", "rna"), ConfigError, "two different ones, found ('rna', 'rna'). For features of one, pass"),
        (("rna",), ConfigError, "`modality` must be a string, 2 values"),
    ],
)
def test_modalities_that_there_are_not(fitted, modality, error, message):
    with pytest.raises(error, match=re.escape(message)):
        bf.tl.grn(fitted, modality=modality)


@pytest.mark.fault("modality-pair")
def test_a_network_that_is_not_there(fitted):
    call = "bf.tl.grn(mdata, modality=('rna', 'prot'), key_added='grn')"
    with pytest.raises(MissingKeyError, match=re.escape(f"Run `{call}` first.")):
        bf.get.grn(fitted, modality=PAIR)
    bf.tl.grn(fitted, modality=("prot", "rna"))
    message = f"has the network of `modality=('prot', 'rna')`, not of ('rna', 'prot'). Run `{call}` first."
    with pytest.raises(MissingKeyError, match=re.escape(message)):
        bf.pl.attention_heatmap(fitted, modality=PAIR)
    eval(call, {"bf": bf, "mdata": fitted})
    assert len(bf.get.grn(fitted, modality=PAIR))
    with pytest.raises(MissingKeyError, match=re.escape("mdata.uns['bioformer'] holds no network between two")):
        bf.get.grn(fitted, modality=PAIR, key="bioformer")
    with pytest.raises(ConfigError, match="holds a fitted model"):
        bf.tl.grn(fitted, modality=PAIR, key_added="bioformer")
    for modality in ("rna", PAIR):
        with pytest.raises(ConfigError, match=r"AnnData\. Leave it out"):
            bf.tl.grn(fitted["rna"], modality=modality, model=fitted)


@pytest.mark.filterwarnings("ignore:The MuData has no modality")
def test_data_without_a_modality(fitted):
    alone = mudata.MuData({"rna": fitted["rna"].copy()})
    with pytest.raises(MissingKeyError, match=re.escape("The MuData has no modality 'prot'. It has ['rna'].")):
        bf.tl.grn(alone, modality=PAIR, model=fitted)
    bf.tl.grn(alone, modality="rna", model=fitted)
    assert len(bf.get.grn(alone))
    few = mudata.MuData({"rna": fitted["rna"].copy(), "prot": fitted["prot"][:15].copy()})
    with pytest.raises(DataError, match=r"at least 10 cells \(`min_cells`\), found 3"):
        bf.tl.grn(few, modality=PAIR, model=fitted)


def test_a_gene_is_no_protein(fitted):
    with pytest.raises(DataError, match="`regulators`: 0 of 1 name can be used"):
        bf.tl.grn(fitted, modality="prot", regulators=["TF1"])
