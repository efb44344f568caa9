"""Fit: the stored results, and that they depend on the seed and the data only."""

import json
import os
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError, ModelFormatError
from scbioformers.model import Head
from scbioformers.tl import _fit

TRAIN = bf.TrainConfig(max_steps=3, batch_size=16)
SLASHED = ["CD4+/CD25 T Reg", "naïve/β", "", "B"]


@pytest.fixture
def fit(tiny_config):
    """`bf.tl.fit` with a tiny model and three steps. `train=` changes parameters of the training."""

    def fit(adata, *, train=None, **kwargs):
        return bf.tl.fit(adata, **{"config": tiny_config, "train": replace(TRAIN, **(train or {})), **kwargs})

    return fit


def bits(adata, key="bioformer") -> bytes:
    return adata.uns[key]["model"].tobytes()


def embedded(adata, **kwargs) -> np.ndarray:
    return bf.tl.embed(adata, copy=True, **kwargs).obsm["X_bioformer"]


def assert_same_fit(found, expected):
    assert bits(found) == bits(expected)
    assert np.array_equal(embedded(found), embedded(expected))
    pd.testing.assert_frame_equal(bf.get.history(found), bf.get.history(expected), check_exact=True)
    assert bf.get.params(found) == bf.get.params(expected)


# results


def test_fields(simulated, fit):
    before = set(simulated.uns)
    assert fit(simulated) is None
    assert set(simulated.uns) == before | {"bioformer"}
    slot = simulated.uns["bioformer"]
    assert set(slot) == {"model", "model_hash", "history", "params"}
    assert slot["model"].dtype == np.uint8
    assert slot["model"].ndim == 1
    assert slot["model_hash"] == bf.get.model(simulated).hash
    assert isinstance(json.loads(slot["params"]), dict)


def test_key_added(simulated, fit):
    fit(simulated)
    fit(simulated, rng=1, key_added="a/second")
    assert bf.get.model(simulated).hash != bf.get.model(simulated, key="a/second").hash
    assert all("/" not in key for key in simulated.uns)


def test_copy(simulated, fit):
    before = simulated.copy()
    copied = fit(simulated, copy=True)
    assert "bioformer" in copied.uns
    assert "bioformer" not in simulated.uns
    assert (copied.X != before.X).nnz == 0
    fit(simulated)
    assert_same_fit(copied, simulated)


def test_params_include_the_default_values(simulated, fit, tiny_config):
    fit(simulated, batch_key="batch", phenotype_keys=["cell_type"], rng=5)
    params = bf.get.params(simulated)
    assert params["batch_key"] == "batch"
    assert params["phenotype_keys"] == ["cell_type"]
    assert params["seed"] == 5
    assert params["n_models"] == 1
    assert bf.ModelConfig.from_dict(params["config"]) == tiny_config
    assert bf.Binning.from_dict(params["binning"]) == bf.Binning()
    assert params["train"]["n_context"] == bf.TrainConfig().n_context
    assert {"layer", "mask_var"} <= set(params)


def test_history_has_a_row_per_epoch(simulated, fit):
    fit(simulated, train={"max_epochs": 2, "max_steps": None, "batch_size": 20})
    history = bf.get.history(simulated)
    assert history["epoch"].tolist() == [1, 2]
    assert history["step"].is_monotonic_increasing
    assert np.isfinite(history["train_loss"]).all()
    assert np.isfinite(history["val_loss"]).all()
    np.testing.assert_allclose(
        history["train_loss"], history["train_masked_bins"] + history["train_profile_counts"], rtol=1e-5
    )


def test_training_lowers_the_loss(simulated, fit):
    fit(simulated, train={"max_epochs": 8, "max_steps": None, "lr": 1e-2, "validation_fraction": 0.0})
    history = bf.get.history(simulated)
    assert len(history) == 8
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] - 0.05


def test_no_step_stores_the_initial_model(simulated, fit, tmp_path):
    fit(simulated, train={"max_steps": 0})
    assert bf.get.history(simulated).empty
    assert np.isfinite(embedded(simulated)).all()
    simulated.write_h5ad(tmp_path / "x.h5ad")
    assert bits(ad.read_h5ad(tmp_path / "x.h5ad")) == bits(simulated)


