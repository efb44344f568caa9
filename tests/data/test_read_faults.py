"""Files that are damaged, shrink or vanish while they are read."""

import shutil

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import scbioformers as bf
from scbioformers.core import ReadError
from scbioformers.data import AnnDataSource, inspect
from scbioformers.training._callbacks import BestWeights

N_OBS = 60


def write_zarr(adata, path, n_cells=10):
    """In chunks of about ``n_cells`` cells, opened so that rows are read when they are needed."""
    store = zarr.open_group(path, mode="w", zarr_format=3)
    n = int(adata.X.indptr[n_cells]) if sp.issparse(adata.X) else (n_cells, adata.n_vars)
    ad.io.write_elem(
        store, "X", adata.X, dataset_kwargs={"chunks": n if isinstance(n, tuple) else (n,), "shards": None}
    )
    stored = zarr.open_group(path, mode="r")["X"]
    X = ad.io.sparse_dataset(stored) if isinstance(stored, zarr.Group) else stored
    return ad.AnnData(X, obs=adata.obs, var=adata.var)


def damage(path):
    (path / "X/data/c/2").write_bytes(b"garbage")


def lose_indices(path):
    (path / "X/indices/c/2").unlink()


def lose_values(path):
    (path / "X/data/c/2").unlink()


@pytest.mark.fault("read")
@pytest.mark.parametrize(
    "spoil",
    [damage, lose_indices, lose_values, shutil.rmtree],
    ids=["damaged", "lost indices", "lost values", "vanished"],
)
def test_zarr_that_is_spoilt_after_it_was_opened(simulated, tmp_path, spoil):
    path, values = tmp_path / "cells.zarr", simulated.X.indptr
    adata = write_zarr(simulated, path)
    source = AnnDataSource(adata)
    np.testing.assert_array_equal(source.read(0, N_OBS).counts.toarray(), simulated.X.toarray())
    spoil(path)
    # the first cell with a value in the third chunk, or with all of them
    whole = values[:-1] >= 2 * values[10]
    spoilt = {damage: values[1:] > 2 * values[10], lose_indices: whole, lose_values: whole}
    first = int(np.argmax(spoilt[spoil])) // 5 * 5 if spoil in spoilt else 0
    with pytest.raises(ReadError, match=rf"Rows {first} to {first + 4} of '.*cells\.zarr.*open it anew"):
        list(source.blocks(5))
    with pytest.raises(ReadError, match=rf"Rows {first} to {first + 4} of '.*cells\.zarr"):
        inspect(adata, chunk_size=5)


def test_a_cell_of_stored_zeros_is_no_damage(simulated, tmp_path):
    first, last = simulated.X.indptr[[3, 4]]
    simulated.X.data[first:last] = 0
    assert last - first >= 3
    found = AnnDataSource(write_zarr(simulated, tmp_path / "cells.zarr")).read(0, N_OBS)
    np.testing.assert_array_equal(found.counts.toarray(), simulated.X.toarray())
    assert np.diff(found.counts.indptr)[3] == 0


@pytest.mark.fault("read")
def test_dense_zarr_that_vanishes_is_not_read_as_zeros(simulated, tmp_path):
    simulated.X = simulated.X.toarray()
    source = AnnDataSource(write_zarr(simulated, tmp_path / "x.zarr"))
    assert source.read(0, 5).counts.nnz
    shutil.rmtree(tmp_path / "x.zarr")
    with pytest.raises(ReadError, match=r"Rows 0 to 4 of .*the folder does not exist any more"):
        source.read(0, 5)


@pytest.mark.fault("read")
def test_damaged_h5ad(simulated, tmp_path):
    path = tmp_path / "cells.h5ad"
    simulated.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        stored = file["X/data"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(stored.byte_offset + 4)
        file.write(b"garbage" * 8)
    backed = ad.read_h5ad(path, backed="r")
    with pytest.raises(ReadError, match=r"Rows 0 to 59 of '.*cells\.h5ad' cannot be read \(OSError"):
        bf.tl.fit(backed, train=bf.TrainConfig(max_steps=1))
    backed.file.close()


class Shrinking:
    """Returns fewer rows than asked for from the second reading on, as a source that was written anew."""

    def __init__(self, x):
        self.x, self.n_obs, self.var_names = x, len(x), [f"G{i}" for i in range(x.shape[1])]
        self.n_rows = self.n_obs

    def read(self, start, stop):
        return self.x[start : min(stop, self.n_rows)]


@pytest.mark.fault("read")
def test_source_that_shrinks_between_two_reads(simulated, tmp_path, tiny_config, monkeypatch):
    cells = Shrinking(simulated.X.toarray())
    validated = BestWeights.on_validation_end

    def shrink(self, trainer, module):
        validated(self, trainer, module)
        cells.n_rows = 40

    monkeypatch.setattr(BestWeights, "on_validation_end", shrink)
    train = bf.TrainConfig(max_epochs=3, batch_size=16)
    with pytest.raises(ReadError, match=r"Rows 0 to 59 of 'Shrinking' .*expected 60 rows, found 40.* of step 3\."):
        bf.tl.pretrain({"a": cells}, save_dir=tmp_path / "m", config=tiny_config, train=train)
    model = bf.BioFormer.load(tmp_path / "m")
    assert [row["epoch"] for row in model.provenance["history"][0]] == [1]


@pytest.mark.fault("read")
def test_what_was_trained_is_kept_if_a_file_is_damaged_during_the_training(
    simulated, tmp_path, tiny_config, monkeypatch
):
    path = tmp_path / "cells.zarr"
    train = bf.TrainConfig(max_epochs=3, batch_size=16)
    adata = write_zarr(simulated, path)
    validated = BestWeights.on_validation_end
    weights = []

    def damage_after_first(self, trainer, module):
        validated(self, trainer, module)
        weights.append({name: x.clone() for name, x in module.network.state_dict().items()})
        damage(path)

    monkeypatch.setattr(BestWeights, "on_validation_end", damage_after_first)
    with pytest.raises(ReadError, match=r"Rows 0 to 59 of '.*cells\.zarr.*The model has the weights of step 3\."):
        bf.tl.fit(adata, config=tiny_config, train=train)
    model = bf.get.model(adata)
    kept = model.members[0].state_dict()
    assert len(weights) == 1
    assert all((kept[name] == value).all() for name, value in weights[0].items())
    bf.tl.embed(simulated, model=model)  # it can be used
    assert np.isfinite(simulated.obsm["X_bioformer"]).all()
