"""What ``bf.pp.check`` finds about a model for the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scbioformers.core import short_list

POORLY_KNOWN = 0.5  # share of low scores above which a fit of its own is suggested
DepthSource = Literal["total", "corrected total", "modelled genes", "unused"]

_DEPTHS: dict[DepthSource | None, str] = {
    "total": "the total of each cell over all genes",
    "corrected total": "the total of each cell over all genes, corrected for the absent genes",
    "modelled genes": "estimated from the genes of the model, because the data have other genes than the training data",
    "unused": "not used, because the model reads values that are not counts",
}


@dataclass(frozen=True, eq=False)
class ModelReport:
    """How a model would read the data: ``CheckReport.model``."""

    model: str
    """Size and hash of the model."""
    n_features: int
    """Number of genes of the model."""
    n_found: int
    """Number of them that are in the data."""
    expressed: float
    """Mean number of them that a cell expresses."""
    depth_share: float
    """Share of the counts of the model's genes that the genes in the data have in the training data.

    Verbs need at least 0.2.
    """
    absent: tuple[str, ...]
    """Genes of the model that are not in the data, those with the most counts in the training data first."""
    depth: Literal["total", "corrected total", "modelled genes", "unused"] | None
    """From what the depth of a cell is read. ``None`` if there are problems."""
    batch_key: str | None
    """Column of ``obs`` with the batch."""
    phenotype_keys: tuple[str, ...]
    """Columns of ``obs`` with the phenotypes."""
    missing_columns: tuple[str, ...]
    """Those of these columns that the data lack."""
    unknown_categories: dict[str, tuple[str, ...]]
    """Categories that the model has not seen, by column."""
    n_scored: int
    """Number of cells that were scored, at most 500, in equal distances."""
    score: float
    """Median of the scores of these cells, see :func:`scbioformers.model.score_cells`. NaN if none was scored."""
    known_score: float
    """Median of the scores of validation cells of the training data. NaN if the model has not stored it."""
    share_low: float
    """Share of the scored cells with a lower score than 95 % of these cells. It is about 0.05 for cells like them."""

    @property
    def poorly_known(self) -> bool:
        """Whether most of the cells are less likely than almost all training cells. False if this is not known."""
        return self.share_low > POORLY_KNOWN

    def lines(self) -> list[str]:
        """The lines of the report."""
        lines = [
            f"  model     {self.model}",
            f"  found     {self.n_found:,} of its {self.n_features:,} genes, with {_percent(self.depth_share)} of its "
            "counts in the training data",
        ]
        if self.absent:
            lines.append(f"  absent    {len(self.absent):,} of its genes: {short_list(self.absent, 5)}")
        if self.depth is not None:
            lines.append(f"  depth     {_DEPTHS[self.depth]}")
        lines += [f"  obs       {self._column(key)}" for key in filter(None, (self.batch_key, *self.phenotype_keys))]
        if self.n_scored:
            lines.append(f"  known     {self._known()}")
        return lines

    def _column(self, key: str) -> str:
        role = "batch" if key == self.batch_key else "phenotype"
        read = ", read as the average batch" if role == "batch" else ", read as not known"
        if key in self.missing_columns:
            return f"{role} {key!r}: no such column{read}"
        if unknown := self.unknown_categories.get(key):
            return f"{role} {key!r}: {len(unknown):,} unknown categories {short_list(unknown)}{read}"
        return f"{role} {key!r}: all categories are known"

    def _known(self) -> str:
        scored = f"median score {self.score:.3f} nats per expressed gene, in {self.n_scored:,} cells"
        if np.isnan(self.known_score):
            return f"{scored}; the model has no scores of training cells to compare with"
        return (
            f"{scored} (training data {self.known_score:.3f}); {self.share_low:.0%} of them score lower than 95 % of "
            "the training data"
        )


def _percent(share: float) -> str:
    # rounded down, so that "100 %" is shown only if nothing is missing
    return f"{np.floor(1000 * share + 1e-9) / 10:.1f} %"
