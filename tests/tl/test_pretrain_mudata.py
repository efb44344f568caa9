"""`tl.pretrain` with MuData among its sources: one model of several modalities, which sources may lack."""

import re
import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.data import _data_sets, join_modalities, open_data_sets, scan, with_chosen_features

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mudata"),
    pytest.mark.filterwarnings("ignore::UserWarning:mudata"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning"),
    pytest.mark.filterwarnings("ignore:All-zero genes:scbioformers.core.BioformersWarning"),
    pytest.mark.filterwarnings("ignore:.*has other genes:scbioformers.core.BioformersWarning"),
]
TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


def simulated() -> mudata.MuData:
    """90 cells x (40 genes + 8 proteins)."""
    return bf.datasets.simulate(90, 40, n_regulators=5, n_types=3, n_batches=2, n_proteins=6)


def of(mdata, **rows) -> mudata.MuData:
    """The MuData of some cells of each modality."""
    return mudata.MuData({name: mdata[name][own].copy() for name, own in rows.items()})


@pytest.fixture(scope="module")
def sources():
    """Two MuData, whose cells may lack a modality, and an AnnData of genes."""
    whole = simulated()
    first = of(whole, rna=slice(0, 30), prot=slice(0, 25))  # 5 cells lack proteins
    second = of(whole, rna=slice(32, 60), prot=slice(30, 60))  # 2 cells lack genes
    return {"a": first, "b": second, "c": whole["rna"][60:].copy()}


@pytest.fixture
def pretrain(tiny_config, tmp_path):
    def run(sources, **options):
        options = {"config": tiny_config, "train": TRAIN, "save_dir": tmp_path / "model"} | options
        return bf.tl.pretrain(sources, **options)

    return run


@pytest.fixture(scope="module")
def directory(sources, tiny_config, tmp_path_factory):
    """Of a model of the three sources in memory."""
    place = tmp_path_factory.mktemp("m") / "model"
    bf.tl.pretrain(sources, config=tiny_config, train=TRAIN, save_dir=place)
    return place


@pytest.fixture
def model(directory):
    return bf.BioFormer.load(directory)


def joined(sources, modalities=None, **options):
    """The cells that are trained on, and what is read of each modality."""
    with open_data_sets(sources, modalities, **options) as found:
        numbers = dict.fromkeys(found, 4000), dict.fromkeys(found)
        chosen = with_chosen_features(found, *numbers, seed=0)
        return join_modalities(chosen), chosen


# --- what is trained on --------------------------------------------------------------------------------------------


def test_samples_have_the_modalities_of_their_source(sources):
    source, chosen = joined(sources)
    assert list(chosen) == ["rna", "prot"]
    assert source.starts == (0, 30, 60, 90)
    whole = simulated()
    lacks = {"rna": [30, 31], "prot": [25, 26, 27, 28, 29, *range(60, 90)]}
    # the samples of a MuData are those of its first modality, then the others
    order = np.r_[0:30, 32:60, 30:32, 60:90]
    blocks = list(source.blocks())
    for i, (name, own) in enumerate(chosen.items()):
        measured = np.concatenate([block.modalities[i].measured for block in blocks])
        found = np.vstack([block.modalities[i].counts.toarray() for block in blocks])
        depth = np.concatenate([block.modalities[i].depth for block in blocks])
        expected = whole[name][:, own.features].X.toarray()[order]
        expected[np.isin(order, lacks[name])] = 0
        assert order[~measured].tolist() == [row for row in order if row in lacks[name]]
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(depth, expected.sum(axis=1))


