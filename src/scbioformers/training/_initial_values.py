"""Statistics of the training cells from which the weights are initialised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scbioformers.config import bin_rows
from scbioformers.core import Profiles, principal_components
from scbioformers.data import Block, Statistics
from scbioformers.nn import N_SMALL_COUNTS, InitialValues
from scbioformers.tokens import Tokenizer
from scbioformers.training._batch_effects import batch_effects, compared_cells

N_COMPONENTS = 50


def compute_initial_values(
    parts: Sequence[Block], statistics: Statistics, tokenizer: Tokenizer, n_batches: int, seed: int
) -> InitialValues:
    """Compute components, means, dispersions and bin histograms of the training cells.

    Parameters
    ----------
    parts
        Sample of the training cells, without empty cells, one block for each data set.
    statistics
        Statistics of all training cells.
    tokenizer
        Tokenizer with the frozen binning.
    n_batches
        Number of technical batches, whose codes are the first obs field. 0 if there is no batch.
    seed
        Seed of the PCA.
    """
    profiles = [Profiles(tokenizer.profiles(part), part.present) for part in parts]
    components, variance, mean = principal_components(profiles, N_COMPONENTS, seed)
    gene_mean = np.maximum(statistics.gene_mean, 0.5 / max(statistics.n_cells, 1))
    rate = np.log(gene_mean)
    if not tokenizer.counts:
        share = np.clip(mean, 1e-3, 1 - 1e-3)
        rate = np.log(share / (1 - share))
    batch_shift, batch_rate = _batch_effects(parts, profiles, mean, components, tokenizer, n_batches, seed)
    excess = np.maximum(statistics.gene_var - gene_mean, 1e-8)
    return InitialValues(
        components=components.astype(np.float32),
        profile_mean=np.asarray(mean, np.float32),
        component_scale=np.sqrt(variance).astype(np.float32),
        rate=rate.astype(np.float32),
        log_dispersion=np.log(np.clip(gene_mean**2 / excess, 1e-2, 1e2)).astype(np.float32),
        batch_shift=batch_shift,
        batch_rate=batch_rate,
        log_bins=_log_bins(parts, tokenizer).astype(np.float32),
    )


def bin_means(parts: Sequence[Block], tokenizer: Tokenizer) -> NDArray[np.float64]:
    """(V,), mean of the (normalised) counts in each value bin. For segment bins it is the number of the bin.

    For bins without counts in these cells, it is the centre between the edges.
    """
    binning = tokenizer.binning
    if binning.kind == "segment":
        return np.arange(binning.n_values, dtype=np.float64)
    number, total = np.zeros((2, binning.n_values))
    for part in parts:
        counts = part.counts
        bins, values = bin_rows(binning, counts.data, counts.indptr, part.depth), counts.data.astype(np.float64)
        if binning.normalize:
            per_cell = float(binning.mean_depth or 1.0) / np.maximum(part.depth, 1e-300)
            values *= np.repeat(per_cell, np.diff(counts.indptr))
        number += np.bincount(bins, minlength=binning.n_values)
        total += np.bincount(bins, values, binning.n_values)
    lower, upper = binning.edges()
    return np.where(number > 0, total / np.maximum(number, 1), (lower + upper) / 2)


def _batch_effects(
    parts: Sequence[Block],
    profiles: Sequence[Profiles],
    mean: NDArray[np.float64],
    components: NDArray[np.float64],
    tokenizer: Tokenizer,
    n_batches: int,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n_batches, M) each, see :func:`batch_effects`. Data that are not counts have no rates, whose effects are 0.

    A feature that a cell was not measured for has its mean there.
    """
    if not n_batches:
        return (np.zeros((0, len(mean)), np.float32),) * 2
    codes = np.concatenate([part.fields[:, 0] for part in parts])
    rows = np.flatnonzero(codes >= 0)  # a cell of an unknown batch is not compared
    rows = rows[compared_cells(codes[rows], n_batches, seed)]
    if not rows.size:
        return (np.zeros((n_batches, len(mean)), np.float32),) * 2
    levels, rates = np.zeros((2, len(rows), len(mean)))
    ends = np.cumsum([0, *(len(part.depth) for part in parts)])
    measured = np.zeros((n_batches, len(mean)), bool)
    for part, profile, first, end in zip(parts, profiles, ends, ends[1:], strict=False):
        at = (rows >= first) & (rows < end)
        own = part.take(rows[at] - first)
        levels[at] = np.where(part.present, profile.values[rows[at] - first].toarray(), mean)
        if tokenizer.counts:
            scale = (float(tokenizer.binning.mean_depth or 1.0) / own.depth)[:, None]
            rates[at] = np.where(part.present, own.counts.toarray() * scale, np.expm1(mean))
        measured[np.unique(own.fields[:, 0])] |= part.present
    shift, log_factor = batch_effects(levels, rates, components, codes[rows], n_batches)
    return (shift * measured).astype(np.float32), (log_factor * measured).astype(np.float32)


def _log_bins(parts: Sequence[Block], tokenizer: Tokenizer) -> NDArray[np.float64]:
    """(M, V + C), log frequency of each bin and small count among *masked* entries, shrunk towards the mean feature."""
    binning = tokenizer.binning
    n_values, n_counts = binning.n_values, 0 if binning.kind == "segment" else N_SMALL_COUNTS
    histogram = np.zeros((tokenizer.n_features, n_values + n_counts))
    for part in parts:
        counts = part.counts
        answers = bin_rows(binning, counts.data, counts.indptr, part.depth, binning.mean_depth).astype(np.int64)
        small = (counts.data <= n_counts) & (counts.data == np.rint(counts.data))
        answers[small] = n_values - 1 + counts.data[small].astype(np.int64)
        np.add.at(histogram, (counts.indices, answers), 1.0)
        n_zero = counts.shape[0] * part.present - np.bincount(counts.indices, minlength=tokenizer.n_features)
        expressed, zeros = tokenizer.masking.shares(np.diff(counts.indptr), int(part.present.sum()))
        # zeros are masked with another probability than expressed values
        histogram[:, 0] += n_zero * (zeros / max(expressed, 1e-12))
    prior = histogram.sum(axis=0) + 0.1
    histogram += 5.0 * prior / prior.sum()
    return np.log(histogram / histogram.sum(axis=1, keepdims=True))
