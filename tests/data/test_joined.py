"""Several data sets as one source, in which features may be missing."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.core import ConfigError
from scbioformers.data import AnnDataSource, Block, JoinedSource, MemorySource, scan

COLUMNS = np.array([0, 1, -1, 3]), np.array([-1, 2, 0, 1]), np.array([1, -1, -1, 0])


@pytest.fixture(scope="module")
def dense():
    random = np.random.default_rng(0)
    return [random.poisson(0.8, size=(n, 5)).astype(float) for n in (7, 4, 6)]


@pytest.fixture(scope="module")
def source(dense):
    return JoinedSource([AnnDataSource(ad.AnnData(x), columns=c) for x, c in zip(dense, COLUMNS, strict=True)])


@pytest.fixture(scope="module")
def whole(dense):
    """(17, 4) counts, NaN where a feature is absent, and (17,) depths: a slow and plain reading of the same data."""
    rows = []
    for x, columns in zip(dense, COLUMNS, strict=True):
        rows += [[cell[c] if c >= 0 else np.nan for c in columns] for cell in x]
    return np.array(rows), np.concatenate([x.sum(axis=1) for x in dense])


def filled(block):
    return np.where(block.present, block.counts.toarray(), np.nan)


def test_the_rows_of_the_sources_follow_each_other(source):
    assert (source.n_obs, source.n_features, source.starts) == (17, 4, (0, 7, 11, 17))
    assert repr(source) == "JoinedSource(3 sources, 17 cells x 4 features)"


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (2, 5), (7, 11), (10, 11), (11, 17), (13, 99), (8, 8), (17, 20)])
def test_rows_of_one_source(source, whole, start, stop):
    block = source.read(start, stop)
    assert block.start == start
    np.testing.assert_array_equal(filled(block), whole[0][start:stop])
    np.testing.assert_array_equal(block.depth, whole[1][start:stop])


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (6, 12), (10, 99)])
def test_rows_of_several_sources_are_no_block(source, start, stop):
    with pytest.raises(ConfigError, match=rf"Rows {start} to {min(stop, 17)} are of several sources"):
        source.read(start, stop)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 7, 100])
def test_blocks_have_cells_of_one_source(source, whole, chunk_size):
    blocks = list(source.blocks(chunk_size))
    assert max(len(block.depth) for block in blocks) <= chunk_size
    for block in blocks:
        stop = block.start + len(block.depth)
        np.testing.assert_array_equal(filled(block), whole[0][block.start : stop])
    assert sum(len(block.depth) for block in blocks) == 17
    np.testing.assert_array_equal(np.concatenate([block.depth for block in blocks]), whole[1])


@pytest.mark.parametrize("rows", [[0, 6, 7, 16], [1, 2], [8], list(range(17)), [3, 12]])
def test_parts_are_the_rows_of_each_source(source, whole, rows):
    parts = source.parts(np.array(rows))
    np.testing.assert_array_equal(np.concatenate([filled(part) for part in parts]), whole[0][rows])
    np.testing.assert_array_equal(np.concatenate([part.depth for part in parts]), whole[1][rows])
    assert len(parts) == len({np.searchsorted([7, 11], row, side="right") for row in rows})
    if len(parts) == 1:
        np.testing.assert_array_equal(filled(source.rows(np.array(rows))), whole[0][rows])
    else:
        with pytest.raises(ConfigError, match=f"of {len(parts)} sources"):
            source.rows(np.array(rows))


def test_sources_must_have_the_same_features(source):
    with pytest.raises(ConfigError, match=r"same features, found \[4, 5\]"):
        JoinedSource([*source.sources, AnnDataSource(ad.AnnData(np.ones((2, 5))))])


def test_a_source_without_cells(source, whole):
    none = AnnDataSource(ad.AnnData(np.zeros((0, 4))))
    joined = JoinedSource([none, source.sources[0], none, source.sources[1], none])
    assert joined.starts == (0, 0, 7, 7, 11, 11)
    np.testing.assert_array_equal(filled(joined.read(7, 11)), whole[0][7:11])
    np.testing.assert_array_equal(np.concatenate([filled(b) for b in joined.blocks()]), whole[0][:11])


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_statistics_are_those_of_the_cells_in_which_a_feature_was_measured(chunk_size):
    # features f0, f1 and another gene; features f2, f0 and another gene. The fourth cell has no modelled count
    first, second = np.array([[2.0, 0, 8], [1, 3, 1]]), np.array([[4.0, 4, 0], [0, 0, 7], [1, 0, 1]])
    joined = JoinedSource([
        AnnDataSource(ad.AnnData(first), columns=np.array([0, 1, -1])),
        AnnDataSource(ad.AnnData(second), columns=np.array([1, -1, 0])),
    ])  # fmt: skip
    found = scan(joined, chunk_size=chunk_size)
    assert (found.n_cells, found.n_empty, found.max_count) == (5, 1, 4.0)
    assert found.mean_depth == (10 + 5 + 8 + 2) / 4
    assert found.mean_modelled_depth == (2 + 4 + 8 + 1) / 4
    assert found.n_measured.tolist() == [4, 2, 2]
    assert found.gene_nnz.tolist() == [3, 1, 2]
    # shares of the depth: f0 0.2, 0.2, 0.5, 0; f1 0, 0.6; f2 0.5, 0.5
    np.testing.assert_allclose(found.gene_mean, [6.25 * 0.225, 6.25 * 0.3, 6.25 * 0.5])
    np.testing.assert_allclose(found.gene_var, [6.25**2 * 0.031875, 6.25**2 * 0.09, 0], atol=1e-12)
    np.testing.assert_allclose(found.depth_share, [7 / 25, 3 / 15, 5 / 10])
    np.testing.assert_allclose(found.max_normalized, 6.25 * 0.6)
    double = found.at_depths([12.5])
    np.testing.assert_allclose(double.gene_mean, [12.5 * 0.225, 12.5 * 0.3, 12.5 * 0.5])
    np.testing.assert_allclose(double.gene_var, 4 * found.gene_var)
    np.testing.assert_allclose([double.mean_depth, double.max_normalized, double.max_count], [12.5, 12.5 * 0.6, 4.0])
    some = scan(joined, np.array([True, False, True, True, False]), chunk_size=chunk_size)
    assert (some.n_cells, some.n_empty, some.mean_depth) == (3, 1, 9.0)
    np.testing.assert_allclose(some.gene_mean, [9 * 0.35, 0, 9 * 0.5])
    np.testing.assert_allclose(some.depth_share, [6 / 18, 0, 4 / 8])


def test_a_block_has_no_values_of_absent_features():
    counts = sp.csr_matrix(np.array([[1.0, 2, 3], [0, 5, 0]], np.float32))
    given = counts.copy()
    block = Block(0, given, np.array([9.0, 7.0]), np.zeros((2, 0), np.int32), np.array([True, False, True]))
    for each in (block, block.take(np.array([0, 1])), MemorySource(block).read(0, 2)):
        np.testing.assert_array_equal(each.counts.toarray(), [[1, 0, 3], [0, 0, 0]])
        assert each.counts.nnz == 2
        assert each.counts.has_canonical_format
        np.testing.assert_array_equal(each.total, [9, 7])
    np.testing.assert_array_equal(given.toarray(), counts.toarray())
