"""`tl.pretrain`: one model for several data sets, from memory and from files."""

import json
import logging
import re
import shutil
import tempfile
import warnings
from contextlib import ExitStack, nullcontext

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError, StorageError, Vocabulary
from scbioformers.data import (
    AnnDataSource,
    JoinedSource,
    _data_sets,
    _open_sources,
    _shared_cells,
    choose_features,
    join_data_sets,
    open_data_sets,
)
from scbioformers.tl import _pretrain
from scbioformers.training import fit_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*has other genes:scbioformers.core.BioformersWarning"),
]
TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


@pytest.fixture(scope="module")
def sources():
    return bf.datasets.simulate_sources((40, 30, 20), 40, n_regulators=5, measured=(1.0, 0.9, 0.8))


@pytest.fixture
def pretrain(tiny_config, tmp_path):
    def run(sources, **options):
        options = {"config": tiny_config, "train": TRAIN, "save_dir": tmp_path / "model"} | options
        return bf.tl.pretrain(sources, **options)

    return run


@pytest.fixture(scope="module")
def model(sources, tiny_config, tmp_path_factory):
    """Of the three data sets in memory; the tests may not change it."""
    return bf.tl.pretrain(sources, config=tiny_config, train=TRAIN, save_dir=tmp_path_factory.mktemp("m") / "model")


def opened(*adatas, **options):
    with open_data_sets(list(adatas), **options) as found:
        return found["rna"].data_sets


# --- which genes ---------------------------------------------------------------------------------------------------


def with_variances(**genes):
    """Twelve cells. Each gene has the mean 4 and the given variance, or is not expressed where it is None."""
    columns = {}
    for name, variance in genes.items():
        away = 0 if variance is None else np.sqrt(variance)
        columns[name] = np.zeros(12) if variance is None else np.tile([4 - away, 4 + away], 6)
    return ad.AnnData(np.array(list(columns.values())).T, var=pd.DataFrame(index=list(columns)))


@pytest.mark.parametrize(
    ("n_top", "min_sources", "expected"),
    [
        # of the data sets that measure it, a is among the first 2 in 2 of 2, c in 2 of 3, b and d in 1 of 3
        (2, None, ["a", "c"]),
        (3, None, ["a", "b", "c"]),
        (4, None, ["a", "c", "b", "d"]),
        (2, 3, ["c", "b"]),
        (5, 1, ["a", "c", "b", "once", "d"]),
        (99, 1, ["a", "c", "b", "once", "d", "zero"]),
    ],
)
def test_the_genes_that_vary_most_in_the_largest_share_of_the_data_sets(n_top, min_sources, expected):
    first = with_variances(d=0, a=9, b=4, once=2, c=1)
    second = with_variances(c=4, a=9, b=1, d=0)
    third = with_variances(zero=None, c=9, d=4, b=1)
    assert choose_features(opened(first, second, third, allow_non_integer=True), n_top, min_sources, 0) == expected


def test_the_genes_of_one_large_data_set_are_those_of_scanpy():
    adata = bf.datasets.simulate(150, 230, n_regulators=5)
    sc.pp.filter_genes(adata, min_cells=10)
    expected = sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=60, inplace=False)
    assert set(choose_features(opened(adata), 60, None, 0)) == set(adata.var_names[expected["highly_variable"]])


def test_genes_that_are_given_and_in_no_data_set_are_left_out(pretrain, sources, caplog):
    with caplog.at_level(logging.WARNING, "scbioformers"):
        model = pretrain(sources, features=["G9", "nope", "TF1", "G9", "G2"])
    assert model.vocabulary.feature_names() == ["G9", "TF1", "G2"]
    assert "1 of 4 `features` are measured by no data set and are left out: ['nope']" in caplog.text
    with pytest.raises(DataError, match=r"No data set measures any of the 2 `features`.*`gene_symbols=`"):
        pretrain(sources, features=["x", "y"])


# --- from memory and from files ------------------------------------------------------------------------------------


