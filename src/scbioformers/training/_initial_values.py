"""Statistics of the training cells from which the weights are initialised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.sparse import diags
from sklearn.linear_model import RidgeCV

from scbioformers.config import bin_rows
from scbioformers.core import Profiles, measured_mean, principal_components
from scbioformers.data import Block, Statistics
from scbioformers.nn import N_SMALL_COUNTS, InitialValues, Sizes
from scbioformers.tokens import JointTokenizer, Tokenizer
from scbioformers.training._batch_effects import batch_effects, compared_cells

N_COMPONENTS = 50
N_LEADING = 16  # components of a modality by whose variance it is weighted
MIN_COMPLETE = 50  # cells with all modalities, from which the scores of one are regressed on those of the others
RIDGE = np.logspace(-4, 1, 11)  # penalties that are compared, relative to the variance of the scores


def compute_initial_values(
    parts: Sequence[Block], statistics: Statistics, tokenizer: Tokenizer | JointTokenizer, sizes: Sizes, seed: int
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
    sizes
        Numbers of technical batches, whose codes are the first obs field if there are any, and of the categories of
        the phenotypes, which are the other fields.
    seed
        Seed of the PCA.
    """
    tokenizers, parts = tokenizer.modalities, by_measured(parts)
    profiles = [Profiles(tokenizer.profiles(part), _present(part)) for part in parts]
    weight = _weights(profiles, [each.n_features for each in tokenizers], seed) if len(tokenizers) > 1 else None
    weighted = profiles if weight is None else [replace(x, values=x.values @ diags(weight)) for x in profiles]
    components, variance, mean = principal_components(weighted, N_COMPONENTS, seed)
    mean = mean if weight is None else mean / weight
    means = np.split(mean, np.cumsum([each.n_features for each in tokenizers])[:-1])
    rates = [_rates(*each) for each in zip((statistics, *statistics.others), tokenizers, means, strict=True)]
    n_categories = [*([sizes.n_batches] if sizes.n_batches else []), *sizes.phenotype_sizes]
    effects = _field_effects(parts, profiles, mean, components, tokenizers, n_categories, seed)
    nothing = np.zeros((0, len(mean)), np.float32)
    batch_shift, batch_rate = effects.pop(0) if sizes.n_batches else (nothing, nothing)
    return InitialValues(
        components=components.astype(np.float32),
        profile_mean=np.asarray(mean, np.float32),
        component_scale=np.sqrt(variance).astype(np.float32),
        rate=np.concatenate([rate for rate, _ in rates]).astype(np.float32),
        log_dispersion=np.concatenate([dispersion for _, dispersion in rates]).astype(np.float32),
        batch_shift=batch_shift,
        batch_rate=batch_rate,
        phenotypes=tuple(effects),
        log_bins=_join_answers(
            [_log_bins([part.modalities[i] for part in parts], each) for i, each in enumerate(tokenizers)],
            [each.binning.n_values for each in tokenizers],
        ).astype(np.float32),
        weight=None if weight is None else weight.astype(np.float32),
        completions=None if weight is None else _completions(weighted, components, mean * weight, tokenizers),
    )


def by_measured(parts: Sequence[Block]) -> list[Block]:
    """The cells of each part, in groups that were measured in the same modalities.

    The features of a modality that a group lacks are not ``present`` in it.
    """
    groups = []
    for part in parts:
        measured = np.stack([each.measured for each in part.modalities], axis=1)
        for choice in np.unique(measured, axis=0):
            rows = np.flatnonzero((measured == choice).all(axis=1))
            own = part if len(rows) == len(measured) else part.take(rows)
            if not choice.all():
                first, *others = [
                    each if is_measured else replace(each, present=np.zeros_like(each.present))
                    for each, is_measured in zip(own.modalities, choice, strict=True)
                ]
                own = replace(first, others=tuple(others))
            groups.append(own)
    return groups


def _present(part: Block) -> NDArray[np.bool_]:
    """(M,), whether each feature of all modalities is measured."""
    return np.concatenate([each.present for each in part.modalities])


