"""``bf.tl.annotate`` of a MuData: one label of each sample, by all modalities that it has."""

import re

import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError, MissingKeyError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=10, batch_size=32)
KEY = "rna:type"


def simulated(cells: slice = slice(0, 150), rna: slice = slice(None), prot: slice = slice(None)) -> mudata.MuData:
    """Some of 200 cells of 3 types x (40 genes + 8 proteins), and of these the cells of each modality."""
    whole = bf.datasets.simulate(200, 40, n_regulators=5, n_types=3, n_proteins=6, rng=0)[cells].copy()
    mdata = mudata.MuData({"rna": whole["rna"][rna].copy(), "prot": whole["prot"][prot].copy()})
    mdata.obs["truth"] = whole.obs["cell_type"].reindex(mdata.obs_names)
    return mdata


@pytest.fixture(scope="module")
def _reference_once() -> mudata.MuData:
    mdata = simulated(rna=slice(20, None), prot=slice(0, 120))
    mdata.obs[KEY] = mdata.obs["truth"].where(np.arange(150) % 3 > 0)
    bf.tl.fit(mdata, config=CONFIG, train=TRAIN)
    bf.tl.annotate(mdata, KEY, probabilities=True)
    return mdata


@pytest.fixture
def reference(_reference_once) -> mudata.MuData:
    """150 samples, of which 20 lack RNA and 30 lack proteins. Two thirds had a label in "rna:type"."""
    return _reference_once.copy()


def test_samples_are_labelled_whatever_they_lack(reference):
    table = bf.get.annotation(reference, KEY)
    assert list(table) == ["label", "probability", "type_1", "type_2", "type_3"]
    assert list(table.index) == list(reference.obs_names)
    given = reference.obs[KEY].notna().to_numpy()
    assert (table["label"].astype(str) == reference.obs[KEY].astype(str))[given].all()
    right = (table["label"].astype(str) == reference.obs["truth"].astype(str)).to_numpy()
    lacking = {name: ~reference.obs_names.isin(reference[name].obs_names) & ~given for name in ("rna", "prot")}
    for cells in (*lacking.values(), ~given):
        assert cells.sum() >= 6
        assert right[cells].mean() > 0.6  # a guess: 1 / 3
    for name in ("rna", "prot"):
        assert not set(reference[name].obs) & {f"bioformer_{KEY}", f"bioformer_{KEY}_probability"}


def test_a_query_is_labelled_by_any_of_its_modalities_and_nothing_else(reference):
    """The label of a sample is that of the same sample in a MuData with other samples, by the modalities it has."""
    query = simulated(slice(150, 200), rna=slice(0, 40), prot=slice(10, None))
    bf.tl.annotate(query, KEY, model=reference, probabilities=True)
    found = bf.get.annotation(query, KEY)
    assert (found["label"].astype(str) == query.obs["truth"].astype(str)).mean() > 0.6
    alone = mudata.MuData({"rna": query["rna"][:10].copy()})
    with pytest.warns(bf.core.BioformersWarning, match="no modality"):
        bf.tl.annotate(alone, KEY, model=reference, probabilities=True)
    numbers = ["probability", "type_1", "type_2", "type_3"]
    one = bf.get.annotation(alone, KEY)
    np.testing.assert_allclose(one[numbers], found[numbers].loc[one.index], atol=1e-5)
    whole = simulated(slice(150, 200))
    bf.tl.annotate(whole, KEY, model=reference, modalities=["rna"], probabilities=True)
    np.testing.assert_allclose(bf.get.annotation(whole, KEY)[numbers].loc[one.index], one[numbers], atol=1e-5)
    bf.tl.annotate(whole, KEY, model=reference, probabilities=True)
    assert np.abs(bf.get.annotation(whole, KEY)[numbers].loc[one.index] - one[numbers]).to_numpy().max() > 1e-3


@pytest.mark.parametrize("given", ["object", "directory"])
def test_a_model_in_any_form_gives_the_same_labels(reference, given, tmp_path):
    model = bf.get.model(reference)
    passed = model if given == "object" else model.save(tmp_path / "model")
    query, other = simulated(slice(150, 200)), simulated(slice(150, 200))
    bf.tl.annotate(query, KEY, model=reference)
    bf.tl.annotate(other, KEY, model=passed)
    pd.testing.assert_frame_equal(bf.get.annotation(other, KEY), bf.get.annotation(query, KEY))
    assert "bioformer" not in query.uns


