"""`tl.pretrain` with `phenotype_keys`: columns of obs that several sources have, or lack."""

import json
import logging

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import zarr

import scbioformers as bf
from scbioformers.__main__ import main
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.data import (
    ObsField,
    _data_sets,
    field_codes,
    join_modalities,
    open_data_sets,
    phenotype_codes,
    register_phenotypes,
    samples_of_sources,
    with_chosen_features,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*has other genes:scbioformers.core.BioformersWarning"),
]
TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)
KEYS = ["condition", "age"]


def make(**columns) -> ad.AnnData:
    n = len(next(iter(columns.values())))
    return ad.AnnData(np.ones((n, 1)), obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(n)]))


@pytest.fixture(scope="module")
def whole():
    """120 cells of three conditions, with an age that is missing in ten of them."""
    adata = bf.datasets.simulate(120, 40, n_regulators=5, n_types=3, n_conditions=3)
    adata.obs["age"] = np.random.default_rng(0).uniform(20, 80, 120)
    adata.obs.loc[adata.obs_names[40:50], "age"] = np.nan
    return adata


@pytest.fixture(scope="module")
def sources(whole):
    """The second one lacks the age, the third one four genes."""
    parts = {"a": whole[:50].copy(), "b": whole[50:80].copy(), "c": whole[80:, :36].copy()}
    del parts["b"].obs["age"]
    return parts


@pytest.fixture
def pretrain(tiny_config, tmp_path):
    def run(sources, **options):
        options = {"config": tiny_config, "train": TRAIN, "save_dir": tmp_path / "model"} | options
        return bf.tl.pretrain(sources, **options)

    return run


@pytest.fixture(scope="module")
def directory(sources, tiny_config, tmp_path_factory):
    place = tmp_path_factory.mktemp("m") / "model"
    bf.tl.pretrain(sources, phenotype_keys=KEYS, config=tiny_config, train=TRAIN, save_dir=place)
    return place


@pytest.fixture
def model(directory):
    return bf.BioFormer.load(directory)


def joined(sources, keys):
    """The cells that are trained on, and the fields."""
    with open_data_sets(sources, phenotype_keys=keys) as found:
        chosen = with_chosen_features(found, dict.fromkeys(found, 4000), dict.fromkeys(found), seed=0)
        samples = samples_of_sources(chosen)
        fields = register_phenotypes(samples, keys)
        return join_modalities(chosen, phenotype_codes(fields, samples)), fields


# --- what is read --------------------------------------------------------------------------------------------------


def test_categories_knots_and_codes_are_those_of_one_anndata_with_all_cells(whole, sources):
    source, fields = joined(sources, KEYS)
    together = whole.copy()
    together.obs.loc[sources["b"].obs_names, "age"] = np.nan
    expected = ObsField.register(together, "condition")
    assert fields[0] == expected
    assert expected.categories == ("condition_1", "condition_2", "condition_3")
    values = together.obs["age"].dropna()
    np.testing.assert_allclose(fields[1].knots, np.quantile(values, np.linspace(0, 1, 10)))
    found = np.concatenate([block.fields for block in source.blocks()])
    np.testing.assert_array_equal(found, field_codes(fields, together))


def test_the_categories_of_one_source_are_those_of_its_fit():
    adata = make(stage=pd.Categorical(["late", "early", "mid"], categories=["early", "mid", "late", "never"]))
    (field,) = register_phenotypes({"a": adata}, ["stage"])
    assert field == ObsField.register(adata, "stage")
    assert field.categories == ("early", "mid", "late")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["b", "c"], ["a", "c"], ("a", "b", "c")),
        (pd.Categorical(["b", "c"]), pd.Categorical(["a", "c"]), ("a", "b", "c")),
        (pd.Categorical(["z"], ["z", "b"]), pd.Categorical(["b"], ["z", "b"]), ("z", "b")),
        ([2.0, np.nan], [1, 2], (1.0, 2.0)),
        ([None, None], ["x", "y"], ("x", "y")),
        ([np.nan, np.nan], ["x", "y"], ("x", "y")),
        (pd.array([1, None], "Int64"), [0.5, 2.0], (0.5, 1.0, 2.0)),
    ],
    ids=["text", "categories", "order", "numbers", "none", "nan", "nullable"],
)
def test_values_of_two_sources(first, second, expected):
    (field,) = register_phenotypes({"a": make(x=first), "b": make(x=second)}, ["x"])
    assert (field.knots or field.categories) == expected


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "h5ad on disk", "zarr on disk"])
def test_files_give_the_same_model(kind, sources, model, pretrain, tmp_path, monkeypatch):
    form, *on_disk = kind.split(" ", 1)
    (tmp_path / "data").mkdir()
    for name, adata in sources.items():
        getattr(adata, f"write_{form}")(tmp_path / "data" / f"{name}.{form}")
    if on_disk:
        monkeypatch.setattr(_data_sets, "MAX_BYTES", 0)
    assert pretrain(tmp_path / "data", phenotype_keys=KEYS).hash == model.hash


