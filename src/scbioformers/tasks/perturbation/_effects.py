"""Effects of perturbations: mean differences from matched controls with standard errors, in one pass over the cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import DataError


@dataclass(frozen=True)
class Effects:
    """Effects of P perturbations on M genes, in log1p units."""

    mean: NDArray[np.float64]
    """(P, M), mean difference from the control cells of the same strata."""
    se: NDArray[np.float64]
    """(P, M), standard error of the mean difference, including that of the controls."""
    n_cells: NDArray[np.int64]
    """(P,), number of perturbed cells."""
    control_mean: NDArray[np.float64]
    """(M,), mean of the control cells."""
    control_sd: NDArray[np.float64]
    """(M,), standard deviation of the control cells within strata."""


def measure_effects(
    rows: Iterable[sp.csr_matrix], groups: NDArray[np.int64], strata: NDArray[np.int64], n_groups: int
) -> Effects:
    """Compare each perturbation with the controls of its strata. Strata are weighted by its number of cells in them.

    Parameters
    ----------
    rows
        log1p profiles in blocks, N cells in total.
    groups
        (N,), 1 + the perturbation of each cell, 0 for control cells, -1 for cells that are not used.
    strata
        (N,), combination of batch and cell type of each cell, as a number.
    n_groups
        Number of perturbations, without the control.

    Raises
    ------
    DataError
        If a stratum has perturbed cells but no control cell.
    """
    n_strata = int(strata.max()) + 1 if strata.size else 1
    cells = np.zeros((n_groups + 1) * n_strata)
    sums, squares, start = None, None, 0
    for block in rows:
        stop = start + block.shape[0]
        group, stratum = groups[start:stop], strata[start:stop]
        used = np.flatnonzero(group >= 0)
        code = group[used] * n_strata + stratum[used]
        pick = sp.csr_matrix((np.ones(used.size), (code, used)), shape=(cells.size, block.shape[0]))
        parts = ((pick @ block).toarray(), (pick @ block.multiply(block)).toarray())
        if sums is None or squares is None:
            sums, squares = parts
        else:
            sums, squares = sums + parts[0], squares + parts[1]
        cells += np.bincount(code, minlength=cells.size)
        start = stop
    if sums is None or squares is None:
        raise DataError("The data have no cells, expected control and perturbed cells.")
    shape = (n_groups + 1, n_strata, sums.shape[1])
    return _compare(cells.reshape(shape[:2]), sums.reshape(shape), squares.reshape(shape))


def _compare(cells: NDArray[np.float64], sums: NDArray[np.float64], squares: NDArray[np.float64]) -> Effects:
    lacking = np.flatnonzero((cells[1:].sum(axis=0) > 0) & (cells[0] == 0))
    if lacking.size:
        raise DataError(f"Strata {lacking.tolist()} have perturbed cells and no control. Leave out these cells.")
    n = np.maximum(cells, 1)[:, :, None]
    mean = sums / n
    inner = np.maximum(squares - n * mean**2, 0)  # sums of squares within group and stratum
    control_var = inner[0] / np.maximum(cells[0] - 1, 1)[:, None]
    n_control = np.maximum(cells[0], 1)[:, None]
    total = np.maximum(cells[1:].sum(axis=1), 1)
    share = cells[1:] / total[:, None]  # (P, strata)
    effect = np.einsum("ps,psm->pm", share, mean[1:] - mean[0])
    own = inner[1:].sum(axis=1) / np.maximum(total - 1, 1)[:, None]
    # with few cells, a gene may be zero in all of them; so the variance is shrunk towards that of the controls
    pooled = inner[0].sum(axis=0) / max(cells[0].sum() - np.count_nonzero(cells[0]), 1.0)
    prior = 10.0
    variance = (own * total[:, None] + prior * pooled) / (total[:, None] + prior)
    se = np.sqrt(variance / total[:, None] + np.einsum("ps,sm->pm", share**2, control_var / n_control))
    weight = cells[0] / max(cells[0].sum(), 1)
    return Effects(effect, se, total.astype(np.int64), weight @ mean[0], np.sqrt(pooled))