@pytest.mark.fault("memory-backed-zarr")
@pytest.mark.parametrize("kind", ["list", "h5ad", "zarr", "h5ad on disk", "zarr on disk"])
def test_the_same_data_give_the_same_model(kind, sources, model, pretrain, tmp_path, monkeypatch):
    given, names = list(sources.values()), ["source_1", "source_2", "source_3"]
    if kind != "list":
        folder, (form, *on_disk) = tmp_path / "data", kind.split(" ", 1)
        folder.mkdir()
        for name, adata in sources.items():
            getattr(adata, f"write_{form}")(folder / f"{name}.{form}")
        given = folder if form == "h5ad" else {name: str(folder / f"{name}.zarr") for name in names}
        if on_disk:
            monkeypatch.setattr(_data_sets, "MAX_BYTES", 0)
            with ExitStack() as files:
                x = _open_sources.open_source(folder / f"source_1.{form}", files, in_memory=False).X
                assert x.__class__.__name__ == "_CSRDataset"
    found = pretrain(given)
    assert found.hash == model.hash
    assert bf.BioFormer.load(tmp_path / "model").hash == model.hash
    assert [each["name"] for each in found.provenance["sources"]] == names


def test_a_model_says_where_it_comes_from(model, sources):
    stored = json.loads(json.dumps(model.provenance))
    measured = [int(adata.var_names.isin(model.vocabulary.feature_names()).sum()) for adata in sources.values()]
    assert stored["sources"] == [
        {"name": name, "n_cells": n, "n_features": m}
        for name, n, m in zip(sources, (40, 30, 20), measured, strict=True)
    ]
    ((last,),) = stored["history"]
    assert last["step"] == 2
    assert np.isfinite(last["train_loss"])
    assert stored["seed"] == 0
    assert stored["train"]["max_steps"] == 2


def test_the_seed_decides(model, pretrain, sources):
    state = torch.get_rng_state()
    assert pretrain(sources, rng=1).hash != model.hash
    assert pretrain(sources, rng=1).hash == pretrain(sources, rng=np.int64(1)).hash
    assert torch.equal(state, torch.get_rng_state())


def test_the_binning_of_another_model_is_kept(model, pretrain, sources):
    frozen = model.binnings["rna"]
    deep = sources["source_1"].copy()
    deep.X = deep.X * 3
    assert pretrain([deep]).binnings["rna"].mean_depth > 2 * frozen.mean_depth
    assert pretrain([deep], binning=frozen).binnings["rna"] == frozen


def test_the_layer_is_read_and_remembered(pretrain, sources, model):
    logged = {}
    for name, adata in sources.items():
        logged[name] = adata.copy()
        logged[name].layers["counts"] = adata.X.copy()
        sc.pp.log1p(logged[name])
    found = pretrain(logged, layer="counts")
    assert found.reading.layer == "counts"
    weights = (each.members[0].state_dict().values() for each in (found, model))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    bf.tl.embed(logged["source_1"], model=found)  # X has no counts


# --- absent is not zero --------------------------------------------------------------------------------------------


class Noisy(AnnDataSource):
    """Blocks in which the features that are not measured have counts."""

    def read(self, start, stop):
        block = super().read(start, stop)
        dense = block.counts.toarray()
        dense[:, ~block.present] = np.random.default_rng(start).poisson(5, size=(len(dense), (~block.present).sum()))
        return type(block)(block.start, type(block.counts)(dense), block.total, block.fields, block.present, block.rule)


@pytest.mark.parametrize("binning", ["value", "segment"])
def test_noise_in_features_that_are_not_measured_changes_nothing(sources, tiny_config, binning):
    first, second = sources["source_1"], sources["source_3"]
    names = first.var_names.tolist()
    columns = second.var_names.get_indexer(names)
    assert (columns < 0).sum() == 8

    def fitted(kind):
        joined = JoinedSource([AnnDataSource(first), kind(second, columns=columns)])
        return fit_model(joined, Vocabulary.from_names(names), bf.Binning(kind=binning), tiny_config, TRAIN).model

    assert fitted(Noisy).hash == fitted(AnnDataSource).hash


