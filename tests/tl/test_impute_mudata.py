"""``bf.tl.impute`` of a MuData: proteins from RNA and RNA from proteins, for all samples, without reading them."""

import warnings

import mudata
import numpy as np
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, log1p_rows
from scbioformers.model import run_network
from scbioformers.results import open_modalities

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
CONFIG = bf.ModelConfig(width=64, n_layers=1, n_heads=2, n_latent=32, n_components=8)
N, LACK_PROT, LACK_RNA = 200, slice(160, None), slice(0, 20)


def simulated() -> mudata.MuData:
    return bf.datasets.simulate(N, 40, n_regulators=5, n_types=4, n_proteins=10, rng=2)


def incomplete() -> mudata.MuData:
    """Samples 0 to 19 lack RNA, 160 to 199 lack proteins."""
    whole = simulated()
    return mudata.MuData({"rna": whole["rna"][20:].copy(), "prot": whole["prot"][:160].copy()})


@pytest.fixture(scope="module")
def _imputed() -> mudata.MuData:
    mdata = incomplete()
    train = bf.TrainConfig(max_steps=100, batch_size=32)
    bf.tl.fit(mdata, binning={"prot": "value"}, config=CONFIG, train=train)
    bf.tl.impute(mdata, output="log1p", std=True, quantiles=[0.1, 0.9])
    return mdata


@pytest.fixture
def imputed(_imputed):
    return _imputed.copy()


def measured(mdata, name, model) -> np.ndarray:
    """log1p of the counts at the mean depth of the training cells."""
    counts = mdata[name].X
    depth = np.asarray(counts.sum(axis=1)).ravel()
    return log1p_rows(counts.tocsr(), depth, model.of(name).binning.mean_depth).toarray()


@pytest.mark.parametrize(("name", "lacking", "low"), [("prot", LACK_PROT, 0.4), ("rna", LACK_RNA, 0.25)])
def test_what_a_sample_lacks_is_predicted_from_what_it_has(imputed, name, lacking, low):
    whole = simulated()
    cells = whole.obs_names[lacking]
    predicted = imputed.obsm[f"imputed_{name}"].loc[cells]
    true = measured(whole, name, bf.get.model(imputed))[lacking]
    assert list(predicted.columns) == list(whole[name].var_names)
    varying = true.std(axis=0) > 0.3
    if name == "prot":
        varying &= ~whole["prot"].var["isotype_control"].to_numpy()
    assert varying.sum() >= 5
    each = [np.corrcoef(predicted.to_numpy()[:, j], true[:, j])[0, 1] for j in np.flatnonzero(varying)]
    assert np.mean(each) > low
    error, spread = np.abs(predicted.to_numpy() - true)[:, varying], np.abs(true - true.mean(axis=0))[:, varying]
    assert error.mean() < spread.mean()


def test_standard_deviations_and_quantiles_are_those_of_the_errors(imputed):
    whole, model = simulated(), bf.get.model(imputed)
    cells = whole.obs_names[LACK_PROT]
    true = measured(whole, "prot", model)[LACK_PROT]
    table = {each: imputed.obsm[f"imputed_prot{each}"].loc[cells].to_numpy() for each in ("", "_std", "_q10", "_q90")}
    z = (true - table[""]) / table["_std"]
    assert 0.7 < np.sqrt((z**2).mean()) < 1.4
    assert 0.6 < ((true >= table["_q10"]) & (true <= table["_q90"])).mean() <= 0.97


def test_samples_with_another_modality_have_values_and_the_layer_has_those_of_its_own_samples(imputed):
    for name in ("rna", "prot"):
        table, layer = imputed.obsm[f"imputed_{name}"], imputed[name].layers["imputed"]
        assert table.shape == (N, imputed[name].n_vars)
        assert list(table.index) == list(imputed.obs_names)
        alone = ~table.index.isin(imputed["rna" if name == "prot" else "prot"].obs_names)
        assert table.isna().all(axis=1).tolist() == table.isna().any(axis=1).tolist() == alone.tolist()
        np.testing.assert_array_equal(np.asarray(layer), table.loc[imputed[name].obs_names].to_numpy())
        std = imputed[name].layers["imputed_std"]
        np.testing.assert_array_equal(
            np.asarray(std), imputed.obsm[f"imputed_{name}_std"].loc[imputed[name].obs_names].to_numpy()
        )
        assert imputed[name].var["imputed"].all()


@pytest.mark.parametrize("name", ["rna", "prot"])
def test_the_values_of_a_modality_are_not_read_for_its_own_prediction(imputed, name):
    """Other values in it, of other depth, give the same predictions, bit for bit."""
    other = incomplete()
    other[name].X = other[name].X.toarray()[:, ::-1] * 5 + 3
    bf.tl.impute(other, model=imputed, modalities=[name], output="log1p")
    np.testing.assert_array_equal(other.obsm[f"imputed_{name}"], imputed.obsm[f"imputed_{name}"])
    assert f"imputed_{'rna' if name == 'prot' else 'prot'}" not in other.obsm


