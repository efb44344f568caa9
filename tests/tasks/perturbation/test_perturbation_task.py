"""The task from cells to predictions: effects, leaks, errors, storage, GEARS files."""

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError, ModelFormatError
from scbioformers.tasks.perturbation import (
    Effects,
    PerturbationHead,
    fit_head,
    measure_correlations,
    measure_effects,
    parse_label,
    require_head,
)

TINY = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)
TASK = bf.Perturbation(key="perturbation", control="control")
LABELS = ["TF1", "TF2", "TF3", "TF4", "TF5", "TF1+TF2"]


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = bf.datasets.simulate(210, 40, n_regulators=8, n_batches=2, perturbations=LABELS, rng=1)
    bf.tl.fit(adata, task=TASK, batch_key="batch", config=TINY, train=TRAIN)
    return adata


def test_effects_are_matched_differences_of_means():
    random = np.random.default_rng(0)
    x = random.gamma(1.0, size=(90, 5)) * (random.random((90, 5)) < 0.6)
    groups, strata = np.arange(90) % 3, (np.arange(90) // 3) % 2
    strata[groups == 2] = 1
    found = measure_effects([sp.csr_matrix(x[:40]), sp.csr_matrix(x[40:])], groups, strata, 2)
    expected = sum(
        (strata[groups == 1] == s).mean()
        * (x[(groups == 1) & (strata == s)].mean(0) - x[(groups == 0) & (strata == s)].mean(0))
        for s in (0, 1)
    )
    np.testing.assert_allclose(found.mean[0], expected)
    np.testing.assert_allclose(found.mean[1], x[groups == 2].mean(0) - x[(groups == 0) & (strata == 1)].mean(0))
    assert (found.se > 0).all()
    control = np.concatenate([x[(groups == 0) & (strata == s)] - x[(groups == 0) & (strata == s)].mean(0)
                              for s in (0, 1)])  # fmt: skip
    np.testing.assert_allclose(found.control_sd, np.sqrt((control**2).sum(axis=0) / (len(control) - 2)))
    with pytest.raises(DataError, match="no control"):
        measure_effects([sp.csr_matrix(x)], groups, np.where(groups == 1, 2, strata), 2)


def test_labels():
    assert parse_label("B+A", "c") == ("A", "B")
    assert parse_label("A-1+ctrl", "c", {"A-1": "A"}) == ("A",)
    with pytest.raises(DataError, match="cannot be parsed"):
        parse_label("A+", "c")


def test_cells_of_test_perturbations_leak_nowhere(cells):
    """Other counts in the cells of two held-out targets: the same predictions, bit for bit."""
    held = cells.obs["perturbation"].isin(["TF4", "TF5"]).to_numpy()
    task = bf.Perturbation(key="perturbation", control="control", ignore=("TF4", "TF5"))
    found = []
    for factor in (1, 7):
        adata = ad.AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var.copy())
        adata.X = sp.csr_matrix(sp.diags(np.where(held, factor, 1).astype(np.float32)) @ adata.X)
        bf.tl.fit(adata, task=task, batch_key="batch", config=TINY, train=TRAIN)
        bf.tl.perturb(adata, ["TF4", "TF5"])
        found.append(np.asarray(adata.varm["perturb_effect"]))
    np.testing.assert_array_equal(*found)


def test_fields(cells, tmp_path):
    bf.tl.perturb(cells, "TF7", groupby="cell_type")
    control = (cells.obs["perturbation"] == "control").to_numpy()
    layer = cells.layers["perturbed"]
    assert np.isfinite(layer[control]).all()
    assert np.isnan(layer[~control]).all()
    table = bf.get.perturb(cells, perturbation="TF7").set_index("gene")
    assert table.loc["TF7", "effect"] < 0  # the target itself falls
    assert (table["se"] > 0).all()
    predicted = bf.get.perturbed_cells(cells)
    assert predicted.n_obs == control.sum()
    evidence = bf.get.perturb_evidence(cells)
    assert 0 <= evidence["strength"] <= 1
    assert {"delta_model", "delta_training_mean", "centroid_linear"} <= set(evidence["targets"])
    cells.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(bf.get.perturb(again), bf.get.perturb(cells))