def modality_weights(leading: Sequence[float], columns: Sequence[int]) -> NDArray[np.float64]:
    """(M,), factors that give the leading components of each modality the same variance as those of the first one.

    The total variance would not do: that of thousands of genes is mostly noise, that of few proteins is in few
    directions, and the components of both would be those of the proteins (``dev/experiments.md``, 84).

    Parameters
    ----------
    leading
        Summed variance of the first ``N_LEADING`` components of each modality.
    columns
        Number of features of each modality.
    """
    sums = np.asarray(leading, np.float64)
    varies = sums > 1e-9
    reference = sums[varies][0] if varies.any() else 1.0  # cells to which a model is fitted further may lack the first
    return np.repeat(np.sqrt(np.where(varies, reference / np.maximum(sums, 1e-9), 1.0)), columns)


def _weights(profiles: Sequence[Profiles], columns: Sequence[int], seed: int) -> NDArray[np.float64]:
    ends, leading = np.cumsum([0, *columns]), []
    for start, stop in pairwise(ends):
        own = [Profiles(x.values[:, start:stop], x.present[start:stop]) for x in profiles]
        measured = [each for each in own if each.present.any()]
        leading.append(_leading_variance(measured, seed) if measured else 0.0)
    return modality_weights(leading, columns)


def _leading_variance(profiles: Sequence[Profiles], seed: int) -> float:
    """Summed variance of the first components of one modality."""
    if profiles[0].values.shape[1] > N_LEADING:
        return float(principal_components(profiles, N_LEADING, seed)[1].sum())
    squares = measured_mean([replace(x, values=x.values.multiply(x.values).tocsr()) for x in profiles])
    return float((squares - measured_mean(profiles) ** 2).sum())


def _completions(
    profiles: Sequence[Profiles],
    components: NDArray[np.float64],
    mean: NDArray[np.float64],
    tokenizers: Sequence[Tokenizer],
) -> NDArray[np.float32] | None:
    """(2^N - 2, K, K), maps from the scores over some modalities to those over all, by ridge regression.

    They are fitted to the cells that have all modalities. None if there are fewer than 50 such cells.
    """
    ends = np.cumsum([0, *(each.n_features for each in tokenizers)])
    columns = [slice(start, stop) for start, stop in pairwise(ends)]
    whole = [part for part in profiles if all(part.present[own].any() for own in columns)]
    if sum(part.values.shape[0] for part in whole) < MIN_COMPLETE:
        return None
    scores = [
        np.concatenate([part.values[:, own] @ components[own] - mean[own] @ components[own] for part in whole])
        for own in columns
    ]
    maps = []
    for choice in range(1, 2 ** len(columns) - 1):
        known = np.sum([part for i, part in enumerate(scores) if choice >> i & 1], axis=0)
        alphas = np.square(known).sum() / known.shape[1] * RIDGE
        maps.append(RidgeCV(alphas, fit_intercept=False).fit(known, np.sum(scores, axis=0)).coef_.T)
    return np.array(maps, np.float32)


