"""Results that are written to a zarr store: their values, what an error leaves, and what is refused."""

import logging
import resource
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, StorageError, free_memory
from scbioformers.results import warn_of_memory
from scbioformers.results._imputed import layer_bytes

VERBS = {"embed": bf.tl.embed, "impute": bf.tl.impute}
SLOTS = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")


@pytest.fixture
def small_blocks(monkeypatch):
    """60 cells are four blocks."""
    for name in ("model._inference.READ_CHUNK", "tl._embed.READ_CHUNK"):
        monkeypatch.setattr(f"scbioformers.{name}", 17)
    for name in ("tasks._imputation.BLOCK_CELLS", "tl._impute.BLOCK_CELLS"):
        monkeypatch.setattr(f"scbioformers.{name}", 17)


@pytest.fixture
def with_empty(simulated):
    """The last cell has no count, so that the results have a column of ``obs``."""
    x = simulated.X.toarray()
    x[-1] = 0
    simulated.X = sp.csr_matrix(x)
    return simulated


def names_of(path):
    return sorted(each.name for each in path.iterdir())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("use", ["profile", "mean"])
def test_an_embedding_is_that_in_memory(with_empty, model, tmp_path, use):
    expected = bf.tl.embed(with_empty, model=model, use=use, key_added="a/b", copy=True)
    before = with_empty.copy()
    assert bf.tl.embed(with_empty, model=model, use=use, key_added="a/b", out=tmp_path / "x.zarr") is None
    assert all(set(getattr(with_empty, slot)) == set(getattr(before, slot)) for slot in SLOTS)
    found = ad.read_zarr(tmp_path / "x.zarr")
    assert found.shape == (60, 0)
    assert list(found.obs_names) == list(with_empty.obs_names)
    assert found.obsm["a%2Fb"].dtype == np.float32
    assert np.array_equal(found.obsm["a%2Fb"], expected.obsm["a%2Fb"])
    assert found.uns["a%2Fb"]["params"] == expected.uns["a%2Fb"]["params"]
    assert found.obs["bioformer_empty"].tolist() == [False] * 59 + [True]
    assert names_of(tmp_path) == ["x.zarr"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("masked", [False, True])
def test_imputed_values_are_those_in_memory(with_empty, model, mask, tmp_path, masked, with_genes):
    wider = with_genes(with_empty[:, ::-1], ["new"])
    wide_mask = np.hstack([np.zeros((60, 1), bool), mask]) if masked else None
    kwargs = {"model": model, "mask": wide_mask, "std": True, "quantiles": (0.1,)}
    expected = bf.tl.impute(wider, copy=True, **kwargs)
    before = wider.copy()
    assert bf.tl.impute(wider, out=str(tmp_path / "x.zarr"), **kwargs) is None
    assert all(set(getattr(wider, slot)) == set(getattr(before, slot)) for slot in SLOTS)
    found = ad.read_zarr(tmp_path / "x.zarr")
    assert list(found.obs_names) == list(wider.obs_names)
    assert list(found.var_names) == list(wider.var_names[1:])  # only the genes of the model, in the order of the data
    assert found.var["imputed"].all()
    assert set(found.layers) - {None} == {"imputed", "imputed_std", "imputed_q10"}
    for name in ("imputed", "imputed_std", "imputed_q10"):
        assert found.layers[name].dtype == np.float32
        assert np.array_equal(found.layers[name], expected[:, found.var_names].layers[name], equal_nan=True)
    assert found.uns["imputed"]["params"] == expected.uns["imputed"]["params"]
    assert found.obs["imputed_low_depth"].tolist() == expected.obs["imputed_low_depth"].tolist()
    first, second = bf.get.imputation_evidence(found), bf.get.imputation_evidence(expected)
    assert first["nll_bits"] == second["nll_bits"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_store_is_written_without_a_warning_and_opens_lazily(simulated, model, tmp_path, verb):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # anndata 0.13 uses options that are deprecated in pandas 3.1
        warnings.filterwarnings("ignore", r"The '\S+' option is deprecated", DeprecationWarning)
        VERBS[verb](simulated, model=model, out=tmp_path / "x.zarr")
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    lazy, read = ad.experimental.read_lazy(tmp_path / "x.zarr"), ad.read_zarr(tmp_path / "x.zarr")
    slot, key = ("obsm", "X_bioformer") if verb == "embed" else ("layers", "imputed")
    assert np.array_equal(getattr(lazy, slot)[key].compute(), getattr(read, slot)[key])


class Damage(logging.Handler):
    """Damages the last chunk of a file when a verb says that it reads the file, after it has looked at all values."""

    def __init__(self, path) -> None:
        super().__init__()
        self.chunk = max(path.glob("X/data/c/*"), key=lambda chunk: int(chunk.name))

    def emit(self, record) -> None:
        if "is read from disk" in record.getMessage():
            self.chunk.write_bytes(self.chunk.read_bytes()[::-1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("verb", VERBS)
def test_an_error_in_the_middle_leaves_nothing(simulated, model, tmp_path, verb, caplog):
    group = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=3)
    ad.io.write_elem(group, "X", simulated.X, dataset_kwargs={"chunks": (100,), "shards": None})
    cells = ad.AnnData(ad.io.sparse_dataset(group["X"]), obs=simulated.obs, var=simulated.var)
    logger, damage = logging.getLogger("scbioformers"), Damage(tmp_path / "cells.zarr")
    caplog.set_level(logging.INFO, "scbioformers")
    logger.addHandler(damage)
    try:
        with pytest.raises((RuntimeError, ValueError, OSError)) as raised:
            VERBS[verb](cells, model=model, out=tmp_path / "x.zarr")
    finally:
        logger.removeHandler(damage)
    assert "could not be written" not in str(raised.value)  # it is the source that failed
    assert names_of(tmp_path) == ["cells.zarr"]


@pytest.mark.fault("disk-full-result")
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_leaves_nothing(simulated, model, tmp_path, verb):
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, former[1]))
    try:
        with pytest.raises(StorageError, match=r"could not be written to .*x\.zarr: .* No part of it is left\. Free"):
            VERBS[verb](simulated, model=model, out=tmp_path / "x.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert names_of(tmp_path) == []


@pytest.mark.fault("out-exists")
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_replaced(simulated, model, tmp_path, verb):
    path = tmp_path / "x.zarr"
    zarr.open_group(path, mode="w", zarr_format=3)
    with pytest.raises(
        ConfigError, match=r"exists, so nothing is written there\. Pass another path, or remove"
    ) as found:
        VERBS[verb](simulated, model=model, out=path)
    eval(str(found.value).split("`")[-2], {"shutil": __import__("shutil")})  # the call that the message suggests
    VERBS[verb](simulated, model=model, out=path)
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"exists, so nothing is written there\. Pass another path\.$"):
        VERBS[verb](simulated, model=model, out=path)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="`copy=True` has nothing to copy"):
        VERBS[verb](simulated, model=model, out=tmp_path / "new.zarr", copy=True)


def test_a_result_larger_than_the_free_memory_is_warned_of():
    assert layer_bytes((10, 20), 10) == 10 * 20 * 4  # dense
    assert layer_bytes((10, 20), 9) == 10 * 9 * 8  # sparse: value and index
    free = free_memory()
    assert free is not None
    warn_of_memory(0.5 * free, free)
    warn_of_memory(1e15, None)
    with pytest.warns(
        BioformersWarning, match=r"takes 3\.2 GB, and 1\.0 GB of memory are free\. Pass `out='result.zarr'`"
    ):
        warn_of_memory(layer_bytes((400_000, 2000), 1500), 1e9)
