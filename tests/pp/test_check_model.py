"""``bf.pp.check(adata, model=…)``: what the verbs with this model would read, before any is called."""

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, MissingKeyError, ModelFormatError
from scbioformers.model import score_cells, score_quantiles
from scbioformers.results import open_query

TRAIN = bf.TrainConfig(max_steps=3, batch_size=16)
N = 40


@pytest.fixture(scope="module")
def reference(_fitted_once) -> bf.BioFormer:
    """A model that has stored the scores of its training cells."""
    model = bf.get.model(_fitted_once)
    block = open_query(_fitted_once, model).source.read(0, 60)
    return replace(model, score_quantiles=score_quantiles(model, [block]))


def check(adata, model, **kwargs) -> bf.pp.CheckReport:
    """The report. What open questions raise as a warning elsewhere is part of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return bf.pp.check(adata, model=model, **kwargs)


def run(report: bf.pp.CheckReport, **scope) -> None:
    for call in report.next_calls:
        eval(call, {"bf": bf, **scope})


def test_cells_like_those_of_the_fit(fitted, reference):
    before = fitted.copy()
    report = check(fitted, reference)
    found = report.model
    assert (found.n_features, found.n_found, found.depth_share, found.absent) == (N, N, 1.0, ())
    assert (found.depth, found.batch_key, found.phenotype_keys, found.missing_columns) == ("total", None, (), ())
    assert found.n_scored == 60
    assert [found.score, found.known_score] == pytest.approx([np.median(reference.score_quantiles)] * 2)
    assert found.share_low == pytest.approx(3 / 60)
    assert not report.problems and not report.cautions
    assert report.next_calls == ("bf.tl.embed(adata, model=model)",)
    for part in ("found     40 of its 40 genes", "100.0 % of its counts", "the total of each cell", "5% of them score"):
        assert part in repr(report)
    assert set(report.costs) == {"embed", "impute"}
    assert list(fitted.obsm) == list(before.obsm) and (fitted.X != before.X).nnz == 0


@pytest.mark.fault(27, 54)
def test_genes_that_are_absent(fitted, reference):
    share = reference.depth_share.astype(float)
    absent = [fitted.var_names[i] for i in np.argsort(-share, kind="stable")[-8:]]
    query = fitted[:, ~fitted.var_names.isin(absent)].copy()
    report = check(query, reference)
    assert report.model.absent == tuple(absent)
    assert report.model.n_found == N - 8
    assert report.model.depth_share == pytest.approx(np.sort(share)[8:].sum() / share.sum())
    assert report.model.depth == "corrected total"
    assert f"absent    8 of its genes: {absent[:5]}"[:-1] in repr(report)
    assert any("read as absent (not measured)" in text for text in report.cautions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)
        run(report, adata=query, model=reference)
    assert "X_bioformer" in query.obsm


@pytest.mark.fault(54)
def test_the_depth_may_be_estimated(fitted, reference):
    extra = ad.AnnData(np.full((60, 30), 9.0, np.float32), obs=fitted.obs[[]])
    extra.var_names = [f"extra{i}" for i in range(30)]
    wide = ad.concat([fitted, extra], axis=1, merge="first")
    report = check(wide, reference)
    assert report.model.depth == "modelled genes"
    assert "depth     estimated from the genes of the model" in repr(report)
    assert any("times the depth expected" in text for text in report.cautions)


@pytest.mark.fault(26, 27, 72)
def test_too_few_genes(fitted, reference):
    report = check(fitted[:, :3].copy(), reference)
    assert report.model.n_found == 3 and len(report.model.absent) == 37
    assert report.model.depth is None and report.model.n_scored == 0 and np.isnan(report.model.score)
    (problem,) = report.problems
    assert "Found 3 of the model's 40 genes" in problem
    assert report.next_calls == ("bf.pp.check(adata, model=model)  # again, after the problem is solved",)


@pytest.mark.fault(26)
def test_other_names_of_genes(fitted, reference):
    query = fitted.copy()
    query.var_names = [name.lower() for name in fitted.var_names]
    query.var["symbol"] = query.var_names.to_numpy()
    (problem,) = check(query, reference).problems
    suggested = problem.split("`")[1]
    feature_map = eval(suggested.removeprefix("feature_map="), {"adata": query})
    report = check(query, reference, feature_map=feature_map)
    assert report.model.n_found == N and not report.problems
    assert report.next_calls == ("bf.tl.embed(adata, model=model, feature_map=feature_map)",)
    run(report, adata=query, model=reference, feature_map=feature_map)
    query.var_names = [f"id{i}" for i in range(N)]
    report = check(query, reference, gene_symbols="symbol", feature_map=feature_map)
    assert report.next_calls[0].endswith("model=model, gene_symbols='symbol', feature_map=feature_map)")
    run(report, adata=query, model=reference, feature_map=feature_map)
    # a map that cannot be used is a problem too: then nothing can be compared
    report = check(query, reference, feature_map={"absent": "G1"})
    assert report.model is None and "None of the 1 names" in report.problems[0] and "Problem: " in repr(report)


@pytest.fixture(scope="module")
def donors(tiny_config) -> ad.AnnData:
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_types=3, n_batches=2, rng=3)
    bf.tl.fit(adata, config=tiny_config, train=TRAIN, batch_key="batch", phenotype_keys="cell_type")
    return adata


@pytest.mark.fault(31, 33, 34, 77)
def test_columns_of_obs(donors):
    types = list(bf.get.model(donors).phenotypes[0].categories)
    found = check(donors, donors).model
    assert (found.batch_key, found.phenotype_keys) == ("batch", ("cell_type",))
    assert (found.missing_columns, found.unknown_categories) == ((), {})
    assert found.known_score is not None and "all categories are known" in repr(check(donors, donors))

    query = donors.copy()
    query.obs["batch"] = ["d9", "d8", None] * 20
    report = check(query, donors)
    assert report.model.unknown_categories == {"batch": ("d8", "d9")}
    assert "batch 'batch': 2 unknown categories ['d8', 'd9'], read as the average batch" in repr(report)
    assert not report.problems

    del query.obs["batch"]
    query.obs["cell_type"] = [types[0], "new"] * 30
    report = check(query, donors)
    assert report.model.missing_columns == ("batch",)
    assert report.model.unknown_categories == {"cell_type": ("new",)}
    assert "no such column, read as the average batch" in repr(report)
    assert "phenotype 'cell_type': 1 unknown categories ['new'], read as not known" in repr(report)
    assert not report.problems

    del query.obs["cell_type"]
    report = check(query, donors)
    assert report.model.missing_columns == ("batch", "cell_type")
    assert "phenotype 'cell_type': no such column, read as not known" in repr(report)
    assert not report.problems


def test_cells_that_the_model_does_not_know(fitted, reference):
    query = fitted[:, np.random.default_rng(0).permutation(N)].copy()
    query.var_names = fitted.var_names
    report = check(query, reference)
    block = open_query(query, reference).source.read(0, 60)
    scores = score_cells(reference, block)
    assert report.model.score == pytest.approx(np.median(scores))
    assert report.model.share_low == (scores < np.quantile(reference.score_quantiles, 0.05)).mean() > 0.5
    assert "A model that is fitted to them describes them better" in report.cautions[-1]
    assert report.next_calls[0] == "bf.tl.fit(adata)" and "bf.tl.embed(adata, model=model)" in report.next_calls[1]


@pytest.mark.fault(51)
def test_a_model_without_scores_says_so(fitted):
    model = replace(bf.get.model(fitted), score_quantiles=np.zeros(0, np.float32))
    report = check(fitted, model)
    assert np.isnan(report.model.known_score) and np.isnan(report.model.share_low)
    assert np.isfinite(report.model.score)
    assert "the model has no scores of training cells to compare with" in repr(report)
    assert report.next_calls == ("bf.tl.embed(adata, model=model)",)


def test_many_cells_are_scored_in_part(fitted, reference):
    query = ad.concat([fitted] * 10, keys=range(10), index_unique="-", merge="first")
    report = check(query, reference)
    assert report.model.n_scored == 500
    assert report.model.score == pytest.approx(reference.score_quantiles[10], abs=0.05)


def test_the_layer_is_that_of_the_verbs(simulated, tiny_config):
    simulated.layers["umi"] = simulated.X.copy()
    bf.tl.fit(simulated, layer="umi", config=tiny_config, train=TRAIN)
    simulated.X = np.log1p(simulated.layers["umi"].toarray())
    report = check(simulated, simulated)
    assert report.inspection.layer == "umi" and not report.problems
    assert report.next_calls == ("bf.tl.embed(adata)",)
    report = check(simulated, simulated, layer="X")
    assert "not raw counts" in repr(report) and report.problems
    assert report.next_calls[0].startswith("bf.pp.check(adata, layer='X')")


def test_a_model_of_other_values_has_no_depth(simulated, tiny_config):
    simulated.X = np.log1p(simulated.X.toarray())
    bf.tl.fit(simulated, binning="segment", config=tiny_config, train=TRAIN)
    report = check(simulated, simulated)
    assert report.model.depth == "unused"
    assert not report.problems
    query = ad.AnnData(sp.csr_matrix(np.round(np.expm1(simulated.X))), obs=simulated.obs, var=simulated.var)
    assert "has counts" in check(query, simulated).problems[0]


def test_directories_and_wrong_models(fitted, reference, tmp_path):
    place = reference.save(tmp_path / "saved")
    report = check(fitted, place)
    assert report.next_calls == (f"bf.tl.embed(adata, model={str(place)!r})",)
    run(report, adata=fitted)
    with pytest.raises(ModelFormatError, match="Did not find"):
        bf.pp.check(fitted, model=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="`model` must be a BioFormer"):
        bf.pp.check(fitted, model=3)
    with pytest.raises(MissingKeyError, match="no column 'symbol'"):
        bf.pp.check(fitted, model=reference, gene_symbols="symbol")
    with pytest.raises(ConfigError, match="map strings to strings"):
        bf.pp.check(fitted, model=reference, feature_map={"a": 1})
    with pytest.raises(ConfigError, match=r"`feature_map` names the genes of a model, but found no `model=`"):
        bf.pp.check(fitted, feature_map={"a": "b"})


@pytest.mark.fault("memory-backed-zarr")
def test_backed_data_give_the_same_report(fitted, reference, tmp_path):
    query = ad.AnnData(fitted.X, obs=fitted.obs, var=pd.DataFrame(index=fitted.var_names))
    query.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert repr(check(backed, reference)) == repr(check(query, reference))
    backed.file.close()
