"""Masked cells for the baselines. The masks are drawn by the same rule as the masks of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.baselines import MaskedCells, TrainingCells
from scbioformers.config import Binning, Masking, bin_rows
from scbioformers.core import uniform


@dataclass(frozen=True)
class EvenMasking:
    """Mask every position with the same probability, so that the masked positions have the natural share of zeros."""

    share: float = 0.15


def masked_cells(
    masking: Masking | EvenMasking,
    binning: Binning,
    counts: csr_matrix,
    depth: NDArray[np.float64],
    rows: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> MaskedCells:
    """Mask genes of the cells. The mask of a cell depends on its row number in the data, given in ``rows`` (n,)."""
    n, n_features = counts.shape
    indptr, indices = counts.indptr.astype(np.int64), counts.indices.astype(np.int32)
    cell_of = np.repeat(np.arange(n), np.diff(indptr))
    if isinstance(masking, EvenMasking):
        chosen = uniform(seed, epoch, rows[:, None], np.arange(n_features)) < masking.share
        masked = chosen[cell_of, indices]
        chosen[cell_of, indices] = False
        zero_cells, zeros = np.nonzero(chosen)
    else:
        masked, zero_indptr, found = masking.choose(
            indptr, indices, rows, np.ones(n_features, bool), seed=seed, epoch=epoch
        )
        zero_cells, zeros = np.repeat(np.arange(n), np.diff(zero_indptr)), found.astype(np.int64)
    bins = bin_rows(binning, counts.data, indptr, depth)
    visible = csr_matrix((counts.data[~masked], (cell_of[~masked], indices[~masked])), shape=counts.shape)
    masked_counts = np.bincount(cell_of[masked], weights=counts.data[masked], minlength=n)
    cells = np.concatenate([cell_of[masked], zero_cells])
    genes = np.concatenate([indices[masked].astype(np.int64), zeros])
    targets = np.concatenate([bins[masked], np.zeros(zeros.size)]).astype(np.int64)
    order = np.lexsort((genes, cells))
    return MaskedCells(visible, depth - masked_counts, cells[order], genes[order], targets[order])


def training_cells(
    masking: Masking | EvenMasking,
    binning: Binning,
    counts: csr_matrix,
    depth: NDArray[np.float64],
    rows: NDArray[np.int64],
    *,
    seed: int,
    n_draws: int = 8,
) -> TrainingCells:
    """Return the unmasked cells and ``n_draws`` draws of their masks, one for each epoch."""
    draws = (masked_cells(masking, binning, counts, depth, rows, seed=seed, epoch=epoch) for epoch in range(n_draws))
    return TrainingCells(counts, depth, binning, tuple(draws))
