"""``bf.tl.fit`` and ``bf.tl.embed`` on a MuData: one model of all modalities, for samples that lack some."""

import warnings

import mudata
import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=4, batch_size=16)


def simulated() -> mudata.MuData:
    """60 cells x (40 genes + 8 proteins); the proteins have the names of their genes."""
    return bf.datasets.simulate(60, 40, n_regulators=5, n_types=3, n_batches=2, n_proteins=6)


def of(mdata, **rows) -> mudata.MuData:
    """The MuData of some cells of each modality."""
    return mudata.MuData({name: mdata[name][own].copy() for name, own in rows.items()})


@pytest.fixture(scope="module")
def _fitted() -> mudata.MuData:
    mdata = of(simulated(), rna=slice(8, None), prot=slice(0, 50))  # 42 cells have both
    bf.tl.fit(mdata, config=CONFIG, train=TRAIN)
    bf.tl.embed(mdata)
    return mdata


@pytest.fixture
def fitted(_fitted):
    return _fitted.copy()


def embedding(mdata, names) -> np.ndarray:
    return mdata.obsm["X_bioformer"][mdata.obs_names.get_indexer(names)]


def test_one_modality_gives_the_model_of_its_anndata():
    mdata = simulated()
    adata, alone = mdata["rna"].copy(), mudata.MuData({"rna": mdata["rna"].copy()})
    alone.obs = adata.obs.copy()
    options = {"config": CONFIG, "train": TRAIN, "batch_key": "batch", "phenotype_keys": "cell_type"}
    for data in (adata, alone):
        bf.tl.fit(data, **options)
        bf.tl.embed(data)
    assert bf.get.model(alone).to_bytes() == bf.get.model(adata).to_bytes()
    np.testing.assert_array_equal(alone.obsm["X_bioformer"], adata.obsm["X_bioformer"])


@pytest.mark.fault("modality-names")
def test_names_are_qualified_and_modalities_are_stored(fitted):
    model = bf.get.model(fitted)
    assert model.modalities == ("rna", "prot")
    genes, proteins = fitted["rna"].var_names, fitted["prot"].var_names
    assert set(proteins) & set(genes)
    assert list(model.vocabulary.names) == [f"rna:{x}" for x in genes] + [f"prot:{x}" for x in proteins]
    assert model.of("prot").vocabulary.feature_names() == list(proteins)
    means = [model.of(name).binning.mean_depth for name in model.modalities]
    assert means[0] != means[1]
    params = bf.get.params(fitted)["modalities"]
    assert list(params) == ["rna", "prot"]
    assert [params[name]["binning"]["kind"] for name in params] == ["value", "quantile"]  # as their values suggest


def test_a_model_in_a_mudata_is_equal_after_write_and_read(fitted, tmp_path):
    fitted.write_h5mu(tmp_path / "cells.h5mu")
    read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    model = bf.get.model(read)
    assert model.to_bytes() == bf.get.model(fitted).to_bytes()
    bf.tl.embed(read)
    np.testing.assert_array_equal(read.obsm["X_bioformer"], fitted.obsm["X_bioformer"])
    again = bf.BioFormer.load(model.save(tmp_path / "model"))
    assert again.hash == model.hash
    assert list(bf.get.history(read)) == list(bf.get.history(fitted))


def test_every_sample_is_embedded_wherever_it_stands(fitted):
    assert fitted.obsm["X_bioformer"].shape == (60, 8)
    assert np.isfinite(fitted.obsm["X_bioformer"]).all()
    whole = simulated()
    order = np.random.default_rng(0).permutation(52)
    other = mudata.MuData({"prot": whole["prot"][:50][::-1].copy(), "rna": whole["rna"][8:][order].copy()})
    bf.tl.embed(other, model=fitted, batch_size=7)
    names = fitted.obs_names
    np.testing.assert_allclose(embedding(other, names), embedding(fitted, names), atol=1e-5)


def test_a_sample_is_read_by_the_modalities_that_it_has(fitted):
    whole = simulated()
    bf.tl.embed(whole, model=fitted)
    names, lacking = whole.obs_names[8:50], whole.obs_names[50:]  # these lack proteins in `fitted`
    np.testing.assert_allclose(embedding(whole, names), embedding(fitted, names), atol=1e-5)
    assert np.abs(embedding(whole, lacking) - embedding(fitted, lacking)).max() > 1e-3
    bf.tl.embed(whole, model=fitted, modalities=["rna"])
    np.testing.assert_allclose(embedding(whole, lacking), embedding(fitted, lacking), atol=1e-5)