def test_max_epochs_replaces_that_of_train(simulated, fit, tiny_config):
    short = bf.tl.fit(simulated, config=tiny_config, train=replace(TRAIN, max_steps=None), max_epochs=2, copy=True)
    long = fit(simulated, train={"max_steps": None, "max_epochs": 2}, copy=True)
    assert_same_fit(short, long)


# determinism


def test_same_seed_same_bits(simulated, fit):
    first, second = fit(simulated, copy=True), fit(simulated, copy=True)
    assert_same_fit(first, second)
    assert_same_fit(
        fit(simulated, rng=np.random.default_rng(7), copy=True), fit(simulated, rng=np.random.default_rng(7), copy=True)
    )


def test_another_seed_differs(simulated, fit):
    first, second = fit(simulated, copy=True), fit(simulated, rng=1, copy=True)
    pairs = zip(*(bf.get.model(adata).members[0].parameters() for adata in (first, second)), strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) > 5
    assert not np.allclose(embedded(first), embedded(second), atol=1e-3)


def test_rng_none_draws_a_new_seed_that_is_stored(simulated, fit):
    first, second = fit(simulated, rng=None, copy=True), fit(simulated, rng=None, copy=True)
    assert bits(first) != bits(second)
    assert bits(fit(simulated, rng=bf.get.params(first)["seed"], copy=True)) == bits(first)


# the same data in other formats


@pytest.mark.fault(5, 6, 8)
def test_dtype_and_format_do_not_matter(simulated, fit):
    expected = fit(simulated, copy=True)
    for x in (simulated.X.toarray().astype(np.int64), sp.csc_matrix(simulated.X, dtype=np.float64)):
        other = simulated.copy()
        other.X = x
        assert_same_fit(fit(other, copy=True), expected)


@pytest.mark.fault(17)
def test_view(simulated, fit):
    expected = fit(simulated[3:].copy(), copy=True)
    view = simulated[3:]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        fit(view)
        bf.tl.embed(view)
    assert not view.is_view
    assert_same_fit(view, expected)
    assert "bioformer" not in simulated.uns


@pytest.fixture
def on_disk(simulated, tmp_path):
    """Functions that open the same data in two formats, and the path of the h5ad file."""
    simulated.write_h5ad(tmp_path / "x.h5ad")
    simulated.write_zarr(tmp_path / "x.zarr")
    openers = {
        "backed": lambda: ad.read_h5ad(tmp_path / "x.h5ad", backed="r"),
        "zarr": lambda: ad.read_zarr(tmp_path / "x.zarr"),
    }
    return openers, tmp_path / "x.h5ad"


@pytest.mark.fault(14, 16, "memory-backed-zarr")
@pytest.mark.parametrize("kind", ["backed", "zarr"])
def test_on_disk_equals_in_memory(simulated, fit, on_disk, kind):
    openers, path = on_disk
    before = path.read_bytes()
    fit(simulated, batch_key="batch")
    bf.tl.embed(simulated)
    opened = openers[kind]()
    fit(opened, batch_key="batch")
    bf.tl.embed(opened)
    assert bits(opened) == bits(simulated)
    np.testing.assert_allclose(opened.obsm["X_bioformer"], simulated.obsm["X_bioformer"], rtol=0, atol=1e-5)
    if kind == "backed":
        assert opened.isbacked
        opened.file.close()
    assert path.read_bytes() == before


@pytest.mark.fault(14)
def test_copy_of_backed_data_is_in_memory(simulated, fit, on_disk):
    backed = on_disk[0]["backed"]()
    copied = fit(backed, copy=True)
    assert not copied.isbacked
    assert "bioformer" not in backed.uns
    backed.file.close()
    assert bits(copied) == bits(fit(simulated, copy=True))


# round trips


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(simulated, fit, tmp_path, kind):
    simulated.obs["label"] = pd.Categorical(np.resize(SLASHED, 60))
    fit(simulated, batch_key="batch", phenotype_keys=["label"])
    bf.tl.embed(simulated)
    path = tmp_path / f"x.{kind}"
    getattr(simulated, f"write_{kind}")(path)
    again = getattr(ad, f"read_{kind}")(path)
    assert_same_fit(again, simulated)
    assert np.array_equal(again.obsm["X_bioformer"], simulated.obsm["X_bioformer"])
    assert set(bf.get.model(again).fields[1].categories) == set(SLASHED)
    assert bf.get.model(again).hash == again.uns["bioformer"]["model_hash"] == simulated.uns["bioformer"]["model_hash"]


