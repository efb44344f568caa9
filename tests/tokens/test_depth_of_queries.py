"""The depth of cells of a query: with all genes, without some of them, and with masked genes on top."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers.data import Block, DepthRule

ABSENT = np.arange(100) % 4 == 0


def types_of_cells(n_cells, seed) -> Block:
    """Counts of three types of cells that differ in depth. A fifth of the depth is not modelled."""
    types = np.random.default_rng(0).gamma(0.5, 1.0, size=(3, 100))
    random = np.random.default_rng(seed)
    rates = types[random.integers(3, size=n_cells)] * random.gamma(10.0, 40.0, size=(n_cells, 1)) / 50
    x = random.poisson(rates).astype(np.float32)
    total = x.sum(axis=1, dtype=float) + random.poisson(0.25 * rates.sum(axis=1))
    return Block(0, sp.csr_matrix(x), total, np.zeros((n_cells, 0), np.int32))


def lose_genes(block: Block, training: Block, kind: str) -> Block:
    """The cells as read from data that have lost a quarter of the genes of the model."""
    x = block.counts.toarray()
    lost = x[:, ABSENT].sum(axis=1, dtype=float)
    x[:, ABSENT] = 0
    counts, trained = sp.csr_matrix(x), training.counts.toarray() / training.depth[:, None]
    if kind == "modelled-only":  # all other columns are lost as well
        rule = DepthRule(modelled_only=True, share=float(trained[:, ~ABSENT].sum(axis=1).mean()))
        return replace(block, counts=counts, total=x.sum(axis=1, dtype=float), present=~ABSENT, rule=rule)
    rule = DepthRule(share=1.0 - float(trained[:, ABSENT].sum(axis=1).mean()))
    return replace(block, counts=counts, total=block.total - lost, present=~ABSENT, rule=rule)


@pytest.fixture(scope="module")
def training():
    return types_of_cells(300, seed=1)


@pytest.fixture(scope="module")
def tokenizer(training, make_tokenizer):
    return make_tokenizer(training)


@pytest.fixture(scope="module")
def query():
    return types_of_cells(200, seed=2)


@pytest.fixture(params=["some-lost", "modelled-only"])
def lost(request, query, training):
    return lose_genes(query, training, request.param)


def asked(block, share=0.3):
    return np.random.default_rng(5).random(block.counts.shape) < share


def test_with_nothing_masked_the_depth_is_that_of_the_block(tokenizer, query, lost):
    for block in (query, lost):
        nothing = sp.csr_matrix(block.counts.shape, dtype=bool)
        np.testing.assert_array_equal(tokenizer.whole_depth(block, nothing), block.depth)
        np.testing.assert_array_equal(tokenizer.whole_depth(block), block.depth)


def test_with_genes_masked_the_depth_is_near_the_one_without(tokenizer, query, lost):
    """The error that the mask adds is well below that of a constant share for all cells."""
    for block in (query, lost):
        mask = asked(block)
        found = tokenizer.whole_depth(block, sp.csr_matrix(mask))
        constant = block.total - np.where(mask, block.counts.toarray(), 0).sum(axis=1, dtype=float)
        error = np.log(found / block.depth)
        assert error.std() < 0.6 * np.log(constant / block.depth).std()
        assert abs(error.mean()) < 0.03


def test_lost_genes_leave_the_depth_near_the_true_one(tokenizer, query, lost):
    found = tokenizer.whole_depth(lost, sp.csr_matrix(asked(lost)))
    assert abs(np.log(found / query.depth).mean()) < 0.03
    assert np.corrcoef(found, query.depth)[0, 1] > 0.95


@pytest.mark.parametrize("drawn", [False, True])
def test_to_ask_for_a_gene_that_is_not_measured_changes_no_depth(drawn, tokenizer, lost):
    mask = asked(lost) & ~ABSENT
    both = mask | ABSENT
    first, second = (
        tokenizer.inference_batch(lost, np.arange(200), sp.csr_matrix(each), drawn=drawn) for each in (mask, both)
    )
    np.testing.assert_array_equal(second.log_depth, first.log_depth)
    np.testing.assert_array_equal(second.small_count_bins, first.small_count_bins)
    np.testing.assert_array_equal(second.context_bins, first.context_bins)


def test_small_counts_have_one_bin_each_if_nothing_is_masked(tokenizer, query, lost):
    """The depth is known exactly then."""
    for block in (query, lost):
        shares = tokenizer.inference_batch(block, np.arange(200)).small_count_bins
        np.testing.assert_allclose(shares.max(dim=2).values, 1.0)
    masked = tokenizer.inference_batch(query, np.arange(200), sp.csr_matrix(asked(query))).small_count_bins
    assert (masked.max(dim=2).values < 0.99).any()
    np.testing.assert_allclose(masked.sum(dim=2), 1.0, rtol=1e-6)