def test_hidden_proteins_change_nothing_in_the_embedding_from_rna(fitted):
    whole = simulated()
    clean = simulated()
    whole["prot"].X = whole["prot"].X.toarray()[:, ::-1] * 31 + 4
    for mdata in (whole, clean):
        bf.tl.embed(mdata, model=fitted, modalities=["rna"])
    np.testing.assert_array_equal(whole.obsm["X_bioformer"], clean.obsm["X_bioformer"])


def test_the_same_seed_gives_the_same_bits():
    models = []
    for _ in range(2):
        mdata = of(simulated(), rna=slice(8, None), prot=slice(0, 50))
        bf.tl.fit(mdata, config=CONFIG, train=TRAIN)
        models.append(bf.get.model(mdata))
    assert models[0].to_bytes() == models[1].to_bytes()


def test_a_backed_mudata_gives_the_same_model(fitted, tmp_path):
    mdata = of(simulated(), rna=slice(8, None), prot=slice(0, 50))
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed="r")
    assert backed["rna"].isbacked
    bf.tl.fit(backed, config=CONFIG, train=TRAIN)
    bf.tl.embed(backed)
    assert bf.get.model(backed).to_bytes() == bf.get.model(fitted).to_bytes()
    names = fitted.obs_names
    np.testing.assert_allclose(embedding(backed, names), embedding(fitted, names), atol=1e-5)
    backed.file.close()


def test_arguments_of_each_modality():
    mdata = simulated()
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = np.log1p(mdata["rna"].X.toarray())
    mdata["prot"].X = np.log1p(mdata["prot"].X.toarray())
    chosen = np.arange(40) < 25
    bf.tl.fit(
        mdata,
        modalities=["prot", "rna"],
        layer={"rna": "counts"},
        mask_var={"rna": chosen},
        binning={"prot": bf.Binning("segment", n_bins=6)},
        config=CONFIG,
        train=TRAIN,
    )
    model = bf.get.model(mdata)
    assert model.modalities == ("prot", "rna")
    assert (model.of("rna").reading.layer, model.of("prot").reading.layer) == ("counts", None)
    assert (model.of("prot").binning.n_values, model.of("prot").reading.counts) == (7, False)
    assert model.of("rna").vocabulary.feature_names() == mdata["rna"].var_names[chosen].tolist()
    assert (model.depth is None, model.of("rna").depth is None) == (True, False)
    bf.tl.embed(mdata)
    assert np.isfinite(mdata.obsm["X_bioformer"]).all()


def test_batch_and_phenotypes_are_columns_of_the_mudata():
    mdata = simulated()
    bf.tl.fit(mdata, batch_key="batch", phenotype_keys="cell_type", config=CONFIG, train=TRAIN)
    model = bf.get.model(mdata)
    assert model.batch.categories == ("batch_1", "batch_2")
    rate = model.members[0].batch_rate.weight
    assert rate.shape == (2, 48)
    assert torch.isfinite(rate).all()
    bf.tl.embed(mdata)
    assert np.isfinite(mdata.obsm["X_bioformer"]).all()


def test_training_lowers_the_loss_of_both_modalities():
    mdata = bf.datasets.simulate(100, 30, n_proteins=6, n_types=3, rng=1)
    bf.tl.fit(mdata, config=CONFIG, train=bf.TrainConfig(max_steps=60, batch_size=16))
    history = bf.get.history(mdata)
    assert {"val_masked_bins", "val_profile_modalities"} <= set(history)
    losses = history["train_loss"]
    assert losses.iloc[-3:].mean() < losses.iloc[0]
    temperature = bf.get.model(mdata).members[0].temperature
    assert temperature.shape == (2, 2)
    assert (temperature != 1).all()


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("modality-apart")
def test_no_sample_has_two_modalities():
    mdata = simulated()
    prot = mdata["prot"].copy()
    prot.obs_names = [f"other_{name}" for name in prot.obs_names]
    apart = mudata.MuData({"rna": mdata["rna"].copy(), "prot": prot})
    with pytest.warns(BioformersWarning, match=r"No sample is measured in more than one.*'cell_1'.*'other_cell_1'"):
        bf.tl.fit(apart, config=CONFIG, train=TRAIN)


