"""Scores of cells: how likely they are compared with cells that the model draws, whatever their depth and genes."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats
from scipy.special import rel_entr

import scbioformers as bf
from scbioformers.data import concatenate
from scbioformers.model import make_batches, score_cells, score_quantiles
from scbioformers.model._scores import N_DRAWS
from scbioformers.nn import count_losses
from scbioformers.results import open_query

pytestmark = pytest.mark.filterwarnings("ignore::scbioformers.core.BioformersWarning")


def read(adata, model):
    query = open_query(adata, model)
    return query.model, query.source.read(0, adata.n_obs)


@torch.no_grad()
def rates(model, block, network) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts (N, M), and the inverse dispersion (M,)."""
    mean = np.zeros(block.counts.shape)
    for batch in make_batches(model, block, 64):
        mean[batch.rows] = (network(batch).log_rate + batch.size_factor.log()[:, None]).double().exp()
    return mean, network.log_dispersion.double().exp().detach().numpy()


def exact(model, block, network) -> tuple[np.ndarray, np.ndarray]:
    """Score of each cell with the expected log-likelihood instead of that of draws, and the error of such a draw."""
    mean, size = rates(model, block, network)
    distribution = stats.nbinom(size, size / (size + mean))
    support = np.arange(3000)[:, None, None]
    log_pmf = distribution.logpmf(support)
    expected = (np.exp(log_pmf) * log_pmf).sum(axis=0)
    variance = (np.exp(log_pmf) * log_pmf**2).sum(axis=0) - expected**2
    counts = block.counts.toarray()
    there, n = block.present, (counts > 0).sum(axis=1)
    score = (distribution.logpmf(counts) - expected)[:, there].sum(axis=1) / n
    return score, np.sqrt(variance[:, there].sum(axis=1)) / n


@pytest.mark.parametrize("n_genes", [40, 28], ids=["all-genes", "absent-genes"])
def test_scores_are_log_likelihoods_minus_their_expectation(fitted, n_genes):
    model, block = read(fitted[:12, :n_genes].copy(), bf.get.model(fitted))
    score, error = exact(model, block, model.members[0])
    found = score_cells(model, block)
    standardised = (found - score) / (error / np.sqrt(N_DRAWS))
    assert np.abs(standardised).max() < 4
    assert standardised.std() == pytest.approx(1.0, abs=0.5)  # the draws have the right spread
    assert np.abs(found - score).mean() < 0.5 * score.std() + 0.2


def test_losses_of_counts_are_those_of_scipy():
    random = np.random.default_rng(0)
    counts = random.poisson(2.0, (6, 9)).astype(np.float32)
    log_mean, log_size = random.normal(size=(6, 9)), random.normal(size=9)
    present = np.ones((6, 9), bool)
    present[:, 4] = False
    counts[:, 4] = 0
    size, mean = np.exp(log_size), np.exp(log_mean)
    expected = -(stats.nbinom.logpmf(counts, size, size / (size + mean)) * present).sum(axis=1)
    arrays = (torch.from_numpy(x) for x in (log_mean, log_size, counts.astype(float), present))
    np.testing.assert_allclose(count_losses(*arrays).numpy(), expected, rtol=1e-10)


def test_a_score_does_not_depend_on_the_batch_size_or_on_the_other_cells(fitted):
    model, block = read(fitted, bf.get.model(fitted))
    expected = score_cells(model, block)
    np.testing.assert_allclose(score_cells(model, block, batch_size=7), expected, atol=1e-4)
    np.testing.assert_allclose(score_cells(model, block.take(np.arange(9))), expected[:9], atol=1e-4)
    later = replace(block.take(np.arange(9)), start=100)  # the rows of a source that is read in parts
    assert np.isfinite(score_cells(model, later)).all()


def test_cells_that_are_not_as_in_training_score_low(fitted):
    model = bf.get.model(fitted)
    known = np.median(score_cells(*read(fitted, model)))
    renamed = fitted[:, np.random.default_rng(0).permutation(40)].copy()
    renamed.var_names = fitted.var_names
    assert np.median(score_cells(*read(renamed, model))) < known - 0.3
    # the same cells at half the depth, or without a third of the genes, do not score lower
    thinned = fitted.copy()
    thinned.X = sp.csr_matrix(np.random.default_rng(0).binomial(fitted.X.toarray().astype(int), 0.5).astype("f4"))
    fewer = fitted[:, np.arange(40) % 3 > 0].copy()
    for same in (thinned, fewer):
        assert np.median(score_cells(*read(same, model))) > known - 0.1


def test_the_members_of_an_ensemble_are_averaged(ensemble):
    adata = bf.datasets.simulate(20, 30, n_regulators=5, n_batches=2, rng=3)
    model, block = read(adata, ensemble)
    each = [score_cells(replace(model, members=(member,)), block) for member in model.members]
    np.testing.assert_allclose(score_cells(model, block), np.mean(each, axis=0), atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-3


def test_values_that_are_not_counts_score_by_the_divergence_of_their_bins(simulated, tiny_config):
    simulated.X = np.log1p(simulated.X.toarray() if sp.issparse(simulated.X) else simulated.X)
    bf.tl.fit(simulated, binning="segment", config=tiny_config, train=bf.TrainConfig(max_steps=1))
    model, block = read(simulated[:10].copy(), bf.get.model(simulated))
    with torch.no_grad():
        (batch,) = make_batches(model, block, 64)
        predicted = model.members[0](batch).log_rate.double().sigmoid().numpy()
    target = batch.target_counts.double().numpy()
    divergence = rel_entr(target, predicted) + rel_entr(1 - target, 1 - predicted)
    expected = -divergence.sum(axis=1) / (target > 0).sum(axis=1)
    np.testing.assert_allclose(score_cells(model, block)[batch.rows], expected, rtol=1e-4)


def test_quantiles_of_scores(fitted):
    empty = ad.AnnData(sp.csr_matrix((2, 40), dtype=np.float32), var=fitted.var[[]])
    model, block = read(fitted, bf.get.model(fitted))
    _, without = read(empty, model)
    both = concatenate([block, without])
    scores = score_cells(model, both)
    assert np.isnan(scores).tolist() == [False] * 60 + [True] * 2
    found = score_quantiles(model, [both])
    assert found.dtype == np.float32 and found.shape == (21,)
    np.testing.assert_allclose(found[[0, 10, 20]], [scores[:60].min(), np.median(scores[:60]), scores[:60].max()])
    assert (scores[:60] < found[1]).sum() == 3  # 5 % of 60
    assert score_quantiles(model, [without]).shape == (0,)
