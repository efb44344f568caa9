"""Blocks: rows of a source in memory, the input of all later steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.data._depth import TOTALS, DepthRule

_OF_ROWS = ("total", "fields", "measured")  # arrays with an entry for each cell


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of a :class:`~scbioformers.data.BlockSource`, as copies."""

    start: int
    """Row of the source at which the block starts."""
    counts: sp.csr_matrix
    """float32 CSR matrix (n, n_features): sorted indices, no duplicates, no stored zeros."""
    total: NDArray[np.float64]
    """(n,) sum of each row over *all* columns of the data, or only over the modelled ones, see ``rule``."""
    fields: NDArray[np.float32]
    """(n, n_fields) category codes of the registered obs fields, or positions among the knots of a number."""
    present: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(n_features,) whether each feature is measured. By default all are. Values of other features are removed."""
    rule: DepthRule = TOTALS
    """How the depth follows from the total. By default the depth is the total."""
    measured: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(n,) whether this modality was measured in each cell. By default it was. Other rows have no counts."""
    others: tuple[Block, ...] = ()
    """The same cells in the other modalities. The fields above are those of the first one."""

    @property
    def depth(self) -> NDArray[np.float64]:
        """(n,) depth of each cell: all its counts, including features that are not modelled or not measured."""
        return self.total / self.rule.share

    @property
    def modalities(self) -> tuple[Block, ...]:
        """The cells in each modality. The first one is the block itself."""
        return (self, *self.others)

    @property
    def n_expressed(self) -> NDArray[np.int64]:
        """(n,) number of modelled features that each cell expresses, in all modalities."""
        return np.sum([np.diff(block.counts.indptr) for block in self.modalities], axis=0, dtype=np.int64)

    def __post_init__(self) -> None:
        if not self.present.size:
            object.__setattr__(self, "present", np.ones(self.counts.shape[1], bool))
        if len(self.measured) != len(self.total):
            object.__setattr__(self, "measured", np.ones(len(self.total), bool))
        if not self.present.all() and not self.present[self.counts.indices].all():
            # so that nothing after this has to know that the values of an absent feature mean nothing
            kept = self.counts.copy()
            kept.data[~self.present[kept.indices]] = 0
            kept.eliminate_zeros()
            object.__setattr__(self, "counts", kept)

    def take(self, rows: NDArray[np.int64]) -> Block:
        """The given rows, in the given order, as a new block."""
        return replace(
            self,
            start=0,
            counts=self.counts[rows],
            total=self.total[rows],
            fields=self.fields[rows],
            measured=self.measured[rows],
            others=tuple(other.take(rows) for other in self.others),
        )

    def scaled(self, features: NDArray[np.int64], factor: float, modality: int = 0) -> Block:
        """Copy of the block in which the count of one feature per cell is multiplied by a factor.

        ``features`` (n,) is the feature of each cell in the modality with this number, -1 for none.
        """
        if modality:
            others = list(self.others)
            others[modality - 1] = others[modality - 1].scaled(features, factor)
            return replace(self, others=tuple(others))
        counts = self.counts.copy()
        counts.data[counts.indices == np.repeat(features, np.diff(counts.indptr))] *= factor
        counts.eliminate_zeros()
        return replace(self, counts=counts)


def concatenate(blocks: Sequence[Block]) -> Block:
    """Concatenate the cells of several blocks of one source, in which the same features are measured."""
    counts = sp.vstack([block.counts for block in blocks], format="csr")
    rows: dict[str, Any] = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in _OF_ROWS}
    others = tuple(concatenate(each) for each in zip(*(block.others for block in blocks), strict=True))
    return replace(blocks[0], start=0, counts=counts, others=others, **rows)