@pytest.mark.fault("modality-lacking")
def test_a_modality_that_is_lacking_at_query(fitted):
    rna = of(simulated(), rna=slice(None))
    with pytest.warns(BioformersWarning, match=r"no modality \['prot'\]. The model reads them as not measured"):
        bf.tl.embed(rna, model=fitted)
    whole = simulated()
    bf.tl.embed(whole, model=fitted, modalities=["rna"])
    np.testing.assert_array_equal(rna.obsm["X_bioformer"], whole.obsm["X_bioformer"])


@pytest.mark.fault("modality-lacking")
def test_no_modality_of_the_model_at_query(fitted):
    other = mudata.MuData({"gex": simulated()["rna"].copy()})
    with pytest.raises(DataError, match=r"reads the modalities \['rna', 'prot'\], and the MuData has \['gex'\]"):
        bf.tl.embed(other, model=fitted)


@pytest.mark.fault("modality-anndata")
def test_an_anndata_for_a_model_of_several_modalities(fitted):
    with pytest.raises(DataError, match=r"modalities \['rna', 'prot'\]. Pass a MuData.*MuData\(\{'rna': adata\}\)"):
        bf.tl.embed(simulated()["rna"].copy(), model=fitted)
    called = mudata.MuData({"rna": simulated()["rna"].copy()})  # the call that the message names
    with pytest.warns(BioformersWarning, match="no modality"):
        bf.tl.embed(called, model=fitted)


@pytest.mark.fault("modality-none")
def test_a_sample_without_any_modality():
    mdata = simulated()
    part = mudata.MuData({"rna": mdata["rna"][10:].copy(), "prot": mdata["prot"].copy()})
    with pytest.warns(BioformersWarning, match=r"10 of 60 samples are measured in none of the modalities \['rna'\]"):
        bf.tl.fit(part, modalities=["rna"], config=CONFIG, train=TRAIN)
    with pytest.warns(BioformersWarning, match="10 of 60 samples"):
        bf.tl.embed(part)
    empty = part.obs["bioformer_empty"]
    assert empty.sum() == 10
    assert set(part.obs_names[empty]) == set(mdata.obs_names[:10])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"modalities": ["rna", "atac"]}, MissingKeyError, r"no modality 'atac'. It has \['rna', 'prot'\]"),
        ({"modalities": []}, ConfigError, "`modalities` must be different names"),
        ({"modalities": ["rna", "rna"]}, ConfigError, "`modalities` must be different names"),
        ({"layer": {"adt": "counts"}}, ConfigError, r"`layer` has the modality 'adt'; the modalities are \['rna'"),
        ({"layer": "counts"}, ConfigError, r"`layer` must say what it means for each .* `layer=\{'rna': ...\}`"),
        ({"binning": "value"}, ConfigError, r"`binning` must say what it means for each"),
        ({"binning": {"prot": "ranks"}}, ConfigError, "Binning.kind. must be .*'segment'"),
        ({"task": bf.Perturbation("perturbation", "control")}, ConfigError, "`task` is for an AnnData, found a MuData"),
        ({"batch_key": "donor"}, MissingKeyError, r"obs\['donor'\]"),
    ],
)
def test_arguments_that_do_not_fit_a_mudata(arguments, error, message):
    with pytest.raises(error, match=message):
        bf.tl.fit(simulated(), config=CONFIG, train=TRAIN, **arguments)


@pytest.mark.parametrize(
    "arguments", [{"modalities": ["rna"]}, {"layer": {"rna": "counts"}}, {"binning": {"rna": "value"}}]
)
def test_arguments_of_modalities_with_an_anndata(arguments):
    with pytest.raises(ConfigError, match=f"`{next(iter(arguments))}` is .*with an AnnData"):
        bf.tl.fit(simulated()["rna"].copy(), config=CONFIG, train=TRAIN, **arguments)


@pytest.mark.fault("modality-obs")
def test_names_of_samples_that_occur_twice_in_a_modality():
    mdata = simulated()
    mdata["prot"].obs_names = ["cell_1", "cell_1", *mdata["prot"].obs_names[2:]]
    with pytest.raises(DataError, match=r"more than once in the modality 'prot', such as 'cell_1'"):
        bf.tl.fit(mdata, config=CONFIG, train=TRAIN)


