"""Quantile bins of proteins as a layer, and bins of one modality of a MuData."""

import warnings

import anndata as ad
import mudata
import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.config import Binning
from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.pp import bin_quantile, bin_segment, bin_value
from scbioformers.results._slots import params_from_json


@pytest.fixture
def proteins() -> ad.AnnData:
    """Counts of 6 proteins: one constant, one with many zeros."""
    rng = np.random.default_rng(1)
    x = rng.negative_binomial(2, 0.01, (50, 6)).astype(np.float32)
    x[:, 2], x[:40, 3] = 12, 0
    return ad.AnnData(x)


@pytest.fixture
def mdata(proteins) -> mudata.MuData:
    rng = np.random.default_rng(2)
    rna = ad.AnnData(sp.csr_matrix(rng.poisson(0.8, (50, 30)).astype(np.float32)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mudata warns of names that modalities share
        return mudata.MuData({"rna": rna, "prot": proteins})


@pytest.mark.fault(37)
def test_quantile_bins_of_one_protein_are_percentiles(proteins):
    bin_quantile(proteins, n_bins=10)
    layer = proteins.layers["bin_quantile"]
    for j in (0, 1, 4, 5):  # hardly any ties: five cells in each bin
        assert abs(np.bincount(layer[:, j], minlength=11)[1:] - 5).max() <= 1
    assert set(layer[:, 2]) == {10}
    assert (layer[:40, 3] == 0).all()
    assert sorted(layer[40:, 3].tolist()) == list(range(1, 11))  # ranks of the ten cells that have it
    for j in range(6):
        for k in set(layer[:, j].tolist()):
            mean = proteins.X[layer[:, j] == k, j].mean()
            assert proteins.varm["bin_quantile_means"][j, k] == pytest.approx(mean)


def test_zeros_of_centred_values_are_ranked(proteins):
    x = np.log1p(proteins.X)
    x = x - x.mean(axis=1, keepdims=True)
    x[:3, 0] = 0
    adata = ad.AnnData(x)
    bin_quantile(adata, n_bins=12)
    bin_segment(by_feature := ad.AnnData(x.T.copy()), n_bins=12)
    assert np.array_equal(adata.layers["bin_quantile"], by_feature.layers["bin_segment"].T)
    assert adata.layers["bin_quantile"].min() >= 1


@pytest.mark.parametrize("n_bins", [1, 7])
def test_other_cells_can_be_binned_by_what_is_stored(proteins, n_bins, tmp_path):
    bin_quantile(proteins, n_bins=n_bins)
    proteins.write_h5ad(tmp_path / "binned.h5ad")
    read = ad.read_h5ad(tmp_path / "binned.h5ad")
    assert set(read.varm) == {"bin_quantile_means", *(["bin_quantile_edges"] if n_bins > 1 else [])}
    params = params_from_json(read.uns["bin_quantile"]["params"])
    assert (params["binning"]["kind"], params["binning"]["n_bins"]) == ("quantile", n_bins)
    edges = read.varm.get("bin_quantile_edges", np.zeros((6, 0)))
    binning = Binning.from_dict(params["binning"], {"edges": edges, "means": read.varm["bin_quantile_means"]})
    half = read.X[:25]  # the bins are those of all cells
    found = binning.require_quantiles().apply(half.ravel(), np.tile(np.arange(6), 25)).reshape(25, 6)
    assert np.array_equal(found, read.layers["bin_quantile"][:25])


def test_fewer_bins_leave_nothing_of_a_former_result(proteins):
    bin_quantile(proteins, n_bins=9)
    bin_quantile(proteins, n_bins=1)
    assert set(proteins.varm) == {"bin_quantile_means"}
    assert proteins.varm["bin_quantile_means"].shape == (6, 2)


@pytest.mark.parametrize("verb", [bin_value, bin_segment, bin_quantile])
def test_a_modality_is_binned_as_the_anndata_that_it_is(verb, mdata, proteins):
    key = verb.__name__
    before = mdata.copy()
    copied = verb(mdata, modality="prot", copy=True)
    assert not mdata["prot"].layers
    verb(alone := proteins.copy())
    assert isinstance(copied, mudata.MuData)
    assert np.array_equal(copied["prot"].layers[key], alone.layers[key])
    assert not copied["rna"].layers
    assert not copied["rna"].uns
    assert verb(mdata, modality="prot") is None
    assert np.array_equal(mdata["prot"].layers[key], alone.layers[key])
    assert list(mdata.obsm) == list(before.obsm)
    assert list(mdata.varm) == list(before.varm)


def test_the_only_modality_needs_no_name(proteins):
    bin_quantile(only := mudata.MuData({"prot": proteins}))
    assert "bin_quantile" in only["prot"].layers


def test_which_modality_must_be_said(mdata, proteins):
    with pytest.raises(ConfigError, match=r"modalities \['rna', 'prot'\].*such as `modality='rna'`"):
        bin_quantile(mdata)
    with pytest.raises(MissingKeyError, match=r"no modality 'protein'\. It has \['rna', 'prot'\]"):
        bin_value(mdata, modality="protein")
    with pytest.raises(ConfigError, match="found 'prot' and an AnnData"):
        bin_segment(proteins, modality="prot")
    with pytest.raises(DataError, match=r"view of a MuData.*`.copy\(\)`"):
        bin_quantile(mdata[30:], modality="prot")


def test_bins_in_a_modality_survive_h5mu(mdata, tmp_path):
    bin_quantile(mdata, modality="prot", n_bins=8)
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = mudata.read_h5mu(tmp_path / "cells.h5mu")
    assert np.array_equal(read["prot"].layers["bin_quantile"], mdata["prot"].layers["bin_quantile"])
    assert np.array_equal(read["prot"].varm["bin_quantile_edges"], mdata["prot"].varm["bin_quantile_edges"])