class Stored:
    def __init__(self, adata):
        self.n_obs, self.var_names, self.obs, self._x = adata.n_obs, adata.var_names, adata.obs, adata.X

    def read(self, start, stop):
        return self._x[start:stop]


@pytest.mark.parametrize("max_bytes", [0, 500e6], ids=["disk", "memory"])
def test_readers_and_collections_have_phenotypes_too(whole, pretrain, tmp_path, monkeypatch, max_bytes):
    expected = pretrain({"cells": whole}, phenotype_keys=KEYS).hash
    assert pretrain({"cells": Stored(whole)}, phenotype_keys=KEYS).hash == expected
    group = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=3)
    for i, rows in enumerate(np.array_split(np.arange(120), [50, 90])):
        ad.io.write_elem(group, f"dataset_{i}", whole[rows].copy())
    monkeypatch.setattr(_data_sets, "MAX_BYTES", max_bytes)
    assert pretrain(tmp_path / "cells.zarr", phenotype_keys=KEYS).hash == expected


@pytest.mark.fault("phenotype-sources")
def test_a_source_that_lacks_a_column_and_one_that_all_lack(sources, pretrain, caplog):
    with caplog.at_level(logging.WARNING, "scbioformers"):
        source, _ = joined(sources, KEYS)
    assert np.isnan(np.concatenate([block.fields for block in source.blocks()])[50:80, 1]).all()
    texts = [record.getMessage() for record in caplog.records]
    assert texts.count("b has no column obs['age']. This phenotype of its 30 cells is not known.") == 1
    assert "a: the phenotype obs['age'] is not known in 10 of 50 cells, which have no value." in texts
    assert len(texts) == 2
    with pytest.raises(MissingKeyError, match=r"No source has the column obs\['dose'\] .*'age', 'batch', .*condition"):
        pretrain(sources, phenotype_keys=["condition", "dose"])
    with pytest.raises(ConfigError, match=r"named twice in `phenotype_keys`, \['age', 'age'\]"):
        pretrain(sources, phenotype_keys=["age", "age"])
    with pytest.raises(DataError, match=r"obs\['x'\] has no value in any cell of any source"):
        register_phenotypes({"a": make(x=[None]), "b": make(y=["c"])}, ["x"])


@pytest.mark.fault("phenotype-sources")
@pytest.mark.parametrize(
    ("texts", "message", "knots"),
    [
        (["1", "12"], r"numbers in \['a'\], such as 4, and categories in \['b'\], such as '1'.*for 'b'", (1, 4, 12)),
        (["4h", "8h"], r"such as 4, and categories in \['b'\], such as '4h'.*for 'a'", None),
    ],
)
def test_numbers_in_one_source_and_text_in_another(texts, message, knots):
    given = {"a": make(time=[4.0, 12.0]), "b": make(time=texts), "c": make(other=[1, 2])}
    with pytest.raises(DataError, match=message) as caught:
        register_phenotypes(given, ["time"])
    words = str(caught.value).split("`")
    exec(words[1], {"adata": given[words[0].split()[-1].strip("'")]})  # the call that is suggested
    (field,) = register_phenotypes(given, ["time"])
    assert field.knots == (knots or ())


