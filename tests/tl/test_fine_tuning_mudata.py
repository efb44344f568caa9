"""`tl.fit(mdata, model=…)`: a fit of several modalities that starts from a model."""

import logging
import warnings
from dataclasses import replace

import mudata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, QuantileBins
from scbioformers.data import survey
from scbioformers.model import run_network
from scbioformers.results import open_modalities

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:.*other genes than:scbioformers.core.BioformersWarning"),
    pytest.mark.filterwarnings("ignore:10 of 60 samples:scbioformers.core.BioformersWarning"),
    pytest.mark.filterwarnings("ignore:Found .* of the model's:scbioformers.core.BioformersWarning"),
]
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
SHORT = bf.TrainConfig(max_steps=3, batch_size=16)
ZERO = bf.TrainConfig(max_steps=0)
BINS = {"rna": "value", "prot": "quantile"}
ALL = {"rna": None, "prot": None}  # every feature is modelled
N_RNA, N_PROT = 30, 6


def of(mdata, **columns) -> mudata.MuData:
    """A MuData of some features of each modality, with the columns of obs."""
    found = mudata.MuData({name: mdata[name][:, own].copy() for name, own in columns.items()})
    for key in ("batch", "cell_type"):
        found.obs[key] = mdata.obs[key].reindex(found.obs_names).to_numpy()
    return found


def simulated(n_cells=120) -> mudata.MuData:
    """Cells x (40 genes + 8 proteins). Each half has a batch of its own, and both have the batch "x"."""
    mdata = bf.datasets.simulate(n_cells, 40, n_regulators=5, n_types=3, n_proteins=6)
    half = np.arange(n_cells) >= n_cells // 2
    mdata.obs["batch"] = np.where(np.arange(n_cells) % 2, "x", np.where(half, "b", "a"))
    return mdata


@pytest.fixture(scope="module")
def known():
    """The 60 cells of the first fit, of which 10 lack proteins, with some of the features."""
    mdata = of(simulated()[:60].copy(), rna=slice(N_RNA), prot=slice(N_PROT))
    found = mudata.MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"][:50].copy()})
    found.obs = mdata.obs.copy()
    return found


@pytest.fixture(scope="module")
def whole():
    """60 other cells, with all genes and proteins."""
    return of(simulated()[60:].copy(), rna=slice(None), prot=slice(None))


@pytest.fixture(scope="module")
def start(known):
    return bf.get.model(bf.tl.fit(known, binning=BINS, config=CONFIG, train=SHORT, batch_key="batch", copy=True))


def fit(mdata, model, *, train=ZERO, mask_var=ALL, **options):
    return bf.get.model(bf.tl.fit(mdata, model=model, train=train, mask_var=mask_var, copy=True, **options))


def embedding(mdata, model, **options):
    return bf.tl.embed(mdata, model=model, copy=True, **options).obsm["X_bioformer"]


# --- without a step ------------------------------------------------------------------------------------------------


def test_without_a_step_and_with_nothing_added_it_is_the_same_model(start, known, tmp_path):
    assert fit(known, start, batch_key="batch").hash == start.hash
    assert fit(known, str(start.save(tmp_path / "model"))).hash == start.hash
    assert fit(known[:, ::-1].copy(), start).hash == start.hash


def test_features_are_appended_in_each_modality(start, whole):
    found = fit(whole, start, batch_key="batch")
    assert found.modalities == start.modalities
    for name, n_known in (("rna", N_RNA), ("prot", N_PROT)):
        names = found.of(name).vocabulary.feature_names()
        assert names[:n_known] == start.of(name).vocabulary.feature_names()
        assert sorted(names) == sorted(whole[name].var_names)
        assert (found.of(name).n_original_features, len(names)) == (n_known, whole[name].n_vars)
    assert found.vocabulary.names == tuple(f"{m}:{x}" for m in ("rna", "prot") for x in whole[m].var_names)
    assert found.batch.categories == ("a", "x", "b")
    assert found.binnings["rna"] == start.binnings["rna"]
    network, former = found.members[0], start.members[0]
    kept = found.vocabulary.index(start.vocabulary.names)
    assert torch.equal(network.feature.weight[1:][kept], former.feature.weight[1:])
    assert torch.equal(network.bin_bias.weight[1:][kept], former.bin_bias.weight[1:])
    assert torch.equal(network.batch_rate.weight[:2, kept], former.batch_rate.weight)
    assert all(torch.isfinite(x).all() for x in network.state_dict().values())
    assert found.axes.shape == (48, 8)
    np.testing.assert_array_equal(found.axes[kept], start.axes)