def test_model_travels(cells, tmp_path):
    model = bf.get.model(cells)
    copies = [bf.BioFormer.from_bytes(model.to_bytes()), bf.BioFormer.load(model.save(tmp_path / "m"))]
    other = bf.datasets.simulate(50, 40, n_regulators=8, rng=5)  # unperturbed, in another order
    other = other[:, ::-1].copy()
    other.obs["batch"] = pd.Categorical(["batch_1"] * 50)
    bf.tl.perturb(cells, ["TF6", "TF1+TF6"])
    asked = [("TF6",), ("TF1", "TF6"), ("TF1",)]
    for copy in copies:
        assert copy.hash == model.hash
        bf.tl.perturb(other, ["TF6", "TF1+TF6"], model=copy)
        assert np.isfinite(other.varm["perturb_effect"]).all()
        for unseen in (False, True):
            expected = require_head(model).predict(asked, unseen=unseen)
            np.testing.assert_array_equal(require_head(copy).predict(asked, unseen=unseen), expected)


def test_a_head_of_another_version(cells):
    head = require_head(bf.get.model(cells))
    stored = head.to_head()
    arrays = {name: value for name, value in stored.arrays.items() if name != "coexpression"}
    with pytest.raises(ModelFormatError, match=r"lacks \['coexpression'\].*bf\.tl\.fit"):
        PerturbationHead.from_head(head.genes, replace(stored, arrays=arrays))


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        pytest.param("tf1", DataError, "Similar names: .*'TF1'", id="unknown gene"),
        pytest.param("TF1+", DataError, "cannot be parsed", id="label"),
        pytest.param([], ConfigError, "empty", id="nothing"),
    ],
)
def test_what_cannot_be_perturbed(cells, asked, error, message):
    with pytest.raises(error, match=message):
        bf.tl.perturb(cells, asked)


@pytest.mark.fault(42)
@pytest.mark.filterwarnings("ignore:All-zero genes")
def test_no_controls(cells):
    some = cells[cells.obs["perturbation"] != "control"].copy()
    with pytest.raises(DataError, match="control label 'control'") as caught:
        bf.tl.perturb(some, "TF7")
    assert "Rename the label" in str(caught.value)
    assert "`del adata.obs['perturbation']`: then all cells are controls" in str(caught.value)
    unlabelled = some.copy()
    del unlabelled.obs["perturbation"]
    bf.tl.perturb(unlabelled, "TF7")
    assert np.isfinite(unlabelled.layers["perturbed"]).all()
    with pytest.raises(DataError, match="control label"):
        bf.tl.fit(some, task=TASK, config=TINY, train=TRAIN)
    lacking = cells[~((cells.obs["perturbation"] == "control") & (cells.obs["batch"] == "batch_2"))].copy()
    with pytest.raises(DataError, match=r"batch_2.*no control cell"):
        bf.tl.perturb(lacking, "TF7", groupby="batch")
    with pytest.raises(DataError, match="batch_2' has perturbed cells"):
        bf.tl.fit(lacking, task=TASK, batch_key="batch", config=TINY, train=TRAIN)


def test_unknown_label_and_missing_column(cells):
    features = pd.DataFrame(np.eye(8), index=[f"TF{i}" for i in range(1, 9)])
    adata = cells.copy()
    adata.obs["perturbation"] = adata.obs["perturbation"].cat.rename_categories({"TF5": "TFX5"})
    with pytest.warns(BioformersWarning, match=r"\['TFX5'\].*Similar names"):
        bf.tl.fit(adata, task=bf.Perturbation("perturbation", "control", features=features), config=TINY, train=TRAIN)
    bf.tl.perturb(adata, ["TFX5", "TF8"])  # its measured effect is used
    assert bf.get.perturb(adata).set_index("perturbation")["seen"].to_dict() == {"TFX5": True, "TF8": False}
    with pytest.raises(MissingKeyError, match="nonsense"):
        bf.tl.fit(adata, task=bf.Perturbation("nonsense", "control"), config=TINY, train=TRAIN)
    with pytest.raises(ConfigError, match="kind"):
        bf.Perturbation("perturbation", "control", kind="other")


