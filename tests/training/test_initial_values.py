"""What the training data say before the first step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.config import Binning, Masking, ModelConfig
from scbioformers.core import SPECIALS, bin_normalized
from scbioformers.data import AnnDataSource, Block, Statistics, scan
from scbioformers.nn import Encoder, Sizes, initialise
from scbioformers.tokens import Tokenizer
from scbioformers.training._initial_values import bin_means, compute_initial_values

MASKINGS = [
    pytest.param(Masking(), id="default"),
    pytest.param(Masking(ratio=0.4, nonzero_share=0.25), id="many-zeros"),
    pytest.param(Masking(rule="paper", ratio=0.3), id="paper"),
]


@pytest.fixture
def data(simulated):
    """Sample, statistics and tokenizer of the simulated counts, with half of the genes modelled."""
    source = AnnDataSource(simulated, columns=np.arange(0, 40, 2))
    statistics = scan(source)
    binning = Binning(cutoff=3).freeze(mean_depth=statistics.mean_depth, max_bin=9)
    return source.read(0, 60), statistics, Tokenizer(binning, 20, Masking())


def start_of(sample, statistics, tokenizer, *, n_batches=0, phenotypes=(), seed=0):
    sizes = Sizes(tokenizer.n_features, tokenizer.binning.n_values, n_batches, phenotypes)
    return compute_initial_values([sample], statistics, tokenizer, sizes, seed)


def slow_log_bins(x, bins, masking, n_values, n_small=8):
    """Bin by bin: how often each feature, where it is masked, has it; plus 5 cells like the average feature.

    The counts 1 to `n_small` are not counted in their bins: they have columns of their own.
    """
    n_cells, n_features = x.shape
    masked = [masking.counts(int((row > 0).sum()), n_features) for row in x]
    rate_nonzero = sum(n for n, _ in masked) / (x > 0).sum()
    rate_zero = sum(n for _, n in masked) / (x == 0).sum()
    weights = np.zeros((n_features, n_values + n_small))
    for cell in range(n_cells):
        for feature in range(n_features):
            weight = 1.0 if x[cell, feature] > 0 else rate_zero / rate_nonzero
            is_small = x[cell, feature] in range(1, n_small + 1)
            weights[feature, n_values - 1 + int(x[cell, feature]) if is_small else bins[cell, feature]] += weight
    average = weights.sum(axis=0) + 0.1
    for feature in range(n_features):
        weights[feature] += 5 * average / average.sum()
    return np.log(weights / weights.sum(axis=1)[:, None])


# --- bins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", MASKINGS)
def test_log_bins_are_the_frequencies_where_masked_shrunk_to_the_average_feature(masking, data):
    sample, statistics, tokenizer = data
    x = sample.counts.toarray()
    scaled = x.astype(np.float64) * statistics.mean_depth / sample.depth[:, None]
    bins = np.minimum(bin_normalized(scaled, 3, 3), 9)
    assert (bins == 9).any()
    found = start_of(sample, statistics, replace(tokenizer, masking=masking)).log_bins
    np.testing.assert_allclose(found, slow_log_bins(x, bins, masking, 10), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("masking", MASKINGS)
def test_log_bins_predict_what_is_found_under_the_masks(masking, make_block, make_tokenizer):
    sample = make_block(n_cells=300, n_features=20, seed=4)
    tokenizer = make_tokenizer(sample, masking=masking)
    start = start_of(sample, statistics_of(sample), tokenizer)
    seen = np.zeros(start.log_bins.shape)
    for epoch in range(20):
        batch = tokenizer.training_batch(sample, np.arange(300), seed=0, epoch=epoch, n_context=99, n_masked=99)
        scored = (batch.masked_ids > 0).numpy()
        features, answers = batch.masked_ids.numpy()[scored] - len(SPECIALS), batch.target_bins.numpy()[scored]
        counts = batch.target_counts.numpy()[np.nonzero(scored)[0], features].astype(int)
        small = (counts >= 1) & (counts <= 8)
        answers[small] = tokenizer.binning.n_values - 1 + counts[small]
        np.add.at(seen, (features, answers), 1)
    predicted = np.exp(start.log_bins)
    # features that are nearly always or never expressed are masked at rates of their own, hence the margin
    distance = 0.5 * np.abs(seen / seen.sum(axis=1, keepdims=True) - predicted).sum(axis=1)
    natural = np.asarray((sample.counts > 0).mean(axis=0)).ravel()
    uncorrected = np.abs(1 - seen[:, 0] / seen.sum(axis=1) - natural)
    assert distance.mean() < 0.1
    assert distance.mean() < uncorrected.mean()


def test_log_bins_of_segments(make_block, make_tokenizer):
    sample = make_block(n_cells=30, n_features=15, log=True)
    tokenizer = make_tokenizer(sample, kind="segment", counts=False)
    x = sample.counts.toarray()
    at_most = (x[:, :, None] >= np.where(x > 0, x, np.inf)[:, None, :]).sum(axis=2)
    bins = np.where(x > 0, -(-10 * at_most // (x > 0).sum(axis=1, keepdims=True)), 0)
    found = start_of(sample, statistics_of(sample), tokenizer).log_bins
    np.testing.assert_allclose(found, slow_log_bins(x, bins, Masking(), 11, n_small=0), rtol=1e-4, atol=1e-5)


def test_log_bins_of_values_that_are_no_integers_are_in_the_bins(data):
    sample, statistics, tokenizer = data
    x = sample.counts.toarray() * 0.75
    bins = np.minimum(bin_normalized(x.astype(np.float64) * statistics.mean_depth / sample.depth[:, None], 3, 3), 9)
    found = start_of(replace(sample, counts=sp.csr_matrix(x)), statistics, tokenizer).log_bins
    assert ((x == 3) & (bins > 0)).any()  # 0.75 times 4
    np.testing.assert_allclose(found, slow_log_bins(x, bins, Masking(), 10), rtol=1e-4, atol=1e-5)


def statistics_of(block: Block, **kwargs) -> Statistics:
    """By plain numpy."""
    x = block.counts.toarray().astype(np.float64)
    scaled = x * block.depth.mean() / block.depth[:, None]
    values = {
        "n_cells": len(x),
        "n_empty": 0,
        "mean_depth": block.depth.mean(),
        "mean_modelled_depth": x.sum(axis=1).mean(),
        "gene_mean": scaled.mean(axis=0),
        "gene_var": scaled.var(axis=0),
        "depth_share": x.sum(axis=0) / block.depth.sum(),
        "gene_nnz": (x > 0).sum(axis=0),
        "n_measured": np.full(x.shape[1], len(x)),
        "max_normalized": scaled.max(),
        "max_count": x.max(),
    }
    return Statistics(**values | kwargs)


@pytest.mark.parametrize("normalize", [True, False])
def test_bin_means_are_the_mean_counts_within_each_bin(normalize, data):
    sample, statistics, tokenizer = data
    binning = Binning(cutoff=3, normalize=normalize).freeze(mean_depth=statistics.mean_depth, max_bin=20)
    x = sample.counts.toarray().astype(np.float64)
    scaled = x * statistics.mean_depth / sample.depth[:, None] if normalize else x
    bins = bin_normalized(scaled, 3, 3)
    found = bin_means([sample], replace(tokenizer, binning=binning))
    lower, upper = binning.edges()
    assert found.shape == (21,)
    assert found[0] == 0
    filled = np.unique(bins[x > 0])
    assert 3 < len(filled) < 20
    for bin_ in range(1, 21):
        expected = scaled[bins == bin_].mean() if bin_ in filled else (lower[bin_] + upper[bin_]) / 2
        assert found[bin_] == pytest.approx(expected), bin_


def test_bin_means_of_segments_are_the_bins(make_block, make_tokenizer):
    sample = make_block(n_cells=30, n_features=15, log=True)
    assert bin_means([sample], make_tokenizer(sample, kind="segment", counts=False)).tolist() == list(range(11))


# --- means and dispersions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "variance", "inverse_dispersion"),
    [
        pytest.param(2.0, 4.0, 2.0, id="4-over-4-minus-2"),
        pytest.param(4.0, 36.0, 0.5, id="16-over-36-minus-4"),
        pytest.param(3.0, 3.5, 18.0, id="nearly-poisson"),
        pytest.param(3.0, 3.0, 100.0, id="poisson-at-the-limit"),
        pytest.param(3.0, 1.0, 100.0, id="below-poisson-at-the-limit"),
        pytest.param(0.1, 50.0, 0.01, id="very-dispersed-at-the-limit"),
    ],
)
def test_dispersions_by_moments(mean, variance, inverse_dispersion, data):
    sample, statistics, tokenizer = data
    statistics = replace(statistics, gene_mean=np.full(20, mean), gene_var=np.full(20, variance))
    start = start_of(sample, statistics, tokenizer)
    np.testing.assert_allclose(np.exp(start.log_dispersion), inverse_dispersion, rtol=1e-5)
    np.testing.assert_allclose(start.rate, math.log(mean), rtol=1e-5)


def test_dispersions_of_negative_binomial_counts_are_recovered():
    random = np.random.default_rng(0)
    truth = np.array([0.5, 1.0, 2.0, 5.0])
    x = random.poisson(random.gamma(truth, 8.0 / truth, size=(40_000, 4)))
    # equal depths, so that the normalised counts are the counts
    sample = Block(0, sp.csr_matrix(x.astype(np.float32))[:200], np.full(200, 100.0), np.zeros((200, 0), np.int32))
    statistics = replace(statistics_of(sample), gene_mean=x.mean(axis=0), gene_var=x.var(axis=0))
    tokenizer = Tokenizer(Binning().freeze(mean_depth=100.0, max_bin=30), 4, Masking())
    start = start_of(sample, statistics, tokenizer)
    np.testing.assert_allclose(np.exp(start.log_dispersion), truth, rtol=0.1)


def test_a_feature_that_is_never_expressed_has_a_finite_start(data):
    sample, statistics, tokenizer = data
    mean, variance = statistics.gene_mean.copy(), statistics.gene_var.copy()
    mean[3] = variance[3] = 0.0
    x = sample.counts.toarray()
    x[:, 3] = 0
    start = start_of(
        replace(sample, counts=sp.csr_matrix(x)), replace(statistics, gene_mean=mean, gene_var=variance), tokenizer
    )
    assert start.rate[3] == pytest.approx(math.log(0.5 / 60), rel=1e-5)
    for name in ("rate", "log_dispersion", "log_bins", "components", "component_scale", "profile_mean"):
        assert np.isfinite(getattr(start, name)).all(), name
    assert start.log_bins[3].argmax() == 0


def test_without_counts_the_rate_is_the_logit_of_the_mean_share_of_the_highest_bin(make_block, make_tokenizer):
    sample = make_block(n_cells=30, n_features=15, log=True)
    tokenizer = make_tokenizer(sample, kind="segment", counts=False)
    start = start_of(sample, statistics_of(sample), tokenizer)
    share = tokenizer.profiles(sample).toarray().mean(axis=0)
    inside = (share > 0.01) & (share < 0.99)
    assert inside.any()
    np.testing.assert_allclose(1 / (1 + np.exp(-start.rate[inside])), share[inside], rtol=1e-4)
    assert np.isfinite(start.rate).all()


# --- batches -------------------------------------------------------------------------------------------------------


def test_the_start_of_a_batch_is_its_effect_on_profiles_and_rates(data):
    """Three times the counts of some genes in one batch, at the same depth."""
    sample, statistics, tokenizer = data
    codes = np.random.default_rng(0).integers(0, 2, size=60)
    changed = np.array([3, 8, 11])
    counts = sample.counts.toarray()
    counts[:, changed] = 2.0
    counts[np.ix_(codes == 1, changed)] = 6.0
    fields = codes[:, None].astype(np.int32)
    sample = replace(sample, counts=sp.csr_matrix(counts), fields=fields, total=np.full(60, statistics.mean_depth))
    start = start_of(sample, statistics, tokenizer, n_batches=2)
    difference = np.diff(start.batch_rate, axis=0)[0]
    np.testing.assert_allclose(difference[changed], math.log(3), atol=0.05)
    shift = np.diff(start.batch_shift, axis=0)[0]
    np.testing.assert_allclose(shift[changed], math.log(7 / 3), atol=0.02)


def test_a_phenotype_has_no_part_in_the_effects_of_batches(data):
    sample, statistics, tokenizer = data
    codes = np.random.default_rng(0).integers(0, 2, size=(60, 2)).astype(np.int32)
    both = start_of(replace(sample, fields=codes), statistics, tokenizer, n_batches=2)
    alone = start_of(replace(sample, fields=codes[:, :1]), statistics, tokenizer, n_batches=2)
    np.testing.assert_array_equal(both.batch_shift, alone.batch_shift)
    np.testing.assert_array_equal(both.batch_rate, alone.batch_rate)


def test_the_effect_of_a_phenotype_is_that_which_the_batch_leaves(data):
    """Genes of the batch are multiplied by 3, genes of the phenotype by 4. Half of the cells of a batch have it."""
    sample, statistics, tokenizer = data
    codes = np.stack([np.arange(60) % 2, np.arange(60) // 2 % 2], axis=1)
    batch_genes, own_genes, counts = np.array([3, 8, 11]), np.array([2, 9]), sample.counts.toarray()
    counts[:, batch_genes] = np.where(codes[:, :1] == 1, 6.0, 2.0)
    counts[:, own_genes] = np.where(codes[:, 1:] == 1, 8.0, 2.0)
    total = np.full(60, statistics.mean_depth)
    sample = replace(sample, counts=sp.csr_matrix(counts), fields=codes.astype(np.float32), total=total)
    start = start_of(sample, statistics, tokenizer, n_batches=2, phenotypes=(2,))
    shift, rate = (np.diff(effect, axis=0)[0] for effect in start.phenotypes[0])
    np.testing.assert_allclose(rate[own_genes], math.log(4), atol=0.1)
    np.testing.assert_allclose(shift[own_genes], math.log(9 / 3), atol=0.05)
    np.testing.assert_allclose(rate[batch_genes], 0, atol=0.1)
    np.testing.assert_allclose(np.diff(start.batch_rate, axis=0)[0][batch_genes], math.log(3), atol=0.1)


def test_a_cell_of_an_unknown_phenotype_is_not_compared(data):
    sample, statistics, tokenizer = data
    codes = (np.arange(60) % 2).astype(np.float32)
    codes[:20] = np.nan
    sample = replace(sample, fields=codes[:, None])
    changed = sample.counts.toarray()
    changed[:20, 5] = 0  # seen by the mean alone
    starts = [
        start_of(replace(sample, counts=sp.csr_matrix(x)), statistics, tokenizer, phenotypes=(2,)).phenotypes[0][1]
        for x in (sample.counts.toarray(), changed)
    ]
    np.testing.assert_allclose(starts[0][:, 5], starts[1][:, 5], atol=0.05)


def test_a_category_without_cells_has_no_effect(data):
    sample, statistics, tokenizer = data
    fields = np.zeros((60, 1), np.int32)
    start = start_of(replace(sample, fields=fields), statistics, tokenizer, n_batches=2)
    assert not start.batch_shift.any()
    assert not start.batch_rate.any()


# --- components ----------------------------------------------------------------------------------------------------


def test_components_are_those_of_the_centred_log_profiles(data):
    sample, statistics, tokenizer = data
    start = start_of(sample, statistics, tokenizer)
    profiles = np.log1p(sample.counts.toarray() * (statistics.mean_depth / sample.depth)[:, None])
    centred = profiles - profiles.mean(axis=0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    assert start.components.shape == (20, 19)
    np.testing.assert_allclose(start.profile_mean, profiles.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(start.component_scale, singular[:19] / math.sqrt(59), rtol=1e-4)
    np.testing.assert_allclose(np.abs((right[:19] * start.components.T).sum(axis=1)), 1.0, atol=1e-4)
    np.testing.assert_allclose((centred @ start.components).std(axis=0, ddof=1), start.component_scale, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits(data):
    first, second = (start_of(*data, seed=7) for _ in range(2))
    for name in ("components", "component_scale", "profile_mean", "rate", "log_dispersion", "log_bins"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_few_cells_start_a_network(n_cells, data):
    sample, statistics, tokenizer = data
    few = Block(0, sample.counts[:n_cells], sample.depth[:n_cells], sample.fields[:n_cells])
    start = start_of(few, statistics, tokenizer)
    assert start.components.shape == (20, n_cells - 1)
    assert start.component_scale.shape == (n_cells - 1,)
    network = Encoder(ModelConfig(width=8, n_layers=1, n_heads=1, n_latent=4), Sizes(20, 10))
    initialise(network, start, 0)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
