"""Embedding of cells: sources of the model, accepted data, and results."""

import logging
import re
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError, ModelFormatError
from scbioformers.results._slots import params_from_json

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


@pytest.fixture
def model(fitted):
    return bf.get.model(fitted)


@pytest.fixture
def expected(fitted) -> np.ndarray:
    return bf.tl.embed(fitted, copy=True).obsm["X_bioformer"]


def log1p(adata):
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


# results


def test_fields(fitted, model):
    before = fitted.copy()
    assert bf.tl.embed(fitted) is None
    values = fitted.obsm["X_bioformer"]
    assert values.shape == (60, model.config.n_components)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert set(fitted.uns) == set(before.uns) | {"X_bioformer"}
    params = params_from_json(fitted.uns["X_bioformer"]["params"])
    assert params == {"model_hash": model.hash, "use": "profile", "layer": None}
    assert list(fitted.obs) == list(before.obs)
    assert (fitted.X != before.X).nnz == 0


def test_key_added_and_use(fitted):
    bf.tl.embed(fitted, use="cls", key_added="X/cls")
    bf.tl.embed(fitted)
    (key,) = set(fitted.obsm) - {"X_bioformer"}
    assert "/" not in key
    assert fitted.obsm[key].shape == (60, 16)
    assert params_from_json(fitted.uns[key]["params"])["use"] == "cls"


def test_copy(fitted, expected):
    copied = bf.tl.embed(fitted, copy=True)
    assert "X_bioformer" not in fitted.obsm
    assert "X_bioformer" not in fitted.uns
    assert np.array_equal(copied.obsm["X_bioformer"], expected)


@pytest.mark.fault(47)
def test_overwriting_is_logged(fitted, caplog):
    bf.tl.embed(fitted)
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        bf.tl.embed(fitted)
    assert "Overwriting adata.obsm['X_bioformer']" in caplog.text


def test_round_trip(fitted, tmp_path):
    bf.tl.embed(fitted)
    fitted.write_h5ad(tmp_path / "x.h5ad")
    assert np.array_equal(ad.read_h5ad(tmp_path / "x.h5ad").obsm["X_bioformer"], fitted.obsm["X_bioformer"])


# sources of the model


def test_all_sources_of_the_model(fitted, simulated, model, expected, tmp_path):
    directory = model.save(tmp_path / "model")
    for source in (model, fitted, directory, str(directory)):
        bf.tl.embed(simulated, model=source)
        assert np.array_equal(simulated.obsm["X_bioformer"], expected)
        del simulated.obsm["X_bioformer"]
    assert "bioformer" not in simulated.uns


def test_key(fitted, simulated, tiny_config, expected):
    bf.tl.fit(fitted, config=tiny_config, train=TRAIN, rng=1, key_added="second")
    bf.tl.embed(fitted, key="second")
    assert not np.allclose(fitted.obsm["X_bioformer"], expected, atol=1e-4)
    bf.tl.embed(simulated, model=fitted, key="second")
    assert np.array_equal(simulated.obsm["X_bioformer"], fitted.obsm["X_bioformer"])


def test_after_concat_the_error_names_model(fitted, expected):
    joined = ad.concat([fitted, fitted], keys=["a", "b"], index_unique="-")
    with pytest.raises(MissingKeyError, match=r"Did not find adata\.uns\['bioformer'\].*bf\.tl\.fit.*`model=`.*concat"):
        bf.tl.embed(joined)
    bf.tl.embed(joined, model=fitted)
    np.testing.assert_allclose(joined.obsm["X_bioformer"], np.vstack([expected] * 2), rtol=0, atol=1e-5)


def test_wrong_models(simulated, fitted, tmp_path):
    with pytest.raises(MissingKeyError, match=r"Run `bf\.tl\.fit"):
        bf.tl.embed(simulated, model=simulated)
    with pytest.raises(ConfigError, match=r"`model` must be a BioFormer, an AnnData, .*found 3 .int."):
        bf.tl.embed(simulated, model=3)
    with pytest.raises(ModelFormatError, match="Did not find"):
        bf.tl.embed(simulated, model=tmp_path)
    fitted.uns["bioformer"]["model"][1000] ^= 1
    with pytest.raises(ModelFormatError, match="damaged"):
        bf.tl.embed(fitted)
    del fitted.uns["bioformer"]["model"]
    with pytest.raises(MissingKeyError, match="holds no model"):
        bf.tl.embed(fitted)
    assert "X_bioformer" not in fitted.obsm