def test_model_without_the_task(fitted, cells):
    with pytest.raises(MissingKeyError, match="fitted without perturbations") as caught:
        bf.tl.perturb(fitted, "G1")
    assert "`bf." not in str(caught.value)  # these data have no column with perturbations, so no call is suggested
    adata = ad.AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var.copy())
    adata.obs["sample"] = np.where(np.arange(adata.n_obs) % 2, "untreated", "stim")
    bf.tl.fit(adata, config=TINY, train=TRAIN)
    with pytest.raises(MissingKeyError) as caught:
        bf.tl.perturb(adata, "TF7")
    (call,) = re.findall(r"Run `(bf.tl.fit.*)` first", str(caught.value))
    exec(call.replace("))", "), config=TINY, train=TRAIN)"), {"bf": bf, "adata": adata, "TINY": TINY, "TRAIN": TRAIN})
    bf.tl.perturb(adata, "TF7")
    assert require_head(bf.get.model(adata)).task["control"] == "control"


def test_similar_targets_speak_for_each_other():
    """Two classes of targets with opposite effects, told apart by their features."""
    random = np.random.default_rng(3)
    classes = np.arange(12) % 2
    pattern = random.normal(size=(2, 60))
    effects = pattern[classes] + 0.1 * random.normal(size=(12, 60))
    names = [f"T{i}" for i in range(13)]
    features = pd.DataFrame(np.eye(2)[np.append(classes, 1)], index=names)
    genes = [f"G{i}" for i in range(60)]
    measured = Effects(effects, np.full((12, 60), 0.1), np.full(12, 100), np.full(60, 5.0), np.ones(60))
    task, targets = bf.Perturbation("key", "control", features=features), [(name,) for name in names[:12]]
    unrelated, at = sp.csr_matrix(random.normal(size=(260, 60))), np.arange(260)
    correlations = measure_correlations([unrelated], at % 13, np.zeros_like(at), targets, genes)
    head = fit_head(genes, targets, measured, correlations, task, 1000.0)
    found = head.predict([("T12",)])[0][0]
    assert np.corrcoef(found, pattern[1])[0, 1] > 0.9
    assert np.corrcoef(effects.mean(axis=0), pattern[1])[0, 1] < 0.9
    assert head.strength == 1


def test_gears_files(tmp_path):
    random = np.random.default_rng(0)
    counts = random.poisson(1.0, size=(30, 6)).astype(np.float32)
    counts[:, 0] += 1
    depth = counts.sum(axis=1, keepdims=True)
    condition = np.array(["ctrl", "B+ctrl", "ctrl+C", "B+C"])[np.arange(30) % 4]
    adata = ad.AnnData(sp.csr_matrix(np.log1p(counts / depth * 1e4).astype(np.float32)))
    adata.obs["condition"] = condition
    adata.var["gene_name"] = list("ABCDEF")
    adata.uns["non_dropout_gene_idx"] = {"K562_B+ctrl_1+1": np.array([3, 1])}
    adata.uns["rank_genes_groups_cov_all"] = {"K562_B+C_1+1": np.array(["0", "5"])}
    adata.write_h5ad(tmp_path / "perturb_processed.h5ad")
    found = bf.datasets.read_gears(tmp_path / "perturb_processed.h5ad")
    assert sorted(found.obs["perturbation"].unique()) == ["B", "B+C", "C", "control"]
    assert list(found.var_names) == list("ABCDEF")
    ones = (counts == 1).any(axis=1)
    np.testing.assert_array_equal(found.X.toarray()[ones], counts[ones])
    assert list(found.uns["top_de"]["B"]) == ["D", "B"]
    assert list(found.uns["top_de"]["B+C"]) == ["A", "F"]
    del adata.obs["condition"]
    adata.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(MissingKeyError, match="condition"):
        bf.datasets.read_gears(tmp_path / "other.h5ad")


