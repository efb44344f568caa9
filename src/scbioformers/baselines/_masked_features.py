"""Features of a masked entry for the baselines: the histogram of its gene, and the depth of its cell.

The value bin of a count depends on the depth of its cell. For example, a count of 1 in a cell with half the mean depth
is in bin 2. Therefore most baselines are conditioned on the depth, which is estimated from the visible counts. All
baselines and our model have the same estimate, :class:`~scbioformers.core.DepthModel`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scbioformers.baselines._masked_cells import MaskedCells, TrainingCells
from scbioformers.config import Binning, bin_rows
from scbioformers.core import DepthModel, Draw, LowRankProfile, MaskedRows

Array = NDArray[np.float64]


def masked_per_cell(cells: MaskedCells) -> NDArray[np.int64]:
    """(N,) number of masked entries of each cell."""
    return np.bincount(cells.cells, minlength=cells.depth.size)


def log_histogram(train: TrainingCells, pseudo_count: float = 5.0) -> Array:
    """(M, V) log probability of each bin of each gene where it is masked, shrunk towards the histogram of all genes.

    Every training entry is weighted by its chance to be masked. This equals the mean over infinitely many masks and is
    more precise than counting the masked bins of a few masks.
    """
    n_values, (n, n_features) = train.binning.n_values, train.counts.shape
    counts, masked = train.counts, train.together
    bins = bin_rows(train.binning, counts.data, counts.indptr, train.depth)
    n_expressed, n_draws = np.diff(counts.indptr), len(train.draws)
    expressed = np.bincount(masked.cells % n, weights=masked.bins > 0, minlength=n) / n_draws
    zero = masked_per_cell(masked).reshape(n_draws, n).mean(axis=0) - expressed
    chance = np.repeat(expressed / np.maximum(n_expressed, 1), n_expressed)
    chance_of_zero = zero / np.maximum(n_features - n_expressed, 1)
    genes = counts.indices.astype(np.int64)
    table = np.bincount(genes * n_values + bins, weights=chance, minlength=n_features * n_values)
    table = table.reshape(n_features, n_values)
    visible_zero = np.bincount(genes, weights=np.repeat(chance_of_zero, n_expressed), minlength=n_features)
    table[:, 0] += np.maximum(chance_of_zero.sum() - visible_zero, 0.0)
    # half an entry over all draws for each bin, so that a bin that does not occur has a probability above 0
    pooled = table.sum(axis=0) + 0.5 / n_draws
    table += pseudo_count * pooled / pooled.sum()
    return np.log(table / table.sum(axis=1, keepdims=True))


def fit_depth(train: TrainingCells) -> DepthModel:
    """Fit the estimate of the full depth of a cell to the draws of the mask. It is the estimate that our model has.

    Our model fits it without its validation cells. For even masks it is fitted to several shares of masked features,
    in the form that is exact if nothing is masked. Here all training cells are used, and only the mask of the test.
    Both differences are in favour of the baselines.
    """
    profile = LowRankProfile.fit(train.counts, train.depth, float(train.binning.mean_depth or 1.0))
    return DepthModel.fit(profile, [Draw(train.counts, train.depth, masked_rows(draw)) for draw in train.draws])


def estimate_depth(model: DepthModel, cells: MaskedCells) -> tuple[Array, Array]:
    """Estimated full depth (N,) and seven equally likely values of it (N, 7), at least 1. The bins are not read."""
    depth, depths = model.estimate(masked_rows(cells))
    return np.maximum(depth, 1.0), np.maximum(depths, 1.0)


def masked_rows(cells: MaskedCells) -> MaskedRows:
    """The cells without the true bins."""
    return MaskedRows(cells.visible, cells.depth, cells.cells, cells.genes)


def zero_odds(train: TrainingCells, cells: MaskedCells) -> Array:
    """(N,) chance of a zero to be masked divided by that of an expressed entry.

    The odds are a log-linear function of the numbers of visible and masked entries, fitted to the draws. Under the
    default mask they are close to the number of expressed entries divided by the number of zeros.
    """
    drawn, n_features = train.together, train.counts.shape[1]
    n_expressed = np.tile(np.diff(train.counts.indptr), len(train.draws))
    expressed = np.bincount(drawn.cells, weights=drawn.bins > 0, minlength=n_expressed.size)
    zero = masked_per_cell(drawn) - expressed
    both = (expressed > 0) & (zero > 0)
    chance = expressed[both] / n_expressed[both]
    chance_of_zero = zero[both] / (n_features - n_expressed[both])
    weights = np.linalg.lstsq(_odds_terms(drawn)[both], np.log(chance_of_zero / chance), rcond=None)[0]
    return np.exp(_odds_terms(cells) @ weights)


def _odds_terms(cells: MaskedCells) -> Array:
    n, n_features = np.diff(cells.visible.indptr), cells.visible.shape[1]
    masked = masked_per_cell(cells)
    return np.column_stack([np.ones(n.size), np.log1p(n), np.log(n_features + 1 - n), np.log1p(masked)])


def value_basis(binning: Binning) -> Array:
    """(V, 2) features of each bin: whether it is above 0, and its log2 level minus that of bin 1."""
    lower, upper = binning.edges()
    level = 0.5 * np.log2(np.maximum(lower, 0.5) * np.maximum(upper, 0.5))
    above = np.arange(level.size) > 0
    return np.column_stack([above, above * (level - level[min(1, level.size - 1)])])
