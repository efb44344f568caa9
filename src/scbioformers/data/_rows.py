"""Cells of a user's own storage: a public protocol, and such cells as an AnnData whose rows are read when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData

from scbioformers.core import ConfigError, DataError
from scbioformers.data._matrix import read_rows, to_csr


@runtime_checkable
class RowReader(Protocol):
    """Cells in a storage of your own, as a source of :func:`scbioformers.tl.pretrain`.

    Any object with these three members is accepted. The training chooses which ranges of rows are read, and shuffles
    the cells. So ``read`` should be fast for some thousand consecutive rows, and always give the same values. For
    ``phenotype_keys``, the object may also have ``obs``: a data frame with a row for each cell.

    Examples
    --------
    >>> import numpy as np, scbioformers as bf
    >>> class Shards:
    ...     def __init__(self, shards):
    ...         self.shards, self.n_obs = shards, 20 * len(shards)
    ...         self.var_names = [f"GENE{i}" for i in range(30)]
    ...
    ...     def read(self, start, stop):
    ...         return np.stack([self.shards[row // 20][row % 20] for row in range(start, stop)])
    >>> cells = Shards([np.random.default_rng(i).poisson(1.0, (20, 30)) for i in range(3)])
    >>> isinstance(cells, bf.RowReader), cells.read(19, 21).shape
    (True, (2, 30))
    """

    n_obs: int
    """Number of cells."""
    var_names: Sequence[str]
    """Names of the genes."""

    def read(self, start: int, stop: int) -> Any:
        """Values of the rows ``start`` (inclusive) to ``stop`` (exclusive).

        Returns
        -------
        Array or scipy sparse matrix (stop - start, n_genes).
        """
        ...


class RowData(AnnData):  # type: ignore[misc]
    """The cells of a :class:`RowReader`, with ``X`` that reads them."""

    def __init__(self, reader: RowReader) -> None:
        names = [str(name) for name in reader.var_names]
        rows = pd.RangeIndex(int(reader.n_obs)).astype(str)
        obs = getattr(reader, "obs", pd.DataFrame(index=rows)).set_axis(rows)
        super().__init__(obs=obs, var=pd.DataFrame(index=names))
        self._rows = _Rows(reader, self.shape)

    @property
    def X(self) -> Any:
        """The matrix, of which rows are read by index."""
        return self._rows


class _Rows:
    """A matrix whose rows are read by a :class:`RowReader`."""

    def __init__(self, reader: RowReader, shape: tuple[int, int]) -> None:
        self._reader, self.shape = reader, shape
        first = reader.read(0, min(1, shape[0]))
        if not hasattr(first, "dtype") or tuple(first.shape) != (min(1, shape[0]), shape[1]):
            raise DataError(
                f"`read(0, 1)` of a {type(reader).__name__} must return an array or a sparse matrix of shape "
                f"(1, {shape[1]}), found {type(first).__name__} of shape {getattr(first, 'shape', None)}."
            )
        self.dtype = np.dtype(first.dtype)
        self.store_path = type(reader).__name__  # its place in messages

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            return self._reader.read(start, stop)
        return sp.vstack([to_csr(self._reader.read(row, row + 1)) for row in np.asarray(rows).tolist()], format="csr")


class CollectionReader:
    """The data sets of a collection that annbatch wrote, one after the other.

    A collection is a zarr group with the groups ``dataset_0``, ``dataset_1``, …, each of which is an AnnData. Of its
    ``obs``, the columns ``obs_keys`` are read.
    """

    def __init__(self, path: Path, obs_keys: Sequence[str] = ()) -> None:
        group: Any = zarr.open_group(path, mode="r")
        keys = sorted((key for key in group if _is_part(key)), key=lambda key: int(key.split("_")[1]))
        var = [ad.io.read_elem(group[key]["var"]).index for key in keys]
        if any(not var[0].equals(other) for other in var):
            raise DataError(f"The data sets of the collection {str(path)!r} have different genes. Write it anew.")
        self.var_names: Sequence[str] = var[0].tolist()
        self._parts = [on_disk(group[key]["X"]) for key in keys]
        self._starts = np.cumsum([0, *(part.shape[0] for part in self._parts)])
        self.n_obs = int(self._starts[-1])
        parts = [
            _obs_columns(group[key]["obs"], obs_keys, x.shape[0]) for key, x in zip(keys, self._parts, strict=True)
        ]
        self.obs = pd.concat(parts, ignore_index=True)

    def read(self, start: int, stop: int) -> Any:
        """Values of the rows ``start`` (inclusive) to ``stop`` (exclusive), as CSR."""
        found = []
        for part, first, end in zip(self._parts, self._starts, self._starts[1:], strict=False):
            low, high = max(start, first) - first, min(stop, end) - first
            if low < high:
                found.append(to_csr(read_rows(part, int(low), int(high))))
        return sp.vstack(found, format="csr")


def _obs_columns(stored: Any, keys: Sequence[str], n_obs: int) -> pd.DataFrame:
    """Those of the columns ``keys`` of a stored ``obs`` that it has."""
    columns = {key: ad.io.read_elem(stored[key]) for key in keys if key in stored}
    return pd.DataFrame(columns, index=pd.RangeIndex(n_obs))


def is_collection(path: Path) -> bool:
    """Whether a path is a collection of annbatch."""
    return path.is_dir() and (path / "dataset_0").is_dir() and not (path / "obs").exists()


def _is_part(key: str) -> bool:
    return key.startswith("dataset_") and key.removeprefix("dataset_").isdecimal()


def on_disk(stored: Any) -> Any:
    """A matrix of a zarr store or an HDF5 file, of which rows are read later."""
    return ad.io.sparse_dataset(stored) if isinstance(stored, zarr.Group | h5py.Group) else stored


def check_reader(name: str, reader: RowReader) -> None:
    """Check the types of the members of a reader.

    Raises
    ------
    ConfigError
        If ``n_obs`` is not a positive integer, or ``obs`` is not a data frame with that many rows.
    """
    if isinstance(reader.n_obs, bool) or not isinstance(reader.n_obs, int | np.integer) or reader.n_obs < 1:
        raise ConfigError(f"`n_obs` of the source {name!r} must be a positive integer, found {reader.n_obs!r}.")
    obs = getattr(reader, "obs", None)
    if obs is not None and not (isinstance(obs, pd.DataFrame) and len(obs) == reader.n_obs):
        size = f" of {len(obs)} rows" if isinstance(obs, pd.DataFrame) else ""
        raise ConfigError(
            f"`obs` of the source {name!r} must be a data frame with a row for each of {reader.n_obs} cells, found "
            f"{type(obs).__name__}{size}."
        )