def test_quantile_bins_of_new_proteins_are_those_of_the_new_cells(start, whole):
    old, found = (model.of("prot").binning.quantiles for model in (start, fit(whole, start)))
    np.testing.assert_array_equal(found.edges[:N_PROT], old.edges)
    training = survey(open_modalities(whole, start).source, ZERO.validation_fraction, 0).training
    values = whole["prot"].X.toarray()[training][:, N_PROT:]
    expected = QuantileBins.fit([column[column > 0] for column in values.T], old.n_bins)
    np.testing.assert_array_equal(found.edges[N_PROT:], expected.edges)
    np.testing.assert_array_equal(found.means[N_PROT:], expected.means)


@pytest.mark.parametrize("modalities", [["rna", "prot"], ["rna"], ["prot"]])
def test_what_is_added_changes_nothing_for_samples_without_it(start, known, whole, modalities):
    found = fit(whole, start, batch_key="batch")
    for use in ("profile", "cls", "latent"):
        cells = [embedding(known, model, use=use, modalities=modalities) for model in (start, found)]
        np.testing.assert_allclose(cells[1], cells[0], atol=1e-5)
    predicted = [bf.tl.impute(known, model=model, copy=True) for model in (start, found)]
    for name in ("rna", "prot"):
        values = [mdata[name].layers["imputed"] for mdata in predicted]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_new_protein_is_predicted_from_genes_before_the_first_step():
    first, second = simulated(300)[:150].copy(), simulated(300)[150:].copy()
    model = bf.tl.fit(
        of(first, rna=slice(None), prot=slice(2, None)),
        binning=BINS,
        config=replace(CONFIG, width=32, n_latent=16),
        train=bf.TrainConfig(max_steps=30, batch_size=32),
        copy=True,
    )
    found = fit(of(second, rna=slice(None), prot=slice(None)), model)
    new = found.vocabulary.index([f"prot:{name}" for name in second["prot"].var_names[:2]])
    assert new.tolist() == [46, 47]
    alone = open_modalities(mudata.MuData({"rna": second["rna"].copy()}), found, predicted=["prot"])
    predicted = np.zeros((150, 48))
    for batch, output in run_network(found, found.members[0], alone.source.blocks(), 64):
        predicted[batch.rows] = found.members[0].profile(output.latent, batch.phenotypes).detach().numpy()
    truth = second["prot"].X.toarray()[:, :2]
    for values, measured in zip(predicted[:, new].T, truth.T, strict=True):
        assert np.corrcoef(values, measured)[0, 1] > 0.3


