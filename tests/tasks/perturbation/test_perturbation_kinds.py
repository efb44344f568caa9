"""Drugs, activations, doses, cell types, and data on disk."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import DataError, MissingKeyError
from scbioformers.tasks.perturbation import require_head

TINY = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
TRAIN = bf.TrainConfig(max_steps=1, batch_size=32)
TARGETS = [f"G{i}" for i in range(5)]
N_GENES = 30


@pytest.fixture(scope="module")
def raised() -> ad.AnnData:
    """240 cells: in those of a target its gene is tripled, and gene 20 doubled."""
    random = np.random.default_rng(0)
    label = np.array(["none", *TARGETS])[np.arange(240) % 6]
    rate = np.tile(random.uniform(3, 9, size=N_GENES), (240, 1))
    for i, name in enumerate(TARGETS):
        rate[label == name, i] *= 3
        rate[label == name, 20] *= 2
    adata = ad.AnnData(sp.csr_matrix(random.poisson(rate).astype(np.float32)))
    adata.var_names = [f"G{i}" for i in range(N_GENES)]
    adata.obs["done"] = pd.Categorical(label)
    adata.obs["dose"] = np.where(label == "none", 0.0, 4.0)
    return adata


def fit(adata: ad.AnnData, **kwargs) -> ad.AnnData:
    task = bf.Perturbation("done", "none", **kwargs)
    return bf.tl.fit(adata, task=task, config=TINY, train=TRAIN, copy=True)


def effect_of(adata: ad.AnnData, name: str) -> pd.Series:
    bf.tl.perturb(adata, name)
    return pd.Series(adata.varm["perturb_effect"][:, 0], adata.var_names)


def test_an_activated_gene_rises(raised):
    adata = fit(raised, kind="activation")
    unseen = effect_of(adata, "G12")
    depth = raised.X.sum(axis=1).A1
    control = (raised.obs["done"] == "none").to_numpy()
    base = np.log1p(raised.X[control].toarray()[:, 12] / depth[control] * depth[control].mean()).mean()
    tripled = np.log1p(3 * np.expm1(base)) - base
    assert unseen["G12"] == pytest.approx(tripled, abs=0.3)
    assert unseen["G20"] == pytest.approx(np.log(2), abs=0.3)
    assert unseen.drop(["G12", "G20"]).abs().max() < 0.4


def test_a_drug_has_no_target_gene(raised):
    """A drug that bears the name of a gene does nothing to it, and drugs of which nothing is known do the same."""
    adata = fit(raised, kind="drug")
    first, second = effect_of(adata, "G12"), effect_of(adata, "G13")
    np.testing.assert_allclose(first, second)
    assert abs(first["G12"]) < 0.2
    assert first["G20"] == pytest.approx(np.log(2), abs=0.3)
    renamed = raised.copy()
    renamed.obs["done"] = renamed.obs["done"].cat.rename_categories({name: f"drug-{name}" for name in TARGETS})
    measured = effect_of(fit(renamed, kind="drug"), "drug-G0")  # no gene at all
    assert measured["G0"] > 0.5


def test_effects_are_for_a_unit_of_dose(raised):
    plain, dosed = (require_head(bf.get.model(fit(raised, kind="activation", dose=dose))) for dose in (None, "dose"))
    np.testing.assert_allclose(dosed.effects, plain.effects / 4, rtol=1e-5)
    np.testing.assert_allclose(dosed.se, plain.se / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "change", "error", "message"),
    [
        pytest.param({"dose": "amount"}, None, MissingKeyError, r"Did not find adata\.obs\['amount'\]", id="no column"),
        pytest.param({"dose": "dose"}, ("dose", 0.0), DataError, "positive in every perturbed cell", id="no dose"),
        pytest.param({"dose": "dose"}, ("dose", "1uM"), DataError, "must hold numbers, found '1uM'", id="text"),
        pytest.param({}, ("done", "G0"), DataError, "Found 1 perturbations of one target", id="one target"),
    ],
)
def test_refused_before_training(raised, kwargs, change, error, message, monkeypatch):
    adata = raised.copy()
    if change is not None:
        adata.obs[change[0]] = [change[1] if label != "none" else old for label, old in
                                zip(adata.obs["done"], adata.obs[change[0]], strict=True)]  # fmt: skip
    monkeypatch.setattr("scbioformers.tl._fit.fit_model", None)  # whoever gets there fails otherwise
    with pytest.raises(error, match=message):
        fit(adata, kind="activation", **kwargs)


def test_controls_are_of_the_same_cell_type(raised):
    """Perturbed cells are all of a type that expresses gene 25 fivefold: no effect, once controls are matched."""
    random = np.random.default_rng(1)
    adata = raised.copy()
    rich = (adata.obs["done"] != "none").to_numpy() | (random.random(240) < 0.4)
    counts = adata.X.toarray()
    counts[rich, 25] = random.poisson(5 * counts[rich, 25].mean(), size=rich.sum())
    adata.X = sp.csr_matrix(counts)
    adata.obs["kind of cell"] = pd.Categorical(np.where(rich, "rich", "poor"))
    pooled, matched = (
        require_head(bf.get.model(fit(adata, kind="activation", celltype_key=key))).effects.mean(axis=0)
        for key in (None, "kind of cell")
    )
    assert pooled[25] > 0.6
    assert abs(matched[25]) < 0.15
    assert matched[20] > 0.4


def test_on_disk_as_in_memory(raised, tmp_path):
    raised.write_h5ad(tmp_path / "cells.h5ad")
    task = bf.Perturbation("done", "none", kind="activation")
    found = []
    for backed in (None, "r"):
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed=backed)
        bf.tl.fit(adata, task=task, config=TINY, train=TRAIN)
        bf.tl.perturb(adata, "G12")
        found.append((adata.varm["perturb_effect"], np.asarray(adata.layers["perturbed"])))
    for memory, disk in zip(*found, strict=True):
        np.testing.assert_allclose(disk, memory, rtol=1e-5, atol=1e-6)


def test_zarr_round_trip(raised, tmp_path):
    adata = fit(raised, kind="activation")
    bf.tl.perturb(adata, ["G12", "G0+G1", "G3"])
    adata.write_zarr(tmp_path / "cells.zarr")
    again = ad.read_zarr(tmp_path / "cells.zarr")
    assert bf.get.model(again).hash == bf.get.model(adata).hash
    pd.testing.assert_frame_equal(bf.get.perturb(again), bf.get.perturb(adata))
    before = bf.get.perturb_evidence(adata)["targets"]
    pd.testing.assert_frame_equal(bf.get.perturb_evidence(again)["targets"], before)
    bf.tl.perturb(again, ["G12", "G0+G1", "G3"])
    np.testing.assert_array_equal(again.varm["perturb_effect"], adata.varm["perturb_effect"])


def test_blocks_and_groups(raised, monkeypatch):
    """Read in blocks of seven rows: the same layer and the same floors, which are those of each group's controls."""
    adata = fit(raised, kind="activation")
    adata.obs["batch"] = pd.Categorical(np.array(["a", "b", "b"])[np.arange(240) // 7 % 3])
    bf.tl.perturb(adata, "G12", groupby="batch")
    monkeypatch.setattr("scbioformers.data._source.BlockSource.blocks.__defaults__", (7,))
    again = bf.tl.perturb(adata, "G12", groupby="batch", copy=True)
    np.testing.assert_allclose(again.layers["perturbed"], adata.layers["perturbed"], rtol=1e-6)
    for name in ("a", "b"):
        found, expected = (bf.get.perturb(each, perturbation="G12", group=name) for each in (again, adata))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    # by hand: the control cells, shifted, and nothing below zero
    control = (adata.obs["done"] == "none").to_numpy()
    counts, depth = adata.X[control].toarray(), adata.X[control].sum(axis=1).A1
    profile = np.log1p(counts / depth[:, None] * require_head(bf.get.model(adata)).mean_depth)
    expected = np.maximum(profile + adata.varm["perturb_effect"][:, 0], 0)
    np.testing.assert_allclose(adata.layers["perturbed"][control], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(adata.layers["perturbed"][~control]).all()
