"""Where the result of a verb goes: into ``adata``, or block by block to a zarr store (``out=``)."""

from __future__ import annotations

import logging
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, StorageError, warn
from scbioformers.results._slots import escape
from scbioformers.results._target import target

logger = logging.getLogger(__name__)

CHUNK_CELLS = 256  # cells in a chunk, the smallest part of a store that is read; a block of cells is one file


@dataclass(frozen=True, eq=False)
class Result:
    """Where a result is written: its large arrays are filled in blocks of cells, the rest is set at the end."""

    data: AnnData
    """What the keys of the result are set in: ``adata`` or its copy, or the contents of the store."""
    columns: NDArray[np.int64]
    """Columns of ``adata`` that ``data`` has."""
    group: Any = None
    """The zarr group of the store, None for a result in memory."""
    out: Path | None = None
    """The path that the store will have."""

    def array(self, slot: str, name: str, n_columns: int, block_cells: int) -> Any:
        """A new float32 array (n_obs, n_columns), to be filled by :meth:`write` in blocks of ``block_cells``."""
        shape = (self.data.n_obs, n_columns)
        if self.group is None:
            return np.empty(shape, np.float32)
        with _storing(self.out):
            array = self.group[slot].create_array(
                escape(name),
                shape=shape,
                dtype="float32",
                chunks=(min(CHUNK_CELLS, block_cells), n_columns),
                shards=(block_cells, n_columns),
            )
            array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return array

    def write(self, array: Any, start: int, values: NDArray[np.float32]) -> None:
        """Write the rows of ``values`` to an array, from row ``start`` on."""
        if self.group is None:
            array[start : start + len(values)] = values
            return
        with _storing(self.out):
            array[start : start + len(values)] = values


def check_out(out: str | Path | None, copy: bool) -> Path | None:
    """Check the path of a store before any work, and return it.

    Raises
    ------
    ConfigError
        If the path exists, or ``copy=True`` is passed as well.
    """
    if out is None:
        return None
    if copy:
        raise ConfigError(
            "`out=` writes the result to a zarr store and nothing to `adata`, so `copy=True` has nothing to copy. Pass "
            "one of them."
        )
    path = Path(out)
    if path.exists() or path.is_symlink():
        is_store = any((path / name).exists() for name in (".zgroup", "zarr.json"))
        remove = f", or remove it first: `shutil.rmtree({str(path)!r})`" if is_store else ""
        raise ConfigError(f"`out`: {path} exists, so nothing is written there. Pass another path{remove}.")
    return path


@contextmanager
def open_result(
    adata: AnnData, out: Path | None, copy: bool, columns: NDArray[np.int64] | None = None
) -> Iterator[Result]:
    """Open the place of a result. A store gets its name when the block ends, so it is never there in part.

    Parameters
    ----------
    adata
        The cells.
    out
        Path of the store, see :func:`check_out`. None writes to ``adata``.
    copy
        Whether to write to a copy of ``adata``.
    columns
        Columns of ``adata`` that the store has.

    Raises
    ------
    StorageError
        If the system cannot write, for instance to a full disk.
    """
    if out is None:
        yield Result(target(adata, copy), np.arange(adata.n_vars))
        return
    columns = np.zeros(0, np.int64) if columns is None else columns
    names = pd.Index(np.asarray(adata.var_names, object)[columns])
    data = AnnData(obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=names))
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with _storing(out):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            # format and shards are set because anndata 0.12 warns about its defaults
            group: Any = zarr.open_group(str(temporary), mode="w", zarr_format=3)
            ad.io.write_elem(group, "/", data, dataset_kwargs={"shards": None})
        yield Result(data, columns, group, out)
        with _storing(out), warnings.catch_warnings():
            slots = {"obs": data.obs, "var": data.var, "uns": dict(data.uns), "obsp": dict(data.obsp)}
            for slot, value in slots.items():
                ad.io.write_elem(group, slot, value, dataset_kwargs={"shards": None})
            # read_lazy asks for it; zarr warns that other libraries may not know it
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            zarr.consolidate_metadata(str(temporary))
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("The result is in %s. The next call can be `ad.read_zarr(%r)`.", out, str(out))


@contextmanager
def _storing(out: Path | None) -> Iterator[None]:
    """An error of the system while a store is written says what to do next. Errors of the source stay as they are."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The result could not be written to {out}: {error.strerror or error}. No part of it is left. Free space, "
            "or pass another path as `out=`."
        ) from error


def warn_of_memory(n_bytes: float, free: float | None) -> None:
    """Warn before the computation of a result that does not fit in the free memory (bytes, None if unknown)."""
    if free is not None and n_bytes > free:
        warn(
            f"The result takes {n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free. Pass "
            "`out='result.zarr'` to write it to disk in blocks of cells."
        )