def test_features_and_bins_are_those_of_a_fit_of_all_samples(sources, tiny_config, pretrain):
    train = bf.TrainConfig(max_steps=0, validation_fraction=0)
    found = pretrain(sources, train=train)
    parts = {name: [x[name] for x in (sources["a"], sources["b"])] for name in ("rna", "prot")}
    parts["rna"].append(sources["c"])
    mdata = mudata.MuData({name: ad.concat(own) for name, own in parts.items()})
    bf.tl.fit(mdata, config=tiny_config, train=train)
    expected = bf.get.model(mdata)
    assert found.modalities == expected.modalities == ("rna", "prot")
    for name in found.modalities:
        ours, theirs = found.of(name), expected.of(name)
        names = ours.vocabulary.feature_names()
        order = [theirs.vocabulary.feature_names().index(feature) for feature in names]
        assert sorted(order) == list(range(len(theirs.vocabulary)))
        assert ours.binning.kind == theirs.binning.kind
        np.testing.assert_allclose(ours.binning.mean_depth, theirs.binning.mean_depth, rtol=1e-12)
        assert ours.binning.max_bin == theirs.binning.max_bin
        np.testing.assert_allclose(ours.gene_mean, theirs.gene_mean[order], rtol=1e-5)
        np.testing.assert_allclose(ours.gene_share, theirs.gene_share[order], rtol=1e-6)
        if name == "prot":  # quantiles of each protein over the samples that measure it
            np.testing.assert_array_equal(ours.binning.quantiles.edges, theirs.binning.quantiles.edges[order])
            np.testing.assert_allclose(ours.binning.quantiles.means, theirs.binning.quantiles.means[order], rtol=1e-6)


def test_the_order_of_the_sources_changes_no_feature_and_no_bin(sources, model, pretrain):
    found = pretrain(dict(reversed(sources.items())), train=bf.TrainConfig(max_steps=0))
    assert found.modalities == model.modalities
    assert found.vocabulary == model.vocabulary
    assert [each["name"] for each in found.provenance["sources"]] == ["c", "b", "a"]


@pytest.mark.fault("memory-backed-zarr")
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
def test_files_give_the_same_model(sources, model, pretrain, tmp_path, monkeypatch, in_memory):
    folder = tmp_path / "data"
    folder.mkdir()
    sources["a"].write_h5mu(folder / "a.h5mu")
    sources["b"].write_zarr(folder / "b.zarr")
    sources["c"].write_h5ad(folder / "c.h5ad")
    if not in_memory:
        monkeypatch.setattr(_data_sets, "MAX_BYTES", 0)
        source, _ = joined(folder)
        assert all(part.sources[0].on_disk for part in source.sources)
        assert source.sources[0].sources[1].on_disk
    found = pretrain(folder)
    assert found.hash == model.hash
    assert found.provenance["sources"] == model.provenance["sources"]
    (folder / "a.h5mu").unlink()  # the file is closed


def test_one_modality_gives_the_model_of_its_anndata(sources, pretrain):
    genes = {"a": sources["a"]["rna"], "b": sources["b"]["rna"], "c": sources["c"]}
    expected = pretrain(genes)
    for given in (sources, genes):
        found = pretrain(given, modalities=["rna"], binning="value")
        assert found.hash == expected.hash
    assert found.modalities == ("rna",)
    assert found.provenance["sources"] == expected.provenance["sources"]


def test_arguments_are_dicts_by_modality(sources, pretrain):
    given = {name: data.copy() for name, data in sources.items()}
    for adata in (given["a"]["rna"], given["b"]["rna"], given["c"]):
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.log1p(adata.X)
    proteins = given["a"]["prot"].var_names[[2, 0]].tolist()
    found = pretrain(
        given,
        modalities=["prot", "rna"],
        layer={"rna": "counts"},
        features={"prot": proteins},
        n_top_features={"rna": 7},
        binning={"prot": "segment"},
    )
    assert found.modalities == ("prot", "rna")
    assert found.of("prot").vocabulary.feature_names() == proteins
    assert len(found.of("rna").vocabulary) == 7
    assert [found.of(name).reading.layer for name in found.modalities] == [None, "counts"]
    assert [found.binnings[name].kind for name in found.modalities] == ["segment", "value"]
    assert len(pretrain(given, layer={"rna": "counts"}, n_top_features=5).vocabulary) == 10  # 5 of each