def _rates(
    statistics: Statistics, tokenizer: Tokenizer, mean: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(M,) rates and log dispersions of one modality. ``mean`` is its mean profile."""
    gene_mean = np.maximum(statistics.gene_mean, 0.5 / max(statistics.n_cells, 1))
    rate = np.log(gene_mean)
    if not tokenizer.counts:
        share = np.clip(mean, 1e-3, 1 - 1e-3)
        rate = np.log(share / (1 - share))
    excess = np.maximum(statistics.gene_var - gene_mean, 1e-8)
    return rate, np.log(np.clip(gene_mean**2 / excess, 1e-2, 1e2))


def _join_answers(parts: Sequence[NDArray[np.float64]], n_values: Sequence[int]) -> NDArray[np.float64]:
    """(M, V + C), answers of all modalities: first the bins of each, then the small counts of each. Others are 0."""
    bins = block_diag(*(part[:, :n] for part, n in zip(parts, n_values, strict=True)))
    return np.hstack([bins, block_diag(*(part[:, n:] for part, n in zip(parts, n_values, strict=True)))])


def bin_means(parts: Sequence[Block], tokenizer: Tokenizer) -> NDArray[np.float64]:
    """(V,), mean of the (normalised) counts in each value bin. For other bins it is the number of the bin.

    For bins without counts in these cells, it is the centre between the edges.
    """
    binning = tokenizer.binning
    if binning.kind != "value":
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


def _field_effects(
    parts: Sequence[Block],
    profiles: Sequence[Profiles],
    mean: NDArray[np.float64],
    components: NDArray[np.float64],
    tokenizers: Sequence[Tokenizer],
    n_categories: Sequence[int],
    seed: int,
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For each obs field (n_categories, M) twice, see :func:`batch_effects`, given the effects of the fields before it.

    Data that are not counts have no rates, whose effects are 0. A feature that a cell was not measured for has its mean
    there. A number belongs to its next knot.
    """
    fields = np.concatenate([part.fields for part in parts])
    found: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for i, n in enumerate(n_categories):
        highest = np.clip(np.rint(np.nan_to_num(fields, nan=-1.0)), -1, np.array(n_categories) - 1)
        codes = highest.astype(np.int64)
        shift, log_factor = np.zeros((2, n, len(mean)))
        rows = np.flatnonzero(codes[:, i] >= 0)  # a cell whose category is not known is not compared
        rows = rows[compared_cells(codes[rows, i], n, seed)]
        if rows.size:
            levels, rates = _levels_and_rates(parts, profiles, mean, tokenizers, rows)
            for j, (former_shift, former_factor) in enumerate(found):
                at = codes[rows, j]
                levels -= np.where(at[:, None] >= 0, former_shift[at], 0.0)
                rates *= np.where(at[:, None] >= 0, np.exp(-former_factor[at]), 1.0)
            shift, log_factor = batch_effects(levels, rates, components, codes[rows, i], n)
            measured = np.zeros((n, len(mean)), bool)
            ends = np.cumsum([0, *(len(part.depth) for part in parts)])
            for profile, first, end in zip(profiles, ends, ends[1:], strict=False):
                own = codes[rows[(rows >= first) & (rows < end)], i]
                measured[np.unique(own)] |= profile.present
            shift, log_factor = shift * measured, log_factor * measured
        found.append((shift.astype(np.float32), log_factor.astype(np.float32)))
    return found


def _levels_and_rates(
    parts: Sequence[Block],
    profiles: Sequence[Profiles],
    mean: NDArray[np.float64],
    tokenizers: Sequence[Tokenizer],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Profiles and counts at the mean depth of some rows of all parts, (n, M) each."""
    levels, rates = np.zeros((2, len(rows), len(mean)))
    ends = np.cumsum([0, *(len(part.depth) for part in parts)])
    for part, profile, first, end in zip(parts, profiles, ends, ends[1:], strict=False):
        at = (rows >= first) & (rows < end)
        own = part.take(rows[at] - first)
        levels[at] = np.where(profile.present, profile.values[rows[at] - first].toarray(), mean)
        start = 0
        for tokenizer, block in zip(tokenizers, own.modalities, strict=True):
            columns = slice(start, start := start + tokenizer.n_features)
            if tokenizer.counts:
                depth = np.where(block.depth > 0, block.depth, 1.0)
                scale = (float(tokenizer.binning.mean_depth or 1.0) / depth)[:, None]
                usual = np.expm1(mean[columns])
                rates[at, columns] = np.where(block.present, block.counts.toarray() * scale, usual)
    return levels, rates


def _log_bins(parts: Sequence[Block], tokenizer: Tokenizer) -> NDArray[np.float64]:
    """(M, V + C), log frequency of each bin and small count among *masked* entries, shrunk towards the mean feature."""
    binning = tokenizer.binning
    n_values, n_counts = binning.n_values, N_SMALL_COUNTS if binning.kind == "value" else 0
    histogram = np.zeros((tokenizer.n_features, n_values + n_counts))
    for part in parts:
        counts = part.counts
        answers = bin_rows(binning, counts.data, counts.indptr, part.depth, binning.mean_depth, counts.indices).astype(
            np.int64
        )
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
