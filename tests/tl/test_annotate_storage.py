"""Heads beside a model: where they are stored, how they travel, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError, ModelFormatError
from scbioformers.results import _heads

CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=2, batch_size=32)
NAMES = ["CD4+/CD25 T Reg", "γδ T", "type_3"]
KEY = "lineage/fine"


@pytest.fixture(scope="module")
def _fitted_once() -> ad.AnnData:
    adata = bf.datasets.simulate(90, 50, n_regulators=8, n_types=3, rng=1)
    adata.obs["type"] = adata.obs["cell_type"].cat.rename_categories(NAMES)
    adata.obs[KEY] = adata.obs["type"].where(np.arange(90) < 60)
    bf.tl.fit(adata, config=CONFIG, train=TRAIN)
    return adata


@pytest.fixture
def adata(_fitted_once) -> ad.AnnData:
    """90 cells with a model, "type", and "lineage/fine" in 60 of them."""
    return _fitted_once.copy()


@pytest.fixture
def query() -> ad.AnnData:
    adata = bf.datasets.simulate(130, 50, n_regulators=8, n_types=3, rng=1)[90:].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories(NAMES)
    return adata


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    labels = (found["label"].astype(str).to_numpy() == expected["label"].astype(str).to_numpy()).all()
    return bool(labels and np.array_equal(found["probability"], expected["probability"]))


# how heads travel


@pytest.mark.fault(53)
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_names_with_slashes_and_unicode_on_disk(adata, query, kind, tmp_path):
    adata.uns[f"{KEY}_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    bf.tl.annotate(adata, KEY, probabilities=True)
    expected = bf.get.annotation(adata, KEY)
    assert list(expected) == ["label", "probability", *NAMES]
    del adata.obs[KEY], adata.uns[f"{KEY}_colors"]  # anndata does not write the user's own slash
    getattr(adata, f"write_{kind}")(tmp_path / "x")
    again = getattr(ad, f"read_{kind}")(tmp_path / "x")
    pd.testing.assert_frame_equal(bf.get.annotation(again, KEY), expected)
    assert list(again.obs.columns[-2:]) == ["bioformer_lineage%2Ffine", "bioformer_lineage%2Ffine_probability"]
    assert list(again.uns["bioformer_lineage%2Ffine_colors"])[:3] == ["#ff0000", "#00ff00", "#0000ff"]
    evidence = bf.get.annotation_evidence(again, KEY)
    assert list(evidence["confusion"].index) == NAMES
    pd.testing.assert_frame_equal(evidence["labels"], bf.get.annotation_evidence(adata, KEY)["labels"])
    assert bf.get.model(again).heads[f"annotation:{KEY}"].hash == bf.get.model(adata).heads[f"annotation:{KEY}"].hash
    labels = [bf.tl.annotate(query, KEY, model=model, copy=True) for model in (adata, again)]
    assert same(*(bf.get.annotation(each, KEY) for each in labels))
    bf.tl.annotate(again[:30].copy(), KEY)  # without labels: the head beside its own model


def test_a_saved_model_has_its_heads(adata, query, tmp_path):
    bf.tl.annotate(adata, KEY)
    bf.tl.annotate(adata, "type")
    bf.get.model(adata).save(tmp_path / "atlas")
    assert set(bf.BioFormer.load(tmp_path / "atlas").heads) == {f"annotation:{KEY}", "annotation:type"}
    assert bf.BioFormer.load(tmp_path / "atlas").hash == bf.get.model(adata).hash
    before = files(tmp_path / "atlas")
    by_directory = bf.tl.annotate(query, KEY, model=tmp_path / "atlas", copy=True)
    assert "bioformer" not in by_directory.uns
    by_adata = bf.tl.annotate(query, KEY, model=adata, copy=True)
    assert same(bf.get.annotation(by_directory, KEY), bf.get.annotation(by_adata, KEY))
    assert files(tmp_path / "atlas") == before


def test_a_head_for_a_model_in_a_directory(adata, query, tmp_path):
    bf.get.model(adata).save(tmp_path / "atlas")
    before = files(tmp_path / "atlas")
    query.obs["state"] = query.obs["cell_type"].where(np.arange(40) < 30)
    bf.tl.annotate(query, "state", model=tmp_path / "atlas")
    assert files(tmp_path / "atlas") == before
    entry = query.uns["bioformer"]
    assert set(entry) == {"model_dir", "model_hash", "heads"}
    assert entry["model_dir"] == str(tmp_path / "atlas")
    assert set(bf.get.model(query).heads) == {"annotation:state"}
    labels = bf.get.annotation(query, "state")
    bf.tl.annotate(query, "state", model=tmp_path / "atlas")  # again, beside the same network
    assert same(bf.get.annotation(query, "state"), labels)
    others = query[30:].copy()
    bf.tl.annotate(others, "state", model=tmp_path / "atlas")  # no label is left, so the head is used
    assert (others.obs["bioformer_state"].astype(str) == labels["label"].astype(str)[30:]).all()
    bf.tl.embed(query)
    with pytest.raises(MissingKeyError, match="not fitted to these data"):
        bf.get.history(query)


def test_a_head_for_a_model_in_memory(adata, query):
    bf.tl.annotate(adata, "type")
    model = bf.get.model(adata)
    bf.tl.annotate(query, "cell_type", model=model)
    assert set(query.uns["bioformer"]) == {"model", "model_hash", "heads"}
    assert not bf.BioFormer.from_bytes(query.uns["bioformer"]["model"].tobytes()).heads
    found = bf.get.model(query)
    assert set(found.heads) == {"annotation:type", "annotation:cell_type"}
    assert found.hash == model.hash == query.uns["bioformer"]["model_hash"]
    assert set(model.heads) == {"annotation:type"}  # the given model did not change


def test_a_head_for_the_model_of_another_adata(adata, query, tmp_path):
    bf.tl.annotate(adata, "type")
    size = len(adata.uns["bioformer"]["model"])
    bf.tl.annotate(query, "cell_type", model=adata)
    assert set(bf.get.model(query).heads) == {"annotation:type", "annotation:cell_type"}
    assert set(bf.get.model(adata).heads) == {"annotation:type"}
    assert len(adata.uns["bioformer"]["model"]) == size
    in_directory = adata.copy()
    bf.tl.fit(in_directory, config=CONFIG, train=TRAIN, save_dir=tmp_path / "m")
    bf.tl.annotate(in_directory, "type")
    before = files(tmp_path / "m")
    del query.uns["bioformer"]
    bf.tl.annotate(query, "cell_type", model=in_directory)
    assert "model" not in query.uns["bioformer"]
    assert set(bf.get.model(query).heads) == {"annotation:type", "annotation:cell_type"}
    assert files(tmp_path / "m") == before


def test_a_second_fit_drops_the_heads(adata):
    bf.tl.annotate(adata, "type")
    bf.tl.fit(adata, model=adata, train=bf.TrainConfig(max_steps=1))
    assert not bf.get.model(adata).heads
    bf.tl.annotate(adata, "type")
    bf.tl.fit(adata, config=CONFIG, train=TRAIN)
    assert "heads" not in adata.uns["bioformer"]


def test_a_head_does_not_make_an_embedding_stale(adata):
    bf.tl.embed(adata)
    before, embedding = bf.get.model(adata).hash, adata.obsm["X_bioformer"].copy()
    bf.tl.annotate(adata, "type")
    bf.tl.embed(adata)
    assert bf.get.model(adata).hash == before
    assert np.array_equal(adata.obsm["X_bioformer"], embedding)


# what is refused


@pytest.mark.fault(81)
def test_a_single_label(adata):
    adata.obs["one"] = pd.Series("T", index=adata.obs_names).where(np.arange(90) < 10)
    with pytest.raises(DataError, match=r"adata.obs\['one'\] has 1 different label \['T'\] in 10 cells"):
        bf.tl.annotate(adata, "one")
    assert "heads" not in adata.uns["bioformer"]


@pytest.mark.fault(82)
def test_labels_that_are_numbers(adata):
    adata.obs["number"] = np.arange(90) % 3
    with pytest.raises(DataError, match="holds 3 different numbers") as caught:
        bf.tl.annotate(adata, "number")
    exec(str(caught.value).split("`")[1], {"adata": adata})
    bf.tl.annotate(adata, "number")
    assert list(adata.obs["bioformer_number"].cat.categories) == ["0", "1", "2"]


@pytest.mark.fault(31, 83)
def test_neither_labels_nor_a_head(adata, query):
    with pytest.raises(MissingKeyError, match=r"Did not find adata.obs\['typo'\].*no head.*Available: \['cell_type'"):
        bf.tl.annotate(adata, "typo")
    bf.tl.annotate(adata, KEY)
    for model in (None, adata):
        with pytest.raises(MissingKeyError, match=rf"It has one for \['{KEY}'\]"):
            bf.tl.annotate(adata, "typo", model=model)
    adata.obs["empty"] = "unknown"
    with pytest.raises(DataError, match=r"No cell has a label in adata.obs\['empty'\]"):
        bf.tl.annotate(adata, "empty")


@pytest.mark.fault(84)
def test_labels_of_fewer_than_five_cells(adata):
    adata.obs["few"] = adata.obs["type"].astype(str).where(np.arange(90) > 3, "rare")
    with pytest.warns(BioformersWarning, match=r"1 of 4 labels .* 5 cells .*'rare \(4\)'"):
        bf.tl.annotate(adata, "few")
    assert "rare" in adata.obs["bioformer_few"].cat.categories


@pytest.mark.fault(85)
def test_a_head_for_another_network(adata, query):
    bf.tl.annotate(adata, "type")
    head = bf.get.model(adata).heads["annotation:type"]
    other = adata.copy()
    bf.tl.fit(other, config=CONFIG, train=TRAIN, rng=1)
    foreign = replace(bf.get.model(other), heads={"annotation:type": head})
    with pytest.raises(ModelFormatError, match=r"The head for 'type' was made for another network"):
        bf.tl.annotate(query, "type", model=foreign)


def test_another_model_under_the_same_key(adata, query):
    measured = np.asarray(query.X.sum(axis=0)).ravel() > 0
    bf.tl.fit(query, config=CONFIG, train=TRAIN, mask_var=measured, rng=1)
    with pytest.raises(ConfigError, match=r"adata.uns\['bioformer'\] holds another model") as caught:
        bf.tl.annotate(query, "cell_type", model=bf.get.model(adata))
    (named,) = re.findall(r"key='(\w+)'", str(caught.value))
    own = bf.get.model(query).hash
    bf.tl.annotate(query, "cell_type", model=bf.get.model(adata), key=named)
    assert bf.get.model(query).hash == own
    assert set(bf.get.model(query, key=named).heads) == {"annotation:cell_type"}


def test_a_model_that_is_too_large_for_uns(adata, query, monkeypatch, tmp_path):
    monkeypatch.setattr(_heads, "MAX_BYTES_IN_UNS", 1000)
    model = bf.get.model(adata)
    with pytest.raises(ConfigError, match=r"model.save\(directory\)"):
        bf.tl.annotate(query, "cell_type", model=model)
    assert "bioformer" not in query.uns
    bf.tl.annotate(query, "cell_type", model=model.save(tmp_path / "m"))
    assert "model_dir" in query.uns["bioformer"]


@pytest.mark.fault(27, 54)
def test_a_query_with_a_part_of_the_depth(adata, query):
    bf.tl.annotate(adata, "type")
    share = np.asarray(query.X.sum(axis=0)).ravel() / query.X.sum()
    order = np.argsort(share)
    few = order[np.cumsum(share[order]) < 0.15]
    with pytest.raises(DataError, match="expected at least 20"):
        bf.tl.annotate(query[:, few].copy(), "type", model=adata)


@pytest.mark.fault(60)
@pytest.mark.parametrize("key_added", ["type", "bioformer"])
def test_results_that_would_overwrite_labels_or_a_model(adata, key_added):
    with pytest.raises(ConfigError, match="key_added"):
        bf.tl.annotate(adata, "type", key_added=key_added)
    assert "heads" not in adata.uns["bioformer"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda entry: entry.pop("config"), id="no config"),
        pytest.param(lambda entry: entry.update(config="{"), id="no JSON"),
        pytest.param(lambda entry: entry["arrays"].pop("weights"), id="no weights"),
        pytest.param(lambda entry: entry["arrays"].update(weights=np.ones((3, 2))), id="a wrong shape"),
        pytest.param(lambda entry: entry["arrays"].update(mean=np.full(8, np.nan)), id="NaN"),
        pytest.param(
            lambda entry: entry.update(config=json.dumps(json.loads(entry["config"]) | {"temperature": -1})),
            id="a negative temperature",
        ),
    ],
)
def test_damaged_heads(adata, query, change):
    bf.tl.annotate(adata, "type")
    change(adata.uns["bioformer"]["heads"]["annotation:type"])
    with pytest.raises(ModelFormatError, match="head"):
        bf.tl.annotate(query, "type", model=adata)


def test_reading_what_is_not_there(adata):
    for read in (bf.get.annotation, bf.get.annotation_evidence, bf.pl.annotation):
        with pytest.raises(MissingKeyError, match=r"Run `bf.tl.annotate\(adata, 'type'\)` first"):
            read(adata, "type")
    bf.tl.embed(adata)
    with pytest.raises(MissingKeyError, match="holds no labels with evidence"):
        bf.get.annotation_evidence(adata, "type", key="X_bioformer")


def test_labels_do_not_depend_on_the_format(adata):
    dense = adata.copy()
    dense.X = dense.X.toarray()
    columns = adata.copy()
    columns.X = sp.csc_matrix(columns.X)
    bf.tl.annotate(adata, "type")
    for other in (dense, columns):
        bf.tl.annotate(other, "type")
        assert same(bf.get.annotation(other, "type"), bf.get.annotation(adata, "type"))