@pytest.mark.fault("phenotype-infinite")
def test_an_infinite_number_in_a_source():
    with pytest.raises(DataError, match=r"^second: adata.obs\['age'\] is infinite in 1 of 2 cells"):
        register_phenotypes({"first": make(age=[1.0, 2.0]), "second": make(age=[1.0, np.inf])}, ["age"])


@pytest.mark.fault("phenotype-batch")
def test_a_phenotype_that_names_the_source(whole, pretrain):
    given = {"a": whole[:50].copy(), "b": whole[50:80].copy(), "c": whole[80:].copy()}
    for (name, adata), value in zip(given.items(), ["x", "y", None], strict=True):
        adata.obs["place"] = value
        adata.obs["year"] = 2020.0 + len(name) + ord(name)
    with pytest.warns(BioformersWarning, match=r"The source fixes the phenotype obs\['place'\]: all cells of a source"):
        pretrain(given, phenotype_keys="place")
    with pytest.warns(BioformersWarning, match=r"The source fixes the phenotype obs\['year'\]"):
        pretrain(given, phenotype_keys="year")


# --- what the model is for -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of two sources that knows what the conditions do, and cells of the same network that it has not seen."""
    adata = bf.datasets.simulate(600, 40, n_types=3, n_regulators=5, n_conditions=2, n_times=3, rng=2)
    config = bf.ModelConfig(width=32, n_heads=2, n_latent=16, n_components=8)
    place = tmp_path_factory.mktemp("m") / "model"
    given = {"a": adata[:250].copy(), "b": adata[250:450, 2:].copy()}
    options = {"config": config, "train": bf.TrainConfig(max_steps=60), "save_dir": place}
    bf.tl.pretrain(given, phenotype_keys=["condition", "time"], **options)
    return place, adata[450:].copy()


def test_other_cells_are_embedded_annotated_and_seen_under_another_condition(trained):
    place, adata = trained
    bf.tl.counterfactual(adata, {"condition": "condition_2"}, model=place)
    true = adata.uns["condition_true"]["condition_2"]
    assert np.corrcoef(adata.varm["counterfactual_effect"]["all"], true)[0, 1] > 0.8
    known = adata.obs.pop("condition")
    bf.tl.annotate(adata, "condition", model=place)
    assert (adata.obs["bioformer_condition"].astype(str) == known.astype(str)).mean() > 0.7
    bf.tl.embed(adata, model=place, phenotype={"condition": "condition_2"}, key_added="X_set")
    adata.obs["condition"] = "condition_2"
    bf.tl.embed(adata, model=place)
    np.testing.assert_array_equal(adata.obsm["X_set"], adata.obsm["X_bioformer"])


def test_fine_tuning_adds_a_category_and_a_phenotype(model, whole):
    adata = whole[:60].copy()
    adata.obs["condition"] = np.where(np.arange(60) < 20, "new", adata.obs["condition"].astype(str))
    adata.obs["sex"] = np.where(np.arange(60) % 2, "f", "m")
    bf.tl.fit(adata, model=model, phenotype_keys=["condition", "sex"], train=TRAIN)
    found = bf.get.model(adata).phenotypes
    assert [each.name for each in found] == ["condition", "age", "sex"]
    assert found[0].categories == (*model.phenotypes[0].categories, "new")
    assert found[1] == model.phenotypes[1]
    bf.tl.counterfactual(adata, {"condition": "new", "sex": "f"})
    assert np.isfinite(adata.layers["counterfactual"]).all()


def test_the_card_lists_the_phenotypes(model, directory):
    text = (directory / "README.md").read_text()
    low, high = model.phenotypes[1].knots[0], model.phenotypes[1].knots[-1]
    assert "| phenotype condition | 3: condition\\_1, condition\\_2, condition\\_3 |" in text
    assert f"| phenotype age | a number, {low:g} to {high:g} in training |" in text


def test_the_command_line(sources, tmp_path, capsys):
    for name, adata in sources.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    paths = [str(tmp_path / f"{name}.h5ad") for name in sources]
    command = ["pretrain", *paths, "--save-dir", str(tmp_path / "m"), "--max-epochs", "1", "--phenotype-keys"]
    assert main([*command, "condition,age"]) == 0
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    assert [each["name"] for each in stored["phenotypes"]] == KEYS
    assert main([*command, "dose"]) == 1
    assert "No source has the column obs['dose']" in capsys.readouterr().err


