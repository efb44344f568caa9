"""What a fit knows of its cells before the first step: one pass, against a slow reading of all cells at once."""

import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import DataError, uniform, validation_rows
from scbioformers.data import AnnDataSource, JoinedSource, _inspect, _source, _survey, inspect, scan, survey
from scbioformers.data._survey import _SAMPLE_STREAM, _SPLIT_STREAM, validation_runs
from scbioformers.results import open_query
from scbioformers.training import _fit as fit_module
from scbioformers.training import find_validation


def make_source(*sizes, empty=0.2, seed=0):
    random = np.random.default_rng(seed)
    cells = [random.poisson(1.5, (n, 6)).astype(np.float32) * (random.random((n, 1)) >= empty) for n in sizes]
    return JoinedSource([AnnDataSource(ad.AnnData(sp.csr_matrix(x))) for x in cells]), np.concatenate(cells)


def slow_validation(filled, fraction, seed):
    rows = np.flatnonzero(filled)
    held_out = np.zeros(len(filled), bool)
    if fraction > 0 and len(rows) > 1:
        held_out[rows[validation_rows(len(rows), fraction, seed ^ _SPLIT_STREAM)]] = True
    return held_out


def slow_sample(training, size, seed):
    """Rows of the training cells with the smallest random numbers."""
    rows = np.flatnonzero(training)
    order = np.argsort(uniform(seed ^ _SAMPLE_STREAM, rows))
    return np.sort(rows[order[:size]])


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(_survey, "MAX_SAMPLE", 9)
    monkeypatch.setattr(_survey, "_SAMPLE_SLACK", 2)
    monkeypatch.setattr(JoinedSource.blocks, "__defaults__", (5,))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (17, 4, 30)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_one_pass_equals_a_slow_reading(sizes, fraction, seed, small_limits):
    """Also where chance would hold out no cell or all cells, which few cells make likely."""
    source, dense = make_source(*sizes, seed=seed)
    found = survey(source, fraction, seed)
    filled = dense.any(axis=1)
    expected = slow_validation(filled, fraction, seed)
    np.testing.assert_array_equal(found.validation, expected)
    np.testing.assert_array_equal(found.training, filled & ~expected)
    rows = slow_sample(filled & ~expected, 9, seed)
    kept = [part.counts.toarray() for part in found.sample]
    np.testing.assert_array_equal(np.concatenate([*kept, np.zeros((0, 6))]), dense[rows])
    assert len(kept) == len({np.searchsorted(np.cumsum(sizes), row, side="right") for row in rows})
    other = scan(source, filled & ~expected, chunk_size=5)
    for name, value in vars(found.statistics).items():
        np.testing.assert_array_equal(value, getattr(other, name))


def test_each_block_is_read_once(small_limits, monkeypatch):
    source, _ = make_source(17, 4, 30)
    reads = np.zeros(51, int)
    for each, first in zip(source.sources, source.starts, strict=False):
        read = each.read

        def counted(start, stop, read=read, first=first):
            block = read(start, stop)
            reads[first + start : first + start + len(block.depth)] += 1
            return block

        monkeypatch.setattr(each, "read", counted)
    seen = []
    survey(source, 0.1, 0, lambda block: seen.append(len(block.depth)))
    assert (reads == 1).all() and sum(seen) == 51


@pytest.mark.parametrize("starts", [(0, 200_000), (0, 300, 150_000, 150_001, 1_200_500)], ids=str)
@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.1, 0.9])
def test_runs_are_spread_over_the_data_and_bounded(starts, fraction):
    runs = validation_runs(starts, fraction, seed=1)
    wanted = fraction * starts[-1] / 1024
    assert len(runs) == min(max(round(wanted), 1), 16)
    rows = [row for start, stop in runs for row in (start, stop - 1)]
    assert rows == sorted(rows) and max(stop - start for start, stop in runs) <= 1024
    for start, stop in runs:  # of one data set, from its first row in steps of 1,024
        first = max(each for each in starts if each <= start)
        assert (start - first) % 1024 == 0 and stop <= min(each for each in starts if each > start)
    middle = np.array(runs).mean(axis=1) / starts[-1] * len(runs)
    assert (np.abs(middle - np.arange(len(runs)) - 0.5) <= 0.52).all()  # one in each equal part of the data
    assert runs == validation_runs(starts, fraction, seed=1) != validation_runs(starts, fraction, seed=2)


@pytest.fixture
def many_cells(monkeypatch):
    """60 cells are many: validation cells are runs of 3 rows."""
    for name, value in (("MANY_CELLS", 50), ("RUN_ROWS", 3), ("MAX_RUNS", 4)):
        monkeypatch.setattr(_survey, name, value)


def test_many_cells_are_validated_in_runs(many_cells, small_limits):
    source, dense = make_source(40, 20)
    found = survey(source, 0.5, 3)
    filled = dense.any(axis=1)
    held_out = np.zeros(60, bool)
    for start, stop in validation_runs((0, 40, 60), 0.5, 3):
        held_out[start:stop] = True
    assert held_out.sum() == 12  # four runs, although half of the cells are asked for
    np.testing.assert_array_equal(found.validation, held_out & filled)
    np.testing.assert_array_equal(found.training, filled & ~held_out)
    np.testing.assert_array_equal(np.concatenate([x.counts.toarray() for x in found.sample]),
                                  dense[slow_sample(filled & ~held_out, 9, 3)])  # fmt: skip
    none = survey(source, 0.0, 3)
    assert not none.validation.any() and (none.training == filled).all()


