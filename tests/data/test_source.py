"""BlockSource blocks against a slow dense implementation, over every way of holding a matrix."""

import hashlib
import logging
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata.experimental import read_lazy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.data import AnnDataSource, MemorySource, concatenate, inspect, scan

N_OBS, N_VARS = 23, 11


def make_counts(n_obs: int = N_OBS, n_vars: int = N_VARS, density: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(4, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < density)


def slow_select(dense: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    if features is None:
        return dense.astype(np.float32)
    out = np.zeros((len(dense), len(features)), np.float32)
    for i in range(len(dense)):
        for j, column in enumerate(features):
            if column >= 0:
                out[i, j] = dense[i, column]
    return out


def shuffled_duplicates(dense: np.ndarray) -> sp.csr_matrix:
    """CSR in which every row runs backwards and every value is stored as two entries (x - 1 and 1)."""
    indptr, indices, data = [0], [], []
    for row in dense:
        columns = np.flatnonzero(row)[::-1]
        for value, columns_ in ((None, columns), (1, columns)):
            indices.extend(columns_)
            data.extend(row[columns_] - 1 if value is None else np.ones(len(columns_)))
        indptr.append(len(indices))
    return sp.csr_matrix((np.array(data, np.float32), np.array(indices), np.array(indptr)), shape=dense.shape)


def stored_zeros(dense: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(dense + 1.0)
    matrix.data -= 1
    return matrix


def int64_indices(dense: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(dense.astype(np.float32))
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


FORMATS = {
    "csr": lambda x: sp.csr_matrix(x.astype(np.float32)),
    "row5_float64": lambda x: sp.csr_matrix(x.astype(np.float64)),
    "row6_integer": lambda x: sp.csr_matrix(x.astype(np.int16)),
    "row8_csc": lambda x: sp.csc_matrix(x.astype(np.float32)),
    "row8_csc_array": lambda x: sp.csc_array(x.astype(np.float32)),
    "row9_csr_array": lambda x: sp.csr_array(x.astype(np.float32)),
    "row10_unsorted_duplicates": shuffled_duplicates,
    "row11_stored_zeros": stored_zeros,
    "row12_int64_indices": int64_indices,
    "row13_dense": lambda x: x.astype(np.float32),
    "row13_dense_float16": lambda x: x.astype(np.float16),
    "row13_dense_int64": lambda x: x.astype(np.int64),
}


def fingerprint(matrix: object) -> str:
    arrays = [matrix] if isinstance(matrix, np.ndarray) else [matrix.data, matrix.indices, matrix.indptr]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def assert_blocks(source: AnnDataSource, dense: np.ndarray, features: np.ndarray | None, chunk_size: int) -> None:
    expected, depth = slow_select(dense, features), dense.sum(1)
    absent = [] if features is None else [i for i, column in enumerate(features) if column < 0]
    row = 0
    for block in source.blocks(chunk_size):
        n = len(block.depth)
        counts = block.counts
        assert block.start == row and n == min(chunk_size, len(dense) - row)
        assert isinstance(counts, sp.csr_matrix) and counts.dtype == np.float32
        assert counts.indices.dtype == counts.indptr.dtype == np.int32 and block.depth.dtype == np.float64
        assert sp.csr_matrix((counts.data, counts.indices, counts.indptr), counts.shape).has_canonical_format
        assert counts.data.all()
        np.testing.assert_array_equal(counts.toarray(), expected[row : row + n])
        np.testing.assert_allclose(block.depth, depth[row : row + n], rtol=1e-12)
        assert np.flatnonzero(~block.present).tolist() == absent
        row += n
    assert row == len(dense)


@pytest.mark.fault(5, 6, 8, 9, 10, 11, 12, 13)
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
@pytest.mark.parametrize("features", [None, np.array([5, -1, 0, 9])], ids=["all", "subset"])
@pytest.mark.parametrize("make", [pytest.param(f, id=name) for name, f in FORMATS.items()])
def test_formats_equal_the_slow_reader_and_leave_the_input_alone(make, features, chunk_size):
    dense = make_counts()
    matrix = make(dense)
    adata = ad.AnnData(matrix)
    before = fingerprint(adata.X)
    assert_blocks(AnnDataSource(adata, columns=features), dense, features, chunk_size)
    assert fingerprint(adata.X) == before


@pytest.mark.fault(6)
def test_bool_sums_in_full():
    dense = make_counts() > 0
    assert_blocks(AnnDataSource(ad.AnnData(sp.csr_matrix(dense))), dense.astype(int), None, 4)  # row 6


@pytest.mark.fault(10, 13)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: sp.coo_matrix(x), id="row10_coo"),
        pytest.param(lambda x: np.asmatrix(x), id="row13_np_matrix"),
    ],
)
def test_formats_that_anndata_may_convert(make, monkeypatch):
    dense = make_counts().astype(np.float32)
    adata = ad.AnnData(sp.csr_matrix(dense))
    matrix = make(dense)
    monkeypatch.setattr(ad.AnnData, "X", property(lambda self: matrix))  # as hand-made objects may hold it
    assert_blocks(AnnDataSource(adata), dense, None, 5)


@pytest.mark.fault(6, 10)
def test_bool_duplicates_add_up():
    matrix = sp.csr_matrix((np.ones(2, bool), [0, 0], [0, 2]), shape=(1, 1))
    block = AnnDataSource(ad.AnnData(matrix)).read(0, 1)
    assert block.counts[0, 0] == 2 and block.depth[0] == 2


@pytest.mark.fault(17)
def test_row17_view_without_warning():
    dense = make_counts()
    adata = ad.AnnData(sp.csr_matrix(dense.astype(np.float32)))
    view = adata[::2, 1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = AnnDataSource(view)
    assert view.is_view
    assert_blocks(source, dense[::2, 1:], None, 4)


def write(path: Path, matrix: object, kind: str) -> ad.AnnData:
    adata = ad.AnnData(matrix, layers={"counts": matrix})
    if kind == "memory":
        return adata
    if "zarr" in kind:
        adata.write_zarr(path / "x.zarr")
    else:
        adata.write_h5ad(path / "x.h5ad")
    match kind:
        case "zarr":
            return ad.read_zarr(path / "x.zarr")
        case "backed":
            return ad.read_h5ad(path / "x.h5ad", backed="r")
        case "dataset_zarr":
            store = zarr.open(path / "x.zarr", mode="r")
        case "dataset_h5ad":
            store = h5py.File(path / "x.h5ad")
        case _:
            pytest.importorskip("dask")
            pytest.importorskip("xarray")
            return read_lazy(path / ("x.zarr" if "zarr" in kind else "x.h5ad"))
    stored = [store["X"], store["layers/counts"]]
    X, layer = (ad.io.sparse_dataset(m) if hasattr(m, "keys") else m for m in stored)
    return ad.AnnData(X, layers={"counts": layer})


@pytest.mark.fault(14, 16, "memory-backed-zarr")
@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize(
    "make", [FORMATS["csr"], FORMATS["row8_csc"], FORMATS["row13_dense"]], ids=["csr", "csc", "dense"]
)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("backed", id="row14_backed"),
        pytest.param("zarr", id="row16_zarr"),
        pytest.param("dataset_zarr", id="row16_dataset_zarr"),
        pytest.param("dataset_h5ad", id="row14_dataset_h5ad"),
        pytest.param("lazy_zarr", id="row16_lazy_zarr"),
        pytest.param("lazy_h5ad", id="row14_lazy_h5ad"),
    ],
)
def test_stored_equals_memory_and_is_not_written(tmp_path, kind, make, layer):
    dense, features = make_counts(), np.array([3, -1, 8, 1])
    adata = write(tmp_path, make(dense), kind)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    before = [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
    source = AnnDataSource(adata, layer=layer, columns=features)
    assert_blocks(source, dense, features, 5)
    memory = AnnDataSource(ad.AnnData(make(dense)), columns=features)
    np.testing.assert_array_equal(scan(source, chunk_size=4).gene_var, scan(memory, chunk_size=4).gene_var)
    assert [hashlib.sha256(p.read_bytes()).hexdigest() for p in files] == before


@pytest.mark.fault(8, 14)
@pytest.mark.parametrize(
    ("name", "said", "n_times"), [("csr", "Results stay in memory", 1), ("row8_csc", "read into memory once", 2)]
)
def test_reading_from_disk_is_logged(tmp_path, caplog, name, said, n_times):
    adata = write(tmp_path, FORMATS[name](make_counts()), "backed")
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        inspect(adata).log_place()
        AnnDataSource(adata)
        AnnDataSource(adata)
    assert sum(said in record.getMessage() for record in caplog.records) == n_times


@pytest.mark.fault(15)
def test_row15_backed_view(tmp_path):
    with pytest.raises(DataError, match=r"\.to_memory\(\)"):
        AnnDataSource(write(tmp_path, FORMATS["csr"](make_counts()), "backed")[:5])


@pytest.mark.fault(31, 44, 46)
@pytest.mark.parametrize(
    ("adata", "layer", "error", "match"),
    [
        pytest.param(np.ones((2, 2)), None, DataError, "Expected an AnnData, found numpy.ndarray", id="row46_array"),
        pytest.param(
            ad.AnnData(shape=(2, 2), layers={"counts": np.ones((2, 2))}),
            None,
            DataError,
            "X is None.*counts",
            id="row44_no_x",
        ),
        pytest.param(
            ad.AnnData(np.ones((2, 2))),
            "raw",
            MissingKeyError,
            r"layers\['raw'\].*Existing layers: \[\]",
            id="row31_layer",
        ),
    ],
)
def test_unreadable(adata, layer, error, match):
    with pytest.raises(error, match=match):
        AnnDataSource(adata, layer=layer)


@pytest.mark.fault(44)
def test_row44_raw_is_never_used():
    adata = ad.AnnData(np.ones((2, 2)))
    adata.raw = adata
    adata.X = None
    with pytest.raises(DataError, match="raw is never used silently"):
        AnnDataSource(adata)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"columns": np.array([0, 11])}, "must lie in -1..10, found 0..11"),
        ({"columns": np.array([-2, 0])}, "must lie in"),
        ({"columns": np.array([0.5])}, "1-D integer"),
        ({"fields": np.zeros((3, 1))}, r"shape \(23, n_fields\)"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ConfigError, match=match):
        AnnDataSource(ad.AnnData(make_counts().astype(float)), **options)


