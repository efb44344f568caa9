"""The scale of values that are not integers: on a log scale, normalised, or estimated counts."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOG_LIMIT = 20.0  # log1p of 5e8 counts, the upper limit of values on a log scale
_BASES = (np.e, 2.0, 10.0)
_ENOUGH_BROKEN = 0.7  # minimum share of values that are not integers, of data that are normalised or on a log scale
_LATTICE_SHARE = 0.9  # minimum share of values that are a multiple of the smallest; chance gives 0.1
_LATTICE_ERROR, _LATTICE_RANGE, _LATTICE_VALUES = 0.05, 20.0, 10
_NEAR_INTEGERS = 0.4  # mean of cos(2 pi x): 1 for integers, about 0 for values on a log scale
_SAME_DEPTH = -0.4  # least correlation for counts: -0.4 to 0.95 on eight data sets; normalised, -0.5 to -1


class ScaleTally:
    """What tells the scale of values that are not integers. It is collected block by block.

    - Normalised cells have equal sums, on a log scale after the exponential.
    - If genes were selected, the sums differ. Then the values of a cell, on their linear scale, are multiples of the
      smallest one, which stands for one count. Its size differs between cells, because their depths did.
    - Estimated counts are often near integers, as after the removal of ambient RNA.
    - In counts, also estimated ones, cells with more genes have larger values. In normalised cells they are smaller.
    """

    def __init__(self, n_obs: int) -> None:
        self._sums = np.zeros((len(_BASES), n_obs))
        self._units = np.full(n_obs, np.nan)
        self._multiples = np.zeros((1 + len(_BASES), 2))  # multiples of the smallest value, and all; first linear
        self._cosine = np.zeros(2)

    def add(self, rows: sp.csr_matrix, data: Array, here: slice, kept: NDArray[np.int64]) -> None:
        """Add a block of rows whose values are ``data``: canonical, finite and not negative.

        The sums of its rows ``kept`` are those of the cells ``here``.
        """
        filled = np.flatnonzero(np.diff(rows.indptr))
        row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        broken = data != np.rint(data)
        if not broken.any():  # counts: nothing to learn, and nothing is computed
            return
        cells = np.bincount(row_of, broken, rows.shape[0]) > 0
        for i, base in enumerate((None, *_BASES)):
            linear = data if base is None else base ** np.minimum(data, LOG_LIMIT) - 1
            smallest = np.full(rows.shape[0], np.nan)
            smallest[filled] = np.minimum.reduceat(np.where(linear > 0, linear, np.inf), rows.indptr[filled])
            ratio = linear / smallest[row_of]
            told = broken & (ratio > 1 + _LATTICE_ERROR) & (ratio < _LATTICE_RANGE)
            hits = np.abs(ratio[told] - np.rint(ratio[told])) < _LATTICE_ERROR
            self._multiples[i] += np.count_nonzero(hits), hits.size
            if base is None:
                self._units[here] = np.where(cells, smallest, np.nan)[kept]
            else:
                self._sums[i - 1, here] = (np.bincount(row_of, linear, rows.shape[0]) * cells)[kept]
        large = data[data > 0.5]
        self._cosine += np.cos(2 * np.pi * large).sum(), large.size

    def kind(
        self, depth: Array, cell_nnz: NDArray[np.int64], max_value: float, share_broken: float
    ) -> Literal["log1p", "normalized", "estimated"]:
        """The scale. ``share_broken`` is the share of the non-zero values that are not integers."""
        enough = self._multiples[:, 1] >= _LATTICE_VALUES
        lattice = enough & (self._multiples[:, 0] >= _LATTICE_SHARE * np.maximum(self._multiples[:, 1], 1))
        if max_value <= LOG_LIMIT and (any(map(_constant, self._sums)) or (lattice[1:].any() and not lattice[0])):
            return "log1p"
        units = self._units[np.isfinite(self._units)]
        if _constant(depth) or max_value <= 1 or (lattice[0] and units.std() > 0.05 * np.median(units)):
            return "normalized"
        near_integers = self._cosine[0] >= _NEAR_INTEGERS * max(self._cosine[1], 1)
        if share_broken < _ENOUGH_BROKEN or near_integers or _deeper_is_larger(depth, cell_nnz):
            return "estimated"
        return "log1p" if max_value <= LOG_LIMIT else "normalized"


def _constant(sums: Array) -> bool:
    filled = sums[sums != 0]
    return len(filled) > 1 and float(filled.std()) < 1e-3 * abs(float(filled.mean()))


def _deeper_is_larger(depth: Array, cell_nnz: NDArray[np.int64]) -> bool:
    """Whether cells with more genes have larger values, as counts have. In normalised data they have smaller values."""
    filled = cell_nnz > 0
    n_genes, mean = cell_nnz[filled], depth[filled] / cell_nnz[filled]
    if len(n_genes) < 10 or not n_genes.std() or not mean.std():
        return True
    return bool(np.corrcoef(n_genes, mean)[0, 1] > _SAME_DEPTH)
