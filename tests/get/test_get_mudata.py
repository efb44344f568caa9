"""``bf.get`` and ``bf.pl`` of a MuData: ``modality=`` names the modality that has the result."""

import contextlib
import inspect
import logging
import re

import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, MissingKeyError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
]
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
SHARED = ["G1", "G2"]  # names of genes and of proteins


@pytest.fixture(autouse=True)
def _close():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def simulated() -> mudata.MuData:
    """80 samples, of which 20 lack proteins; 40 genes, of which 30 are modelled, and 8 proteins."""
    whole = bf.datasets.simulate(80, 40, n_regulators=5, n_types=3, n_proteins=6, rng=0)
    rna, prot = whole["rna"].copy(), whole["prot"][:60].copy()
    prot.var_names = [*SHARED, *prot.var_names[2:]]
    rna.var["highly_variable"] = ~rna.var_names.isin([f"G{i}" for i in range(20, 30)])
    return mudata.MuData({"rna": rna, "prot": prot})


@pytest.fixture(scope="module")
def _fitted_once() -> mudata.MuData:
    mdata = simulated()
    bf.tl.fit(mdata, config=CONFIG, train=bf.TrainConfig(max_steps=4, batch_size=16))
    bf.tl.impute(mdata)
    return mdata


@pytest.fixture
def fitted(_fitted_once):
    return _fitted_once.copy()


def modality_functions() -> dict:
    found = {}
    for space in ("get", "pl"):
        namespace = getattr(bf, space)
        found |= {f"{space}.{name}": getattr(namespace, name) for name in namespace.__all__}
    return {name: each for name, each in found.items() if "modality" in inspect.signature(each).parameters}


@pytest.mark.fault("modality-which")
@pytest.mark.parametrize("name", [name for name in modality_functions() if name != "get.gene_embeddings"])
def test_the_modality_must_be_named_if_there_are_several(fitted, name):
    function = modality_functions()[name]
    with pytest.raises(ConfigError, match=r"\['rna', 'prot'\]. Pass one of them as `modality=`, such as .*'rna'`"):
        function(fitted)
    with pytest.raises(MissingKeyError, match=r"no modality 'atac'. It has \['rna', 'prot'\]"):
        function(fitted, modality="atac")
    with pytest.raises(ConfigError, match=r"found 'rna'.* AnnData. Leave it out"):
        function(fitted["rna"], modality="rna")


RESULTS = ["get.gene_programs", "get.gene_program_scores", "get.grn", "get.grn_graph", "get.grn_matrix",
           "get.imputation_evidence", "get.program_enrichment", "get.regulators", "pl.attention_heatmap",
           "pl.calibration", "pl.gene_programs", "pl.grn_network", "pl.imputation"]  # fmt: skip


@pytest.mark.fault(62)
@pytest.mark.parametrize("name", RESULTS)
def test_a_missing_result_is_named_with_its_modality_and_the_advice_works(fitted, name):
    for modality in fitted.mod:
        fitted[modality].uns.clear()
    sets = {"set": list(fitted["rna"].var_names[:6])}

    def follow(error):
        """Make the call that a message names, and before it what that call itself lacks."""
        assert str(error).startswith("Did not find mdata['rna']."), error
        call = re.search(r"Run `(bf\.tl\.[^`]*\(mdata[^`]*)`", str(error))[1]
        try:
            eval(call, {"bf": bf, "mdata": fitted, "gene_sets": sets})
        except MissingKeyError as other:
            follow(other)
            eval(call, {"bf": bf, "mdata": fitted, "gene_sets": sets})

    with pytest.raises(MissingKeyError) as lacking:
        modality_functions()[name](fitted, modality="rna")
    follow(lacking.value)
    with contextlib.suppress(DataError):  # of a network of four steps there may be nothing to show
        modality_functions()[name](fitted, modality="rna")


@pytest.mark.fault(62)
def test_a_missing_result_of_the_mudata_itself(fitted):
    with pytest.raises(MissingKeyError, match=r"find mdata.obs\['bioformer_x'\]. Run `bf.tl.annotate\(mdata, 'x'\)`"):
        bf.get.annotation(fitted, "x")


def test_results_of_a_modality_are_those_of_its_anndata(fitted):
    for name in ("rna", "prot"):
        evidence, expected = (
            bf.get.imputation_evidence(fitted, modality=name),
            bf.get.imputation_evidence(fitted[name]),
        )
        pd.testing.assert_frame_equal(evidence["bins"], expected["bins"])
        assert evidence["nll_bits"] == expected["nll_bits"]
        for draw in (bf.pl.imputation, bf.pl.calibration):
            assert draw(fitted, modality=name, show=False).get_title() == draw(fitted[name], show=False).get_title()
    bits = {bf.get.imputation_evidence(fitted, modality=name)["nll_bits"] for name in ("rna", "prot")}
    assert len(bits) == 2


# bf.get.imputed


