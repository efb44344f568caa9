"""Imputation by a model of other data with a memory of the query."""

import json
import logging

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.tasks import _imputation as imputation

MASK = np.random.default_rng(0).random((120, 40)) < 0.2


@pytest.fixture(scope="module")
def model(_fitted_once):
    return bf.get.model(_fitted_once)


@pytest.fixture(scope="module")
def other(_fitted_once) -> ad.AnnData:
    """Cells that the model has not seen. Nobody may change them."""
    return bf.datasets.simulate(n_cells=120, n_genes=40, n_regulators=5, n_types=3, rng=5)


@pytest.fixture(scope="module")
def decoder(_simulated_once):
    config = bf.ModelConfig("decoder", width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
    train = bf.TrainConfig(max_steps=2, batch_size=16)
    return bf.get.model(bf.tl.fit(_simulated_once, config=config, train=train, copy=True))


def impute(adata, model, **kwargs):
    return bf.tl.impute(adata, model=model, copy=True, **{"memory": "query", "method": "held_out"} | kwargs)


def values(adata, key="imputed"):
    return np.asarray(adata.layers[key])


WAYS = [{}, {"method": "denoise"}, {"mask": MASK, "std": True}]
EACH_WAY = pytest.mark.parametrize("kwargs", WAYS, ids=["held_out", "denoise", "mask"])


@EACH_WAY
def test_results_depend_neither_on_batches_nor_on_chunks_nor_on_the_order_of_cells(other, model, kwargs, monkeypatch):
    found, order = impute(other, model, **kwargs), np.random.default_rng(1).permutation(120)
    permuted = kwargs | ({"mask": MASK[order]} if "mask" in kwargs else {})
    runs = [(impute(other, model, batch_size=7, **kwargs), slice(None))]
    runs.append((impute(other[order].copy(), model, **permuted), order))
    monkeypatch.setattr(imputation, "BLOCK_CELLS", 17)
    runs.append((impute(other, model, **kwargs), slice(None)))
    for run, rows in runs:
        for layer in ("imputed", *(["imputed_std"] if "std" in kwargs else [])):
            np.testing.assert_allclose(values(run, layer), values(found, layer)[rows], rtol=1e-5, atol=1e-5)
        read, expected = (x.obsp["imputed_references"].toarray() for x in (run, found))
        np.testing.assert_allclose(read, expected[rows][:, rows], rtol=1e-4, atol=1e-6)
        bits = [bf.get.imputation_evidence(x)["nll_bits"] for x in (run, found)]
        assert bits[0] == pytest.approx(bits[1], rel=1e-4)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_value_is_not_used_for_its_own_prediction(other, model, decoder, name, request):
    """Also not by other cells that read it, and by the heads."""
    used = model if name == "encoder" else decoder
    fold, changed = imputation.folds(40, 7).columns[4], other.copy()
    x = other.X.toarray()
    x[33, fold] = 60 - x[33, fold]
    changed.X = sp.csr_matrix(x)
    before, after = (values(impute(each, used, output="bins")) for each in (other, changed))
    np.testing.assert_allclose(after[33, fold], before[33, fold], rtol=1e-5, atol=1e-6)
    assert np.abs(after[:, fold] - before[:, fold]).max() > 0.01  # of others, which read it


@pytest.mark.fault(64)
def test_masked_values_are_never_looked_at(other, model):
    found = impute(other, model, mask=MASK, std=True)
    x = other.X.toarray().astype(np.float64)
    x[MASK] = np.random.default_rng(2).choice([np.nan, -1.0, 500.0], MASK.sum())
    changed = other.copy()
    changed.X = x
    again = impute(changed, model, mask=MASK, std=True)
    for layer in ("imputed", "imputed_std"):
        assert np.array_equal(values(again, layer), values(found, layer))
    assert (again.obsp["imputed_references"] != found.obsp["imputed_references"]).nnz == 0
    assert np.array_equal(values(found)[~MASK], other.X.toarray()[~MASK])
    alone = values(impute(other, model, mask=MASK, memory=None))
    assert (np.abs(values(found) - alone)[MASK] > 1e-3).mean() > 0.9


def test_a_copy_of_a_cell_changes_nothing_that_it_reads(other, model):
    """Twice the same cells: no cell reads its copy, so its neighbours are those of one copy."""
    twice = ad.concat([other, other], index_unique="-")
    found = bf.get.reference_cells(impute(twice, model))
    cell, reference = (found[name].str.rsplit("-", n=1).str[0] for name in ("cell", "reference"))
    assert (cell != reference).all()
    assert found.groupby("cell").size().eq(15).all()


def test_a_model_of_other_data_predicts_better_with_a_memory(other, model, decoder):
    """The tiny models know almost nothing. Cells of one type share what the models miss."""
    for each in (model, decoder):
        alone, found = impute(other, each, memory=None), impute(other, each)
        bits = [bf.get.imputation_evidence(x)["nll_bits"] for x in (alone, found)]
        assert bits[1] < 0.9 * bits[0]
        stored = json.loads(found.uns["imputed"]["params"])
        assert stored["head_bits"][1] < stored["head_bits"][0]
        x = other.X.toarray()
        error = [np.abs(values(y) - x).mean() for y in (alone, found)]
        assert error[1] < error[0]
        assert values(found).mean() == pytest.approx(x.mean(), rel=0.05)


def test_denoised_values_are_nearer_to_the_true_expression(model):
    query, truth = (
        bf.datasets.simulate(120, 40, n_regulators=5, n_types=3, rng=5, expected=expected) for expected in (False, True)
    )
    alone, found = (values(impute(query, model, method="denoise", memory=memory)) for memory in (None, "query"))
    x = truth.layers["expected"]
    error = [np.abs(np.log1p(y) - np.log1p(x)).mean() for y in (alone, found)]
    assert error[1] < 0.95 * error[0]


def test_what_is_stored(other, model, tmp_path):
    adata = impute(other, model, key_added="x")
    params = json.loads(adata.uns["x"]["params"])
    assert (params["memory"], params["n_references"], params["temperature"]) == ("query", 120, 1.0)
    assert np.shape(params["head"]) == (2, 10, 2)
    adata.write_h5ad(tmp_path / "x.h5ad")
    read = bf.get.reference_cells(ad.read_h5ad(tmp_path / "x.h5ad"), key="x")
    pd.testing.assert_frame_equal(read, bf.get.reference_cells(adata, key="x"))
    weights = adata.obsp["x_references"]
    assert weights.shape == (120, 120) and weights.dtype == np.float32
    for cell, rows in read.groupby("cell", sort=False):
        assert rows["weight"].is_monotonic_decreasing and len(rows) == 15
        own = weights[adata.obs_names.get_loc(cell)].toarray().ravel()
        assert own[adata.obs_names.get_indexer(rows["reference"])].tolist() == rows["weight"].tolist()
        assert 0 < rows["weight"].sum() < 1
    assert read["cell"].unique().tolist() == adata.obs_names.tolist()
    bf.tl.impute(adata, model=model, key_added="x")  # leaves nothing of the earlier result
    assert "x_references" not in adata.obsp
    with pytest.raises(MissingKeyError, match=r"obsp\['x_references'\].*memory='query'"):
        bf.get.reference_cells(adata, key="x")
    with pytest.raises(MissingKeyError, match=r"Run `bf.tl.impute\(adata, model=model, memory='query'\)` first"):
        bf.get.reference_cells(other)


def test_the_store_has_the_references(other, model, tmp_path):
    bf.tl.impute(other, model=model, memory="query", out=tmp_path / "x.zarr")
    stored = ad.read_zarr(tmp_path / "x.zarr")
    expected = impute(other, model, method="denoise")
    pd.testing.assert_frame_equal(bf.get.reference_cells(stored), bf.get.reference_cells(expected))
    np.testing.assert_array_equal(stored.layers["imputed"], values(expected)[:, expected.var["imputed"]])


def test_only_some_cells_are_read_of_many(other, model, monkeypatch):
    monkeypatch.setattr("scbioformers.tasks._query_memory.MAX_REFERENCES", 60)
    found, order = impute(other, model), np.random.default_rng(1).permutation(120)
    again = impute(other[order].copy(), model)
    read = [sorted(bf.get.reference_cells(each)["reference"].unique()) for each in (found, again)]
    assert read[0] == read[1]
    assert len(read[0]) == 60
    np.testing.assert_allclose(values(again), values(found)[order], rtol=1e-5, atol=1e-5)


@EACH_WAY
@pytest.mark.filterwarnings("ignore:The data have other genes")
def test_cells_on_disk_and_an_ensemble(ensemble, kwargs, tmp_path):
    """In memory and on disk the same. The ensemble has a batch that these cells lack, and lacks some of their genes."""
    adata = bf.datasets.simulate(110, 40, n_regulators=5, n_types=3, rng=6)
    adata.write_h5ad(tmp_path / "x.h5ad")
    mask = {"mask": np.random.default_rng(0).random(adata.shape) < 0.2} if "mask" in kwargs else {}
    found = impute(adata, ensemble, **kwargs | mask)
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    bf.tl.impute(backed, model=ensemble, memory="query", **{"method": "held_out"} | kwargs | mask)
    np.testing.assert_array_equal(values(backed), values(found))
    backed.file.close()
    alone = impute(adata, ensemble, memory=None, **kwargs | mask)
    bits = [bf.get.imputation_evidence(x)["nll_bits"] for x in (alone, found)]
    assert bits[1] < 0.95 * bits[0]


def test_genes_that_are_asked_for_alone(other, model):
    some = list(other.var_names[[3, 20, 31]])
    whole, found = impute(other, model), impute(other, model, genes=some)
    at = other.var_names.get_indexer(some)
    x = found.layers["imputed"].toarray()
    # with fewer genes masked at a time, more is visible
    assert np.corrcoef(x[:, at].ravel(), values(whole)[:, at].ravel())[0, 1] > 0.9
    others = np.setdiff1d(np.arange(40), at)
    np.testing.assert_array_equal(x[:, others], other.X.toarray()[:, others])


def test_cells_that_are_all_equal_or_empty_are_imputed(other, model):
    adata = ad.AnnData(np.tile(other.X.toarray()[:1], (110, 1)), var=other.var[[]].copy())
    for kwargs in ({}, {"method": "denoise"}):
        found = impute(adata, model, **kwargs)
        assert np.isfinite(values(found)).all()
        assert found.obsp["imputed_references"].nnz == 0
        assert bf.get.reference_cells(found).empty
    x = other.X.toarray()
    x[:30] = 0
    found = values(impute(ad.AnnData(x, var=other.var[[]].copy()), model))
    assert np.isfinite(found).all()
    assert (found[:30] == 0).all()


def test_a_model_of_these_cells_says_that_it_gains_little(tiny_config, caplog):
    adata = bf.datasets.simulate(n_cells=120, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)
    bf.tl.fit(adata, config=tiny_config, train=bf.TrainConfig(max_steps=1))
    with caplog.at_level(logging.INFO, "scbioformers"):
        bf.tl.impute(adata, memory="query")
    assert "The model was fitted to these cells, so `memory='query'` gains little" in caplog.text
    assert "Each cell reads 120 of the 120 cells as references. A masked value has" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_have_a_memory_is_refused(other, simulated, model, segment):
    with pytest.raises(DataError, match=r"needs at least 100 cells, found 60\. Leave out `memory=`"):
        bf.tl.impute(simulated, model=model, memory="query")
    with pytest.raises(ConfigError, match="`memory` must be 'query' or None, found 'all'"):
        bf.tl.impute(other, model=model, memory="all")
    message = r"needs a model of counts with value bins, but this model has segment bins\. Leave out `memory=`"
    with pytest.raises(ConfigError, match=message):
        bf.tl.impute(segment, memory="query", output="bins")
    with pytest.raises(ConfigError, match=r"`memory` is for an AnnData.*mdata\['rna'\]"):
        bf.tl.impute(mudata.MuData({"rna": other}), model=model, memory="query")
    empty = ad.AnnData(np.zeros((120, 40), np.float32), var=other.var[[]].copy())
    with pytest.raises(DataError, match="found no cells with at least 5 % of the mean depth"):
        bf.tl.impute(empty, model=model, memory="query")
