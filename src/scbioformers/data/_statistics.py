"""Statistics of a source, computed in one pass over its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError
from scbioformers.data._block import Block
from scbioformers.data._source import CHUNK_SIZE, BlockSource


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a source. Cells without any modelled count are called empty and are not included in means.

    The statistics of a feature are those of the cells in which it was measured.
    """

    n_cells: int
    """Number of cells, including empty cells."""
    n_empty: int
    """Number of cells without any modelled count."""
    mean_depth: float
    """Mean sum of a cell over all columns of the data, in counts."""
    mean_modelled_depth: float
    """Mean sum of a cell over the modelled features, in counts."""
    gene_mean: NDArray[np.float64]
    """(n_features,) mean of the counts normalised to `mean_depth`."""
    gene_var: NDArray[np.float64]
    """(n_features,) population variance of the counts normalised to `mean_depth`."""
    depth_share: NDArray[np.float64]
    """(n_features,) share of the sum of the depths of these cells that each feature has."""
    gene_nnz: NDArray[np.int64]
    """(n_features,) number of cells with a non-zero value."""
    n_measured: NDArray[np.int64]
    """(n_features,) number of cells, without empty cells, in which the feature was measured."""
    max_normalized: float
    """Largest count after normalisation to `mean_depth`."""
    max_count: float
    """Largest count before normalisation."""
    others: tuple[Statistics, ...] = ()
    """The statistics of the other modalities. The fields above are those of the first one."""

    def at_depths(self, mean_depths: Sequence[float | None]) -> Statistics:
        """The same statistics for counts that are normalised to other mean depths, one for each modality.

        None leaves a modality as it is.
        """
        first, *others = (
            known if depth is None else known._at_depth(depth)
            for known, depth in zip((self, *self.others), mean_depths, strict=True)
        )
        return replace(first, others=tuple(others))

    def _at_depth(self, mean_depth: float) -> Statistics:
        factor = mean_depth / self.mean_depth if self.mean_depth > 0 else 1.0
        return replace(
            self,
            mean_depth=mean_depth,
            gene_mean=factor * self.gene_mean,
            gene_var=factor**2 * self.gene_var,
            max_normalized=factor * self.max_normalized,
        )


class StatisticsTally:
    """Sums over blocks of cells, from which :class:`Statistics` follow.

    Sums and maxima of ``x / depth`` are multiplied by the mean depth at the end, so one pass is enough.
    """

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self._first, self._second, self._sums, self._depths = np.zeros((4, n_features))
        self._nnz, self._n_measured = np.zeros((2, n_features), np.int64)
        self._n_cells = self._n_filled = 0
        self._depth_sum = self._modelled_sum = self._max_share = self._max_count = 0.0
        self._others: list[StatisticsTally] = []

    def add(self, block: Block, rows: NDArray[np.bool_] | None = None) -> None:
        """Add a block, or the rows of it for which the bool mask ``rows`` (n,) is True."""
        if len(self._others) < len(block.others):
            self._others = [StatisticsTally(other.counts.shape[1]) for other in block.others]
        for tally, other in zip(self._others, block.others, strict=True):
            tally.add(other, rows)
        counts, depth, n_genes = block.counts, block.depth, self.n_features
        if rows is not None:
            counts, depth = counts[rows], depth[rows]
        self._n_cells += int(np.count_nonzero(block.measured if rows is None else block.measured[rows]))
        if counts.nnz == 0:
            return
        per_row = np.diff(counts.indptr)
        filled = per_row > 0
        self._n_filled += int(filled.sum())
        block_depth = float(depth[filled].sum())
        self._depth_sum += block_depth
        self._n_measured += int(filled.sum()) * block.present
        self._depths += block_depth * block.present
        self._modelled_sum += float(counts.data.sum(dtype=np.float64))
        # the sum of centred data may be zero or negative; such cells are not normalised
        inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0)
        share = counts.data * np.repeat(inverse, per_row)
        self._first += np.bincount(counts.indices, share, n_genes)
        self._second += np.bincount(counts.indices, share * share, n_genes)
        self._sums += np.bincount(counts.indices, counts.data, n_genes)
        self._nnz += np.bincount(counts.indices, minlength=n_genes)
        self._max_share = max(self._max_share, float(share.max()))
        self._max_count = max(self._max_count, float(counts.data.max()))

    def result(self) -> Statistics:
        """The statistics of all cells that were added. Means are 0 if all cells are empty."""
        n, n_measured = max(self._n_filled, 1), np.maximum(self._n_measured, 1)
        mean_depth = self._depth_sum / n
        mean_share, mean_square = self._first / n_measured, self._second / n_measured
        sums, depths = self._sums, self._depths
        return Statistics(
            n_cells=self._n_cells,
            n_empty=self._n_cells - self._n_filled,
            mean_depth=mean_depth,
            mean_modelled_depth=self._modelled_sum / n,
            gene_mean=mean_depth * mean_share,
            gene_var=mean_depth**2 * np.maximum(mean_square - mean_share**2, 0.0),
            depth_share=np.divide(sums, depths, out=np.zeros_like(sums), where=depths > 0),
            gene_nnz=self._nnz,
            n_measured=self._n_measured,
            max_normalized=mean_depth * self._max_share,
            max_count=self._max_count,
            others=tuple(tally.result() for tally in self._others),
        )


def scan(source: BlockSource, rows: NDArray[np.bool_] | None = None, chunk_size: int = CHUNK_SIZE) -> Statistics:
    """Compute the statistics of a source in one pass.

    Parameters
    ----------
    source
        The cells.
    rows
        bool (n_obs,): cells to use, e.g. the training cells. None uses all cells.
    chunk_size
        Number of rows read at a time. It does not change the result.

    Returns
    -------
    Statistics
        Means are 0 if all cells are empty.
    """
    if rows is not None and (rows.dtype != np.bool_ or rows.shape != (source.n_obs,)):
        raise ConfigError(f"`rows` must be a bool mask of shape ({source.n_obs},), found {rows.dtype} {rows.shape}.")
    tally = StatisticsTally(source.n_features)
    for block in source.blocks(chunk_size):
        tally.add(block, None if rows is None else rows[block.start : block.start + len(block.depth)])
    return tally.result()