def test_genes_that_are_not_modelled_count_by_their_sum_alone(sources, pretrain):
    names = sources["source_3"].var_names[:15].tolist()
    random = np.random.default_rng(0)
    noisy = {}
    for name, adata in sources.items():
        dense, other = adata.X.toarray(), ~adata.var_names.isin(names)
        for cell in dense:  # the same sum, spread anew
            cell[other] = random.multinomial(int(cell[other].sum()), np.full(other.sum(), 1 / other.sum()))
        noisy[name] = ad.AnnData(dense, adata.obs, adata.var)
    assert pretrain(noisy, features=names).hash == pretrain(sources, features=names).hash


# --- depth ---------------------------------------------------------------------------------------------------------


def joined_depths(*tables):
    names = sorted(set().union(*tables))[:-1]  # "other" is not modelled
    cells = [np.tile(list(table.values()), (12, 1)).astype(float) for table in tables]
    adatas = [ad.AnnData(x, var=pd.DataFrame(index=list(table))) for x, table in zip(cells, tables, strict=True)]
    source = join_data_sets(opened(*adatas), names)
    return [part.read(0, 1).depth[0] for part in source.sources]


def test_the_depths_of_data_sets_with_other_genes_can_be_compared():
    full = {"f0": 10, "f1": 5, "f2": 0, "other": 85}
    # lacks f1, which has 5 % of the depth
    assert joined_depths(full, {"f0": 10, "f2": 0, "other": 85}) == [100, 95 / 0.95]
    # a panel: f0 has 10 % of the depth, f3 is in no other data set
    with pytest.warns(
        BioformersWarning, match=r"source_2 has other genes: the median total of its cells is 0.40 times"
    ):
        np.testing.assert_allclose(joined_depths(full, {"f0": 5, "f3": 15, "other": 0}), [100, 50])


@pytest.mark.filterwarnings("default:.*has other genes:scbioformers.core.BioformersWarning")
def test_a_panel_is_read_at_about_the_depth_of_all_genes(pretrain):
    panel = bf.datasets.simulate_sources((60, 50), 60, n_regulators=5, measured=(1, 0.3))
    full = bf.datasets.simulate_sources((60, 50), 60, n_regulators=5, measured=(1, 1))["source_2"].X.sum(axis=1).A1
    with pytest.warns(BioformersWarning, match="source_2 has other genes.*estimated from these"):
        pretrain(panel)
    sets = opened(*panel.values())
    with pytest.warns(BioformersWarning, match="other genes"):
        source = join_data_sets(sets, panel["source_1"].var_names.tolist())
    depth = source.sources[1].read(0, 99).depth
    assert 0.7 < depth.sum() / full.sum() < 1.4  # the panel itself has a third of the counts
    assert np.corrcoef(depth, full)[0, 1] > 0.5


# --- bad input -----------------------------------------------------------------------------------------------------


def logged(adata):
    return sc.pp.log1p(adata, copy=True)


@pytest.mark.fault(4)
def test_a_data_set_without_counts_is_left_out(sources, pretrain):
    with pytest.warns(BioformersWarning, match=r"1 of 3 data sets are left out\. b: adata\.X is on a log scale"):
        found = pretrain({"a": sources["source_1"], "b": logged(sources["source_2"]), "c": sources["source_3"]})
    assert [each["name"] for each in found.provenance["sources"]] == ["a", "c"]
    both = [logged(sources["source_1"]), logged(sources["source_2"])]
    message = r"None of the 2 data sets can be used\. source_1: adata\.X is on a log scale"
    with pytest.raises(DataError, match=message) as caught:
        pretrain(both)
    (call,) = {each for each in re.findall("`([^`]+)`", str(caught.value)) if each.startswith("bf")}
    assert call == "bf.tl.pretrain(sources, save_dir=save_dir, binning='segment')"
    assert pretrain(both, binning="segment").reading.scale == "log1p"
    for adata in both:
        adata.layers["counts"] = np.expm1(adata.X.toarray()).round()
    with pytest.raises(
        DataError, match=r"pass `layer='counts'`, if all data sets have it, or else copy it to adata\.X"
    ):
        pretrain(both)
    assert pretrain(both, layer="counts").reading.scale == "counts"