@pytest.mark.fault(46)
def test_not_an_anndata(model):
    with pytest.raises(DataError, match="Expected an AnnData"):
        bf.tl.embed(np.ones((3, 40)), model=model)


# accepted data


@pytest.mark.fault(20)
@pytest.mark.parametrize("n_empty", [1, 60])
def test_empty_cells_are_finite_and_flagged(fitted, expected, n_empty):
    x = fitted.X.toarray()
    rows = np.arange(60)[-n_empty:]
    x[rows] = 0
    fitted.X = sp.csr_matrix(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)
        bf.tl.embed(fitted)
    values = fitted.obsm["X_bioformer"]
    assert np.isfinite(values).all()
    assert fitted.obs["bioformer_empty"].dtype == bool
    assert fitted.obs["bioformer_empty"].tolist() == [row in rows for row in range(60)]
    assert len(np.unique(values[rows], axis=0)) == 1
    others = ~fitted.obs["bioformer_empty"].to_numpy()
    np.testing.assert_allclose(values[others], expected[others], rtol=0, atol=1e-5)


@pytest.mark.fault(21)
def test_cell_without_a_modelled_count_is_empty(simulated, tiny_config):
    x = simulated.X.toarray()
    x[7, :30] = 0
    simulated.X = sp.csr_matrix(x)
    bf.tl.fit(simulated, mask_var=np.arange(40) < 30, config=tiny_config, train=TRAIN)
    bf.tl.embed(simulated)
    assert np.flatnonzero(simulated.obs["bioformer_empty"]).tolist() == [7]
    assert np.isfinite(simulated.obsm["X_bioformer"]).all()


def test_flag_of_an_earlier_call_is_replaced(fitted):
    fitted.obs["bioformer_empty"] = True
    bf.tl.embed(fitted)
    assert not fitted.obs["bioformer_empty"].any()


@pytest.mark.fault(40)
@pytest.mark.parametrize("tokens", ["expressed", "all"])
def test_cells_over_max_tokens_are_reported(simulated, model, tokens):
    expressed = np.asarray((simulated.X > 0).sum(axis=1)).ravel()
    limit = int(np.median(expressed))
    n = int((expressed > limit).sum()) if tokens == "expressed" else 60
    few = replace(model, config=replace(model.config, max_tokens=limit, tokens=tokens))
    with pytest.warns(BioformersWarning, match=rf"^{n} of 60 cells .*max_tokens={limit}\)") as caught:
        bf.tl.embed(simulated, model=few)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    longest = 40 if tokens == "all" else int(expressed.max())
    bf.tl.embed(simulated, model=replace(few, config=replace(few.config, max_tokens=longest)))


@pytest.mark.fault(1, 2, 3, 4)
def test_other_scales_raise_an_error(model, simulated):
    logged = log1p(simulated.copy())
    with pytest.raises(DataError, match=r"log scale.*expected raw counts"):
        bf.tl.embed(logged, model=model)
    normalized = simulated.copy()
    sc.pp.normalize_total(normalized)
    with pytest.raises(DataError, match=r"not integers.*expected raw counts"):
        bf.tl.embed(normalized, model=model)
    centred = simulated.copy()
    centred.X = centred.X.toarray() - 1
    with pytest.raises(DataError, match="negative values"):
        bf.tl.embed(centred, model=model)
    broken = simulated.copy()
    broken.X.data[5] = np.nan
    with pytest.raises(DataError, match="1 NaN or infinite"):
        bf.tl.embed(broken, model=model)
    assert not any("X_bioformer" in adata.obsm for adata in (logged, normalized, centred, broken))


def test_estimated_counts_are_accepted_after_a_fit_to_estimated_counts(simulated, tiny_config):
    simulated.X = simulated.X * 0.75
    bf.tl.fit(simulated, allow_non_integer=True, config=tiny_config, train=TRAIN)
    bf.tl.embed(simulated)
    assert np.isfinite(simulated.obsm["X_bioformer"]).all()