def test_options_of_the_run_do_not_change_the_hash(simulated, fit):
    """Nor does a head that is added: embeddings that record the hash stay those of the model."""
    first, second = fit(simulated, copy=True), fit(simulated, copy=True, progress_bar=True, device="cpu")
    assert first.uns["bioformer"]["model_hash"] == second.uns["bioformer"]["model_hash"]
    model = bf.get.model(first)
    more = replace(model, heads={"colour": Head({"names": ["red"]}, {"weights": np.ones(3, np.float32)})})
    assert more.hash == model.hash
    again = bf.BioFormer.from_bytes(more.to_bytes())
    assert again.heads["colour"].config == {"names": ["red"]}
    np.testing.assert_array_equal(again.heads["colour"].arrays["weights"], 1)
    assert again.heads["colour"].hash == more.heads["colour"].hash != Head({}, {}).hash


# the model in a directory


def test_save_dir(simulated, fit, tmp_path):
    inside = fit(simulated, copy=True)
    fit(simulated, save_dir=tmp_path / "model")
    assert "model" not in simulated.uns["bioformer"]
    assert simulated.uns["bioformer"]["model_dir"] == str(tmp_path / "model")
    assert bf.BioFormer.load(tmp_path / "model").hash == simulated.uns["bioformer"]["model_hash"]
    assert np.array_equal(embedded(simulated), embedded(inside))
    simulated.write_h5ad(tmp_path / "x.h5ad")
    assert np.array_equal(embedded(ad.read_h5ad(tmp_path / "x.h5ad")), embedded(inside))


