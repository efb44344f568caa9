"""Several data sets as one source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, hash_pairs, short_list, warn
from scbioformers.data._block import Block
from scbioformers.data._data_sets import DataSet
from scbioformers.data._depth import TOTALS, DepthRule, depth_ratio, fits_total
from scbioformers.data._source import CHUNK_SIZE, AnnDataSource, BlockSource

MIN_EXPRESSED = 20  # features that a cell must express, so that equal counts are not a coincidence
MAX_HASHES = 20_000_000  # of cells, each for each data set with which they are compared: 160 MB


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


def join_data_sets(data_sets: Sequence[DataSet], features: Sequence[str], *, counts: bool = True) -> JoinedSource:
    """The cells of all data sets over the same features, each with the rule by which its depth is read.

    Values that are not ``counts`` have no depth.
    """
    rules = _depth_rules(data_sets, features) if counts else [TOTALS] * len(data_sets)
    sources = []
    for each, rule in zip(data_sets, rules, strict=True):
        columns = each.columns(features)
        sources.append(AnnDataSource(each.adata, layer=each.inspection.layer, columns=columns, rule=rule))
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
                # the total is also over features whose share is not known from the other data sets
                more = float(sums.sum() / modelled.sum())
                rules[i] = DepthRule(modelled_only=True, share=float(share[known].sum()) * more)
                warn(
                    f"{each.name} has other genes: the median total of its cells is {ratio:.2f} times the depth that "
                    "is expected from its modelled genes. So the depth of its cells is estimated from these."
                )
                continue
            rules[i] = DepthRule(share=1.0 - float(share[~source.present].sum()))
        counts += weight * sums
        depths += weight * source.present * float(total.sum() / rules[i].share)
    return rules


class SharedCells:
    """Finds data sets that have the same cells: equal counts in the features that both measure.

    Only cells that express at least 20 of these features are compared. The hash of a cell is the sum over its features,
    so that their order and the other features do not matter. Hashes that are no multiple of ``step`` are left out,
    which limits the memory: a cell has the same hash in both data sets.
    """

    def __init__(self, data_sets: Sequence[DataSet], source: JoinedSource) -> None:
        self._data_sets, self._starts = data_sets, source.starts
        self._present = [part.read(0, 1).present.tobytes() for part in source.sources]
        self._step = max(1, len(data_sets) * source.n_obs // MAX_HASHES)
        self._found: list[dict[bytes, list[NDArray[np.uint64]]]] = [
            {other: [] for other in self._present} for _ in data_sets
        ]

    def add(self, block: Block) -> None:
        """Add the cells of a block of the source."""
        counts = block.counts
        hashes = hash_pairs(counts.indices, counts.data.view(np.uint32))
        for other, cells in self._found[int(np.searchsorted(self._starts, block.start, side="right")) - 1].items():
            common = np.frombuffer(other, bool)[counts.indices]
            ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(common)])[counts.indptr]
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes[common])])[ends]
            cell = np.diff(sums)[np.diff(ends) >= MIN_EXPRESSED]
            cells.append(cell[cell % np.uint64(self._step) == 0])

    def warn(self) -> None:
        """Warn of each pair of data sets that have the same cells."""
        present, none = self._present, np.zeros(0, np.uint64)
        cells = [{key: np.unique(np.concatenate([none, *x])) for key, x in each.items()} for each in self._found]
        for (i, first), (j, second) in combinations(enumerate(self._data_sets), 2):
            if n := self._step * np.intersect1d(cells[i][present[j]], cells[j][present[i]]).size:
                warn(
                    f"{'About ' * (self._step > 1)}{n:,} cells are in {first.name} and in {second.name}. They count "
                    "twice, and may be in the training and the validation cells at the same time. Leave out one of the "
                    "two."
                )


def describe_data_sets(data_sets: Sequence[DataSet], source: JoinedSource) -> list[dict[str, Any]]:
    """Name, cells and measured features of each data set, for the provenance of a model."""
    sizes = [int(part.read(0, 1).present.sum()) for part in source.sources]
    return [
        {"name": each.name, "n_cells": each.adata.n_obs, "n_features": n}
        for each, n in zip(data_sets, sizes, strict=True)
    ]