def by_hand(cells: ad.AnnData, name: str) -> np.ndarray:
    """Measured effect: differences from the controls of the same batch, weighted by the perturbed cells."""
    head = require_head(bf.get.model(cells))
    counts = cells.X.toarray().astype(np.float64)
    profile = np.log1p(counts / counts.sum(axis=1, keepdims=True) * head.mean_depth)
    label, batch = cells.obs["perturbation"].to_numpy(), cells.obs["batch"].to_numpy()
    return sum(
        (batch[label == name] == each).mean()
        * (profile[(label == name) & (batch == each)].mean(0) - profile[(label == "control") & (batch == each)].mean(0))
        for each in np.unique(batch[label == name])
    )


def test_seen_and_observed(cells):
    """What was in the training data, what is measured here, and what is predicted without it."""
    head = require_head(bf.get.model(cells))
    bf.tl.perturb(cells, ["TF1", "TF7", "TF1+TF2", "TF2+TF1", "TF1+TF7"])
    ranked = bf.get.perturb(cells).set_index("perturbation")
    assert ranked["seen"].to_dict() == {"TF1": True, "TF7": False, "TF1+TF2": True, "TF2+TF1": True, "TF1+TF7": False}
    for name in ("TF1", "TF1+TF2", "TF2+TF1"):
        table = bf.get.perturb(cells, perturbation=name).set_index("gene").loc[cells.var_names]
        measured = "TF1+TF2" if name == "TF2+TF1" else name
        np.testing.assert_allclose(table["observed"], by_hand(cells, measured), atol=1e-5)
        row = head.perturbations.index(tuple(measured.split("+")))
        np.testing.assert_array_equal(table["predicted"], head.cross_validated[row].astype(float))
        assert (
            np.abs(table["effect"] - table["observed"]).mean() < np.abs(table["predicted"] - table["observed"]).mean()
        )
    table = bf.get.perturb(cells, perturbation="TF7")
    assert table["observed"].isna().all()
    np.testing.assert_array_equal(table["predicted"], table["effect"])
    evidence = bf.get.perturb_evidence(cells)["targets"].set_index("target")
    table = bf.get.perturb(cells, perturbation="TF1").set_index("gene").drop(index="TF1")
    assert np.corrcoef(table["predicted"], table["observed"])[0, 1] == pytest.approx(
        evidence.loc["TF1", "delta_model"], abs=0.01
    )


def test_the_prediction_of_a_combination_has_not_seen_its_cells(cells):
    """Other counts in the cells of a combination: the same cross-validated prediction of it, bit for bit."""
    found = []
    for factor in (1, 7):
        adata = ad.AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var.copy())
        own = (adata.obs["perturbation"] == "TF1+TF2").to_numpy()
        genes = np.where(np.arange(40) < 20, factor, 1).astype(np.float32)
        adata.X = sp.csr_matrix(np.where(own[:, None], adata.X.toarray() * genes, adata.X.toarray()))
        bf.tl.fit(adata, task=TASK, batch_key="batch", config=TINY, train=TRAIN)
        head = require_head(bf.get.model(adata))
        found.append(head)
    row = found[0].perturbations.index(("TF1", "TF2"))
    np.testing.assert_array_equal(found[0].cross_validated[row], found[1].cross_validated[row])
    assert (found[0].effects[row] != found[1].effects[row]).any()