# --- several modalities --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several():
    """Two MuData and an AnnData of genes, with a condition of the samples and an age in the modality rna."""
    whole = bf.datasets.simulate(90, 40, n_regulators=5, n_types=3, n_proteins=6, n_conditions=2)
    condition, age = whole.obs["condition"].astype(str), np.arange(90) % 4 * 10.0
    parts = {}
    for name, rna, prot in (("a", slice(0, 30), slice(0, 25)), ("b", slice(32, 60), slice(30, 60))):
        parts[name] = mudata.MuData({"rna": whole["rna"][rna].copy(), "prot": whole["prot"][prot].copy()})
        parts[name]["rna"].obs = pd.DataFrame({"age": age[rna]}, index=parts[name]["rna"].obs_names)
        parts[name].obs = pd.DataFrame({"condition": condition[parts[name].obs_names]})
    parts["c"] = whole["rna"][60:].copy()
    parts["c"].obs = pd.DataFrame({"condition": condition[60:], "age": age[60:]}, index=parts["c"].obs_names)
    return parts


MODALITY_KEYS = ["condition", "rna:age"]


def test_samples_of_several_modalities_have_their_own_phenotypes(several):
    source, fields = joined(several, MODALITY_KEYS)
    assert fields[0].categories == ("condition_1", "condition_2")
    assert fields[1] == ObsField("rna:age", ("0", "10", "20", "30"), (0.0, 10.0, 20.0, 30.0))
    order = np.r_[0:30, 32:60, 30:32, 60:90]  # samples 30 and 31 lack genes, so their age is not known
    age = np.where(np.isin(order, [30, 31]), np.nan, order % 4)
    condition = np.concatenate([each.obs["condition"] for each in several.values()]) == "condition_2"
    for number in (0, 1):
        found = np.concatenate([block.modalities[number].fields for block in source.blocks()])
        np.testing.assert_array_equal(found, np.column_stack([condition, age]))


def test_one_modality_of_a_mudata_has_the_phenotypes_of_its_samples(several):
    given = {"b": several["b"]}
    with open_data_sets(given, ["rna"], phenotype_keys=["condition"]) as found:
        chosen = with_chosen_features(found, {"rna": 40}, {"rna": None}, seed=0)
        fields = register_phenotypes(samples_of_sources(chosen), ["condition"])
        source = join_modalities(chosen, phenotype_codes(fields, samples_of_sources(chosen)))
    expected = several["b"].obs["condition"][several["b"]["rna"].obs_names] == "condition_2"
    np.testing.assert_array_equal(source.read(0, 28).fields[:, 0], expected)


@pytest.mark.parametrize("max_bytes", [0, 500e6], ids=["disk", "memory"])
def test_files_of_several_modalities_give_the_same_model(several, pretrain, tmp_path, monkeypatch, max_bytes):
    expected = pretrain(several, phenotype_keys=MODALITY_KEYS)
    several["a"].write_h5mu(tmp_path / "a.h5mu")
    several["b"].write_zarr(tmp_path / "b.zarr")
    several["c"].write_h5ad(tmp_path / "c.h5ad")
    monkeypatch.setattr(_data_sets, "MAX_BYTES", max_bytes)
    files = [tmp_path / name for name in ("a.h5mu", "b.zarr", "c.h5ad")]
    assert pretrain(files, phenotype_keys=MODALITY_KEYS).hash == expected.hash
    bf.tl.embed(several["a"], model=expected, phenotype={"rna:age": 15.0})
    assert np.isfinite(several["a"].obsm["X_bioformer"]).all()


@pytest.mark.fault("phenotype-sources")
def test_a_column_that_only_modalities_have(several, pretrain):
    given = {name: several[name] for name in ("a", "b")}
    message = r"No source has the column obs\['age'\] .*`mdata.obs\['age'\] = mdata\['rna'\].obs\['age'\]`.*'rna:age'"
    with pytest.raises(MissingKeyError, match=message):
        pretrain(given, phenotype_keys="age")
