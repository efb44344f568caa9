"""Data sets from which one model is trained: opened from memory and files, and the features to model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import BioformersError, ConfigError, DataError, MissingKeyError, short_list, uniform, warn
from scbioformers.data._check import require_counts, require_valid
from scbioformers.data._gene_names import best_measured, gene_names
from scbioformers.data._inspect import Inspection, inspect
from scbioformers.data._matrix import get_matrix, reads_disk
from scbioformers.data._rows import CollectionReader, RowData, RowReader, check_reader, is_collection, on_disk
from scbioformers.data._source import AnnDataSource

logger = logging.getLogger(__name__)

MAX_BYTES = 500e6  # files above this size, all together, are read in blocks of rows
MAX_SAMPLE = 20_000  # cells of a data set among which its variable features are chosen
MIN_CELLS = 10  # that express a feature, so that its variance is compared with that of others
MIN_LOESS = 100, 200  # cells and features; the local regression of scikit-misc fails or crashes on few of them
_SAMPLE_STREAM = 0xDA7A


@dataclass(frozen=True, eq=False)
class DataSet:
    """One of several data sets, checked."""

    name: str
    """Name of the data set: that of its file, or as given."""
    adata: AnnData
    """The data, in memory or on disk."""
    inspection: Inspection
    """Properties of the matrix that is read."""
    names: NDArray[np.object_]
    """(n_vars,) names of the genes. A gene that is not used, because another one of its name is, has the name ""."""
    ranks: pd.Series[Any] | None = None
    """Ranks of the genes by their variance, if they were computed while the file was inspected."""

    def columns(self, features: Sequence[str]) -> NDArray[np.int64]:
        """Column of each feature, -1 if it is not measured."""
        return pd.Index(self.names).get_indexer(pd.Index(features))


@contextmanager
def open_data_sets(
    sources: Any,
    layer: str | None,
    gene_symbols: str | None,
    *,
    counts: bool,
    allow_non_integer: bool,
    seed: int | None = None,
) -> Iterator[list[DataSet]]:
    """Open and check data sets. Those that cannot be used are left out with a warning that says why.

    Files that are read block by block are open inside of the context, and closed after it.

    Parameters
    ----------
    sources
        A folder, or AnnData, readers of rows, and paths of h5ad files and zarr stores: a list, or a mapping from their
        names.
    layer
        Layer to read, None for ``X``.
    gene_symbols
        Column of ``var`` with the names of the genes. A data set without it has its names in ``var_names``.
    counts
        Whether the values must be counts.
    seed
        Seed of :func:`choose_features`, for which a file on disk is then not read again.

    Raises
    ------
    ConfigError
        If ``sources`` is empty or has something else, or a path does not exist.
    MissingKeyError
        If no data set has the column ``gene_symbols``.
    DataError
        If no data set can be used.
    """
    named = _named(sources)
    total = sum(_size(source) for source in named.values() if isinstance(source, Path))
    if total > MAX_BYTES:
        logger.info("The files have %.1f GB together. They are read in blocks of cells.", total / 1e9)
    found, problems = [], []
    with ExitStack() as files:
        for name, source in named.items():
            try:
                adata = _open(source, files, in_memory=total <= MAX_BYTES)
                found.append(_check(name, adata, layer, gene_symbols, counts, allow_non_integer, seed))
            except (BioformersError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                problems.append(f"{name}: {str(error) or type(error).__name__}")
        yield _usable(found, problems, gene_symbols, counts)


def _usable(found: list[DataSet], problems: list[str], gene_symbols: str | None, counts: bool) -> list[DataSet]:
    """The data sets that can be used together. The others, and those with problems, are named."""
    n_given = len(found) + len(problems)
    if found and not counts:
        found, other = _of_one_scale(found)
        problems += other
    if not found:
        raise DataError(f"None of the {n_given} data sets can be used. " + " ".join(problems))
    if gene_symbols is not None and all(gene_symbols not in each.adata.var for each in found):
        columns = sorted({str(key) for each in found for key in each.adata.var})
        raise MissingKeyError(
            f"No data set has the column var[{gene_symbols!r}] of `gene_symbols`. Their columns are "
            f"{short_list(columns)}. Without `gene_symbols`, genes are named by `var_names`."
        )
    if problems:
        warn(f"{len(problems)} of {n_given} data sets are left out. " + " ".join(problems))
    return found


def _of_one_scale(data_sets: list[DataSet]) -> tuple[list[DataSet], list[str]]:
    """The data sets whose values are on the most frequent scale, and what is wrong with the others."""
    scales = [each.inspection.scale for each in data_sets]
    most = max(scales, key=scales.count)
    kept = [each for each in data_sets if each.inspection.scale == most]
    other = [
        f"{each.name}: {each.inspection.name} has the scale {each.inspection.scale!r}, that of most data sets is "
        f"{most!r}; pass `layer=`, or data of one scale."
        for each in data_sets
        if each.inspection.scale != most
    ]
    return kept, other


def _named(sources: Any) -> dict[str, AnnData | Path | RowReader]:
    if isinstance(sources, str | Path):
        folder = Path(sources)
        if folder.suffix in (".h5ad", ".zarr"):
            sources = [folder]
        else:
            sources = sorted([*folder.glob("*.h5ad"), *folder.glob("*.zarr")])
            if not sources:
                raise ConfigError(f"Found no *.h5ad and no *.zarr in {str(folder)!r}. Pass the folder that holds them.")
    if isinstance(sources, AnnData | RowReader):
        sources = [sources]
    if not isinstance(sources, Sequence | Mapping) or not sources:
        empty = "an empty " if isinstance(sources, Sequence | Mapping) else ""
        raise ConfigError(
            "`sources` must be a folder, or a list or mapping of AnnData and paths, found "
            f"{empty}{type(sources).__name__}."
        )
    if not isinstance(sources, Mapping):
        names = [Path(x).stem if isinstance(x, str | Path) else f"source_{i}" for i, x in enumerate(sources, start=1)]
        if len(set(names)) < len(names):  # files of the same name in several folders
            names = [f"{i}_{name}" for i, name in enumerate(names, start=1)]
        sources = dict(zip(names, sources, strict=True))
    named: dict[str, AnnData | Path | RowReader] = {}
    for name, source in sources.items():
        if not isinstance(source, AnnData | str | Path | RowReader):
            raise ConfigError(
                f"Source {name!r} must be an AnnData, a path or a `bf.RowReader` (with `n_obs`, `var_names` and "
                f"`read(start, stop)`), found {type(source).__name__}."
            )
        named[str(name)] = Path(source) if isinstance(source, str | Path) else source
        if not isinstance(source, AnnData | str | Path):
            check_reader(str(name), source)
        if isinstance(source, str | Path) and not Path(source).exists():
            raise ConfigError(f"Source {name!r} does not exist: {str(source)!r}.")
    return named


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _open(source: AnnData | Path | RowReader, files: ExitStack, *, in_memory: bool) -> AnnData:
    """Read a data set, or open it. An h5ad file that stays open is closed with ``files``."""
    if not isinstance(source, Path):
        return source if isinstance(source, AnnData) else RowData(source)
    path = source
    if path.suffix == ".h5ad":
        adata = ad.read_h5ad(path, backed=None if in_memory else "r")
        if adata.isbacked:
            files.callback(adata.file.close)
        return adata
    if is_collection(path):
        collection = RowData(CollectionReader(path))
        return AnnData(collection.X[0 : collection.n_obs], var=collection.var) if in_memory else collection
    if in_memory:
        return ad.read_zarr(path)
    store: Any = zarr.open_group(path, mode="r")
    layers = {key: on_disk(store["layers"][key]) for key in store.get("layers", ())}
    table = {key: ad.io.read_elem(store[key]) for key in ("obs", "var")}
    return AnnData(on_disk(store["X"]) if "X" in store else None, layers=layers, **table)


def _check(
    name: str,
    adata: AnnData,
    layer: str | None,
    gene_symbols: str | None,
    counts: bool,
    allow_non_integer: bool,
    seed: int | None,
) -> DataSet:
    sample = None if seed is None or not reads_disk(get_matrix(adata, layer)) else _SampledRows(adata.n_obs, seed)
    found = inspect(adata, layer, also=None if sample is None else sample.add)
    none = np.zeros(adata.n_vars, bool)
    if counts:
        options: dict[str, Any] = {"allow_non_integer": allow_non_integer, "caller": "pretrain"}
        require_counts(adata, found.layer, modelled=none, inspection=found, **options)
    else:
        require_valid(adata, found.layer, modelled=none, inspection=found)
    column = gene_symbols if gene_symbols in adata.var else None
    names = gene_names(adata, column)
    kept = best_measured(names, found.gene_nnz, column)
    names = np.where(kept, names, "")
    ranks = None if sample is None else _variable_ranks(AnnData(sample.counts()), None, names)
    return DataSet(name, adata, found, names, ranks)


def choose_features(data_sets: Sequence[DataSet], n_top: int, min_sources: int | None, seed: int) -> list[str]:
    """Names of the features that vary most, among those that at least ``min_sources`` data sets measure.

    In each data set the features are ranked by their variance, corrected for their mean: by flavor ``"seurat_v3"`` of
    scanpy, or by variance / mean if there are too few cells or features for it. Features are ordered by the share of
    the data sets, among those that measure them, in which they are among the ``n_top`` first, then by their median
    rank.

    Raises
    ------
    DataError
        If no feature is measured by so many data sets.
    """
    required = -(-len(data_sets) // 2) if min_sources is None else min_sources
    ranks = {}
    for each in data_sets:
        layer, rows = each.inspection.layer, _sampled_rows(each.adata.n_obs, seed)
        ranks[each.name] = _variable_ranks(each.adata, layer, each.names, rows) if each.ranks is None else each.ranks
    ranked = pd.DataFrame(ranks)
    measured = ranked.notna().sum(axis=1)
    if measured.max() < max(required, min(2, len(data_sets))):
        named = ", ".join(f"{each.name}: {short_list(each.names[:3].tolist())}" for each in data_sets)
        lower = ", or a lower `min_sources=`" if measured.max() > 1 else ""
        raise DataError(
            f"No feature is measured by at least {max(required, 2)} of the {len(data_sets)} data sets. Their names are "
            f"such as {named}. Pass `gene_symbols=`{lower}."
        )
    ranked = ranked[measured >= required]
    order = pd.DataFrame({
        "share": -(ranked < n_top).sum(axis=1) / ranked.notna().sum(axis=1),
        "rank": ranked.median(axis=1),
        "name": ranked.index,
    })  # fmt: skip
    return order.sort_values(["share", "rank", "name"], kind="stable")["name"].head(n_top).tolist()


def measured_features(data_sets: Sequence[DataSet], features: Sequence[str]) -> list[str]:
    """The features that a data set measures, each once. The others are left out, which is logged.

    Raises
    ------
    DataError
        If no feature is measured.
    """
    wanted = list(dict.fromkeys(features))
    measured = set().union(*(each.names.tolist() for each in data_sets))
    known = [name for name in wanted if name in measured]
    unknown = [name for name in wanted if name not in measured]
    if not known:
        raise DataError(
            f"No data set measures any of the {len(wanted)} `features`, such as {short_list(wanted)}. The data sets "
            f"have {short_list(data_sets[0].names.tolist())}. Pass names of theirs, or `gene_symbols=`."
        )
    if unknown:
        logger.warning(
            "%d of %d `features` are measured by no data set and are left out: %s.",
            len(unknown), len(wanted), short_list(unknown),
        )  # fmt: skip
    return known


class _SampledRows:
    """Collects the rows of :func:`_sampled_rows` while a matrix is read."""

    def __init__(self, n_obs: int, seed: int) -> None:
        self._rows = _sampled_rows(n_obs, seed)
        self._parts: list[sp.csr_matrix] = []

    def add(self, start: int, rows: sp.csr_matrix) -> None:
        first, last = np.searchsorted(self._rows, [start, start + rows.shape[0]])
        self._parts.append(rows[self._rows[first:last] - start])

    def counts(self) -> sp.csr_matrix:
        return sp.vstack(self._parts, format="csr")


def _sampled_rows(n_obs: int, seed: int) -> NDArray[np.int64]:
    """At most 20,000 rows, chosen at random, in ascending order."""
    rows, numbers = np.zeros(0, np.int64), np.zeros(0)
    for start in range(0, n_obs, 2**20):  # in parts, because there may be many rows
        more = np.arange(start, min(start + 2**20, n_obs))
        rows, numbers = np.append(rows, more), np.append(numbers, uniform(seed ^ _SAMPLE_STREAM, more))
        kept = np.sort(np.argsort(numbers, kind="stable")[:MAX_SAMPLE])
        rows, numbers = rows[kept], numbers[kept]
    return rows


def _variable_ranks(
    adata: AnnData, layer: str | None, names: NDArray[np.object_], rows: NDArray[np.int64] | None = None
) -> pd.Series[Any]:
    """Rank of each used gene by its variance over the rows, infinite for a gene that few cells express."""
    used = np.flatnonzero(names != "")
    source = AnnDataSource(adata, layer=layer, columns=used)
    counts = source.rows(np.arange(adata.n_obs) if rows is None else rows).counts
    sample = AnnData(counts, var=pd.DataFrame(index=names[used].astype(str)))
    expressed = np.asarray((sample.X != 0).sum(axis=0)).ravel() >= MIN_CELLS
    ranks = pd.Series(np.inf, index=sample.var_names)
    if expressed.any():
        ranks[expressed] = _ranks(sample[:, expressed].copy())
    return ranks


def _ranks(adata: AnnData) -> NDArray[np.float64]:
    """Rank of each feature by its variance, 0 for the most variable one."""
    if adata.n_obs >= MIN_LOESS[0] and adata.n_vars >= MIN_LOESS[1]:
        import scanpy as sc

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not integers, which were checked
            table = sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=adata.n_vars, inplace=False)
        return table["highly_variable_rank"].to_numpy(float)
    mean, square = (np.asarray(x.mean(axis=0), np.float64).ravel() for x in (adata.X, adata.X.power(2)))
    dispersion = (square - mean**2) / np.maximum(np.abs(mean), 1e-12)
    return (-dispersion).argsort(kind="stable").argsort().astype(float)