def test_save_dir_may_be_relative(simulated, fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(simulated, save_dir="model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert embedded(simulated).shape[0] == 60


def test_another_model_in_the_directory_raises_an_error(simulated, fit, tmp_path):
    fit(simulated, save_dir=tmp_path / "model")
    fit(simulated, save_dir=tmp_path / "model", rng=1, copy=True)
    with pytest.raises(ModelFormatError, match="does not hold the model fitted here"):
        bf.tl.embed(simulated)


def test_missing_directory(simulated, fit, tmp_path):
    fit(simulated, save_dir=tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / "moved")
    with pytest.raises(ModelFormatError, match=r"Did not find .*model"):
        bf.tl.embed(simulated)
    assert np.isfinite(embedded(simulated, model=tmp_path / "moved")).all()


def test_large_model_needs_save_dir_before_any_work(simulated, fit, monkeypatch):
    monkeypatch.setattr(_fit, "fit_model", lambda *args, **kwargs: pytest.fail("the fit has started"))
    before = set(simulated.uns)
    with pytest.raises(ConfigError, match=r"takes \d+ MB, more than the 32 MB .*save_dir"):
        fit(simulated, config=bf.ModelConfig(width=1024))
    assert set(simulated.uns) == before


def test_size_is_known_before_any_work(simulated, fit, monkeypatch):
    estimates = []
    monkeypatch.setattr(_fit, "check_storage", lambda n_bytes, save_dir: estimates.append(n_bytes))
    sizes = [len(bits(fit(simulated, n_models=n_models, copy=True))) for n_models in (1, 2)]
    assert estimates[1] == 2 * estimates[0]
    assert sizes[0] / 2 < estimates[0] < 4 * sizes[0]  # the number of bins is not known yet


# genes and columns


def test_mask_var(simulated, fit):
    simulated.var["mine"] = np.arange(40) % 3 == 0
    fit(simulated, mask_var="mine", train={"validation_fraction": 0.0})
    model = bf.get.model(simulated)
    assert model.vocabulary.feature_names() == list(simulated.var_names[::3])
    x = simulated.X.toarray()
    assert model.binnings["rna"].mean_depth == pytest.approx(x.sum(axis=1).mean())  # over all genes and all cells
    depth = x.sum(axis=1)
    np.testing.assert_allclose(model.gene_mean, (x[:, ::3] / depth[:, None]).mean(axis=0) * depth.mean(), rtol=1e-5)
    as_bools = fit(simulated, mask_var=simulated.var["mine"].to_numpy(), train={"validation_fraction": 0.0}, copy=True)
    assert bits(as_bools) == bits(simulated)


def test_highly_variable_is_the_default(simulated, fit):
    simulated.var["highly_variable"] = np.arange(40) < 25
    fit(simulated)
    assert bf.get.model(simulated).vocabulary.feature_names() == list(simulated.var_names[:25])
    fit(simulated, mask_var=None)
    assert len(bf.get.model(simulated).vocabulary) == 40
    with pytest.raises(MissingKeyError, match=r"adata.var\['mine'\]"):
        fit(simulated, mask_var="mine")


def test_layer(simulated, fit):
    expected = fit(simulated, copy=True)
    simulated.layers["counts"] = simulated.X.copy()
    sc.pp.normalize_total(simulated)
    sc.pp.log1p(simulated)
    with pytest.raises(DataError, match=r"log scale.*layer='counts'"):
        fit(simulated)
    torch.set_num_threads(1)  # scanpy changes the number of threads of numba, which torch shares
    fit(simulated, layer="counts")
    pairs = zip(*(bf.get.model(adata).members[0].parameters() for adata in (expected, simulated)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(MissingKeyError, match=r"layers\['raw'\].*counts"):
        fit(simulated, layer="raw")


def test_batch_and_tokens(simulated, fit):
    simulated.obs["label"] = pd.Categorical(np.resize(SLASHED, 60), categories=[*SLASHED, "unused"])
    fit(simulated, batch_key="batch", phenotype_keys=["label"])
    fields = bf.get.model(simulated).fields
    assert [field.name for field in fields] == ["batch", "label"]
    assert fields[1].categories == tuple(SLASHED)
    expected = embedded(simulated)
    moved = simulated.copy()
    moved.obs["batch"] = np.where(simulated.obs["batch"] == "batch_1", "batch_2", "batch_1")
    assert not np.allclose(embedded(moved), expected, atol=1e-6)


def test_a_phenotype_stays_in_the_embedding_and_a_batch_does_not(simulated):
    """The counts are the same and the category changes. This changes the embedding if the category is a phenotype."""
    config = bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8, latent_noise=0.0)
    train = bf.TrainConfig(max_steps=30)
    moved = simulated.copy()
    moved.obs["batch"] = np.where(simulated.obs["batch"] == "batch_1", "batch_2", "batch_1")
    shift = {}
    for role in ({"batch_key": "batch"}, {"phenotype_keys": ["batch"]}):
        adata = simulated.copy()
        bf.tl.fit(adata, config=config, train=train, **role)
        model = bf.get.model(adata)
        assert (model.batch is None) == ("phenotype_keys" in role)
        embeddings = [bf.tl.embed(each, model=model, copy=True).obsm["X_bioformer"] for each in (adata, moved)]
        shift[next(iter(role))] = np.abs(embeddings[0] - embeddings[1]).max()
        assert len(model.members[0].phenotypes) == ("phenotype_keys" in role)
    assert shift["phenotype_keys"] > 1e-4


@pytest.mark.parametrize("names", [["batch"], ["cell_type", "cell_type"]], ids=["the batch", "twice"])
def test_a_column_has_one_role(simulated, fit, names):
    with pytest.raises(ConfigError, match=r"A column is named twice.*`phenotype_keys`.*Pass each column once"):
        fit(simulated, batch_key="batch", phenotype_keys=names)


@pytest.mark.fault(36)
def test_numeric_batch_is_reported(simulated, fit):
    simulated.obs["lane"] = np.arange(60) % 3
    with pytest.warns(BioformersWarning, match="numeric: each of its 3 values"):
        fit(simulated, batch_key="lane")


def test_members(simulated, fit):
    whole = {"validation_fraction": 0.0}  # without validation, because all members share one split
    fit(simulated, n_models=2, rng=3, train=whole)
    members = bf.get.model(simulated).members
    assert sorted(set(bf.get.history(simulated)["member"])) == [0, 1]
    alone = bf.get.model(fit(simulated, rng=3, train=whole, copy=True)).members
    others = bf.get.model(fit(simulated, n_models=3, rng=3, train=whole, copy=True)).members

    def same(first, second):
        return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))

    # a member depends on its number, not on how many there are
    assert same(members[0], alone[0])
    assert all(map(same, members, others))
    assert not same(members[0], members[1])
    assert not torch.equal(members[0].cls, members[1].cls)


# other scales


def test_segment_bins_accept_log_data(simulated, fit):
    sc.pp.log1p(simulated)
    with pytest.raises(DataError, match="binning='segment'"):
        fit(simulated)
    fit(simulated, binning="segment")
    model = bf.get.model(simulated)
    assert not model.reading.counts
    assert model.binnings["rna"].kind == "segment"
    assert "train_profile_bins" in bf.get.history(simulated)
    values = embedded(simulated)
    assert np.isfinite(values).all()
    assert len(np.unique(values.round(5), axis=0)) == 60


def test_segment_bins_accept_centred_data(simulated, fit):
    x = np.log1p(simulated.X.toarray())
    simulated.X = x - x.mean(axis=0)
    fit(simulated, binning=bf.Binning(kind="segment", n_bins=10))
    history = bf.get.history(simulated).drop(columns=["member", "epoch", "step"])
    assert np.isfinite(history).all(axis=None)
    values = embedded(simulated)
    assert np.isfinite(values).all()
    assert len(np.unique(values.round(5), axis=0)) == 60


def test_segment_bins_of_counts_use_the_objective_of_counts(simulated, fit):
    fit(simulated, binning="segment")
    assert bf.get.model(simulated).reading.counts
    assert "train_profile_counts" in bf.get.history(simulated)


@pytest.mark.fault(3)
def test_values_that_are_not_integers_need_allow_non_integer(simulated, fit):
    simulated.X = simulated.X * 0.75
    with pytest.raises(DataError, match=r"not integers.*allow_non_integer=True"):
        fit(simulated)
    fit(simulated, allow_non_integer=True)
    assert np.isfinite(embedded(simulated)).all()


# configurations


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": "all", "attend_masked": True},
        {"value_embedding": "lookup", "dropout": 0.1},
        {"attention": False, "n_layers": 2},
        {"bag": False, "svd_init": False},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_configurations(simulated, fit, tiny_config, changes):
    config = replace(tiny_config, **changes)
    first, second = fit(simulated, config=config, copy=True), fit(simulated, config=config, copy=True)
    assert_same_fit(first, second)
    assert bf.get.model(first).config == config
    assert np.isfinite(embedded(first)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"config": "huge"},
            r"must be 'small', 'no_attention', 'decoder', 'paper', a ModelConfig or None, found 'huge'",
        ),
        ({"binning": "ranks"}, r"`binning` must be 'value', 'segment', 'quantile', a Binning, a dict or None"),
        ({"n_models": 0}, r"`n_models` must be at least 1, found 0"),
        ({"rng": -1}, r"`rng` must be an integer"),
    ],
)
def test_wrong_arguments(simulated, fit, arguments, message):
    with pytest.raises(ConfigError, match=message):
        fit(simulated, **arguments)
    assert "bioformer" not in simulated.uns


