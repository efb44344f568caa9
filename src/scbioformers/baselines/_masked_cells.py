"""Cells with masked genes: the input and the targets of the baselines of masked expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from scbioformers.config import Binning
from scbioformers.core import DataError, check_shapes, validation_rows


@dataclass(frozen=True, eq=False)
class MaskedCells:
    """N cells of M genes, with H masked entries in total.

    Raises
    ------
    DataError
        If the shapes do not match, or the masked entries are outside the matrix or not sorted by cell.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> visible = csr_matrix(np.array([[5.0, 0, 2], [0, 1, 0]]))
    >>> cells = MaskedCells(visible, np.array([7.0, 1]), np.array([0, 1]), np.array([1, 0]), np.array([0, 3]))
    >>> cells.take(np.array([False, True])).bins
    array([3])
    """

    visible: csr_matrix
    """(N, M) counts without the masked entries."""
    depth: NDArray[np.float64]
    """(N,) visible depth: counts of the whole transcriptome minus the masked counts."""
    cells: NDArray[np.int64]
    """(H,) row of each masked entry, ascending."""
    genes: NDArray[np.int64]
    """(H,) column of each masked entry."""
    bins: NDArray[np.int64]
    """(H,) true bin of each masked entry, computed with the full depth. A baseline does not read the bins of the cells
    that it predicts."""

    def __post_init__(self) -> None:
        n, m = self.visible.shape
        check_shapes(
            visible=(self.visible, "NM"), depth=(self.depth, "N"), cells=(self.cells, "H"), genes=(self.genes, "H"),
            bins=(self.bins, "H"),
        )  # fmt: skip
        if np.any(np.diff(self.cells) < 0):
            raise DataError("The masked entries must be sorted by cell.")
        for name, values, limit in (("cells", self.cells, n), ("genes", self.genes, m)):
            if values.size and not 0 <= values.min() <= values.max() < limit:
                raise DataError(f"`{name}` of the masked entries must be from 0 to {limit - 1}.")

    def take(self, rows: NDArray[np.bool_]) -> MaskedCells:
        """Return the cells where ``rows`` is True."""
        number, kept = np.cumsum(rows) - 1, rows[self.cells]
        return MaskedCells(
            self.visible[np.flatnonzero(rows)],
            self.depth[rows],
            number[self.cells[kept]],
            self.genes[kept],
            self.bins[kept],
        )


def stack(parts: Sequence[MaskedCells]) -> MaskedCells:
    """Return the cells of all parts as one set."""
    starts = np.cumsum([0, *(part.depth.size for part in parts)])
    return MaskedCells(
        vstack([part.visible for part in parts], format="csr"),
        np.concatenate([part.depth for part in parts]),
        np.concatenate([part.cells + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate([part.genes for part in parts]),
        np.concatenate([part.bins for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class TrainingCells:
    """Training data of a baseline: complete cells, and several random draws of the test mask over them.

    Raises
    ------
    DataError
        If there is no draw, or the shapes of the depth or a draw are not those of the counts.

    Examples
    --------
    See :func:`bin_histogram`.
    """

    counts: csr_matrix
    """(N, M) complete counts."""
    depth: NDArray[np.float64]
    """(N,) full depth: counts of the whole transcriptome."""
    binning: Binning
    """Value bins, frozen on the training cells."""
    draws: tuple[MaskedCells, ...]
    """The same cells under independent masks, drawn by the rule of the test mask."""

    def __post_init__(self) -> None:
        if not self.draws:
            raise DataError("There is no draw of the mask. Pass at least one MaskedCells over the counts as `draws`.")
        draws = {f"draws[{i}].visible": (draw.visible, "NM") for i, draw in enumerate(self.draws)}
        check_shapes(counts=(self.counts, "NM"), depth=(self.depth, "N"), **draws)

    def check_genes(self, test: MaskedCells) -> None:
        """Check that the test cells have as many genes as these. If not, a ``DataError`` is raised."""
        check_shapes(**{"train.counts": (self.counts, "NM"), "test.visible": (test.visible, "KM")})

    @property
    def together(self) -> MaskedCells:
        """All draws as one set of cells."""
        return stack(self.draws)

    def take(self, rows: NDArray[np.bool_]) -> TrainingCells:
        """Return the cells where ``rows`` is True, under the same binning."""
        draws = tuple(draw.take(rows) for draw in self.draws)
        return TrainingCells(self.counts[np.flatnonzero(rows)], self.depth[rows], self.binning, draws)

    def split(self, fraction: float = 0.15, seed: int = 0) -> tuple[TrainingCells, MaskedCells]:
        """Return the cells for the fit, and the other cells, masked, for the choice of hyper-parameters."""
        held_out = validation_rows(self.depth.size, fraction, seed)
        return self.take(~held_out), stack([draw.take(held_out) for draw in self.draws[:2]])

    def sample(self, max_entries: int) -> tuple[MaskedCells, NDArray[np.int64]]:
        """Return masked cells with about ``max_entries`` masked entries, and the row (n,) of each in `counts`."""
        masked = self.together
        step = max(1, -(-masked.bins.size // max_entries))
        rows = np.arange(masked.depth.size) % step == 0
        return masked.take(rows), np.flatnonzero(rows) % self.depth.size