@pytest.mark.fault("modality-one-feature")
def test_a_modality_of_one_feature_is_trained():
    mdata = simulated()
    one = mudata.MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"][:, :1].copy()})
    bf.tl.fit(one, config=CONFIG, train=TRAIN)
    bf.tl.embed(one)
    assert np.isfinite(one.obsm["X_bioformer"]).all()


@pytest.mark.fault("modality-large")
@pytest.mark.parametrize("factor", [1, 1000])
def test_no_modality_drowns_the_other(factor):
    """Samples differ in the embedding as they differ in each modality, also if one has 1,000 times the counts."""
    mdata = simulated()
    mdata["prot"].X = (mdata["prot"].X.toarray() + 5) * factor
    bf.tl.fit(mdata, config=CONFIG, train=bf.TrainConfig(max_steps=0))
    bf.tl.embed(mdata)
    distances = pdist(mdata.obsm["X_bioformer"])
    for name in ("rna", "prot"):
        counts = np.asarray(mdata[name].X.todense() if name == "rna" else mdata[name].X)
        depth = counts.sum(axis=1, keepdims=True)
        own = pdist(np.log1p(counts / depth * depth.mean()))
        assert np.corrcoef(distances, own)[0, 1] > 0.4


# losses, and warnings


@pytest.mark.filterwarnings("ignore:All-zero genes:scbioformers.core.BioformersWarning")
def test_the_loss_of_a_modality_is_a_mean_over_the_cells_that_have_it():
    """If no sample has both, the loss of all is the mean of those of 22 and 38 cells."""
    apart = of(simulated(), rna=slice(0, 22), prot=slice(22, None))
    train = bf.TrainConfig(max_epochs=2, batch_size=16, validation_fraction=0.0)
    with pytest.warns(BioformersWarning, match="No sample is measured in more than one"):
        bf.tl.fit(apart, config=CONFIG, train=train)
    table = bf.get.history(apart)
    for name in ("train_masked_bins", "train_profile_modalities"):
        mean = (22 * table[f"{name}_rna"] + 38 * table[f"{name}_prot"]) / 60
        np.testing.assert_allclose(table[name], mean, rtol=1e-5)
        assert (table[f"{name}_rna"] != table[f"{name}_prot"]).all()


def test_the_losses_of_a_modality_without_held_out_cells_are_nan():
    mdata = of(simulated(), rna=slice(None), prot=slice(0, 3))
    train = bf.TrainConfig(max_epochs=2, batch_size=16, validation_fraction=0.05)
    bf.tl.fit(mdata, config=CONFIG, train=train, rng=1)
    table = bf.get.history(mdata)
    assert np.isfinite(table[["val_loss", "val_masked_bins_rna", "train_masked_bins_prot"]]).all(axis=None)
    assert table["val_masked_bins_prot"].isna().all()
    assert bf.BioFormer.from_bytes(bf.get.model(mdata).to_bytes()).hash == bf.get.model(mdata).hash


def test_a_copy_repeats_no_warning_of_mudata(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "X_again" in bf.tl.embed(fitted, key_added="X_again", copy=True).obsm


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_zarr_keeps_the_model_and_its_results(tmp_path):
    mdata = simulated()
    bf.tl.fit(mdata, config=CONFIG, train=TRAIN)
    bf.tl.embed(mdata)
    bf.tl.impute(mdata)
    mdata.write_zarr(tmp_path / "m.zarr")
    read = mudata.read_zarr(tmp_path / "m.zarr")
    assert bf.get.model(read).hash == bf.get.model(mdata).hash
    assert f"{40 + mdata['prot'].n_vars} features (40 rna, {mdata['prot'].n_vars} prot)" in repr(bf.get.model(read))
    np.testing.assert_array_equal(read.obsm["X_bioformer"], mdata.obsm["X_bioformer"])
    for name in ("rna", "prot"):
        np.testing.assert_array_equal(read.obsm[f"imputed_{name}"], mdata.obsm[f"imputed_{name}"])
    before = read.obsm["X_bioformer"].copy()
    bf.tl.embed(read)
    np.testing.assert_array_equal(read.obsm["X_bioformer"], before)
