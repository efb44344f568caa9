"""The sources of `bf.tl.pretrain`: their names, and how each is read into memory or opened on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import h5py
import pandas as pd
import zarr
from anndata import AnnData
from mudata import MuData

from scbioformers.core import ConfigError
from scbioformers.data._rows import CollectionReader, RowData, RowReader, check_reader, is_collection, on_disk

SUFFIXES = (".h5ad", ".h5mu", ".zarr")


@dataclass(frozen=True, eq=False)
class StoredSamples:
    """What is read of a MuData in a file: the attributes of a MuData with these names."""

    mod: dict[str, AnnData]
    """The modalities."""
    obs: pd.DataFrame
    """Columns of the samples."""
    axis: int = 0
    """0 if the modalities share samples."""

    @property
    def obs_names(self) -> pd.Index[Any]:
        """Names of the samples."""
        return self.obs.index

    def __getitem__(self, name: str) -> AnnData:
        return self.mod[name]


Given: TypeAlias = AnnData | MuData | Path | RowReader
Opened: TypeAlias = AnnData | MuData | StoredSamples


def name_sources(sources: Any) -> dict[str, Given]:
    """The sources by their names: those that are given, those of files, or ``source_1``, ``source_2``, ….

    Raises
    ------
    ConfigError
        If ``sources`` is empty or has something else, or a path does not exist.
    """
    if isinstance(sources, str | Path):
        folder = Path(sources)
        if folder.suffix in SUFFIXES:
            sources = [folder]
        else:
            sources = sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}"))
            if not sources:
                raise ConfigError(
                    f"Found no *.h5ad, *.h5mu or *.zarr in {str(folder)!r}. Pass the folder that holds them."
                )
    if isinstance(sources, AnnData | MuData | RowReader):
        sources = [sources]
    if not isinstance(sources, Sequence | Mapping) or not sources:
        empty = "an empty " if isinstance(sources, Sequence | Mapping) else ""
        raise ConfigError(
            "`sources` must be a folder, or a list or mapping of AnnData, MuData and paths, found "
            f"{empty}{type(sources).__name__}."
        )
    if not isinstance(sources, Mapping):
        names = [Path(x).stem if isinstance(x, str | Path) else f"source_{i}" for i, x in enumerate(sources, start=1)]
        if len(set(names)) < len(names):  # files of the same name in several folders
            names = [f"{i}_{name}" for i, name in enumerate(names, start=1)]
        sources = dict(zip(names, sources, strict=True))
    return {str(name): _check_source(str(name), source) for name, source in sources.items()}


def _check_source(name: str, source: Any) -> Given:
    if isinstance(source, AnnData | MuData):
        return source
    if isinstance(source, str | Path):
        if not Path(source).exists():
            raise ConfigError(f"Source {name!r} does not exist: {str(source)!r}.")
        return Path(source)
    if not isinstance(source, RowReader):
        raise ConfigError(
            f"Source {name!r} must be an AnnData, a MuData, a path or a `bf.RowReader` (with `n_obs`, `var_names` and "
            f"`read(start, stop)`), found {type(source).__name__}."
        )
    check_reader(name, source)
    return source


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def open_source(source: Given, files: ExitStack, *, in_memory: bool, obs_keys: Sequence[str] = ()) -> Opened:
    """Read a source, or open it. A file that stays open is closed with ``files``.

    ``obs_keys`` are the columns of ``obs`` that are read of a collection, whose ``obs`` is not read as a whole.
    """
    if not isinstance(source, Path):
        return source if isinstance(source, AnnData | MuData) else RowData(source)
    path = source
    if path.suffix == ".h5ad":
        adata = ad.read_h5ad(path, backed=None if in_memory else "r")
        if adata.isbacked:
            files.callback(adata.file.close)
        return adata
    if path.suffix == ".h5mu":
        file = files.enter_context(h5py.File(path, "r"))
        return _open_samples(file, in_memory=in_memory)
    if is_collection(path):
        collection = RowData(CollectionReader(path, obs_keys))
        return AnnData(collection.X[0 : collection.n_obs], collection.obs, collection.var) if in_memory else collection
    store: Any = zarr.open_group(path, mode="r")
    if "mod" in store:
        return _open_samples(store, in_memory=in_memory)
    return ad.read_zarr(path) if in_memory else _open_modality(store, in_memory=False)


def _open_samples(store: Any, *, in_memory: bool) -> StoredSamples:
    """A MuData in a file of HDF5 or in a zarr store. Of each modality only what is needed is read."""
    stored = store["mod"]
    order = [str(name) for name in stored.attrs.get("mod-order", ())]
    names = order if set(order) == set(stored) else list(stored)
    modalities = {name: _open_modality(stored[name], in_memory=in_memory) for name in names}
    obs: Any = ad.io.read_elem(store["obs"])
    return StoredSamples(modalities, obs, int(store.attrs.get("axis", 0)))


def _open_modality(stored: Any, *, in_memory: bool) -> AnnData:
    """The matrices and tables of an AnnData in a group of HDF5 or zarr."""
    read: Any = ad.io.read_elem if in_memory else on_disk
    layers = {key: read(stored["layers"][key]) for key in stored.get("layers", ())}
    table: dict[str, Any] = {key: ad.io.read_elem(stored[key]) for key in ("obs", "var")}
    return AnnData(read(stored["X"]) if "X" in stored else None, layers=layers, **table)