def test_half_of_those_that_have_the_modality_must_measure_a_feature(sources):
    given = {name: data.copy() for name, data in sources.items()}
    names = given["b"]["prot"].var_names
    given["b"] = mudata.MuData({"rna": given["b"]["rna"], "prot": given["b"]["prot"][:, 1:].copy()})
    given["c"] = given["c"][:, :30].copy()
    _, chosen = joined(given)
    assert set(chosen["prot"].features) == set(names)  # the first one is in one of two, which is half
    with open_data_sets(given) as found:
        every = with_chosen_features(found, {"rna": 99, "prot": 99}, {"rna": 3, "prot": 2}, seed=0)
    assert set(every["prot"].features) == set(names[1:])
    assert set(every["rna"].features) == set(given["c"].var_names)


def test_statistics_of_a_protein_are_those_of_the_samples_that_measure_it(sources):
    given = {"a": sources["a"], "b": mudata.MuData({"rna": sources["b"]["rna"], "prot": sources["b"]["prot"][:, 2:]})}
    source, chosen = joined(given)
    known = scan(source)
    measured = dict(zip(chosen["prot"].features, known.others[0].n_measured.tolist(), strict=True))
    expected = {name: 55 if name in given["b"]["prot"].var_names else 25 for name in measured}
    assert measured == expected


def test_a_sample_has_at_least_the_depth_of_its_proteins():
    """Also where two panels share few proteins, and the others have more counts than the shared ones let expect."""
    first = bf.datasets.simulate(30, 40, n_regulators=5, n_proteins=6, rng=0)
    second = bf.datasets.simulate(20, 40, n_regulators=5, n_proteins=6, rng=1)
    source, _ = joined({"a": first, "b": second})
    shared = first["prot"].var_names.intersection(second["prot"].var_names)
    assert 0 < len(shared) < 8
    for part in source.sources:
        block = part.read(0, 99).others[0]
        assert (block.depth >= block.counts.sum(axis=1).A1).all()


# --- what the model does -------------------------------------------------------------------------------------------


def test_the_model_reads_a_mudata_or_one_modality(model, directory):
    whole = simulated()
    bf.tl.embed(whole, model=directory)
    assert np.isfinite(whole.obsm["X_bioformer"]).all()
    alone = of(whole, rna=slice(None))
    with pytest.warns(BioformersWarning, match=r"no modality \['prot'\]"):
        bf.tl.embed(alone, model=model)
    bf.tl.embed(whole, model=model, modalities=["rna"], key_added="X_rna")
    np.testing.assert_allclose(whole.obsm["X_rna"], alone.obsm["X_bioformer"], atol=1e-5)
    bf.tl.impute(whole, model=model, modalities=["prot"], output="log1p")  # from the genes
    assert np.isfinite(whole["prot"].layers["imputed"]).all()


def test_the_error_for_an_anndata_names_a_call_that_works(model, sources):
    with pytest.raises(DataError, match=r"such as `MuData\(\{'rna': adata\}\)`"):
        bf.tl.embed(sources["c"], model=model)
    with pytest.warns(BioformersWarning, match="no modality"):
        bf.tl.embed(mudata.MuData({"rna": sources["c"].copy()}), model=model)


def test_the_card_lists_the_modalities_of_each_source(model, directory):
    assert model.provenance["sources"] == [
        {"name": "a", "n_cells": 30, "n_features": 48, "modalities": {"rna": sizes(30, 40), "prot": sizes(25, 8)}},
        {"name": "b", "n_cells": 30, "n_features": 48, "modalities": {"rna": sizes(28, 40), "prot": sizes(30, 8)}},
        {"name": "c", "n_cells": 30, "n_features": 40, "modalities": {"rna": sizes(30, 40)}},
    ]
    card = (directory / "README.md").read_text()
    assert "| a | 30 | 48 | prot: 25 cells, 8 features; rna: 30 cells, 40 features |" in card
    assert "| c | 30 | 40 | rna: 30 cells, 40 features |" in card
    assert re.search(r"\| values of prot \| counts, read as quantile bins", card)