@pytest.mark.parametrize("name", ["rna", "prot"])
def test_a_modality_is_predicted_from_the_others(fitted, name):
    found = bf.get.imputed(fitted, modality=name)
    table = fitted.obsm[f"imputed_{name}"]
    assert list(found.obs_names) == list(fitted.obs_names)
    assert list(found.var_names) == list(table.columns)
    np.testing.assert_array_equal(found.X, table.to_numpy())
    some = bf.get.imputed(fitted, modality=name, genes=["G2", "G1"])
    assert list(some.var_names) == ["G2", "G1"]
    np.testing.assert_array_equal(some.X, found[:, ["G2", "G1"]].X)


def test_a_gene_and_a_protein_of_one_name_are_two(fitted):
    gene, protein = (bf.get.imputed(fitted, modality=name, genes="G1").X for name in ("rna", "prot"))
    assert np.isfinite(gene).sum() == 60
    assert np.isfinite(protein).sum() == 80
    assert not np.allclose(gene[:60], protein[:60])


@pytest.mark.filterwarnings("ignore:The MuData has no modality")
def test_proteins_of_data_without_any(fitted):
    alone = mudata.MuData({"rna": simulated()["rna"].copy()})
    found = bf.get.imputed(alone, modality="prot", genes=["G2"], model=fitted)
    np.testing.assert_allclose(found.X[:, 0], fitted.obsm["imputed_prot"]["G2"], atol=1e-3)
    with pytest.raises(DataError, match=r"`genes`: not among the features of 'prot': .*G40"):
        bf.get.imputed(alone, modality="prot", genes=["G40"], model=fitted)
    with pytest.raises(MissingKeyError, match="The model has no modality 'atac'"):
        bf.get.imputed(alone, modality="atac", model=fitted)


def test_the_call_for_a_gene_that_is_not_modelled_models_it(fitted, caplog):
    """Also as a column of symbols: the call in the message is run."""
    with caplog.at_level(logging.WARNING):
        bf.get.imputed(fitted, modality="rna", genes=["G1", "G25"])
    call = re.search(r"`(bf\.tl\.fit\(.*?\))` fits a model that has them too", caplog.text)[1]
    quick = {"config": CONFIG, "train": bf.TrainConfig(max_steps=1)}
    eval(f"{call[:-1]}, **quick)", {"bf": bf, "np": np, "mdata": fitted, "quick": quick})
    genes = bf.get.gene_embeddings(fitted, modality="rna").index
    assert len(genes) == 31
    assert {"G1", "G25"} <= set(genes)
    assert len(bf.get.gene_embeddings(fitted, modality="prot")) == fitted["prot"].n_vars


# bf.get.gene_embeddings


def test_embeddings_of_all_features_have_qualified_names(fitted):
    every = bf.get.gene_embeddings(fitted)
    assert every.index.is_unique
    assert list(every.index) == list(bf.get.model(fitted).vocabulary.names)
    pd.testing.assert_frame_equal(bf.get.gene_embeddings(model=fitted), every)
    for name in ("rna", "prot"):
        own = bf.get.gene_embeddings(fitted, modality=name)
        pd.testing.assert_frame_equal(
            own.rename(index=lambda gene, name=name: f"{name}:{gene}"),
            every.loc[[f"{name}:{gene}" for gene in own.index]],
        )
    assert not np.allclose(every.loc["rna:G1"], every.loc["prot:G1"])


def test_embeddings_are_named_as_the_data_name_their_features(fitted):
    other = simulated()
    other["rna"].var["symbol"] = other["rna"].var_names.to_numpy()
    other["rna"].var_names = [f"ENSG{i}" for i in range(40)]
    names = list(bf.get.gene_embeddings(fitted, modality="rna").index)
    by_column = bf.get.gene_embeddings(other, model=fitted, gene_symbols={"rna": "symbol"})
    assert list(by_column.index)[:30] == [f"rna:{name}" for name in names]
    with pytest.raises(ConfigError, match="`gene_symbols` must say what it means for each of the modalities"):
        bf.get.gene_embeddings(other, model=fitted, gene_symbols="symbol")
    with pytest.raises(DataError, match="The model reads the modalities"):
        bf.get.gene_embeddings(other["rna"], model=fitted)


# a model of several modalities


def test_learning_curves(fitted):
    axes = bf.pl.training(fitted, show=False)
    assert [ax.get_title() for ax in axes] == ["masked features", "profile from <cls>"]
    table = bf.get.history(fitted)
    curves = {line.get_label(): line.get_ydata() for line in axes[1].lines}
    for modality in ("rna", "prot"):
        expected = table[f"train_profile_modalities_{modality}"].dropna()
        np.testing.assert_array_equal(curves[f"training, {modality}"], expected)


def test_what_takes_no_mudata_names_the_modality(fitted):
    calls = [bf.get.perturb, bf.get.perturb_evidence, bf.get.perturbed_cells, bf.pl.perturbation_screen]
    for call in calls:
        with pytest.raises(DataError, match=r"Pass one of its modalities \['rna', 'prot'\], such as `mdata\['rna'\]`"):
            call(fitted)