def test_wrong_rows():
    source = AnnDataSource(ad.AnnData(make_counts().astype(float)))
    with pytest.raises(ConfigError, match="start <= stop"):
        source.read(3, 2)
    with pytest.raises(ConfigError, match="chunk_size"):
        next(source.blocks(0))
    with pytest.raises(ConfigError, match="bool mask"):
        scan(source, rows=np.arange(23))


def test_blocks_own_their_arrays():
    adata = ad.AnnData(sp.csr_matrix(make_counts().astype(np.float32)))
    before = fingerprint(adata.X)
    source = AnnDataSource(adata, fields=np.arange(23)[:, None])
    block = source.read(0, 23)
    block.counts.data[:], block.counts.indices[:], block.depth[:], block.fields[:] = -1, 0, -1, -1
    again = source.read(0, 23)
    assert fingerprint(adata.X) == before
    assert again.counts.data.min() > 0 and again.depth.min() >= 0 and again.fields[5, 0] == 5


def test_fields_and_ends():
    dense = make_counts()
    source = AnnDataSource(ad.AnnData(dense.astype(np.float32)), fields=np.arange(46).reshape(23, 2))
    block = source.read(20, 99)
    assert block.fields.tolist() == [[40, 41], [42, 43], [44, 45]] and block.fields.dtype == np.float32
    assert source.read(23, 30).counts.shape == (0, 11) and source.read(0, 1).fields.shape == (1, 2)


