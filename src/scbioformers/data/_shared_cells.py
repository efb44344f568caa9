"""Cells that are in several data sets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import hash_pairs, warn
from scbioformers.data._block import Block
from scbioformers.data._joined import JoinedSource

MIN_EXPRESSED = 20  # features that a cell must express, so that equal counts are not a coincidence
MAX_HASHES = 20_000_000  # of cells, each for each data set with which they are compared: 160 MB


class SharedCells:
    """Finds data sets that have the same cells: equal counts in the features of a modality that both measure.

    Only cells that express at least 20 of these features are compared. The hash of a cell is the sum over its features,
    so that their order and the other features do not matter. Hashes that are no multiple of ``step`` are left out,
    which limits the memory: a cell has the same hash in both data sets.

    ``names`` are those of the data sets, which are the parts of the source.
    """

    def __init__(self, names: Sequence[str], source: JoinedSource) -> None:
        self._names, self._starts = names, source.starts
        first = [part.read(0, 1).modalities for part in source.sources]
        # for each data set, the features of each modality that it measures
        self._present = [[(i, part.present.tobytes()) for i, part in enumerate(parts)] for parts in first]
        every = {features for own in self._present for features in own}
        self._step = max(1, len(names) * len(first[0]) * source.n_obs // MAX_HASHES)
        self._found: list[dict[tuple[int, bytes], list[NDArray[np.uint64]]]] = [
            {features: [] for features in every} for _ in names
        ]

    def add(self, block: Block) -> None:
        """Add the cells of a block of the source."""
        counts = [part.counts for part in block.modalities]
        hashes = [hash_pairs(each.indices, each.data.view(np.uint32)) for each in counts]
        found = self._found[int(np.searchsorted(self._starts, block.start, side="right")) - 1]
        for (i, other), cells in found.items():
            common = np.frombuffer(other, bool)[counts[i].indices]
            ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(common)])[counts[i].indptr]
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes[i][common])])[ends]
            cell = np.diff(sums)[np.diff(ends) >= MIN_EXPRESSED]
            cells.append(cell[cell % np.uint64(self._step) == 0])

    def warn(self) -> None:
        """Warn of each pair of data sets that have the same cells."""
        present, none = self._present, np.zeros(0, np.uint64)
        cells = [{key: np.unique(np.concatenate([none, *x])) for key, x in each.items()} for each in self._found]
        for (i, first), (j, second) in combinations(enumerate(self._names), 2):
            equal = [
                np.intersect1d(cells[i][of_second], cells[j][of_first]).size
                for of_first, of_second in zip(present[i], present[j], strict=True)
            ]
            if n := self._step * max(equal):
                warn(
                    f"{'About ' * (self._step > 1)}{n:,} cells are in {first} and in {second}. They count "
                    "twice, and may be in the training and the validation cells at the same time. Leave out one of the "
                    "two."
                )