@pytest.mark.fault(75, 53)
def test_groups_have_their_own_names(cells, tmp_path):
    """Each group is read back by its own name, also after it was stored; nobody sees an escaped name."""
    names = ["CD4/CD8 T", "B%2F", ""]
    cells.obs["type"] = pd.Categorical(np.array(names)[np.arange(cells.n_obs) % 3])
    cells.obs["number"] = np.arange(cells.n_obs) % 2
    bf.tl.perturb(cells, ["TF7", "TF1"], groupby="type")
    cells.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert again.uns["perturb"]["group_names"].tolist() == sorted(names)
    head = require_head(bf.get.model(cells))
    control = (cells.obs["perturbation"] == "control").to_numpy()
    counts = cells.X.toarray().astype(np.float64)
    profile = np.log1p(counts / counts.sum(axis=1, keepdims=True) * head.mean_depth)
    whole = bf.get.perturb(cells, perturbation="TF7").set_index("gene")["effect"].loc[cells.var_names]
    for name in names:
        mean = profile[control & (cells.obs["type"] == name).to_numpy()].mean(axis=0)
        for adata in (cells, again):
            table = bf.get.perturb(adata, perturbation="TF7", group=name).set_index("gene").loc[cells.var_names]
            np.testing.assert_allclose(table["effect"], np.maximum(whole, -mean), atol=1e-5)
    with pytest.raises(MissingKeyError, match=r"`group='CD4'` was not predicted.*'CD4/CD8 T'"):
        bf.get.perturb(cells, group="CD4")
    with pytest.warns(BioformersWarning, match="numeric"):
        bf.tl.perturb(cells, "TF7", groupby="number")
    pd.testing.assert_frame_equal(bf.get.perturb(cells, group=0), bf.get.perturb(cells, group="0"))
    bf.tl.perturb(cells, "TF7")
    with pytest.raises(MissingKeyError, match=r"without groups.*`groupby`"):
        bf.get.perturb(cells, group="B%2F")


def test_both_names_of_the_default_result_mean_the_same(cells):
    """The layer is "perturbed" and the entry "perturb", so `key_added="perturb"` cannot be another result."""
    bf.tl.perturb(cells, "TF7")
    bf.tl.perturb(cells, "TF8", key_added="perturb")
    assert "perturb" not in cells.layers
    for key in ("perturb", "perturbed"):
        assert bf.get.perturb(cells, key=key)["perturbation"].tolist() == ["TF8"]
        assert set(bf.get.perturbed_cells(cells, key=key).obs["predicted"]) == {"TF8"}


@pytest.mark.fault(41, 55)
def test_names_of_the_data(cells):
    """Symbols as var_names of the fit, ids here: both are accepted, and tables have the column that was named."""
    other = bf.datasets.simulate(50, 40, n_regulators=8, rng=5)
    other.obs["batch"] = "batch_1"
    other.var["symbol"] = other.var_names
    other.var_names = [f"id{i}" for i in range(40)]
    bf.tl.perturb(other, "TF7", model=cells, gene_symbols="symbol")
    table = bf.get.perturb(other, perturbation="TF7")
    assert set(table["gene"]) == set(other.var["symbol"])
    own = other.var_names[other.var["symbol"] == "TF7"][0]
    bf.tl.perturb(other, own, model=cells, gene_symbols="symbol")
    assert table.set_index("gene").loc["TF7", "effect"] < 0
    again = bf.get.perturb(other, perturbation=own)
    pd.testing.assert_frame_equal(again, table)
    for asked, near in ((own.upper(), own), ("tf7", "TF7")):  # near names in the spelling that was used
        with pytest.raises(DataError, match=rf"'{asked}'. unknown.* Similar names: .*'{near}'"):
            bf.tl.perturb(other, asked, model=cells, gene_symbols="symbol")
        bf.tl.perturb(other, near, model=cells, gene_symbols="symbol")
        pd.testing.assert_frame_equal(bf.get.perturb(other, perturbation=near), table)
    assert bf.get.perturb(other)["gene"].tolist() != ["TF7"]  # the perturbed gene itself is not the largest change
