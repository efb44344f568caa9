"""The samples of a MuData under another phenotype: all modalities, against decoding by hand, and faults."""

import mudata
import numpy as np
import pandas as pd
import pytest
import torch

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.model import run_network
from scbioformers.results import open_modalities

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:1 of 90 samples are measured in none:scbioformers.core.BioformersWarning"),
]
CHANGE = {"condition": "condition_2"}


def simulated() -> mudata.MuData:
    return bf.datasets.simulate(120, 30, n_types=3, n_regulators=5, n_conditions=2, n_proteins=6, rng=2)


@pytest.fixture(scope="module")
def fitted():
    """120 samples; the last 30 are used by no test but that of the fit."""
    mdata = simulated()
    config = bf.ModelConfig(width=32, n_heads=2, n_latent=16, n_components=8)
    options = {"config": config, "train": bf.TrainConfig(max_steps=30), "n_models": 2}
    bf.tl.fit(mdata, phenotype_keys="condition", **options)
    return mdata


@pytest.fixture
def samples(fitted):
    """90 samples: 10 lack proteins, 5 lack genes, one has neither; proteins are in another order."""
    whole, names = simulated(), fitted.obs_names
    rna, prot = whole["rna"][names[:84]].copy(), whole["prot"][names[[*range(88, 9, -1)]]].copy()
    mdata = mudata.MuData({"rna": rna, "prot": prot, "other": whole["rna"][names[:90], :5].copy()})
    mdata.obs = pd.DataFrame({"condition": whole.obs["condition"][mdata.obs_names]}, index=mdata.obs_names)
    mdata["rna"].obs = whole["rna"].obs.loc[rna.obs_names, ["cell_type"]]
    return mdata


def decoded(mdata, model, position):
    """Profiles of all features by hand: each member, sample by sample."""
    query = open_modalities(mdata, model)
    found = np.zeros((2, mdata.n_obs, 38))
    with torch.no_grad():
        for i, network in enumerate(query.model.members):
            for batch, output in run_network(query.model, network, [query.source.read(0, mdata.n_obs)], 1):
                phenotypes, latent = batch.phenotypes.clone(), output.latent
                if position is not None:
                    shift = network.phenotypes[0].latent_shift[[int(phenotypes[0, 0]), int(position)]]
                    latent = latent + shift[1] - shift[0]
                    phenotypes[:, 0] = position
                found[i, batch.rows] = network.profile(latent, phenotypes)
    return found


def test_profiles_and_effects_of_each_modality_are_those_of_decoding_by_hand(samples, fitted):
    bf.tl.counterfactual(samples, CHANGE, model=fitted, groupby="rna:cell_type", batch_size=7)
    own, other = decoded(samples, fitted, None), decoded(samples, fitted, 1.0)
    names = samples.obs_names
    nothing = ~names.isin(samples["rna"].obs_names) & ~names.isin(samples["prot"].obs_names)
    assert nothing.sum() == 1
    differs = (samples.obs["condition"] == "condition_1").to_numpy()
    types = samples["rna"].obs["cell_type"].reindex(names)
    for name, columns in (("rna", slice(0, 30)), ("prot", slice(30, 38))):
        whole = samples.obsm[f"counterfactual_{name}"]
        assert whole.index.equals(names)
        assert list(whole.columns) == list(samples[name].var_names)
        assert np.isnan(whole[nothing]).all(axis=None)
        np.testing.assert_allclose(whole[~nothing], other.mean(axis=0)[~nothing, columns], atol=1e-5)
        adata = samples[name]
        np.testing.assert_array_equal(adata.layers["counterfactual"], whole.loc[adata.obs_names])
        table = bf.get.counterfactual(samples, modality=name)
        assert set(table["group"]) == set(types.dropna())
        for group in types.dropna().unique():
            rows = differs & (types == group).to_numpy() & names.isin(adata.obs_names)
            of_group = table[table["group"] == group].set_index("gene").loc[adata.var_names]
            expected = (other - own)[:, rows, columns].mean(axis=(0, 1))
            np.testing.assert_allclose(of_group["effect"], expected, atol=1e-5)
            np.testing.assert_allclose(of_group["predicted"], other[:, rows, columns].mean(axis=(0, 1)), atol=1e-5)
            assert (of_group["se"] > 0).all()
    assert "counterfactual" not in samples["other"].layers


