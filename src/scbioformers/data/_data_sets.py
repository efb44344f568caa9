"""Data sets from which one model is trained: opened from memory and files, with the features that they share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import BioformersError, ConfigError, DataError, short_list, uniform, warn
from scbioformers.data._check import require_counts, require_valid
from scbioformers.data._depth import TOTALS, DepthRule, depth_ratio, fits_total
from scbioformers.data._gene_names import best_measured, gene_names
from scbioformers.data._inspect import Inspection, inspect
from scbioformers.data._joined import JoinedSource
from scbioformers.data._source import AnnDataSource

logger = logging.getLogger(__name__)

MAX_BYTES = 500e6  # files above this size, all together, are read in blocks of rows
MAX_SAMPLE = 20_000  # cells of a data set among which its variable features are chosen
MIN_CELLS = 10  # that express a feature, so that its variance is compared with that of others
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

    def columns(self, features: Sequence[str]) -> NDArray[np.int64]:
        """Column of each feature, -1 if it is not measured."""
        return pd.Index(self.names).get_indexer(pd.Index(features))


def open_data_sets(
    sources: Any, layer: str | None, gene_symbols: str | None, *, counts: bool, allow_non_integer: bool
) -> list[DataSet]:
    """Open and check data sets. Those that cannot be used are left out with a warning that says why.

    Parameters
    ----------
    sources
        A folder, or AnnData and paths of h5ad files and zarr stores: a list, or a mapping from their names.
    layer
        Layer to read, None for ``X``.
    gene_symbols
        Column of ``var`` with the names of the genes. A data set without it has its names in ``var_names``.
    counts
        Whether the values must be counts.

    Raises
    ------
    ConfigError
        If ``sources`` has another type, or a path does not exist.
    DataError
        If no data set can be used.
    """
    named = _named(sources)
    total = sum(_size(source) for source in named.values() if isinstance(source, Path))
    found, problems = [], []
    for name, source in named.items():
        try:
            adata = _open(source, in_memory=total <= MAX_BYTES) if isinstance(source, Path) else source
            found.append(_check(name, adata, layer, gene_symbols, counts, allow_non_integer))
        except (BioformersError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            problems.append(f"{name}: {str(error) or type(error).__name__}")
    if not found:
        raise DataError(f"None of the {len(named)} data sets can be used. " + " ".join(problems))
    if problems:
        warn(f"{len(problems)} of {len(named)} data sets are left out. " + " ".join(problems))
    return found


def _named(sources: Any) -> dict[str, AnnData | Path]:
    if isinstance(sources, str | Path):
        folder = Path(sources)
        if folder.suffix in (".h5ad", ".zarr"):
            sources = [folder]
        else:
            sources = sorted([*folder.glob("*.h5ad"), *folder.glob("*.zarr")])
            if not sources:
                raise ConfigError(f"Found no *.h5ad and no *.zarr in {str(folder)!r}. Pass the folder that holds them.")
    if isinstance(sources, AnnData):
        sources = [sources]
    if not isinstance(sources, Mapping):
        if not isinstance(sources, Sequence) or not len(sources):
            raise ConfigError(
                "`sources` must be a folder, or a list or mapping of AnnData and paths, found "
                f"{'an empty list' if isinstance(sources, Sequence) else type(sources).__name__}."
            )
        names = [Path(x).stem if isinstance(x, str | Path) else f"source_{i}" for i, x in enumerate(sources, start=1)]
        if len(set(names)) < len(names):  # files of the same name in several folders
            names = [f"{i}_{name}" for i, name in enumerate(names, start=1)]
        sources = dict(zip(names, sources, strict=True))
    named: dict[str, AnnData | Path] = {}
    for name, source in sources.items():
        if not isinstance(source, AnnData | str | Path):
            raise ConfigError(f"Source {name!r} must be an AnnData or a path, found {type(source).__name__}.")
        named[str(name)] = source if isinstance(source, AnnData) else Path(source)
        if isinstance(source, str | Path) and not Path(source).exists():
            raise ConfigError(f"Source {name!r} does not exist: {str(source)!r}.")
    return named


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _open(path: Path, *, in_memory: bool) -> AnnData:
    if path.suffix == ".h5ad":
        return ad.read_h5ad(path, backed=None if in_memory else "r")
    return ad.read_zarr(path) if in_memory else ad.experimental.read_lazy(path)


def _check(
    name: str, adata: AnnData, layer: str | None, gene_symbols: str | None, counts: bool, allow_non_integer: bool
) -> DataSet:
    found = inspect(adata, layer)
    none = np.zeros(adata.n_vars, bool)
    if counts:
        require_counts(adata, found.layer, allow_non_integer=allow_non_integer, modelled=none, inspection=found)
    else:
        require_valid(adata, found.layer, modelled=none, inspection=found)
    column = gene_symbols if gene_symbols in adata.var else None
    names = gene_names(adata, column)
    kept = best_measured(names, found.gene_nnz, column)
    return DataSet(name, adata, found, np.where(kept, names, ""))


def choose_features(data_sets: Sequence[DataSet], n_top: int, min_sources: int | None, seed: int) -> list[str]:
    """Names of the features that vary most, among those that at least ``min_sources`` data sets measure.

    In each data set the features are ranked by their variance, corrected for their mean (flavor ``"seurat_v3"`` of
    scanpy). Features are ordered by the share of the data sets, among those that measure them, in which they are among
    the ``n_top`` first, then by their median rank.

    Raises
    ------
    DataError
        If no feature is measured by so many data sets.
    """
    import scanpy as sc

    required = -(-len(data_sets) // 2) if min_sources is None else min_sources
    ranks = {}
    for each in data_sets:
        sample = _sample(each, seed)
        expressed = np.asarray((sample.X != 0).sum(axis=0)).ravel() >= MIN_CELLS
        table = pd.Series(np.inf, index=sample.var_names)
        if expressed.any():
            variable = sc.pp.highly_variable_genes(
                sample[:, expressed].copy(), flavor="seurat_v3", n_top_genes=int(expressed.sum()), inplace=False
            )
            table[expressed] = variable["highly_variable_rank"].to_numpy(float)
        ranks[each.name] = table
    ranked = pd.DataFrame(ranks)
    measured = ranked.notna().sum(axis=1)
    ranked = ranked[measured >= required]
    if ranked.empty:
        named = ", ".join(f"{each.name}: {short_list(each.names[:3].tolist())}" for each in data_sets)
        raise DataError(
            f"No feature is measured by at least {required} of the {len(data_sets)} data sets. "
            f"Their names are such as {named}. "
            "Pass `gene_symbols=`, or a lower `min_sources=`."
        )
    order = pd.DataFrame({
        "share": -(ranked < n_top).sum(axis=1) / ranked.notna().sum(axis=1),
        "rank": ranked.median(axis=1),
        "name": ranked.index,
    })  # fmt: skip
    return order.sort_values(["share", "rank", "name"], kind="stable")["name"].head(n_top).tolist()


def _sample(data_set: DataSet, seed: int) -> AnnData:
    """At most 20,000 cells of the data set in memory, with its used features."""
    adata, kept = data_set.adata, np.flatnonzero(data_set.names != "")
    source = AnnDataSource(adata, layer=data_set.inspection.layer, columns=kept)
    order = np.argsort(uniform(seed ^ _SAMPLE_STREAM, np.arange(adata.n_obs)), kind="stable")
    counts = source.rows(np.sort(order[:MAX_SAMPLE])).counts
    return AnnData(counts, var=pd.DataFrame(index=data_set.names[kept].astype(str)))


def join_data_sets(data_sets: Sequence[DataSet], features: Sequence[str]) -> JoinedSource:
    """The cells of all data sets over the same features, each with the rule by which its depth is read."""
    rules = _depth_rules(data_sets, features)
    sources = []
    for each, rule in zip(data_sets, rules, strict=True):
        columns = each.columns(features)
        sources.append(AnnDataSource(each.adata, layer=each.inspection.layer, columns=columns, rule=rule))
    return JoinedSource(sources)


def _depth_rules(data_sets: Sequence[DataSet], features: Sequence[str]) -> list[DepthRule]:
    """How the depth of each data set is read, so that all can be compared.

    The data set with the most genes comes first; its depths are its totals. They give the share of the depth that each
    feature has. The totals of another data set are compared with what its features let expect, see
    :func:`choose_depth_rule`. If they agree, it adds to the shares.
    """
    rules = [TOTALS] * len(data_sets)
    counts, depths = np.zeros((2, len(features)))
    for i in sorted(range(len(data_sets)), key=lambda i: -len(data_sets[i].names)):
        each = data_sets[i]
        source = AnnDataSource(each.adata, layer=each.inspection.layer, columns=each.columns(features))
        total = each.inspection.depth
        modelled, sums = np.zeros(len(total)), np.zeros(len(features))
        known = source.present & (depths > 0)
        for block in source.blocks():
            modelled[block.start : block.start + len(block.depth)] = block.counts @ known.astype(np.float64)
            sums += np.asarray(block.counts.sum(axis=0, dtype=np.float64)).ravel()
        if depths.any():
            share = np.divide(counts, depths, out=np.zeros_like(counts), where=depths > 0)
            ratio = depth_ratio(total, modelled, float(share[known].sum()))
            if not fits_total(ratio):
                rules[i] = DepthRule(modelled_only=True, share=float(share[known].sum()))
                warn(
                    f"{each.name} has other genes: the median total of its cells is {ratio:.2f} times the depth that "
                    "is expected from its modelled genes. So the depth of its cells is estimated from these."
                )
                continue
            rules[i] = DepthRule(share=1.0 - float(share[~source.present].sum()))
        counts += sums
        depths += source.present * float(total.sum() / rules[i].share)
    return rules


def warn_of_shared_cells(data_sets: Sequence[DataSet], source: JoinedSource) -> None:
    """Warn if data sets have the same cells: equal counts in the features that all measure, at least 20 of them."""
    parts = [first.read(0, 1).present for first in source.sources]
    common = np.flatnonzero(np.all(parts, axis=0))
    seen: dict[bytes, int] = {}
    shared: dict[tuple[int, int], int] = {}
    for i, each in enumerate(source.sources):
        own = set()
        for block in each.blocks():
            counts = block.counts[:, common]
            for start, stop in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
                if stop - start >= 20:
                    own.add(counts.indices[start:stop].tobytes() + counts.data[start:stop].tobytes())
        for cell in own:
            if cell in seen:
                shared[seen[cell], i] = shared.get((seen[cell], i), 0) + 1
            seen.setdefault(cell, i)
    for (i, j), n in shared.items():
        warn(
            f"{n:,} cells are in {data_sets[i].name} and in {data_sets[j].name}. They count twice, and may be in the "
            "training and the validation cells at the same time. Leave out one of the two."
        )


def describe_data_sets(data_sets: Sequence[DataSet], source: JoinedSource) -> list[dict[str, Any]]:
    """Name, cells and measured features of each data set, for the provenance of a model."""
    sizes = [int(part.read(0, 1).present.sum()) for part in source.sources]
    return [
        {"name": each.name, "n_cells": each.adata.n_obs, "n_features": n}
        for each, n in zip(data_sets, sizes, strict=True)
    ]
