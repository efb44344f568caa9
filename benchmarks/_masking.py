"""Masked cells as the baselines read them, drawn as the model's own masks are."""

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
    """Masks every position with the same chance, zero or not: what is masked has the natural share of zeros."""

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
    """Hide genes of the cells; ``rows`` (n,) is the identity of each in its source, on which the mask depends."""
    n, n_features = counts.shape
    indptr, indices = counts.indptr.astype(np.int64), counts.indices.astype(np.int32)
    cell_of = np.repeat(np.arange(n), np.diff(indptr))
    if isinstance(masking, EvenMasking):
        chosen = uniform(seed, epoch, rows[:, None], np.arange(n_features)) < masking.share
        masked = chosen[cell_of, indices]
        chosen[cell_of, indices] = False
        zero_cells, zeros = np.nonzero(chosen)
    else:
        masked, zero_indptr, found = masking.choose(indptr, indices, rows, n_features, seed=seed, epoch=epoch)
        zero_cells, zeros = np.repeat(np.arange(n), np.diff(zero_indptr)), found.astype(np.int64)
    bins = bin_rows(binning, counts.data, indptr, depth)
    visible = csr_matrix((counts.data[~masked], (cell_of[~masked], indices[~masked])), shape=counts.shape)
    hidden_counts = np.bincount(cell_of[masked], weights=counts.data[masked], minlength=n)
    cells = np.concatenate([cell_of[masked], zero_cells])
    genes = np.concatenate([indices[masked].astype(np.int64), zeros])
    targets = np.concatenate([bins[masked], np.zeros(zeros.size)]).astype(np.int64)
    order = np.lexsort((genes, cells))
    return MaskedCells(visible, depth - hidden_counts, cells[order], genes[order], targets[order])


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
    """Whole cells and ``n_draws`` masks of them, one an epoch."""
    draws = (masked_cells(masking, binning, counts, depth, rows, seed=seed, epoch=epoch) for epoch in range(n_draws))
    return TrainingCells(counts, depth, binning, tuple(draws))