def test_proteins_are_predicted_for_data_without_any(imputed):
    whole = simulated()
    alone = mudata.MuData({"rna": whole["rna"].copy()})
    with warnings.catch_warnings():  # what is predicted may lack: nothing to warn of
        warnings.simplefilter("error", bf.core.BioformersWarning)
        bf.tl.impute(alone, model=imputed, modalities=["prot"], output="log1p")
        assert bf.get.imputed(alone, model=imputed, modality="prot").n_obs == alone.n_obs
    with pytest.warns(bf.core.BioformersWarning, match=r"no modality \['prot'\]. The model reads them as not"):
        bf.tl.embed(alone, model=imputed)
    found = alone.obsm["imputed_prot"].loc[imputed["rna"].obs_names]
    expected = imputed.obsm["imputed_prot"].loc[imputed["rna"].obs_names]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "imputed" not in alone["rna"].layers


def test_counts_and_bins_of_the_same_prediction(imputed):
    tables = {}
    for output in ("counts", "bins"):
        mdata = incomplete()
        bf.tl.impute(mdata, model=imputed, modalities=["prot"], output=output)
        tables[output] = mdata.obsm["imputed_prot"].to_numpy()
    model = bf.get.model(imputed).of("prot")
    assert np.nanmax(tables["bins"]) <= model.binning.n_values - 1
    # Jensen: the mean of log1p is at most log1p of the mean
    log1p = imputed.obsm["imputed_prot"].to_numpy()
    known = np.isfinite(log1p)
    assert (log1p[known] <= np.log1p(tables["counts"][known]) + 1e-5).all()


@pytest.mark.fault("modality-centred")
@pytest.mark.parametrize("centred", [False, True])
def test_quantile_bins_are_decoded_on_the_scale_of_the_data(centred):
    """Proteins by quantiles: counts, or centred values, of which some are negative."""
    whole = simulated()
    values = whole["prot"].X.toarray()
    if centred:
        values = np.log1p(values) - np.log1p(values).mean(axis=1, keepdims=True)
    whole["prot"].X = values.astype(np.float32)
    mdata = mudata.MuData({"rna": whole["rna"].copy(), "prot": whole["prot"][:160].copy()})
    train = bf.TrainConfig(max_steps=60, batch_size=32)
    bf.tl.fit(mdata, binning={"prot": bf.Binning("quantile", n_bins=10)}, config=CONFIG, train=train)
    model = bf.get.model(mdata)
    assert model.of("prot").binning.n_values == 11
    assert model.of("prot").reading.counts == (not centred)
    bf.tl.impute(mdata, modalities=["prot"], std=True)
    predicted, true = mdata.obsm["imputed_prot"].to_numpy(), mdata["prot"].X
    seen = mdata.obs_names.get_indexer(mdata["prot"].obs_names)
    lowest, highest = true.min(axis=0), true.max(axis=0)
    assert ((predicted >= np.minimum(lowest, 0) - 1e-4) & (predicted <= highest + 1e-4)).all()
    each = [np.corrcoef(predicted[seen, j], true[:, j])[0, 1] for j in range(10)]
    assert np.mean(each) > 0.3
    again = bf.BioFormer.from_bytes(model.to_bytes())
    assert (again.hash, again.binnings) == (model.hash, model.binnings)


def test_the_evidence_of_a_modality_is_read_and_drawn(imputed):
    evidence = bf.get.imputation_evidence(imputed["prot"])
    assert evidence["bins"]["n"].sum() > 100
    axes = bf.pl.imputation(imputed["prot"], show=False)
    assert axes.get_xlabel()


def test_the_result_is_equal_after_write_and_read(imputed, tmp_path):
    imputed.write_h5mu(tmp_path / "cells.h5mu")
    read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(read.obsm["imputed_prot"], imputed.obsm["imputed_prot"])
    np.testing.assert_array_equal(read["prot"].layers["imputed"], imputed["prot"].layers["imputed"])


# denoising


@pytest.fixture(scope="module")
def denoised(_imputed) -> mudata.MuData:
    return bf.tl.impute(_imputed, method="denoise", modalities=["rna"], key_added="denoised", copy=True)


def test_denoised_values_are_posterior_means_of_the_rate_from_all_modalities(denoised):
    """Sample by sample: (r + x) / (r + m) * m, for the count x, its predicted mean m and the dispersion r."""
    model = bf.get.model(denoised)
    network, query = model.members[0], open_modalities(denoised, None)
    shape = network.log_dispersion.detach().exp().double().numpy()[:40]
    for sample in (25, 90, 170):  # 170 lacks proteins
        block = query.source.read(sample, sample + 1)
        ((_, output),) = run_network(model, network, [block], 1)
        counts = block.counts.toarray()[0]
        mean = np.exp(output.log_rate[0, :40].double().numpy()) * counts.sum() / model.binning.mean_depth
        expected = (shape + counts) / (shape + mean) * mean
        np.testing.assert_allclose(denoised.obsm["denoised_rna"].iloc[sample], expected, rtol=1e-4)