def test_the_depth_of_a_sample_of_which_one_protein_is_visible():
    """The new proteins have a share of 0.66 beside the depth, which is that of the known proteins."""
    first, second = simulated(300)[:150].copy(), simulated(300)[150:].copy()
    start = bf.tl.fit(
        of(first, rna=slice(None), prot=slice(2, None)), binning=BINS, config=CONFIG, train=ZERO, copy=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = fit(of(second, rna=slice(None), prot=slice(None)), start)
    prot = open_modalities(second, found).source.read(0, 150).others[0]
    assert prot.rule.modelled_only
    assert prot.rule.share > 1.5
    for kept in range(8):
        queried = np.ones(prot.counts.shape, bool)
        queried[:, kept] = False
        depth = found.of("prot").first_tokenizer.whole_depth(prot, csr_matrix(queried))
        seen = prot.counts[:, kept].toarray().ravel() > 0
        assert (depth[seen] > 0).all()
        assert 0.4 < np.median(depth[seen] / prot.depth[seen]) < 1.6


# --- modalities ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("modality-model-lacking")
@pytest.mark.parametrize(("have", "lack"), [("rna", "prot"), ("prot", "rna")])
def test_a_modality_that_the_data_lack_stays_in_the_model(start, known, have, lack):
    alone = of(known, **{have: slice(None)})
    with pytest.warns(
        BioformersWarning, match=rf"no modality \['{lack}'\]. The model keeps .* trained on \['{have}'\]"
    ):
        assert fit(alone, start, mask_var=None).hash == start.hash
    found = fit(known, start, train=SHORT, mask_var=None, modalities=[have])  # those that are named are not missed
    assert found.vocabulary == start.vocabulary
    assert found.binnings == start.binnings
    assert found.hash != start.hash
    assert np.isfinite(embedding(known, found)).all()
    columns = found.columns(lack)
    np.testing.assert_array_equal(found.gene_mean[columns], start.gene_mean[columns])


def test_features_are_added_to_one_modality_where_the_other_is_lacking(start, whole, known):
    found = fit(whole, start, modalities=["prot"], mask_var={"prot": None})
    assert [len(found.of(name).vocabulary) for name in found.modalities] == [N_RNA, whole["prot"].n_vars]
    assert all(torch.isfinite(x).all() for x in found.members[0].state_dict().values())
    np.testing.assert_allclose(embedding(known, found), embedding(known, start), atol=1e-5)


def test_by_default_no_features_are_added(start, whole, caplog):
    with caplog.at_level(logging.INFO):
        found = bf.get.model(bf.tl.fit(whole, model=start, train=SHORT, copy=True))
    assert found.vocabulary == start.vocabulary
    assert "Modality 'prot': 6 of the 6 genes of the model are measured; 0 genes are added to it." in caplog.text


def test_every_part_is_trained_and_the_model_is_stored(start, whole, tmp_path):
    mdata = whole.copy()
    bf.tl.fit(mdata, model=start, train=SHORT, mask_var=ALL, batch_key="batch", phenotype_keys="cell_type", n_models=2)
    model = bf.get.model(mdata)
    assert model.phenotypes[0].categories == tuple(sorted(set(mdata.obs["cell_type"])))
    assert len(model.members) == 2
    read = bf.BioFormer.load(model.save(tmp_path / "model"))
    assert (read.hash, read.to_bytes()) == (model.hash, model.to_bytes())
    assert read.of("prot").n_original_features == N_PROT
    np.testing.assert_array_equal(embedding(mdata, read), embedding(mdata, model))
    params = bf.get.params(mdata)
    assert params["started_from"] == start.hash
    assert params["modalities"]["prot"]["binning"]["kind"] == "quantile"
    again = fit(whole, read)  # a second time, with nothing added
    assert again.hash == read.hash


def test_a_model_of_one_anndata_is_fitted_to_a_modality(whole):
    adata = whole["rna"][:, :N_RNA].copy()
    model = bf.get.model(bf.tl.fit(adata, config=CONFIG, train=SHORT, copy=True))
    found = fit(whole, model, train=SHORT, modalities=["rna"], mask_var={"rna": None})
    assert (found.modalities, len(found.vocabulary)) == (("rna",), 40)
    alone = bf.get.model(bf.tl.fit(whole["rna"].copy(), model=model, train=SHORT, mask_var=None, copy=True))
    assert found.to_bytes() == alone.to_bytes()


def test_external_tokens_of_each_modality_are_kept(known, whole):
    mdata = known.copy()
    mdata["rna"].var["kind"] = ["a", "b"] * 15
    given = {"external_key": {"rna": "kind"}}
    model = bf.get.model(bf.tl.fit(mdata, binning=BINS, config=CONFIG, train=SHORT, copy=True, **given))
    other = whole.copy()
    other["rna"].var["kind"] = ["b"] * 39 + ["a"]
    found = fit(other, model, **given)
    codes = [1, 2] * 15 + [2] * 9 + [1] + [0] * whole["prot"].n_vars
    assert found.external.codes.tolist() == codes
    np.testing.assert_array_equal(found.members[0].external_code[1:], codes)
    np.testing.assert_allclose(embedding(known, found), embedding(known, model), atol=1e-5)


def test_a_quantile_model_of_one_anndata_gets_new_proteins(whole):
    prot = whole["prot"].copy()
    model = bf.get.model(bf.tl.fit(prot[:, :N_PROT].copy(), binning="quantile", config=CONFIG, train=SHORT, copy=True))
    found = bf.get.model(bf.tl.fit(prot, model=model, train=ZERO, mask_var=None, copy=True))
    assert len(found.binning.quantiles) == prot.n_vars
    part = prot[:, :N_PROT].copy()
    np.testing.assert_allclose(embedding(part, found), embedding(part, model), atol=1e-5)
    np.testing.assert_array_equal(found.binning.quantiles.edges[:N_PROT], model.binning.quantiles.edges)


# --- names ---------------------------------------------------------------------------------------------------------


def test_a_feature_map_of_one_modality(start, known):
    other = known.copy()
    renamed = {f"ADT_{name}": name for name in other["prot"].var_names}
    other["prot"].var_names = list(renamed)
    given = {"feature_map": {"prot": renamed}}
    other.update_var()
    found = bf.get.model(bf.tl.fit(other, model=start, train=ZERO, copy=True, **given))
    assert found.hash == start.hash
    np.testing.assert_array_equal(embedding(other, start, **given), embedding(known, start))
    values = [
        bf.tl.impute(mdata, model=start, copy=True, **maps)["prot"].layers["imputed"]
        for mdata, maps in ((other, given), (known, {}))
    ]
    np.testing.assert_array_equal(values[0], values[1])
    names = bf.get.gene_embeddings(other, model=start, modality="prot", **given).index
    assert list(names) == list(renamed)


@pytest.mark.fault("modality-map")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"CD3": "CD3E"}, r"`feature_map` has the modality 'CD3'; the modalities are \['rna', 'prot'\]"),
        ({"prot": {}}, "`feature_map` is empty"),
    ],
)
def test_a_feature_map_that_names_no_modality(start, known, given, message):
    with pytest.raises(ConfigError, match=message):
        fit(known, start, feature_map=given)
    with pytest.raises(ConfigError, match=message):
        bf.tl.embed(known, model=start, feature_map=given)


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("modality-model-other")
def test_a_modality_that_the_model_does_not_have(start, known):
    other = mudata.MuData({"rna": known["rna"].copy(), "atac": known["prot"].copy()})
    message = r"reads the modalities \['rna', 'prot'\], and not 'atac'. Pass `modalities=\['rna'\]` to leave it out"
    with pytest.raises(DataError, match=message):
        fit(other, start, mask_var=None)
    assert fit(other, start, mask_var=None, modalities=["rna"]).hash == start.hash  # the call that the message names
    with pytest.raises(DataError, match=r"reads the modalities \['rna', 'prot'\], and the MuData has \['gex'\]"):
        fit(mudata.MuData({"gex": known["rna"].copy()}), start, mask_var=None)


@pytest.mark.fault("modality-anndata")
def test_an_anndata_for_a_model_of_several_modalities(start, known):
    with pytest.raises(DataError, match=r"modalities \['rna', 'prot'\]. Pass a MuData.*MuData\(\{'rna': adata\}\)"):
        bf.tl.fit(known["rna"].copy(), model=start, train=ZERO)
    called = mudata.MuData({"rna": known["rna"].copy()})
    with pytest.warns(BioformersWarning, match="no modality"):
        assert fit(called, start, mask_var=None).hash == start.hash


def test_settings_must_be_those_of_the_model(start, known):
    with pytest.raises(ConfigError, match="`binning` must be that of the model"):
        fit(known, start, binning={"prot": "segment"})
    assert fit(known, start, binning={"prot": "quantile", "rna": "value"}).hash == start.hash
    with pytest.raises(ConfigError, match="`config` must be that of the model"):
        fit(known, start, config="small")
    with pytest.raises(ConfigError, match="`task` is for an AnnData, found a MuData"):
        fit(known, start, task=bf.Perturbation("perturbation", "control"))
    with pytest.raises(ConfigError, match=r"\['batch'\] is one of `batch_key` in the model"):
        fit(known, start, phenotype_keys="batch")
