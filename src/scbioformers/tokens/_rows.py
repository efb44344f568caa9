"""Entries of cells in CSR order, and the kernels that choose which of them become tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scbioformers.core import hash_uniform


@dataclass(frozen=True)
class Rows:
    """Entries of B cells in CSR order: row pointers, features, and values (bins or counts)."""

    indptr: NDArray[np.int64]
    features: NDArray[np.int32]
    values: NDArray[np.float64]

    @property
    def cells(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.indptr.size - 1), np.diff(self.indptr))

    def keep(self, entries: NDArray[np.bool_]) -> Rows:
        kept = np.concatenate(([0], np.cumsum(entries)))[self.indptr]
        return Rows(kept, self.features[entries], self.values[entries])

    def merge(self, other: Rows) -> Rows:
        """Entries of both, sorted by cell and feature."""
        cells, features = np.concatenate((self.cells, other.cells)), np.concatenate((self.features, other.features))
        order = np.lexsort((features, cells))
        values = np.concatenate((self.values, other.values))
        return Rows(self.indptr + other.indptr, features[order], values[order])


@njit(cache=True, nogil=True)
def fill_random(first_id, indptr, indices, values, rows, budget, seed, epoch, ids_out, values_out):  # type: ignore[no-untyped-def]
    """Write the ``budget`` entries of each row with the smallest random keys, in CSR order."""
    for i in range(rows.size):
        start, stop = indptr[i], indptr[i + 1]
        keys, threshold = np.zeros(stop - start), 0.0
        if stop - start > budget:
            for k in range(start, stop):
                keys[k - start] = hash_uniform(seed, epoch, rows[i], indices[k])
            threshold = np.partition(keys, budget - 1)[budget - 1]
        at = 0
        for k in range(start, stop):
            if keys[k - start] <= threshold:
                ids_out[i, at] = indices[k] + first_id
                values_out[i, at] = values[k]
                at += 1


@njit(cache=True, nogil=True)
def fill_highest(first_id, indptr, indices, values, counts, budget, ids_out, values_out):  # type: ignore[no-untyped-def]
    """Write the ``budget`` entries of each row with the highest (count, id), in CSR order."""
    for i in range(indptr.size - 1):
        start, stop = indptr[i], indptr[i + 1]
        keep = np.ones(stop - start, dtype=np.bool_)
        if stop - start > budget:
            # entries are in id order, so a stable ascending sort by count puts the highest (count, id) last
            keep[np.argsort(counts[start:stop], kind="mergesort")[: stop - start - budget]] = False
        at = 0
        for k in range(start, stop):
            if keep[k - start]:
                ids_out[i, at] = indices[k] + first_id
                values_out[i, at] = values[k]
                at += 1
