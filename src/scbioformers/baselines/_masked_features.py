"""Features of a masked entry for the baselines: its gene, and the depth and the profile of its cell.

The value bin of a count depends on the depth of its cell. For example, a count of 1 in a cell with half the mean depth
is in bin 2. Therefore most baselines are conditioned on the depth, which is estimated from the visible counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from scbioformers.baselines._masked_cells import MaskedCells, TrainingCells
from scbioformers.config import Binning, bin_rows
from scbioformers.core import log1p_rows

Array = NDArray[np.float64]

_MAX_COMPONENTS = 40


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


@dataclass(frozen=True)
class DepthModel:
    """Estimate of the full depth of a cell from its visible depth, with the distribution of its error."""

    gene_share: Array
    """(M,) share of the gene in the full depth of a cell, mean over the entries where it is masked."""
    weights: Array
    """(3,) weights of a regression of log(full / visible depth). The predictors are 1, the summed shares of the masked
    genes, and log(1 + number of masked entries)."""
    spread: Array
    """(7,) equally likely ratios of true depth to estimated depth."""

    @classmethod
    def fit(cls, train: TrainingCells) -> DepthModel:
        """Fit by least squares to the draws."""
        masked, (n, n_features) = train.together, train.counts.shape
        full = np.maximum(np.tile(train.depth, len(train.draws)), 1.0)
        counts = np.asarray(train.counts[masked.cells % n, masked.genes]).ravel()
        total = np.bincount(masked.genes, weights=counts / full[masked.cells], minlength=n_features)
        shares = total / np.maximum(np.bincount(masked.genes, minlength=n_features), 1)
        X, target = _depth_terms(shares, masked), np.log(full / np.maximum(masked.depth, 1.0))
        weights = np.asarray(np.linalg.lstsq(X, target, rcond=None)[0], np.float64)
        return cls(shares, weights, np.exp(np.quantile(target - X @ weights, (np.arange(7) + 0.5) / 7)))

    def estimate(self, cells: MaskedCells) -> Array:
        """(N,) estimated full depth, at least 1."""
        return np.maximum(cells.depth, 1.0) * np.exp(_depth_terms(self.gene_share, cells) @ self.weights)


def _depth_terms(shares: Array, cells: MaskedCells) -> Array:
    masked = np.bincount(cells.cells, weights=shares[cells.genes], minlength=cells.depth.size)
    return np.column_stack([np.ones(masked.size), masked, np.log1p(masked_per_cell(cells))])


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


@dataclass(frozen=True)
class Components:
    """Probabilistic PCA (Tipping and Bishop 1999) of the log-normalised profiles of complete training cells."""

    target: float
    """Depth to which profiles are scaled, in counts."""
    mean: Array
    """(M,) mean profile."""
    axes: Array
    """(M, K) orthonormal components, in the order of decreasing variance."""
    variance: Array
    """(K,) variance of each component."""
    total: float
    """Total variance, summed over the genes."""

    @classmethod
    def fit(cls, train: TrainingCells, n_components: int = _MAX_COMPONENTS) -> Components:
        """Fit to the complete training cells. The number of components is limited by their shape."""
        target = float(train.binning.mean_depth or 1.0)
        profiles = _log_profiles(train.counts, train.depth, target)
        n_components = min(n_components, min(profiles.shape) - 1)
        pca = PCA(n_components, svd_solver="arpack", random_state=0).fit(profiles)
        mean = np.asarray(profiles.mean(axis=0)).ravel()
        total = float(np.asarray(profiles.multiply(profiles).mean(axis=0)).sum() - (mean**2).sum())
        return cls(target, mean, pca.components_.T.astype(np.float64), pca.explained_variance_, total)

    def profiles(self, counts: csr_matrix, depth: Array) -> csr_matrix:
        """(N, M) log-normalised profiles of cells with the depths (N,)."""
        return _log_profiles(counts, depth, self.target)

    def loadings(self, k: int) -> tuple[Array, float]:
        """(M, k) loadings for independent standard normal scores, and the noise variance."""
        noise = max(self.total - self.variance[:k].sum(), 1e-9) / max(self.mean.size - k, 1)
        return self.axes[:, :k] * np.sqrt(np.maximum(self.variance[:k] - noise, 0.0)), noise

    def scores(self, k: int, cells: MaskedCells, depth: Array) -> Array:
        """(N, k) expected scores of each cell given its visible entries. Masked entries count as missing, not as 0."""
        loadings, noise = self.loadings(k)
        projected = _log_profiles(cells.visible, depth, self.target) @ loadings - self.mean @ loadings
        precision = loadings.T @ loadings + noise * np.eye(k)
        bounds = np.searchsorted(cells.cells, np.arange(cells.depth.size + 1))
        out = np.empty_like(projected)
        for i, (start, stop) in enumerate(pairwise(bounds)):
            genes = cells.genes[start:stop]
            masked = loadings[genes]
            right = projected[i] + self.mean[genes] @ masked
            out[i] = np.linalg.solve(precision - masked.T @ masked, right)
        return out

    def whole_scores(self, k: int, counts: csr_matrix, depth: Array) -> Array:
        """(N, k) expected scores of cells without masked entries."""
        loadings, noise = self.loadings(k)
        projected = _log_profiles(counts, depth, self.target) @ loadings - self.mean @ loadings
        return np.linalg.solve(loadings.T @ loadings + noise * np.eye(k), projected.T).T


def _log_profiles(counts: csr_matrix, depth: Array, target: float) -> csr_matrix:
    return log1p_rows(counts, depth, target)
