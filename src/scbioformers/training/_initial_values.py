"""Statistics of the training cells from which the weights are initialised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from scbioformers.config import bin_rows
from scbioformers.data import Block, Statistics
from scbioformers.nn import N_SMALL_COUNTS, InitialValues
from scbioformers.tokens import Tokenizer
from scbioformers.training._batch_effects import batch_effects, compared_cells

N_COMPONENTS = 50


def compute_initial_values(
    sample: Block, statistics: Statistics, tokenizer: Tokenizer, n_batches: int, seed: int
) -> InitialValues:
    """Compute components, means, dispersions and bin histograms of the training cells.

    Parameters
    ----------
    sample
        Sample of the training cells, without empty cells.
    statistics
        Statistics of all training cells.
    tokenizer
        Tokenizer with the frozen binning.
    n_batches
        Number of technical batches, whose codes are the first obs field of the sample. 0 if there is no batch.
    seed
        Seed of the PCA.
    """
    n_cells, n_features = sample.counts.shape
    profile = tokenizer.profiles(sample)
    n_components = min(N_COMPONENTS, n_cells - 1, n_features - 1)
    # among cells that are all equal, components are rounding errors, and ARPACK may fail
    if n_components >= 1 and (profile.max(axis=0) != profile.min(axis=0)).nnz:
        pca = PCA(n_components, svd_solver="arpack", random_state=seed % 2**32).fit(profile)
        components, scale, mean = pca.components_.T, np.sqrt(pca.explained_variance_), pca.mean_
    else:
        components, scale = np.zeros((n_features, 0)), np.zeros(0)
        mean = np.asarray(profile.mean(axis=0)).ravel()
    gene_mean = np.maximum(statistics.gene_mean, 0.5 / max(statistics.n_cells, 1))
    rate = np.log(gene_mean)
    if not tokenizer.counts:
        share = np.clip(mean, 1e-3, 1 - 1e-3)
        rate = np.log(share / (1 - share))
    batch_shift, batch_rate = _batch_effects(sample, profile, components, tokenizer, n_batches, seed)
    excess = np.maximum(statistics.gene_var - gene_mean, 1e-8)
    return InitialValues(
        components=components.astype(np.float32),
        profile_mean=np.asarray(mean, np.float32),
        component_scale=scale.astype(np.float32),
        rate=rate.astype(np.float32),
        log_dispersion=np.log(np.clip(gene_mean**2 / excess, 1e-2, 1e2)).astype(np.float32),
        batch_shift=batch_shift,
        batch_rate=batch_rate,
        log_bins=_log_bins(sample, tokenizer).astype(np.float32),
    )


def bin_means(sample: Block, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """(V,), mean of the (normalised) counts in each value bin. For segment bins it is the number of the bin.

    For bins without counts in these cells, it is the centre between the edges.
    """
    binning, counts = tokenizer.binning, sample.counts
    if binning.kind == "segment":
        return np.arange(binning.n_values, dtype=np.float64)
    bins = bin_rows(binning, counts.data, counts.indptr, sample.depth)
    values = counts.data.astype(np.float64)
    if binning.normalize:
        values *= np.repeat(float(binning.mean_depth or 1.0) / np.maximum(sample.depth, 1e-300), np.diff(counts.indptr))
    number = np.bincount(bins, minlength=binning.n_values)
    lower, upper = binning.edges()
    return np.where(
        number > 0, np.bincount(bins, values, binning.n_values) / np.maximum(number, 1), (lower + upper) / 2
    )


def _batch_effects(
    sample: Block, profile: csr_matrix, components: NDArray[np.float64], tokenizer: Tokenizer, n_batches: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n_batches, M) each, see :func:`batch_effects`. Data that are not counts have no rates, whose effects are 0."""
    if not n_batches:
        return (np.zeros((0, profile.shape[1]), np.float32),) * 2
    rows = compared_cells(sample.fields[:, 0], n_batches, seed)
    part, profile = sample.take(rows), profile[rows].toarray()
    rates = np.zeros_like(profile)
    if tokenizer.counts:
        rates = part.counts.toarray() * (float(tokenizer.binning.mean_depth or 1.0) / part.depth)[:, None]
    shift, log_factor = batch_effects(profile, rates, components, part.fields[:, 0], n_batches)
    return shift.astype(np.float32), log_factor.astype(np.float32)


def _log_bins(sample: Block, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """(M, V + C), log frequency of each bin and small count among *masked* entries, shrunk towards the mean feature."""
    counts, n_values = sample.counts, tokenizer.binning.n_values
    answers = bin_rows(tokenizer.binning, counts.data, counts.indptr, sample.depth, tokenizer.binning.mean_depth)
    answers = answers.astype(np.int64)
    n_counts = 0 if tokenizer.binning.kind == "segment" else N_SMALL_COUNTS
    small = (counts.data <= n_counts) & (counts.data == np.rint(counts.data))
    answers[small] = n_values - 1 + counts.data[small].astype(np.int64)
    histogram = np.zeros((counts.shape[1], n_values + n_counts))
    np.add.at(histogram, (counts.indices, answers), 1.0)
    histogram[:, 0] = counts.shape[0] - histogram.sum(axis=1)
    expressed, zeros = tokenizer.masking.shares(np.diff(counts.indptr), counts.shape[1])
    histogram[:, 0] *= zeros / max(expressed, 1e-12)  # zeros are masked with another probability than expressed values
    prior = histogram.sum(axis=0) + 0.1
    histogram += 5.0 * prior / prior.sum()
    return np.log(histogram / histogram.sum(axis=1, keepdims=True))