def test_modalities_that_are_asked_for_and_those_that_the_data_lack(fitted, recwarn):
    mdata = simulated()
    bf.tl.counterfactual(mdata, CHANGE, model=fitted)
    genes = mudata.MuData({"rna": mdata["rna"][:20].copy()})
    genes["rna"].layers.clear()
    genes.obs["condition"] = mdata.obs["condition"]
    recwarn.clear()
    found = bf.tl.counterfactual(genes, CHANGE, model=fitted, modalities=["prot"], key_added="stim", copy=True)
    assert not recwarn.list  # proteins are what is asked for, so nothing is said of their absence
    assert "stim" not in genes.uns
    assert list(found.obsm) == ["rna", "stim_prot"]  # mudata keeps a mask of each modality there
    assert "stim" not in found["rna"].layers
    of_both = mdata.obsm["counterfactual_prot"].iloc[:20]
    assert found.obsm["stim_prot"].shape == of_both.shape
    difference = np.abs(found.obsm["stim_prot"] - of_both).to_numpy()
    assert 1e-4 < difference.max() < 1.5  # from RNA alone, so not the same
    with pytest.raises(ConfigError, match=r"no modality 'atac'. It predicts \['rna', 'prot'\]"):
        bf.tl.counterfactual(genes, CHANGE, model=fitted, modalities=["atac"])
    with pytest.raises(ConfigError, match=r"`modalities` is empty. Pass some of \['rna', 'prot'\]"):
        bf.tl.counterfactual(genes, CHANGE, model=fitted, modalities=[])


def test_it_survives_h5mu_and_is_drawn(fitted, tmp_path):
    mdata = fitted.copy()
    bf.tl.counterfactual(mdata, CHANGE, groupby="cell_type")
    bf.tl.counterfactual(mdata, CHANGE, groupby="cell_type", modalities=["prot"])  # removes what is stale in obsm
    assert "counterfactual_rna" not in mdata.obsm
    mdata.write_h5mu(tmp_path / "m.h5mu")
    read = mudata.read_h5mu(tmp_path / "m.h5mu")
    found, expected = (bf.get.counterfactual(each, modality="prot", group="type_1") for each in (read, mdata))
    pd.testing.assert_frame_equal(found, expected)
    (ax,) = bf.pl.counterfactual(read, modality="prot", n_top=5, show=False)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["type_1", "type_2", "type_3"]
    assert {label.get_text() for label in ax.get_yticklabels()} <= set(read["prot"].var_names)


@pytest.mark.fault("counterfactual-evidence")
@pytest.mark.filterwarnings("ignore:All-zero genes:scbioformers.core.BioformersWarning")
def test_evidence_is_for_one_modality(fitted):
    mdata = fitted.copy()
    with pytest.raises(ConfigError, match=r"is for an AnnData, found a MuData.*copy \['condition'\] to mdata\['rna'\]"):
        bf.tl.counterfactual(mdata, CHANGE, evidence=True)
    options = {"config": bf.ModelConfig(width=16, n_heads=2, n_latent=8), "train": bf.TrainConfig(max_steps=2)}
    mdata["rna"].obs["cell_type"] = np.where(np.arange(120) % 4 < 2, "one", "two")
    bf.tl.fit(mdata["rna"], phenotype_keys=["condition"], **options)
    bf.tl.counterfactual(mdata["rna"], {"condition": "condition_2"}, groupby="cell_type", evidence=True)
    assert len(bf.get.counterfactual_evidence(mdata["rna"])) == 6


@pytest.mark.fault("modality-anndata", "modality-which")
def test_what_is_said_instead_of_a_result(fitted):
    mdata = fitted.copy()
    with pytest.raises(DataError, match=r"reads the modalities \['rna', 'prot'\]. Pass a MuData") as caught:
        bf.tl.counterfactual(mdata["rna"].copy(), CHANGE, model=fitted)
    suggested = eval(str(caught.value).split("`")[1], {"MuData": mudata.MuData, "adata": mdata["rna"]})
    suggested.obs["condition"] = mdata.obs["condition"]
    with pytest.warns(BioformersWarning, match=r"no modality \['prot'\]. The model reads them as not measured"):
        bf.tl.counterfactual(suggested, CHANGE, model=fitted, modalities=["rna"])
    assert np.isfinite(suggested["rna"].layers["counterfactual"]).all()
    with pytest.raises(MissingKeyError, match=r"mdata\['prot'\].*Run `bf.tl.counterfactual\(mdata, \{"):
        bf.get.counterfactual(mdata, modality="prot")
    with pytest.raises(ConfigError, match=r"modalit.*\['rna', 'prot'\]"):
        bf.get.counterfactual(mdata)
    with pytest.raises(ConfigError, match=r"`modalities` is for a MuData"):
        bf.tl.counterfactual(mdata["rna"], CHANGE, model=fitted, modalities=["rna"])
    with pytest.raises(ConfigError, match=r"holds a fitted model"):
        bf.tl.counterfactual(mdata, CHANGE, key_added="bioformer")