def test_labels_and_head_are_equal_after_write_and_read(reference, tmp_path):
    expected = bf.get.annotation(reference, KEY)
    hash_before = bf.get.model(reference).heads[f"annotation:{KEY}"].hash
    reference.write_h5mu(tmp_path / "cells.h5mu")
    read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    pd.testing.assert_frame_equal(bf.get.annotation(read, KEY), expected)
    assert bf.get.model(read).heads[f"annotation:{KEY}"].hash == hash_before
    evidence = [bf.get.annotation_evidence(each, KEY) for each in (read, reference)]
    pd.testing.assert_frame_equal(evidence[0]["confusion"], evidence[1]["confusion"])
    assert evidence[0]["confusion"].to_numpy().sum() == reference.obs[KEY].notna().sum()
    query = simulated(slice(150, 200))
    bf.tl.annotate(query, KEY, model=read)
    assert set(query.obs[f"bioformer_{KEY}"].astype(str)) <= {"type_1", "type_2", "type_3", "unknown"}


def test_new_labels_for_the_model_of_another_mudata_in_a_directory(reference, tmp_path):
    """All added heads are beside the path of the directory, which is not changed."""
    fitted = simulated()
    bf.tl.fit(fitted, config=CONFIG, train=TRAIN, save_dir=tmp_path / "model")
    bf.tl.annotate(fitted, "truth")
    before = (tmp_path / "model" / "config.json").read_bytes()
    query = simulated(slice(100, 200))
    query.obs["other"] = query.obs["truth"].where(np.arange(100) < 60)
    bf.tl.annotate(query, "other", model=fitted)
    assert set(query.uns["bioformer"]) == {"model_dir", "model_hash", "heads"}
    assert set(bf.get.model(query).heads) == {"annotation:truth", "annotation:other"}
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_the_model_and_its_embedding_stay_valid(reference):
    fitted = simulated(rna=slice(20, None), prot=slice(0, 120))
    bf.tl.fit(fitted, config=CONFIG, train=TRAIN)
    assert bf.get.model(fitted).hash == bf.get.model(reference).hash


def test_the_figure(reference):
    axes = bf.pl.annotation(reference, KEY, show=False)
    assert [ax.get_xlabel() for ax in axes] == ["predicted label", "probability of the label"]
    reference.obsm["X_umap"] = np.random.default_rng(0).normal(size=(150, 2))
    axes = bf.pl.annotation(reference, KEY, show=False)
    assert len(axes[2].collections[0].get_offsets()) + len(axes[2].collections[1].get_offsets()) == 150
    plt.close("all")


@pytest.mark.fault("modality-column")
def test_a_column_of_one_modality():
    """The call in the message copies the column. Samples without the modality have no label then."""
    mdata = simulated(rna=slice(20, None))
    bf.tl.fit(mdata, config=CONFIG, train=bf.TrainConfig(max_steps=1))
    call = "mdata.obs['cell_type'] = mdata['rna'].obs['cell_type']"
    with pytest.raises(MissingKeyError, match=re.escape(f"Copy it: `{call}`.")):
        bf.tl.annotate(mdata, "cell_type")
    with pytest.raises(MissingKeyError, match=re.escape(f"Copy it: `{call}`.")):
        bf.tl.fit(mdata, phenotype_keys="cell_type", config=CONFIG)
    mdata.obs["cell_type"] = mdata["rna"].obs["cell_type"]
    bf.tl.annotate(mdata, "cell_type")
    assert mdata.obs["cell_type"].isna().sum() == 20
    assert mdata.obs["bioformer_cell_type"].notna().all()


def test_arguments_of_modalities_for_an_anndata(reference):
    with pytest.raises(ConfigError, match="`modalities` is for a MuData"):
        bf.tl.annotate(reference["rna"].copy(), KEY, model=reference, modalities=["rna"])


@pytest.mark.fault(70)
def test_what_lies_in_one_modality():
    """A model of one modality, and its labels: the errors for the MuData name the modality that has them."""
    mdata = simulated()
    mdata["rna"].obs["type"] = mdata.obs["truth"]
    bf.tl.fit(mdata["rna"], config=CONFIG, train=bf.TrainConfig(max_steps=1))
    bf.tl.annotate(mdata["rna"], "type")
    message = re.escape("mdata['rna'] has it: pass `mdata['rna']` instead of the MuData.")
    for call in (
        lambda data: bf.tl.annotate(data, "truth"),
        lambda data: bf.tl.embed(data),
        lambda data: bf.get.annotation(data, "type"),
        lambda data: bf.get.annotation_evidence(data, "type"),
        lambda data: bf.get.history(data),
        lambda data: bf.get.model(data),
        lambda data: bf.pl.annotation(data, "type", show=False),
    ):
        with pytest.raises(MissingKeyError, match=message):
            call(mdata)
    bf.tl.embed(mdata["rna"])
    assert len(bf.get.annotation(mdata["rna"], "type")) == 150