@pytest.mark.parametrize("rows", [[7, 2, 2, 22], [], list(range(23))], ids=["some", "none", "all"])
def test_taken_rows_are_a_block_of_their_own(rows):
    dense, features = make_counts(), np.array([5, -1, 0, 9])
    adata = ad.AnnData(sp.csr_matrix(dense.astype(np.float32)))
    block = AnnDataSource(adata, columns=features, fields=np.arange(46).reshape(23, 2)).read(0, 23)
    taken = block.take(np.array(rows, np.int64))
    np.testing.assert_array_equal(taken.counts.toarray(), slow_select(dense, features)[rows])
    assert taken.depth.tolist() == dense.sum(1)[rows].tolist()
    assert taken.fields.tolist() == [[2 * row, 2 * row + 1] for row in rows]
    assert taken.present.tolist() == [True, False, True, True]
    assert taken.start == 0
    taken.depth[:], taken.counts.data[:] = -1, -1
    assert block.depth.min() >= 0 and (block.counts.data > 0).all()


def test_one_count_of_each_row_is_scaled():
    dense = np.random.default_rng(0).poisson(1.0, (5, 4)).astype(np.float32)
    block = AnnDataSource(ad.AnnData(sp.csr_matrix(dense))).read(0, 5)
    at = np.array([0, 3, -1, 1, 3])
    for factor in (0, 2):
        found = block.scaled(at, factor)
        expected = dense.copy()
        for row, feature in enumerate(at):
            if feature >= 0:
                expected[row, feature] *= factor
        np.testing.assert_array_equal(found.counts.toarray(), expected)
        assert found.counts.nnz == np.count_nonzero(expected)  # no stored zeros
        np.testing.assert_array_equal(found.depth, block.depth)
    np.testing.assert_array_equal(block.counts.toarray(), dense)