def test_denoising_reads_the_modality_itself_and_the_others(denoised):
    names = simulated().obs_names
    table = denoised.obsm["denoised_rna"].loc[names]
    assert table.isna().all(axis=1).tolist() == [True] * 20 + [False] * 180
    assert table.iloc[20:].notna().all(axis=None)
    assert "denoised_prot" not in denoised.obsm
    np.testing.assert_array_equal(denoised["rna"].layers["denoised"], table.loc[denoised["rna"].obs_names])
    for name in ("rna", "prot"):
        other = denoised.copy()
        other[name].X = other[name].X.toarray()[:, ::-1]
        bf.tl.impute(other, method="denoise", modalities=["rna"], key_added="denoised")
        change = np.abs(other.obsm["denoised_rna"].loc[names] - table).max(axis=1).to_numpy()
        assert (change[20:160] > 1e-4).all()
        assert (change[160:] > 1e-4).all() == (name == "rna")
        assert name == "rna" or (change[160:] < 1e-6).all()


def test_denoising_does_not_depend_on_the_batch_size_and_is_in_the_unit_that_is_asked_for(denoised):
    again = bf.tl.impute(
        denoised, method="denoise", modalities=["rna"], output="log1p", batch_size=7, key_added="again", copy=True
    )
    names = denoised["rna"].obs_names
    counts = denoised.obsm["denoised_rna"].loc[names].to_numpy()
    size = np.asarray(denoised["rna"].X.sum(axis=1)).ravel() / bf.get.model(denoised).binning.mean_depth
    expected = np.log1p(counts / size[:, None])
    np.testing.assert_allclose(again.obsm["again_rna"].loc[names], expected, atol=1e-5)


def test_the_evidence_of_denoising_is_of_all_values_of_the_validation_samples(denoised):
    evidence = bf.get.imputation_evidence(denoised, modality="rna", key="denoised")
    assert evidence["bins"]["n"].sum() == pytest.approx(40 * evidence["n_cells"])
    assert evidence["calibration"]["n"].sum() == 40 * evidence["n_cells"]
    from_proteins = bf.get.imputation_evidence(denoised, modality="rna")  # only of samples that have proteins
    assert evidence["n_validation_cells"] > from_proteins["n_validation_cells"] > 0


def test_what_cannot_be_denoised():
    whole = simulated()
    whole["prot"].X = np.log1p(whole["prot"].X.toarray()) - 1
    bf.tl.fit(whole, config=CONFIG, train=bf.TrainConfig(max_steps=2))
    with pytest.raises(ConfigError, match="fitted to values that are not counts, so it cannot predict 'counts' with"):
        bf.tl.impute(whole, method="denoise")
    bf.tl.impute(whole, method="denoise", modalities=["rna"])
    assert whole.obsm["imputed_rna"].notna().all(axis=None)
    alone = mudata.MuData({"rna": whole["rna"].copy()})
    other = simulated()
    bf.tl.fit(other, config=CONFIG, train=bf.TrainConfig(max_steps=2), binning={"prot": "value"})
    with pytest.raises(DataError, match=r"No sample has the modality 'prot'.*predicted from the others"):
        bf.tl.impute(alone, model=other, method="denoise", modalities=["prot"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modalities": ["atac"]}, r"no modality 'atac'. It predicts \['rna', 'prot'\]"),
        (
            {"mask": np.zeros((N, 40), bool)},
            "`mask` is for an AnnData. In a MuData, all of a modality",
        ),
        (
            {"method": "denoise", "std": True},
            "`method='denoise'` estimates mean counts.*combined with `std=True`",
        ),
        ({"method": "smooth"}, "`method` must be 'denoise', 'held_out' or None, found 'smooth'"),
        ({"genes": ["G1"]}, "`genes` is for an AnnData"),
        ({"key_added": "bioformer"}, "holds a fitted model"),
    ],
)
def test_arguments_that_do_not_fit(imputed, arguments, message):
    with pytest.raises(ConfigError, match=message):
        bf.tl.impute(imputed, **arguments)


def test_a_model_of_one_modality_predicts_no_other():
    mdata = mudata.MuData({"rna": simulated()["rna"].copy()})
    bf.tl.fit(mdata, config=CONFIG, train=bf.TrainConfig(max_steps=2))
    with pytest.raises(ConfigError, match=r"reads one modality, 'rna'.*impute\(mdata\['rna'\], model=mdata\)"):
        bf.tl.impute(mdata)
    bf.tl.impute(mdata["rna"], model=mdata)  # the call that the message names
    assert np.isfinite(mdata["rna"].layers["imputed"]).all()
