"""Imputation: what is stored, in memory and on disk."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.results._slots import params_from_json

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


def impute(adata, **kwargs):
    """Return the imputed layer."""
    return bf.tl.impute(adata, copy=True, **kwargs).layers["imputed"]


# results


def test_fields(fitted, model):
    before = fitted.copy()
    assert bf.tl.impute(fitted) is None
    values = fitted.layers["imputed"]
    assert isinstance(values, np.ndarray)
    assert values.shape == (60, 40)
    assert values.dtype == np.float32
    assert (values >= 0).all()
    assert set(fitted.uns) == set(before.uns) | {"imputed"}
    params = params_from_json(fitted.uns["imputed"]["params"])
    arguments = {"method": "denoise", "output": "counts", "layer": None, "masked": False}
    arguments |= {"n_evidence_cells": 60, "n_validation_cells": 6}
    assert params == {"model_hash": model.hash, **arguments}
    assert set(fitted.uns["imputed"]) == {"params", "evidence", "slots"}
    assert (fitted.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(fitted.obs, before.obs)
    assert fitted.var.pop("imputed").all()
    pd.testing.assert_frame_equal(fitted.var, before.var)


@pytest.mark.fault(61)
def test_nothing_of_an_earlier_result_stays(fitted, mask):
    x = fitted.X.toarray()
    x[7] = 0
    fitted.X = sp.csr_matrix(x)
    bf.tl.impute(fitted, std=True, quantiles=(0.1,))
    assert {"imputed_std", "imputed_q10"} <= set(fitted.layers)
    assert np.flatnonzero(fitted.obs["imputed_low_depth"]).tolist() == [7]
    x[7] = x[8]
    fitted.X = sp.csr_matrix(x)
    bf.tl.impute(fitted, mask=mask, output="log1p")
    assert set(fitted.layers) - {None} == {"imputed"}
    assert "imputed_low_depth" not in fitted.obs
    params = params_from_json(fitted.uns["imputed"]["params"])
    assert params["masked"]
    assert params["output"] == "log1p"


def test_key_added(fitted):
    bf.tl.impute(fitted, key_added="a/b", std=True, quantiles=(0.5,))
    names = {name for name in fitted.layers if name is not None}
    assert len(names) == 3
    assert not any("/" in name for name in (*names, *fitted.uns))
    assert bf.get.imputation_evidence(fitted, key="a/b")["nll_bits"] > 0


def test_copy(fitted, mask):
    before = fitted.copy()
    for kwargs in ({}, {"mask": mask}):
        copied = bf.tl.impute(fitted, copy=True, **kwargs)
        assert {"imputed"} <= set(copied.layers)
        assert "imputed" not in fitted.layers
        assert "imputed" not in fitted.uns
        assert (fitted.X != before.X).nnz == 0


@pytest.mark.fault(47)
def test_overwriting_is_logged(fitted, caplog):
    bf.tl.impute(fitted)
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        bf.tl.impute(fitted)
    assert "Overwriting adata.layers['imputed']" in caplog.text
    assert "Overwriting adata.uns['imputed']" in caplog.text


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(fitted, tmp_path, kind):
    bf.tl.impute(fitted, std=True, quantiles=(0.1,))
    getattr(fitted, f"write_{kind}")(tmp_path / "x")
    found = getattr(ad, f"read_{kind}")(tmp_path / "x")
    for name in ("imputed", "imputed_std", "imputed_q10"):
        assert np.array_equal(found.layers[name], fitted.layers[name])
    assert found.uns["imputed"]["params"] == fitted.uns["imputed"]["params"]
    first, second = bf.get.imputation_evidence(found), bf.get.imputation_evidence(fitted)
    for name in ("bins", "calibration"):
        pd.testing.assert_frame_equal(first[name], second[name], check_exact=True)
    assert first["nll_bits"] == second["nll_bits"]