def test_blocks_make_one():
    dense = np.random.default_rng(1).poisson(1.0, (9, 4)).astype(np.float32)
    source = AnnDataSource(ad.AnnData(sp.csr_matrix(dense)), columns=np.array([2, -1, 0]), fields=np.arange(9)[:, None])
    found = concatenate([source.read(5, 7), source.read(0, 1), source.read(8, 9)])
    rows = [5, 6, 0, 8]
    np.testing.assert_array_equal(found.counts.toarray()[:, [0, 2]], dense[rows][:, [2, 0]])
    assert found.depth.tolist() == dense.sum(axis=1)[rows].tolist()
    assert (found.start, found.fields.ravel().tolist(), found.present.tolist()) == (0, rows, [True, False, True])


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
@pytest.mark.parametrize("kind", ["memory", "backed", "zarr", "dataset_zarr"])
@pytest.mark.parametrize("rows", [[0, 1, 5, 22], [7], list(range(23))], ids=["some", "one", "all"])
def test_taken_rows_are_a_source_of_their_own(tmp_path, kind, rows):
    dense, features = make_counts(), np.array([5, -1, 0, 9])
    adata = write(tmp_path, sp.csr_matrix(dense.astype(np.float32)), kind)
    source = AnnDataSource(adata, columns=features, fields=np.arange(46).reshape(23, 2))
    taken = MemorySource(source.rows(np.array(rows)))
    assert_blocks(taken, dense[rows], features, 2)
    assert taken.read(0, 23).fields.tolist() == [[2 * row, 2 * row + 1] for row in rows]
    assert_blocks(source, dense, features, 5)  # it can still be read


@pytest.mark.fault(7, 20)
def test_row20_depth_is_exact_for_large_counts():
    dense = np.array([[2.0**24, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    assert AnnDataSource(ad.AnnData(dense)).read(0, 2).depth.tolist() == [2.0**24 + 2, 0.0]


def slow_statistics(dense: np.ndarray, features: np.ndarray) -> dict[str, object]:
    part, depth = slow_select(dense, features).astype(float), dense.sum(1)
    filled = part.any(1)
    mean_depth = depth[filled].mean()
    normalized = part[filled] * mean_depth / depth[filled][:, None]
    return {
        "n_cells": len(dense),
        "n_empty": int((~filled).sum()),
        "mean_depth": mean_depth,
        "mean_modelled_depth": part[filled].sum(1).mean(),
        "gene_mean": normalized.mean(0),
        "gene_var": normalized.var(0),
        "gene_nnz": (part > 0).sum(0),
        "max_normalized": normalized.max(),
        "max_count": part.max(),
    }


@pytest.mark.fault(20, 21)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_size", [3, 1000])
def test_scan_equals_the_slow_statistics(masked, chunk_size):
    dense, features = make_counts(60, density=0.15), np.array([2, -1, 0, 7])
    rows = np.arange(60) % 3 > 0 if masked else None
    found = scan(AnnDataSource(ad.AnnData(sp.csr_matrix(dense)), columns=features), rows, chunk_size)
    expected = slow_statistics(dense if rows is None else dense[rows], features)
    assert expected["n_empty"] > 0  # rows 20 and 21 take part
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10, atol=1e-14, err_msg=name)


def test_scan_of_nothing():
    found = scan(AnnDataSource(ad.AnnData(np.zeros((4, 3), np.float32))))
    assert (found.n_cells, found.n_empty, found.mean_depth, found.max_normalized) == (4, 4, 0.0, 0.0)


@pytest.mark.fault("fuzzing")
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    dtype=st.sampled_from([bool, np.int8, np.uint8, np.int32, np.uint16, np.int64, np.float32, np.float64]),
    make=st.sampled_from([sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array, np.asarray]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 9),
    chunk_size=st.integers(1, 10),
    data=st.data(),
)
def test_fuzz(dtype, make, shape, density, seed, chunk_size, data):
    dense = make_counts(*shape, density=density, seed=seed).astype(dtype)
    chosen = st.none() | st.lists(st.integers(-1, shape[1] - 1), max_size=12)
    columns = data.draw(chosen)
    features = None if columns is None else np.array(columns, int)
    adata = ad.AnnData(make(dense))
    before = fingerprint(adata.X)
    assert_blocks(AnnDataSource(adata, columns=features), dense.astype(np.float64), features, chunk_size)
    assert fingerprint(adata.X) == before
