"""Correlations of genes among cells with the same perturbation, for each target without its own perturbed cells.

A knock-out does not succeed in every cell. So deviations from the mean of a perturbation contain its effect. If they
were used for its target, the prediction would use the data on which it is scored. Therefore sums are stored for each
fold, and the correlations of a target do not use the cells of its own fold. Cells of combinations belong to several
targets and are not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import DataError
from scbioformers.tasks.perturbation._folds import fold_of
from scbioformers.tasks.perturbation._labels import Targets

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Correlations:
    """Sums over cells of products of deviations from the mean of their group and stratum.

    K single targets, M genes, C classes of cells: the control cells and the cells of each fold.
    """

    products: Array
    """(M, M), sums of products over all cells."""
    rows: Array
    """(C, K, M), sums of products of the gene of each target with all genes. 0 if the target is not measured."""
    squares: Array
    """(C, M), sums of squares."""
    free: NDArray[np.int64]
    """(C,), degrees of freedom: number of cells minus number of means."""
    own: NDArray[np.int64]
    """(K,), position of each target among the genes, -1 if it is not measured."""

    @property
    def noise(self) -> float:
        """Standard error of the correlations over all cells."""
        return float(_error(self.free.sum()))

    def pooled(self) -> Array:
        """(M, M), correlations over all cells. 0 for genes that do not vary."""
        scale = _scale(self.squares.sum(axis=0))
        found: Array = self.products / scale[:, None] / scale
        return found

    def of_targets(self, without: Sequence[int] = ()) -> Array:
        """(K, M), correlations of each target without the cells of its fold, reduced by their standard error.

        Parameters
        ----------
        without
            Other folds whose cells are not used either.
        """
        n = len(self.own)
        keep = np.ones((n, len(self.free)))  # (K, C)
        keep[np.arange(n), 1 + fold_of(n)] = 0
        keep[:, [1 + fold for fold in without]] = 0
        # sums over the classes that are kept; differences from the total would depend on other cells by rounding
        squares = np.einsum("kc,cm->km", keep, self.squares)
        at = np.maximum(self.own, 0)
        scale = _scale(squares)
        found = np.einsum("kc,ckm->km", keep, self.rows) / scale / scale[np.arange(n), at][:, None]
        found[self.own < 0] = 0
        return lowered(found, _error(keep @ self.free)[:, None])


def lowered(correlations: Array, error: NDArray[np.float64] | float) -> Array:
    """Reduce the absolute value of correlations by their standard error, at most to 0.

    Examples
    --------
    >>> lowered(np.array([0.5, -0.5, 0.125]), 0.25)
    array([ 0.25, -0.25,  0.  ])
    """
    found: Array = np.sign(correlations) * np.maximum(np.abs(correlations) - error, 0.0)
    return found


def measure_correlations(
    rows: Iterable[sp.csr_matrix],
    groups: NDArray[np.int64],
    strata: NDArray[np.int64],
    perturbations: Sequence[Targets],
    genes: Sequence[str],
) -> Correlations:
    """Sum products of deviations from the mean of each group and stratum, in one pass.

    Parameters
    ----------
    rows
        log1p profiles in blocks, N cells in total.
    groups
        (N,), 1 + the perturbation of each cell, 0 for control cells, -1 for cells that are not used.
    strata
        (N,), combination of batch and cell type of each cell, as a number.
    perturbations
        Targets of each perturbation. Cells of combinations are not used.
    genes
        The M genes.

    Raises
    ------
    DataError
        If there are no cells.
    """
    single = [i for i, targets in enumerate(perturbations) if len(targets) == 1]
    positions = {name: i for i, name in enumerate(genes)}
    own = np.array([positions.get(perturbations[i][0], -1) for i in single], dtype=np.int64)
    class_of = np.full(len(perturbations) + 2, -1)  # class of each group; group -1 indexes the last entry
    class_of[0], class_of[1 + np.array(single, dtype=np.int64)] = 0, 1 + fold_of(len(single))
    n_strata, m, start = int(strata.max(initial=0)) + 1, len(genes), 0
    kinds = np.repeat(class_of[:-1], n_strata)  # class of each pair of group and stratum
    sums, cells = np.zeros((kinds.size, m)), np.zeros(kinds.size, dtype=np.int64)
    classes = range(int(class_of.max()) + 1)
    products, squares, crossed = np.zeros((m, m)), np.zeros((len(classes), m)), np.zeros((len(classes), len(own), m))
    for block in rows:
        stop = start + block.shape[0]
        kind, code = class_of[groups[start:stop]], groups[start:stop] * n_strata + strata[start:stop]
        start = stop
        for each in np.unique(kind[kind >= 0]):
            used = np.flatnonzero(kind == each)
            part = block[used].toarray().astype(np.float64)
            pick = sp.csr_matrix((np.ones(used.size), (code[used], np.arange(used.size))), (kinds.size, used.size))
            sums += pick @ part
            cells += np.bincount(code[used], minlength=kinds.size)
            _add(part, 1.0, own, products, squares[each], crossed[each])
    if not start:
        raise DataError("The data have no cells, expected control and perturbed cells.")
    means = sums / np.sqrt(np.maximum(cells, 1))[:, None]  # products of these are products of means times n cells
    for each in classes:
        _add(means[kinds == each], -1.0, own, products, squares[each], crossed[each])
    free = [int(np.maximum(cells - 1, 0)[kinds == each].sum()) for each in classes]
    return Correlations(products, crossed, np.maximum(squares, 0), np.array(free), own)


def _add(rows: Array, sign: float, own: NDArray[np.int64], products: Array, squares: Array, crossed: Array) -> None:
    """Add the products of some rows to the sums of all cells and to the sums of their class."""
    measured = np.flatnonzero(own >= 0)
    products += sign * (rows.T @ rows)
    squares += sign * (rows**2).sum(axis=0)
    crossed[measured] += sign * (rows[:, own[measured]].T @ rows)


def _error(free: NDArray[np.float64] | np.int64) -> Array:
    """Standard error of a correlation near 0."""
    found: Array = 1 / np.sqrt(np.maximum(free, 1))
    return found


def _scale(squares: Array) -> Array:
    """Square roots, infinite for values that are only rounding errors."""
    found: Array = np.where(squares > 1e-9, np.sqrt(squares), np.inf)
    return found