@pytest.mark.fault(63)
def test_segment_bins_are_of_values_of_one_scale(sources, pretrain):
    given = {"a": sources["source_1"], "b": logged(sources["source_2"]), "c": sources["source_3"]}
    with pytest.warns(
        BioformersWarning, match=r"b: adata\.X has the scale 'log1p', that of most data sets is 'counts'"
    ):
        assert pretrain(given, binning="segment").reading.scale == "counts"


def test_damaged_files_are_left_out(sources, pretrain, tmp_path):
    for name in ("good", "cut", "text"):
        sources["source_1"].write_h5ad(tmp_path / f"{name}.h5ad")
    (tmp_path / "cut.h5ad").write_bytes((tmp_path / "good.h5ad").read_bytes()[:5000])
    (tmp_path / "text.h5ad").write_text("no h5ad")
    sources["source_2"].write_zarr(tmp_path / "bad.zarr")
    for file in (tmp_path / "bad.zarr" / "X" / "data").rglob("*"):
        if file.is_file() and not file.name.startswith((".", "zarr.json")):  # only the chunks
            file.write_bytes(b"abc")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.warns(BioformersWarning, match=r"4 of 5 data sets are left out\. bad: .+ cut: .+ empty: .+ text: "):
        found = pretrain(tmp_path)
    assert [each["name"] for each in found.provenance["sources"]] == ["good"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("nowhere", ConfigError, r"Found no \*\.h5ad, \*\.h5mu or \*\.zarr in '.*nowhere'"),
        ("nowhere.h5ad", ConfigError, r"'nowhere' does not exist: '.*nowhere\.h5ad'"),
        ([], ConfigError, "a list or mapping of AnnData, MuData and paths, found an empty list"),
        ({}, ConfigError, "a list or mapping of AnnData, MuData and paths, found an empty dict"),
        ([3], ConfigError, r"`sources` must be .*found \[3\] \(list\)"),
    ],
)
def test_sources_that_are_none(pretrain, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        pretrain(tmp_path / given if isinstance(given, str) else given)


def test_cells_that_are_in_two_data_sets(sources, pretrain):
    first, second = sources["source_1"], sources["source_2"]
    common = second.var_names
    both = ad.concat([second, first[5:30, common]])
    n = sum(np.count_nonzero(cell) >= 20 for cell in first[5:30, common].X.toarray())
    assert n > 5
    with pytest.warns(BioformersWarning, match=f"{n} cells are in a and in b. They count twice"):
        pretrain({"a": first, "b": both})


def expressed(n_cells, names, seed):
    x = 1 + np.random.default_rng(seed).poisson(3.0, (n_cells, len(names))).astype(np.float32)
    return ad.AnnData(x, var=pd.DataFrame(index=list(names)))


@pytest.mark.parametrize("max_hashes", [20_000_000, 60], ids=["all hashes", "some hashes"])
def test_each_pair_is_compared_in_the_genes_that_both_measure(pretrain, monkeypatch, max_hashes):
    """Beside a panel of four genes, which one of the two has. The other has genes of its own, in another order."""
    monkeypatch.setattr(_shared_cells, "MAX_HASHES", max_hashes)
    names = np.array([f"g{i}" for i in range(45)])
    first, other, panel = expressed(40, names[:40], 0), expressed(25, names[40:], 1), expressed(20, names[:4], 2)
    order = np.random.default_rng(3).permutation(41)
    both = np.hstack([first.X[5:30, 4:], other.X])[:, order]
    again = ad.AnnData(both, var=pd.DataFrame(index=names[4:][order]))
    with pytest.warns(BioformersWarning) as caught:
        pretrain({"a": first, "panel": panel, "again": again}, min_sources=1)
    (said,) = [str(each.message) for each in caught if "They count twice" in str(each.message)]
    if max_hashes > 60:
        assert said.startswith("25 cells are in a and in again. They")
    else:  # a quarter of the cells stands for all
        found = re.match(r"About (\d+) cells are in a and in again\. They", said)
        assert 5 < int(found[1]) < 60 and int(found[1]) % 4 == 0


def test_cells_with_other_counts_are_not_the_same(pretrain):
    first = expressed(40, [f"g{i}" for i in range(40)], 0)
    first.X[:, 4] = 5 + first.X[:, 3]
    changed = first.copy()
    changed.X[:20, 7] += 1
    changed.X[20:, [3, 4]] = changed.X[20:, [4, 3]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pretrain({"a": first, "b": changed})
    assert not [each for each in caught if "They count twice" in str(each.message)]


@pytest.mark.fault(14)
@pytest.mark.parametrize("fails", [False, True])
def test_files_are_closed(sources, pretrain, tmp_path, monkeypatch, fails):
    files = {name: tmp_path / f"{name}.h5ad" for name in ("a", "b", "log")}
    for name, adata in zip(files, (sources["source_1"], sources["source_2"], logged(sources["source_3"])), strict=True):
        adata.write_h5ad(files[name])
    sources["source_3"].write_h5ad(tmp_path / "own.h5ad")
    opened = []
    read = ad.read_h5ad
    monkeypatch.setattr(ad, "read_h5ad", lambda *args, **options: opened.append(read(*args, **options)) or opened[-1])
    monkeypatch.setattr(_data_sets, "MAX_BYTES", 0)
    own = read(tmp_path / "own.h5ad", backed="r")
    outcome = pytest.raises(DataError, match="No data set measures any") if fails else nullcontext()
    with outcome, pytest.warns(BioformersWarning, match=r"log: adata\.X is on a log scale"):
        pretrain({**files, "own": own}, features=["nope"] if fails else None)
    assert [adata.file.is_open for adata in opened] == [False] * 3
    assert own.file.is_open  # that of the user
    own.file.close()


@pytest.mark.fault("disk-full")
def test_the_size_of_the_model_is_known_before_it_is_fitted(sources, pretrain, monkeypatch, tmp_path):
    sizes = []
    monkeypatch.setattr(_pretrain, "check_storage", lambda n_bytes, save_dir: sizes.append(n_bytes))
    pretrain(sources, n_models=2, features=sources["source_1"].var_names[:20].tolist())
    written = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert sizes[0] == 0  # whether the place can be used
    assert 0.5 * written < sizes[1] < 4 * written  # 100 bins are assumed
    monkeypatch.undo()
    monkeypatch.setattr(_pretrain, "fit_model", lambda *args, **options: pytest.fail("the fit has started"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"cannot be written to .*, and its disk has 0\.0 MB free"):
        pretrain(sources)


@pytest.mark.fault("disk-full")
def test_a_model_that_cannot_be_saved_after_its_fit_is_not_lost(sources, pretrain, model, monkeypatch, tmp_path):
    def fit_and_block(*args, **options):
        (tmp_path / "model").write_text("someone else's file")
        return fit_model(*args, **options)

    monkeypatch.setattr(_pretrain, "fit_model", fit_and_block)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StorageError, match=r"nothing was written.*The fitted model is in '(.+)': move") as caught:
        pretrain(sources)
    place = re.search(r"is in '(.+)': move", str(caught.value))[1]
    assert bf.BioFormer.load(place).hash == model.hash
    assert (tmp_path / "model").read_text() == "someone else's file"


@pytest.mark.fault(26)
def test_names_of_two_kinds(pretrain):
    spelled = ("symbol", "symbol", "ensembl")
    mixed = bf.datasets.simulate_sources((40, 30, 20), 40, n_regulators=5, measured=1.0, gene_names=spelled)
    with pytest.warns(BioformersWarning, match=r"1 of 3 data sets are left out.*source_3 \(\['ENSG.*`gene_symbols=`"):
        found = pretrain(mixed)
    assert [each["n_cells"] for each in found.provenance["sources"]] == [40, 30]
    none = r"No feature is measured by at least 2 of the 2.*source_3: \['ENSG.*`gene_symbols=`\."
    with pytest.raises(DataError, match=none):
        pretrain({name: mixed[name] for name in ("source_1", "source_3")})
    with pytest.raises(MissingKeyError, match=r"No data set has the column var\['symbol'\].*'gene_symbols'"):
        pretrain(mixed, gene_symbols="symbol")
    found = pretrain(mixed, gene_symbols="gene_symbols")
    assert set(found.vocabulary.feature_names()) == set(mixed["source_1"].var_names)
    assert [each["n_features"] for each in found.provenance["sources"]] == [40] * 3
    assert found.reading.gene_symbols == "gene_symbols"
    bf.tl.embed(mixed["source_3"], model=found)


def test_too_few_data_sets_measure_a_gene(sources, pretrain):
    with pytest.raises(DataError, match=r"at least 4 of the 3 data sets.*or a lower `min_sources=`"):
        pretrain(sources, min_sources=4)


@pytest.mark.parametrize("n", [1, 2, 15])
@pytest.mark.fault(24)
def test_a_data_set_of_few_cells(sources, pretrain, n):
    found = pretrain({"many": sources["source_1"], "few": sources["source_2"][:n].copy()})
    assert found.provenance["sources"][1]["n_cells"] == n


@pytest.mark.parametrize("options", [{"n_top_features": 0}, {"min_sources": 0}, {"n_models": 0}])
def test_numbers_out_of_range(sources, pretrain, options):
    with pytest.raises(ConfigError, match=re.escape(f"`{next(iter(options))}` must be at least 1, found 0.")):
        pretrain(sources, **options)


# external tokens


@pytest.mark.filterwarnings("ignore:Found .* of the model's:scbioformers.core.BioformersWarning")
def test_external_tokens_are_those_of_the_first_data_set_that_has_one(sources, pretrain, tmp_path):
    first, second, third = (adata.copy() for adata in sources.values())
    shared = first.var_names.intersection(second.var_names)[0]
    first.var["kind"] = pd.Series({shared: "factor"}).reindex(first.var_names)
    second.var["kind"] = "receptor"
    model = pretrain({"a": first, "b": second, "c": third}, external_key="kind")
    assert model.external.categories == ("kind=factor", "kind=receptor")
    code = dict(zip(model.vocabulary.feature_names(), model.external.codes, strict=True))
    expected = dict.fromkeys(code, 0) | dict.fromkeys(second.var_names, 2) | {shared: 1}
    assert code == {name: expected[name] for name in code}
    assert {0, 1, 2} == set(code.values())
    saved = bf.BioFormer.load(tmp_path / "model")
    np.testing.assert_array_equal(saved.external.codes, model.external.codes)
    tuned = bf.get.model(bf.tl.fit(third, model=saved, train=bf.TrainConfig(max_steps=0), copy=True))
    np.testing.assert_array_equal(tuned.external.codes[: len(code)], model.external.codes)


@pytest.mark.fault("external-missing")
def test_a_column_that_no_data_set_has(sources, pretrain):
    with pytest.raises(MissingKeyError, match=r"No data set has the column var\['kind'\] of `external_key`. Their col"):
        pretrain(sources, external_key="kind")


@pytest.mark.fault("external-numbers")
def test_numbers_of_data_sets_are_no_categories(sources, pretrain):
    changed = {name: adata.copy() for name, adata in sources.items()}
    for adata in changed.values():
        adata.var["kind"] = np.linspace(0, 1, adata.n_vars)
    with pytest.raises(DataError, match=r"different numbers.*expected categories"):
        pretrain(changed, external_key="kind")
