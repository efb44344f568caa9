"""Several data sets as one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core import ConfigError, DataError, short_list, warn
from scbioformers.data._block import Block
from scbioformers.data._data_sets import DataSet, ModalitySets
from scbioformers.data._depth import TOTALS, DepthRule, depth_ratio, fits_total
from scbioformers.data._open_sources import Opened
from scbioformers.data._samples import ModalitiesSource
from scbioformers.data._source import CHUNK_SIZE, AnnDataSource, BlockSource
from scbioformers.data._variable_features import choose_features, measured_features

Codes: TypeAlias = Mapping[str, NDArray[np.float32]]  # (n_samples, n_fields) for each source


class JoinedSource(BlockSource):
    """The cells of several sources, one source after the other. Each block has cells of one source only.

    The sources have the same features in the same order. Which of them a source measures is said by its blocks.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> from scbioformers.data import AnnDataSource
    >>> adata = ad.AnnData(np.array([[1.0, 0, 3], [0, 2, 5]]))
    >>> source = JoinedSource([AnnDataSource(adata), AnnDataSource(adata, columns=np.array([2, 0, -1]))])
    >>> source.starts, [block.present.tolist() for block in source.blocks()]
    ((0, 2, 4), [[True, True, True], [True, True, False]])
    """

    def __init__(self, sources: Sequence[BlockSource]) -> None:
        sizes = {source.n_features for source in sources}
        if len(sizes) != 1:
            raise ConfigError(f"Joined sources must have the same features, found {sorted(sizes)} features.")
        self.sources = tuple(sources)
        self.n_features = sizes.pop()
        self.n_obs = sum(source.n_obs for source in sources)

    def __repr__(self) -> str:
        return f"JoinedSource({len(self.sources)} sources, {self.n_obs} cells x {self.n_features} features)"

    @property
    def starts(self) -> tuple[int, ...]:
        """First row of each source, and the number of rows."""
        return (0, *np.cumsum([source.n_obs for source in self.sources]).tolist())

    def read(self, start: int, stop: int) -> Block:
        """Read rows `start` (inclusive) to `stop` (exclusive), which must be of one source."""
        start, stop = self._bounds(start, stop)
        at = min(int(np.searchsorted(self.starts, start, side="right")), len(self.sources)) - 1
        first, end = self.starts[at : at + 2]
        if stop > end:
            raise ConfigError(f"Rows {start} to {stop} are of several sources; the first one ends at {end}.")
        return replace(self.sources[at].read(start - first, stop - first), start=start)

    def blocks(self, chunk_size: int = CHUNK_SIZE) -> Iterator[Block]:
        """Iterate over all rows in order, at most `chunk_size` at a time."""
        for first, source in zip(self.starts, self.sources, strict=False):
            for block in source.blocks(chunk_size):
                yield replace(block, start=first + block.start)

    def parts(self, rows: NDArray[np.int64]) -> list[Block]:
        """Read the given rows, which must be in ascending order, as one block for each source that has any."""
        found = []
        for source, first, end in zip(self.sources, self.starts, self.starts[1:], strict=False):
            own = rows[(rows >= first) & (rows < end)] - first
            if own.size:
                found += source.parts(own)
        return found

    def rows(self, rows: NDArray[np.int64]) -> Block:
        """Read rows of one source as one block."""
        found = self.parts(rows)
        if len(found) != 1:
            raise ConfigError(f"The rows are of {len(found)} sources; `parts` reads one block for each.")
        return found[0]


def with_features(data_sets: Sequence[DataSet], features: Sequence[str]) -> list[DataSet]:
    """The data sets that measure any of the features. The others are left out with a warning."""
    kept = [each for each in data_sets if (each.columns(features) >= 0).any()]
    if other := [each for each in data_sets if each not in kept]:
        named = ", ".join(f"{each.name} ({short_list(each.names[:3].tolist())})" for each in other)
        warn(
            f"{len(other)} of {len(data_sets)} data sets are left out, because they have none of the genes to model: "
            f"{named}. If their genes have other names, pass `gene_symbols=`."
        )
    return kept


def join_data_sets(
    data_sets: Sequence[DataSet], features: Sequence[str], *, counts: bool = True, fields: Codes | None = None
) -> JoinedSource:
    """The cells of all data sets over the same features, each with the rule by which its depth is read.

    Values that are not ``counts`` have no depth. ``fields`` are codes of columns of ``obs``, for each source.
    """
    rules = _depth_rules(data_sets, features) if counts else [TOTALS] * len(data_sets)
    sources = []
    for each, rule in zip(data_sets, rules, strict=True):
        options: dict[str, Any] = {"layer": each.inspection.layer, "columns": each.columns(features), "rule": rule}
        own = None if fields is None else each.of_rows(fields[each.source])
        sources.append(AnnDataSource(each.adata, **options, fields=own))
    return JoinedSource(sources)


def _depth_rules(data_sets: Sequence[DataSet], features: Sequence[str]) -> list[DepthRule]:
    """How the depth of each data set is read, so that all can be compared.

    The data set with the most genes comes first; its depths are its totals. They give the share of the depth that each
    feature has. The totals of another data set are compared with what its features let expect, see
    :func:`choose_depth_rule`. If they agree, it adds to the shares. Of a large data set a part is read, because medians
    and shares of 65,536 cells are enough.
    """
    rules = [TOTALS] * len(data_sets)
    counts, depths = np.zeros((2, len(features)))
    for i in sorted(range(len(data_sets)), key=lambda i: -len(data_sets[i].names)):
        each = data_sets[i]
        source = AnnDataSource(each.adata, layer=each.inspection.layer, columns=each.columns(features))
        known, sums, per_cell = source.present & (depths > 0), np.zeros(len(features)), []
        for block in source.some_blocks():
            per_cell.append((block.total, block.counts @ known.astype(np.float64)))
            sums += np.asarray(block.counts.sum(axis=0, dtype=np.float64)).ravel()
        total, modelled = map(np.concatenate, zip(*per_cell, strict=True))
        weight = source.n_obs / len(total)  # 1 if all cells were read
        if depths.any():
            share = np.divide(counts, depths, out=np.zeros_like(counts), where=depths > 0)
            ratio = depth_ratio(total, modelled, float(share[known].sum()))
            if not fits_total(ratio):
                # the total is also over features whose share is not known from the other data sets, which may have
                # more counts than the known ones let expect; the depth is at least the total
                more = float(sums.sum() / modelled.sum())
                rules[i] = DepthRule(modelled_only=True, share=min(float(share[known].sum()) * more, 1.0))
                warn(
                    f"{each.name} has other genes: the median total of its cells is {ratio:.2f} times the depth that "
                    "is expected from its modelled genes. So the depth of its cells is estimated from these."
                )
                continue
            rules[i] = DepthRule(share=1.0 - float(share[~source.present].sum()))
        counts += weight * sums
        depths += weight * source.present * float(total.sum() / rules[i].share)
    return rules


def with_chosen_features(
    found: Mapping[str, ModalitySets], n_top: Mapping[str, int], min_sources: Mapping[str, int | None], seed: int
) -> dict[str, ModalitySets]:
    """The modalities with the features to model: those that are named, or :func:`choose_features`.

    Data sets that have none of them are left out.

    Raises
    ------
    DataError
        If a modality has no such feature. With several modalities, the message names it.
    """
    chosen = {}
    for name, own in found.items():
        try:
            if own.features is None:
                features = choose_features(own.data_sets, n_top[name], min_sources[name], seed)
            else:
                features = measured_features(own.data_sets, own.features)
        except DataError as error:
            raise DataError(f"Modality {name!r}: {error}" if len(found) > 1 else str(error)) from error
        chosen[name] = replace(own, data_sets=with_features(own.data_sets, features), features=features)
    return chosen


def samples_of_sources(found: Mapping[str, ModalitySets]) -> dict[str, Opened]:
    """The samples of each source, whose columns of ``obs`` may be phenotypes, by its name."""
    parts = {each.position: each for own in found.values() for each in own.data_sets}
    return {parts[position].source: parts[position].samples for position in sorted(parts)}


def join_modalities(found: Mapping[str, ModalitySets], fields: Codes | None = None) -> JoinedSource:
    """The samples of all sources, each with the modalities that it has, and the codes of its columns of ``obs``.

    If there is one modality, the samples are its cells. If there are several, a modality that a source lacks is not
    measured in its samples. Samples that have none of the modalities are left out.
    """
    several = len(found) > 1
    joined = {
        name: join_data_sets(
            own.data_sets, own.features or (), counts=own.reading.counts, fields=None if several else fields
        )
        for name, own in found.items()
    }
    if not several:
        return next(iter(joined.values()))
    read = {
        (each.position, name): (each, source)
        for name, own in found.items()
        for each, source in zip(own.data_sets, joined[name].sources, strict=True)
    }
    sources, together = [], False
    for position in sorted({position for position, _ in read}):
        own = [read.get((position, name)) for name in found]
        n = next(len(each.sample_rows) for each, _ in filter(None, own))
        rows = [np.full(n, -1) if part is None else part[0].sample_rows for part in own]
        measured = np.sum([each >= 0 for each in rows], axis=0)
        together |= bool((measured > 1).any())
        kept = [each[measured > 0] for each in rows]
        parts = [
            _absent(joined[name].n_features) if part is None else part[1] for name, part in zip(found, own, strict=True)
        ]
        name = next(part[0].source for part in own if part is not None)
        codes = np.zeros((n, 0), np.float32) if fields is None else fields[name]
        sources.append(ModalitiesSource(parts, kept, codes[measured > 0]))
    if not together:
        warn(
            f"No sample of any source is measured in more than one of the modalities {list(found)}. One modality "
            "cannot be predicted from another. If two sources have the same samples, pass them as one MuData, such as "
            "`MuData({'rna': first, 'prot': second})`."
        )
    return JoinedSource(sources)


def _absent(n_features: int) -> AnnDataSource:
    """A modality of which no row is ever read."""
    return AnnDataSource(AnnData(csr_matrix((1, n_features), dtype=np.float32)))


def describe_data_sets(found: Mapping[str, ModalitySets], source: JoinedSource) -> list[dict[str, Any]]:
    """Name, cells and measured features of each source, for the provenance of a model.

    If there are several modalities, those that the source has, with the same numbers.
    """
    of_source: dict[int, dict[str, DataSet]] = {}
    for modality, own in found.items():
        for each in own.data_sets:
            of_source.setdefault(each.position, {})[modality] = each
    described: list[dict[str, Any]] = []
    for position, part in zip(sorted(of_source), source.sources, strict=True):
        measured, blocks = of_source[position], dict(zip(found, part.read(0, 1).modalities, strict=True))
        sizes = {
            modality: {"n_cells": each.adata.n_obs, "n_features": int(blocks[modality].present.sum())}
            for modality, each in measured.items()
        }
        name = next(iter(measured.values())).source
        n_features = sum(each["n_features"] for each in sizes.values())
        described.append({"name": name, "n_cells": part.n_obs, "n_features": n_features})
        if len(found) > 1:
            described[-1]["modalities"] = sizes
    return described