@pytest.mark.parametrize(("config", "lr", "decay"), [("small", 2e-3, 1.0), ("paper", 2e-4, 0.01)])
def test_presets_have_their_own_training_parameters(simulated, tmp_path, config, lr, decay):
    adata = simulated[:8].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)  # about genes that are not expressed in eight cells
        bf.tl.fit(adata, config=config, max_epochs=1, save_dir=tmp_path / "model")
    train = bf.get.params(adata)["train"]
    assert (train["lr"], train["weight_decay"]) == (lr, decay)


@pytest.mark.fault("phenotype-batch")
def test_a_phenotype_that_cannot_be_told_from_another_column(simulated, tiny_config):
    adata = simulated.copy()
    adata.obs["age"] = adata.obs["batch"].astype(str).map({"batch_1": 30.0, "batch_2": 50.0})
    adata.obs["copy"] = adata.obs["age"].map({30.0: "young", 50.0: "old"})
    with pytest.warns(bf.core.BioformersWarning, match=r"\['batch'\] fixes the phenotype adata.obs\['age'\]"):
        bf.tl.fit(adata, batch_key="batch", phenotype_keys="age", config=tiny_config, train=bf.TrainConfig(max_steps=1))
    with pytest.warns(bf.core.BioformersWarning, match=r"\['age'\] and adata.obs\['copy'\] hold the same"):
        bf.tl.fit(adata, phenotype_keys=["age", "copy"], config=tiny_config, train=bf.TrainConfig(max_steps=1))
