"""Cells in a storage of the user, and collections of annbatch."""

from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr

import scbioformers as bf
from scbioformers.core import ConfigError, DataError
from scbioformers.data import AnnDataSource, _data_sets, open_data_sets


class Stored:
    def __init__(self, adata, kind):
        self.n_obs, self.var_names, self._adata, self._kind = adata.n_obs, adata.var_names, adata, kind

    def read(self, start, stop):
        rows = self._adata.X[start:stop]
        return {"csr": lambda: rows, "coo": rows.tocoo, "dense": rows.toarray, "array": lambda: sp.csr_array(rows)}[
            self._kind
        ]()


@pytest.fixture
def pretrain(tmp_path, tiny_config):
    train = bf.TrainConfig(max_steps=2, batch_size=16)

    def fit(sources, **options):
        options = {"config": tiny_config, "train": train, "n_top_features": 30, "save_dir": tmp_path / "m"} | options
        return bf.tl.pretrain(sources, **options)

    return fit


@pytest.mark.filterwarnings("ignore:.*cells are in a and in b")
def test_a_reader_gives_the_same_model_as_the_data_in_memory(simulated, pretrain):
    expected = pretrain({"a": simulated, "b": simulated[:30].copy()})
    for first, second in (("csr", "dense"), ("coo", "array")):
        sources = {"a": Stored(simulated, first), "b": Stored(simulated[:30].copy(), second)}
        assert pretrain(sources).hash == expected.hash


class Cells(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def test_the_reader_of_the_documentation(simulated, tiny_config, tmp_path, monkeypatch):
    """The code of the page, with a dataset of torch."""
    page = (Path(__file__).parents[2] / "docs" / "larger_than_memory.md").read_text()
    code = page.split("## Your own storage\n")[1].split("```python\n")[1].split("```")[0]
    train = bf.TrainConfig(max_steps=2, batch_size=16)
    monkeypatch.setattr(bf.tl, "pretrain", partial(bf.tl.pretrain, config=tiny_config, train=train, n_top_features=30))
    monkeypatch.chdir(tmp_path)
    dataset = Cells(simulated.X.toarray())
    exec(code, names := {"np": np, "bf": bf, "dataset": dataset, "genes": simulated.var_names.tolist()})
    assert names["model"].hash == bf.tl.pretrain(simulated, save_dir="expected").hash


@pytest.mark.fault(71)
def test_objects_that_are_no_readers(simulated, pretrain):
    class Wrong(Stored):
        def read(self, start, stop):
            return self._adata.X[start:stop].toarray()[:, :3]

    with pytest.raises(ConfigError, match=r"`sources` must be .*a RowReader.*found \{'a': array"):
        pretrain({"a": np.ones((3, 3))})
    with pytest.raises(DataError, match=r"`read\(0, 1\)` of a Wrong must return .*\(1, 40\), found ndarray of .*1, 3"):
        pretrain(Wrong(simulated, "csr"))
    cells = Stored(simulated, "csr")
    cells.n_obs = 60.0
    with pytest.raises(ConfigError, match=r"`n_obs` of the source 'source_1' must be a positive integer, found 60\.0"):
        pretrain(cells)


@pytest.fixture
def collection(simulated, tmp_path):
    """As annbatch writes one: a zarr group with an AnnData in each of its groups."""
    group = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=3)
    group.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    for i, rows in enumerate(np.array_split(np.arange(60), [25, 25 + 20])):
        ad.io.write_elem(group, f"dataset_{i}", simulated[rows].copy())
    return tmp_path / "cells.zarr"


@pytest.mark.fault(16)
@pytest.mark.parametrize("max_bytes", [0, 500e6], ids=["disk", "memory"])
def test_a_collection_is_one_data_set(simulated, collection, pretrain, monkeypatch, max_bytes):
    monkeypatch.setattr(_data_sets, "MAX_BYTES", max_bytes)
    with open_data_sets([collection]) as found:
        data_sets = found["rna"].data_sets
        source = AnnDataSource(data_sets[0].adata)
        for start, stop in ((0, 60), (20, 50), (45, 46), (25, 45)):
            expected = simulated.X[start:stop].toarray()
            np.testing.assert_array_equal(source.read(start, stop).counts.toarray(), expected)
    assert pretrain(collection).hash == pretrain({"cells": simulated}).hash


def test_a_collection_that_annbatch_writes(simulated, pretrain, tmp_path):
    annbatch = pytest.importorskip("annbatch")
    simulated.write_zarr(tmp_path / "a.zarr")
    path = tmp_path / "written.zarr"
    annbatch.DatasetCollection(path).add_adatas([tmp_path / "a.zarr"], shuffle=False)
    with open_data_sets([path]) as found:
        data_sets = found["rna"].data_sets
        found = AnnDataSource(data_sets[0].adata).read(0, 60).counts.toarray()
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(simulated.X.toarray(), axis=0))
    assert pretrain(path).provenance["sources"][0]["n_cells"] == 60