def sizes(n_cells, n_features):
    return {"n_cells": n_cells, "n_features": n_features}


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("sources-scale")
def test_proteins_on_two_scales_are_left_out_where_they_differ(sources, pretrain):
    given = {name: data.copy() for name, data in sources.items()}
    given["d"] = of(
        bf.datasets.simulate(20, 40, n_regulators=5, n_proteins=6, rng=1), rna=slice(None), prot=slice(None)
    )
    centred = given["b"]["prot"]
    centred.X = np.log1p(centred.X.toarray()) - 2
    message = (
        r"1 of 3 data sets of 'prot' are left out. b\['prot'\]: adata.X has the scale 'centered', that of most data "
        r"sets is 'counts'; pass `layer=\{'prot': \.\.\.\}`"
    )
    with pytest.warns(BioformersWarning, match=message):
        found = pretrain(given)
    modalities = {each["name"]: list(each["modalities"]) for each in found.provenance["sources"]}
    assert modalities == {"a": ["rna", "prot"], "b": ["rna"], "c": ["rna"], "d": ["rna", "prot"]}
    assert found.provenance["sources"][1]["n_cells"] == 28  # without those of which only proteins are measured
    centred.layers["raw"] = sources["b"]["prot"].X
    with pytest.raises(DataError, match=r"None of the 3 data sets of 'prot' can be used.*the others as `modalities=`"):
        pretrain(given, layer={"prot": "none"})


@pytest.mark.fault(4)
def test_a_call_that_is_suggested_for_a_modality_works(sources, pretrain):
    given = {name: data.copy() for name, data in sources.items()}
    for adata in (given["a"]["rna"], given["b"]["rna"], given["c"]):
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.log1p(adata.X)
    with pytest.raises(DataError, match=r"None of the 3 data sets of 'rna' can be used") as caught:
        pretrain(given, binning={"rna": "value"})
    assert "pass `layer={'rna': 'counts'}`" in str(caught.value)
    assert "`bf.tl.pretrain(sources, save_dir=save_dir, binning={'rna': 'segment'})`" in str(caught.value)
    assert pretrain(given, binning={"rna": "segment"}).reading.scale == "log1p"
    assert pretrain(given, layer={"rna": "counts"}).reading.scale == "counts"


@pytest.mark.fault(67)
def test_features_of_several_types_in_one_anndata(sources, pretrain):
    whole = simulated()
    mixed = ad.concat([whole["rna"][60:], whole["prot"][60:]], axis=1)
    mixed.var["feature_types"] = ["Gene Expression"] * 40 + ["Antibody Capture"] * 8
    mixed.var_names_make_unique()
    message = r"1 of 3 sources are left out. c: adata.var\['feature_types'\] has.*Pass `bf.pp.to_mudata\(adata\)`"
    with pytest.warns(BioformersWarning, match=message):
        pretrain(sources | {"c": mixed})
    found = pretrain(sources | {"c": bf.pp.to_mudata(mixed)})
    assert list(found.provenance["sources"][2]["modalities"]) == ["rna", "prot"]


def test_the_modality_of_an_anndata_is_that_of_its_type(sources):
    proteins = sources["b"]["prot"].copy()
    proteins.var["feature_types"] = "Antibody Capture"
    source, chosen = joined({"a": sources["a"], "c": sources["c"], "p": proteins})
    assert [each.name for each in chosen["prot"].data_sets] == ["a['prot']", "p"]
    assert [each.name for each in chosen["rna"].data_sets] == ["a['rna']", "c"]
    assert source.read(60, 90).others[0].measured.all()
    assert not source.read(60, 90).measured.any()


