"""Binning: matrix formats, stored parameters, errors, and inputs that stay unchanged."""

import logging
import math
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.config import Binning
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.data import BlockSource
from scbioformers.pp import bin_quantile, bin_segment, bin_value
from scbioformers.results._slots import params_from_json

N_CELLS, N_GENES = 40, 25


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Counts with a wide range. Each gene is expressed in at least one cell, and one cell is empty."""
    rng = np.random.default_rng(0)
    drawn = rng.negative_binomial(0.4, 0.05, (N_CELLS, N_GENES))
    drawn[7] = 0
    drawn[0] = np.arange(1, N_GENES + 1)
    return drawn.astype(np.float32)


def slow_value_layer(counts: np.ndarray, c: int = 8, b: int = 3, normalize: bool = True) -> np.ndarray:
    depth = counts.sum(axis=1, dtype=np.float64)
    mean_depth = depth[depth > 0].mean()
    bins = np.zeros(counts.shape, dtype=int)
    for i, j in zip(*np.nonzero(counts), strict=True):
        x = float(counts[i, j]) * mean_depth / depth[i] if normalize else float(counts[i, j])
        if x <= 1:
            bins[i, j] = 1
        elif x <= c:
            bins[i, j] = math.floor(x + 0.5)
        else:
            bins[i, j] = c + math.ceil(b * math.log2(x / c) - 1e-9)
    return bins


def slow_segment_layer(values: np.ndarray, n_bins: int, centred: bool = False) -> np.ndarray:
    bins = np.zeros(values.shape, dtype=int)
    for i, row in enumerate(values):
        ranked = [x for x in row if centred or x != 0]
        for j, x in enumerate(row):
            if centred or x != 0:
                bins[i, j] = -(-n_bins * sum(y <= x for y in ranked) // len(ranked))
    return bins


def slow_quantile_layer(values: np.ndarray, n_bins: int, centred: bool = False) -> np.ndarray:
    """The ranks of a feature among the cells are those of a cell among its features, with the axes exchanged."""
    return slow_segment_layer(values.T, n_bins, centred).T


def dense(layer) -> np.ndarray:
    return layer.toarray() if sp.issparse(layer) else np.asarray(layer)


def stored_zeros(x: np.ndarray) -> sp.csr_matrix:
    rows, columns = np.indices(x.shape).reshape(2, -1)
    return sp.csr_matrix((x.ravel(), (rows, columns)), shape=x.shape)


def unsorted(x: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(x)
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
    matrix.has_sorted_indices = False
    return matrix


CONTAINERS = [
    pytest.param(lambda x: x.copy(), np.ndarray, id="dense float32"),
    pytest.param(lambda x: x.astype(np.float64), np.ndarray, id="dense float64"),
    pytest.param(lambda x: x.astype(np.int16), np.ndarray, id="dense int16"),
    pytest.param(lambda x: np.asfortranarray(x), np.ndarray, id="dense column-major"),
    pytest.param(sp.csr_matrix, sp.csr_matrix, id="CSR"),
    pytest.param(sp.csc_matrix, sp.csc_matrix, id="CSC"),
    pytest.param(sp.csr_array, sp.csr_array, id="csr_array"),
    pytest.param(sp.csc_array, sp.csc_array, id="csc_array"),
    pytest.param(lambda x: sp.csr_matrix(x.astype(np.int16)), sp.csr_matrix, id="CSR int16"),
    pytest.param(stored_zeros, sp.csr_matrix, id="stored zeros"),
    pytest.param(unsorted, sp.csr_matrix, id="unsorted indices"),
]


@pytest.mark.fault(5, 6, 8, 9, 13)
@pytest.mark.parametrize(("build", "container"), CONTAINERS)
def test_all_formats_give_the_same_bins_in_the_same_format(counts, build, container):
    adata = ad.AnnData(build(counts))
    before = adata.X.copy()
    assert bin_value(adata) is None
    assert bin_segment(adata, n_bins=20) is None
    assert bin_quantile(adata, n_bins=20) is None
    expected = {"bin_value": slow_value_layer(counts), "bin_segment": slow_segment_layer(counts, 20)}
    expected["bin_quantile"] = slow_quantile_layer(counts, 20)
    for key, bins in expected.items():
        layer = adata.layers[key]
        assert isinstance(layer, container)
        assert layer.dtype == np.int16
        assert np.array_equal(dense(layer), bins)
        if sp.issparse(layer):
            assert layer.nnz == np.count_nonzero(counts)
    assert type(adata.X) is type(before)
    assert adata.X.dtype == before.dtype
    for name in ("data", "indices", "indptr") if sp.issparse(before) else ():
        assert np.array_equal(getattr(adata.X, name), getattr(before, name))
    assert np.array_equal(dense(adata.X), dense(before))


@pytest.mark.fault(14)
@pytest.mark.parametrize("build", [sp.csr_matrix, sp.csc_matrix, np.array], ids=["CSR", "CSC", "dense"])
def test_backed_file_is_not_changed(counts, build, tmp_path):
    path = tmp_path / "cells.h5ad"
    ad.AnnData(build(counts)).write_h5ad(path)
    before = path.read_bytes()
    backed = ad.read_h5ad(path, backed="r")
    bin_value(backed)
    bin_segment(backed)
    bin_quantile(backed)
    assert np.array_equal(dense(backed.layers["bin_quantile"]), slow_quantile_layer(counts, 50))
    assert sp.issparse(backed.layers["bin_value"]) == (build is not np.array)
    assert np.array_equal(dense(backed.layers["bin_value"]), slow_value_layer(counts))
    assert np.array_equal(dense(backed.layers["bin_segment"]), slow_segment_layer(counts, 50))
    copied = bin_value(backed, cutoff=3, copy=True)
    assert not copied.isbacked
    assert np.array_equal(dense(copied.layers["bin_value"]), slow_value_layer(counts, c=3))
    backed.file.close()
    assert path.read_bytes() == before


@pytest.mark.fault(17)
def test_views_are_copied_without_a_warning_and_their_parent_is_not_changed(counts):
    parent = ad.AnnData(sp.csr_matrix(counts))
    view = parent[10:30, ::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        bin_value(view)
    assert not view.is_view
    assert not parent.layers
    assert not parent.uns
    assert np.array_equal(dense(view.layers["bin_value"]), slow_value_layer(counts[10:30, ::-1]))


def test_permuted_genes_and_cells_give_permuted_bins(counts):
    rng = np.random.default_rng(1)
    cells, genes = rng.permutation(N_CELLS), rng.permutation(N_GENES)
    straight, shuffled = ad.AnnData(sp.csr_matrix(counts)), ad.AnnData(sp.csr_matrix(counts[cells][:, genes]))
    for verb, key in ((bin_value, "bin_value"), (bin_segment, "bin_segment"), (bin_quantile, "bin_quantile")):
        verb(straight)
        verb(shuffled)
        assert np.array_equal(dense(shuffled.layers[key]), dense(straight.layers[key])[cells][:, genes])


def test_number_of_blocks_does_not_change_the_layer(counts, monkeypatch):
    one, many = ad.AnnData(sp.csr_matrix(counts)), ad.AnnData(sp.csr_matrix(counts))
    bin_value(one)
    blocks = BlockSource.blocks
    monkeypatch.setattr(BlockSource, "blocks", lambda self, chunk_size=7: blocks(self, 7))
    bin_value(many)
    assert np.array_equal(dense(one.layers["bin_value"]), dense(many.layers["bin_value"]))


def test_parameters_of_the_value_bins(counts):
    adata = ad.AnnData(counts.copy())
    bin_value(adata, cutoff=4, bins_per_doubling=2, normalize=False)
    assert np.array_equal(adata.layers["bin_value"], slow_value_layer(counts, c=4, b=2, normalize=False))


def test_an_empty_cell_has_no_bins_and_does_not_change_the_mean_depth(counts):
    adata = ad.AnnData(counts.copy())
    without = ad.AnnData(np.delete(counts, 7, axis=0))
    bin_value(adata)
    bin_value(without)
    assert not adata.layers["bin_value"][7].any()
    assert np.array_equal(np.delete(adata.layers["bin_value"], 7, axis=0), without.layers["bin_value"])


def test_binning_can_be_created_from_stored_parameters_after_a_round_trip(counts, tmp_path):
    adata = ad.AnnData(np.zeros_like(counts), layers={"counts": sp.csr_matrix(counts)})
    bin_value(adata, layer="counts", cutoff=5)
    bin_segment(adata, layer="counts", n_bins=12)
    adata.write_h5ad(tmp_path / "binned.h5ad")
    read = ad.read_h5ad(tmp_path / "binned.h5ad")
    depth = counts.sum(axis=1, dtype=float)
    assert type(read.uns["bin_value"]["params"]) is str
    params = params_from_json(read.uns["bin_value"]["params"])
    binning = Binning.from_dict(params["binning"])
    assert params["layer"] == "counts"
    assert (binning.kind, binning.cutoff) == ("value", 5)
    assert binning.mean_depth == pytest.approx(depth[depth > 0].mean())
    assert binning.max_bin == read.layers["bin_value"].max()
    segment = params_from_json(read.uns["bin_segment"]["params"])["binning"]
    assert Binning.from_dict(segment) == Binning(kind="segment", n_bins=12)
    assert read.layers["bin_segment"].dtype == np.int16


@pytest.mark.parametrize("build", [np.array, sp.csr_matrix, sp.csc_matrix], ids=["dense", "CSR", "CSC"])
def test_all_values_of_centred_data_are_ranked(counts, build):
    centred = np.log1p(counts) - np.log1p(counts).mean(axis=0, keepdims=True)
    centred[3, :5] = 0
    adata = ad.AnnData(build(centred))
    bin_segment(adata, n_bins=10)
    layer = adata.layers["bin_segment"]
    assert isinstance(layer, np.ndarray)
    assert layer.dtype == np.int16
    assert layer.min() >= 1
    assert (layer.max(axis=1) == 10).all()
    assert np.array_equal(layer, slow_segment_layer(centred, 10, centred=True))


def test_segment_bins_of_log_data_and_of_counts_are_equal(counts):
    adata = ad.AnnData(sp.csr_matrix(np.log1p(counts)), layers={"counts": sp.csr_matrix(counts)})
    bin_segment(adata)
    bin_segment(adata, layer="counts", key_added="from_counts")
    assert np.array_equal(dense(adata.layers["bin_segment"]), dense(adata.layers["from_counts"]))


@pytest.mark.fault(4)
def test_value_bins_of_log_data_raise_an_error_that_names_the_layer_with_counts(counts):
    scaled = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4
    adata = ad.AnnData(np.log1p(scaled), layers={"counts": counts.copy()})
    with pytest.raises(DataError, match=r"log scale.*pass `layer='counts'`"):
        bin_value(adata)
    assert set(adata.layers) - {None} == {"counts"}  # anndata 0.13 lists X as the layer None
    assert not adata.uns
    bin_value(adata, layer="counts")
    assert np.array_equal(adata.layers["bin_value"], slow_value_layer(counts))


@pytest.mark.fault(1)
def test_value_bins_of_negative_values_raise_an_error(counts):
    with pytest.raises(DataError, match="negative values"):
        bin_value(ad.AnnData(counts - 1))


def test_estimated_counts_are_accepted_on_request(counts):
    estimated = counts.copy()
    estimated[0, :3] = [0.5, 1.25, 2.75]
    adata = ad.AnnData(estimated)
    with pytest.raises(DataError, match=r"not integers.*`bf.tl.fit\(adata, allow_non_integer=True\)`"):
        bin_value(adata)
    bin_value(adata, allow_non_integer=True)
    assert np.array_equal(adata.layers["bin_value"], slow_value_layer(estimated))


@pytest.mark.fault(2, 31)
@pytest.mark.parametrize("verb", [bin_value, bin_segment, bin_quantile])
def test_nan_and_a_missing_layer_raise_an_error(verb, counts):
    broken = counts.copy()
    broken[2, 3] = np.nan
    with pytest.raises(DataError, match="1 NaN or infinite values"):
        verb(ad.AnnData(broken))
    with pytest.raises(MissingKeyError, match="nothing_here"):
        verb(ad.AnnData(counts), layer="nothing_here")
    with pytest.raises(DataError, match="Expected an AnnData"):
        verb(counts)


def test_all_zero_data_raises_an_error():
    adata = ad.AnnData(np.zeros((3, 2), dtype=np.float32))
    with (
        pytest.warns(BioformersWarning, match="(?i)zero"),
        pytest.raises(DataError, match=r"All values of adata\.X are zero"),
    ):
        bin_value(adata)


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        (bin_value, {"cutoff": 0}),
        (bin_value, {"cutoff": 1.5}),
        (bin_value, {"bins_per_doubling": 0}),
        (bin_segment, {"n_bins": 0}),
        (bin_quantile, {"n_bins": 0}),
    ],
)
def test_parameters_out_of_range(verb, arguments, counts):
    adata = ad.AnnData(counts.copy())
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        verb(adata, **arguments)
    assert not adata.layers


def test_copies_do_not_change_the_input(counts):
    adata = ad.AnnData(sp.csr_matrix(counts))
    for verb, key in ((bin_value, "v"), (bin_segment, "s")):
        copied = verb(adata, key_added=key, copy=True)
        assert set(copied.layers) - {None} == set(copied.uns) == {key}
    assert not adata.layers
    assert not adata.uns


@pytest.mark.fault(47)
def test_overwriting_is_logged(counts, caplog):
    adata = ad.AnnData(counts.copy())
    bin_value(adata)
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        bin_value(adata, cutoff=2)
    assert "Overwriting adata.layers['bin_value']" in caplog.text
    assert params_from_json(adata.uns["bin_value"]["params"])["binning"]["cutoff"] == 2