def rows_read(monkeypatch, n_obs):
    """Counts how often each row is read from disk before the training."""
    from anndata._core.sparse_dataset import BaseCompressedSparseDataset as Stored

    counts, read, run, done = np.zeros(n_obs, int), Stored.__getitem__, fit_module.run_training, []

    def counted(self, index):
        rows = index[0] if isinstance(index, tuple) else index
        if not done:
            counts[rows] += 1
        return read(self, index)

    def train(*args, **options):
        done.append(True)
        return run(*args, **options)

    monkeypatch.setattr(Stored, "__getitem__", counted)
    monkeypatch.setattr(fit_module, "run_training", train)
    return counts


@pytest.fixture
def backed(simulated, tmp_path):
    simulated.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    yield backed
    backed.file.close()


@pytest.mark.fault(14, "memory-backed-zarr")
@pytest.mark.parametrize("many", [False, True])
def test_a_fit_reads_data_on_disk_once_before_its_first_step(
    simulated, backed, tiny_config, monkeypatch, request, many
):
    if many:
        request.getfixturevalue("many_cells")
    train = bf.TrainConfig(max_steps=1, validation_fraction=0.3, batch_size=16)
    bf.tl.fit(simulated, config=tiny_config, train=train, batch_key="batch")
    reads = rows_read(monkeypatch, 60)
    bf.tl.fit(backed, config=tiny_config, train=train, batch_key="batch")
    assert (reads == 1).all()
    memory, disk = bf.get.model(simulated), bf.get.model(backed)
    assert memory.hash == disk.hash
    # the validation cells are found again, and are runs of rows if there are many cells
    found = find_validation(disk, open_query(backed, None).source)
    np.testing.assert_array_equal(found, find_validation(memory, open_query(simulated, None).source))
    assert found.sum() == (12 if many else slow_validation(np.ones(60, bool), 0.3, 0).sum())
    assert (np.count_nonzero(np.diff(np.flatnonzero(found)) > 1) < 4) == many


@pytest.mark.fault(2)
def test_values_are_checked_although_they_are_counted_in_the_same_pass(simulated, tmp_path):
    simulated.X.data[5] = np.inf
    simulated.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    with pytest.raises(DataError, match=r"1 .*infinite"):
        bf.tl.fit(backed, train=bf.TrainConfig(max_steps=1))
    backed.file.close()


def test_a_pretraining_reads_files_three_times_before_its_first_step(simulated, monkeypatch, tiny_config):
    """For the choice of the genes, for the depth, and for the survey. Of many cells, the depth needs 65,536."""
    from scbioformers.data import _data_sets

    monkeypatch.setattr(_data_sets, "MAX_BYTES", 0)
    with tempfile.TemporaryDirectory() as folder:
        simulated.write_h5ad(Path(folder) / "a.h5ad")
        train = bf.TrainConfig(max_steps=1)
        reads = rows_read(monkeypatch, 60)
        bf.tl.pretrain(folder, save_dir=Path(folder) / "m", config=tiny_config, train=train, n_top_features=30)
    assert (reads[1:] == 3).all() and reads[0] <= 5  # the first row alone is read to see what is measured


@pytest.mark.parametrize("n_obs", [8, 9, 50])
def test_a_part_of_the_blocks_of_many_cells(n_obs, monkeypatch):
    monkeypatch.setattr(_source, "CHUNK_SIZE", 4)
    monkeypatch.setattr(_source, "SOME_CHUNKS", 2)
    monkeypatch.setattr(_source.BlockSource.blocks, "__defaults__", (4,))
    source = AnnDataSource(ad.AnnData(np.arange(n_obs, dtype=np.float32)[:, None] + 1))
    read = np.concatenate([block.counts.toarray().ravel() - 1 for block in source.some_blocks()])
    assert read.tolist() == [0, 1, 2, 3, *range(n_obs - 4, n_obs)]


def test_sums_of_many_cells_are_kept_for_some(monkeypatch):
    dense = np.random.default_rng(0).poisson(0.5, (23, 4)).astype(np.float32)
    dense[[1, 6]] = 0
    whole = inspect(ad.AnnData(dense))
    assert whole.depth.tolist() == dense.sum(axis=1).tolist()
    monkeypatch.setattr(_inspect, "MAX_KEPT", 6)
    some = inspect(ad.AnnData(dense), chunk_size=5)
    assert some.depth.tolist() == dense[::4].sum(axis=1).tolist()
    assert some.cell_nnz.tolist() == (dense[::4] > 0).sum(axis=1).tolist()
    assert some.n_empty_cells == whole.n_empty_cells == (dense.sum(axis=1) == 0).sum()
    assert some.n_nonzero == whole.n_nonzero == (dense > 0).sum()