def test_layer_of_the_fit_is_the_default(simulated, tiny_config):
    counts = simulated.copy()
    simulated.layers["counts"] = simulated.X.copy()
    log1p(simulated)
    bf.tl.fit(simulated, layer="counts", config=tiny_config, train=TRAIN)
    bf.tl.embed(simulated)
    assert params_from_json(simulated.uns["X_bioformer"]["params"])["layer"] == "counts"
    bf.tl.embed(counts, model=simulated)  # has no layer "counts", but counts in X
    assert np.array_equal(counts.obsm["X_bioformer"], simulated.obsm["X_bioformer"])
    simulated.layers["other"] = simulated.layers["counts"][::-1]
    bf.tl.embed(simulated, layer="other")
    assert not np.array_equal(counts.obsm["X_bioformer"], simulated.obsm["X_bioformer"])
    with pytest.raises(MissingKeyError, match=r"layers\['raw'\].*counts"):
        bf.tl.embed(simulated, layer="raw")


@pytest.mark.fault(24)
def test_few_cells_without_a_warning(fitted, expected):
    """Genes without a count are not a problem if nothing is fitted."""
    few = fitted[[3, 8]].copy()
    bf.tl.embed(few)
    np.testing.assert_allclose(few.obsm["X_bioformer"], expected[[3, 8]], rtol=0, atol=1e-5)


@pytest.mark.fault(17)
def test_view(fitted, expected):
    view = fitted[5:]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        bf.tl.embed(view)
    assert "X_bioformer" not in fitted.obsm
    np.testing.assert_allclose(view.obsm["X_bioformer"], expected[5:], rtol=0, atol=1e-5)


@pytest.mark.fault(14, 15, 16, "memory-backed-zarr")
@pytest.mark.parametrize("kind", ["backed", "zarr"])
def test_on_disk(simulated, model, expected, tmp_path, kind):
    if kind == "backed":
        simulated.write_h5ad(tmp_path / "x.h5ad")
        before = (tmp_path / "x.h5ad").read_bytes()
        opened = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    else:
        simulated.write_zarr(tmp_path / "x.zarr")
        opened = ad.read_zarr(tmp_path / "x.zarr")
    bf.tl.embed(opened, model=model)
    np.testing.assert_allclose(opened.obsm["X_bioformer"], expected, rtol=0, atol=1e-5)
    if kind == "backed":
        with pytest.raises(DataError, match=re.escape(".to_memory()")):
            bf.tl.embed(opened[:10], model=model)
        opened.file.close()
        assert (tmp_path / "x.h5ad").read_bytes() == before


@pytest.mark.fault(27)
def test_missing_genes_are_reported_once(fitted, model):
    partial = fitted[:, :37].copy()
    with pytest.warns(BioformersWarning, match=r"37 of the model's 40 genes") as caught:
        bf.tl.embed(partial, model=model)
    assert len(caught) == 1


def test_embedding_of_an_ensemble(simulated, tiny_config):
    bf.tl.fit(simulated, n_models=2, config=replace(tiny_config, n_latent=4), train=TRAIN)
    for use, width in (("profile", 8), ("latent", 8), ("cls", 32), ("mean", 32)):
        bf.tl.embed(simulated, use=use)
        assert simulated.obsm["X_bioformer"].shape == (60, width)


# parameters


@pytest.mark.fault(50)
@pytest.mark.parametrize("name", ["cuda", "cuda:7", "cuda:x", "gpu"])
def test_missing_device(fitted, name):
    if torch.cuda.is_available():
        pytest.skip("the device is available")
    with pytest.raises(ConfigError, match=f"The device '{name}' is not available; use 'auto' or 'cpu'"):
        bf.tl.embed(fitted, device=name)


@pytest.mark.parametrize(("name", "value"), [("use", "pca"), ("batch_size", 0), ("batch_size", -1)])
def test_wrong_arguments(fitted, name, value):
    with pytest.raises(ConfigError, match=name):
        bf.tl.embed(fitted, **{name: value})
    assert "X_bioformer" not in fitted.obsm


def test_progress_bar(fitted, capfd):
    bf.tl.embed(fitted)
    assert capfd.readouterr() == ("", "")
    bf.tl.embed(fitted, progress_bar=True)
    assert "60/60" in capfd.readouterr().err
