"""Which features of several data sets are modelled: those that vary most, or those that are named."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, short_list, uniform
from scbioformers.data._source import AnnDataSource

if TYPE_CHECKING:
    from scbioformers.data._data_sets import DataSet

logger = logging.getLogger(__name__)

MAX_SAMPLE = 20_000  # cells of a data set among which its variable features are chosen
MIN_CELLS = 10  # that express a feature, so that its variance is compared with that of others
MIN_LOESS = 100, 200  # cells and features; the local regression of scikit-misc fails or crashes on few of them
_SAMPLE_STREAM = 0xDA7A


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
        ranks[each.name] = variable_ranks(each.adata, layer, each.names, rows) if each.ranks is None else each.ranks
    ranked = pd.DataFrame(ranks)
    measured = ranked.notna().sum(axis=1)
    if measured.max() < max(required, min(2, len(data_sets))):
        named = ", ".join(f"{each.name}: {short_list(each.names[:3].tolist())}" for each in data_sets)
        lower = ", or a lower `min_sources=`" if measured.max() > 1 or required > len(data_sets) else ""
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


class SampledRows:
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


def variable_ranks(
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