@pytest.mark.fault("modality-apart")
def test_modalities_that_no_sample_shares(sources, pretrain):
    proteins = sources["b"]["prot"].copy()
    proteins.var["feature_types"] = "Antibody Capture"
    with pytest.warns(BioformersWarning, match=r"No sample of any source is measured in more than one of the modal"):
        pretrain({"genes": sources["c"], "proteins": proteins}, modalities=["rna", "prot"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modalities": ["rna", "adt"]}, MissingKeyError, r"No source has the modality 'adt'. They have \['prot', 'rn"),
        ({"modalities": ["rna", "rna"]}, ConfigError, r"must be different names, at least one, found \['rna', 'rna'\]"),
        ({"modalities": []}, ConfigError, r"must be different names, at least one, found \[\]"),
        (
            {"binning": "value"},
            ConfigError,
            r"`binning` must say what it means for each of the modalities \['rna', 'pr",
        ),
        ({"layer": {"adt": "x"}}, ConfigError, r"`layer` has the modality 'adt'; the modalities are \['rna', 'prot'\]"),
        ({"n_top_features": {"rna": 0}}, ConfigError, "`n_top_features` must be at least 1, found 0"),
        ({"min_sources": {"prot": 3}}, DataError, r"Modality 'prot': No feature.*at least 3 of the 2.*lower `min_so"),
        ({"external_key": "kind"}, ConfigError, "`external_key` must say what it means for each of the modalities"),
    ],
)
@pytest.mark.fault("sources-modalities")
def test_arguments_that_do_not_fit_the_modalities(sources, pretrain, options, error, message):
    with pytest.raises(error, match=message):
        pretrain(sources, **options)


@pytest.mark.parametrize("name", ["pretrain", "fit"])
def test_quantile_bins_of_another_model_are_refused(sources, pretrain, model, name):
    frozen = dict(model.binnings)
    call = pretrain if name == "pretrain" else lambda given, **options: bf.tl.fit(given["a"], copy=True, **options)
    with pytest.raises(ConfigError, match=r"quantiles of 8 features of another.*`bf.Binning\('quantile', n_bins=50\)`"):
        call(sources, binning=frozen)
    if name == "pretrain":
        found = call(sources, binning=frozen | {"prot": bf.Binning("quantile", n_bins=50)})
        assert found.binnings == model.binnings  # the same cells


@pytest.mark.fault("sources-modalities")
def test_sources_without_the_modalities_are_left_out(sources, pretrain):
    named = mudata.MuData({"gex": sources["b"]["rna"].copy()})
    message = r"1 of 2 sources are left out. b: It has the modalities \['gex'\], and `modalities` are \['rna'\].*MuData"
    with pytest.warns(BioformersWarning, match=message):
        pretrain({"a": sources["a"], "b": named}, modalities=["rna"])


def test_cells_that_are_in_two_sources(pretrain):
    """Of a MuData and of an AnnData of genes. They are found by the genes that both have."""
    random = np.random.default_rng(0)
    genes, proteins = (pd.DataFrame(index=[f"{kind}{i}" for i in range(n)]) for kind, n in (("G", 40), ("P", 5)))
    cells = pd.DataFrame(index=[f"c{i}" for i in range(40)])
    rna = ad.AnnData(1 + random.poisson(3.0, (40, 40)).astype(np.float32), cells, genes)
    prot = ad.AnnData(random.poisson(50.0, (40, 5)).astype(np.float32), cells, proteins)
    given = {"a": mudata.MuData({"rna": rna, "prot": prot}), "b": rna[5:30].copy()}
    with pytest.warns(BioformersWarning, match="25 cells are in a and in b. They count twice"):
        pretrain(given)
    given["b"].X = 1 + random.poisson(3.0, (25, 40)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BioformersWarning)
        pretrain(given)


def test_a_damaged_file_is_left_out(sources, pretrain, tmp_path):
    sources["b"].write_h5mu(tmp_path / "cut.h5mu")
    (tmp_path / "cut.h5mu").write_bytes((tmp_path / "cut.h5mu").read_bytes()[:4000])
    with pytest.warns(BioformersWarning, match=r"1 of 2 sources are left out. cut: "):
        found = pretrain({"a": sources["a"], "cut": tmp_path / "cut.h5mu"})
    assert [each["name"] for each in found.provenance["sources"]] == ["a"]


def test_external_tokens_of_one_modality(sources, pretrain):
    given = {name: data.copy() for name, data in sources.items()}
    given["a"]["rna"].var["kind"] = np.where(np.arange(40) < 3, "factor", None)
    found = pretrain(given, external_key={"rna": "kind"})
    marked = [name for name, code in zip(found.vocabulary.names, found.external.codes, strict=True) if code]
    assert sorted(marked) == sorted(f"rna:{name}" for name in given["a"]["rna"].var_names[:3])
