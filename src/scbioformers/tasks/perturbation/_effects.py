"""Effects of perturbations: mean differences from matched controls with standard errors, in one pass over the cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import DataError

Array = NDArray[np.float64]
PRIOR = 10.0  # degrees of freedom of the variance that another one is shrunk towards


@dataclass(frozen=True)
class Effects:
    """Effects of P perturbations on M genes, in log1p units."""

    mean: Array
    """(P, M), mean difference from the control cells of the same strata."""
    se: Array
    """(P, M), standard error of the mean difference, from the cells of the perturbation and the controls alone.

    So it may weight this effect where other perturbations are predicted from it, also in cross-validation.
    """
    n_cells: NDArray[np.int64]
    """(P,), number of perturbed cells."""
    control_mean: Array
    """(M,), mean of the control cells."""
    control_sd: Array
    """(M,), standard deviation of the control cells within strata. Of all cells if there are few control cells."""
    interval_se: Array | None = None
    """(P, M), standard error for intervals. Its variances are also estimated from other cells. None for ``se``."""
    control_se: Array | None = None
    """(P, M), the part of ``interval_se`` that is due to the control cells, an error that effects share. None for 0."""


def measure_effects(
    rows: Iterable[sp.csr_matrix],
    groups: NDArray[np.int64],
    strata: NDArray[np.int64],
    n_groups: int,
    pool: NDArray[np.bool_] | None = None,
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
    pool
        (P,), perturbations whose cells are used, beside the controls, for the variances of all. By default all.

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
    return _compare(cells.reshape(shape[:2]), sums.reshape(shape), squares.reshape(shape), pool)


def _compare(cells: Array, sums: Array, squares: Array, pool: NDArray[np.bool_] | None) -> Effects:
    lacking = np.flatnonzero((cells[1:].sum(axis=0) > 0) & (cells[0] == 0))
    if lacking.size:
        raise DataError(f"Strata {lacking.tolist()} have perturbed cells and no control. Leave out these cells.")
    n = np.maximum(cells, 1)[:, :, None]
    mean = sums / n
    inner = np.maximum(squares - n * mean**2, 0)  # sums of squares within group and stratum
    free = np.maximum(cells - 1, 0)  # degrees of freedom
    total = np.maximum(cells[1:].sum(axis=1), 1)
    share = cells[1:] / total[:, None]  # (P, strata)
    effect = np.einsum("ps,psm->pm", share, mean[1:] - mean[0])
    pooled = (inner[0].sum(axis=0) + inner[1:].sum(axis=1)) / np.maximum(free[0].sum() + free[1:].sum(axis=1), 1)[
        :, None
    ]
    own, shared = _variance(share, cells, inner, free, np.broadcast_to(pooled[:, None], inner[1:].shape))
    kept = np.append(True, np.ones(len(share), dtype=bool) if pool is None else pool)
    of_all = inner[kept].sum(axis=(0, 1)) / max(free[kept].sum(), 1.0)
    of_stratum = _shrunk(inner[kept].sum(axis=0), free[kept].sum(axis=0)[:, None], of_all)
    interval = _variance(share, cells, inner, free, np.broadcast_to(of_stratum, inner[1:].shape))
    variance = inner[0].sum(axis=0) / max(free[0].sum(), 1.0)
    if free[0].sum() < PRIOR:  # too few control cells for a variance of their own
        variance = _shrunk(inner[0].sum(axis=0), free[0].sum(), of_all)
    weight = cells[0] / max(cells[0].sum(), 1)
    return Effects(
        mean=effect,
        se=np.sqrt(own + shared),
        n_cells=total.astype(np.int64),
        control_mean=weight @ mean[0],
        control_sd=np.sqrt(variance),
        interval_se=np.sqrt(sum(interval)),
        control_se=np.sqrt(interval[1]),
    )


def _variance(share: Array, cells: Array, inner: Array, free: Array, expected: Array) -> tuple[Array, Array]:
    """Variance (P, M) of the mean of the perturbed cells, and of that of their controls.

    With few cells a gene may be zero in all of them, and one cell has no variance at all. So the variances of both are
    shrunk towards an expected variance (P, strata, M), which is estimated from more cells.
    """
    total = np.maximum(cells[1:].sum(axis=1), 1)[:, None]
    own = _shrunk(inner[1:].sum(axis=1), free[1:].sum(axis=1)[:, None], np.einsum("ps,psm->pm", share, expected))
    of_control = _shrunk(inner[0], free[0][:, None], expected)  # (P, strata, M)
    shared = np.einsum("ps,psm->pm", share**2 / np.maximum(cells[0], 1), of_control)
    return own / total, shared


def _shrunk(inner: Array, free: Array | float, expected: Array) -> Array:
    """Variance from sums of squares with their degrees of freedom, shrunk towards an expected variance."""
    found: Array = (inner + PRIOR * expected) / (free + PRIOR)
    return found
