"""Training batches of a decoder: what is before a place of the order, and that nothing after it enters."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from scbioformers.config import ModelConfig, bin_rows
from scbioformers.core import SPECIALS
from scbioformers.nn import Sizes
from scbioformers.tokens import DecoderTokenizer

FIRST, M = len(SPECIALS), 60
EVERY = 2 * M


@pytest.fixture(scope="module")
def block(make_block):
    return make_block(n_features=M, n_cells=8)


@pytest.fixture(scope="module")
def tokenizer(block, make_tokenizer):
    plain = make_tokenizer(block)
    own = {each.name: getattr(plain, each.name) for each in fields(plain)}
    return DecoderTokenizer(**own, zero_rate=0.5, name_order=np.random.default_rng(0).permutation(M))


def train(tokenizer, block, rows=None, *, n_context=EVERY, n_masked=EVERY, epoch=1):
    rows = np.arange(len(block.depth)) if rows is None else rows
    return tokenizer.training_batch(block, rows, seed=3, epoch=epoch, n_context=n_context, n_masked=n_masked)


def changed(block, later, factor=3):
    """Other counts at positions (n, M) that are expressed; what is not modelled stays."""
    x = block.counts.toarray()
    new = np.where(later, x * factor, x)
    counts = type(block.counts)(new.astype(np.float32))
    added = (new - x).sum(axis=1, dtype=np.float64)
    return replace(block, counts=counts, total=block.total + added)


def places_of(tokenizer, block):
    """(n, M), place of each feature, from batches in which every feature is expressed and asked."""
    whole = replace(block, counts=type(block.counts)(np.ones(block.counts.shape, np.float32)))
    ids = train(tokenizer, whole).context_ids.numpy() - FIRST
    assert (np.sort(ids, axis=1) == np.arange(M)).all()
    return ids.argsort(axis=1)


def test_a_prefix_is_what_comes_before_the_feature_in_the_order(tokenizer, block):
    """Known features, tokens, and levels of each masked feature, one at a time."""
    batch, places, x = train(tokenizer, block), places_of(tokenizer, block), block.counts.toarray()
    for cell in range(len(x)):
        ids = batch.context_ids[cell][batch.context_ids[cell] > 0].numpy() - FIRST
        assert set(ids) == set(np.flatnonzero(x[cell]))
        assert (np.diff(places[cell][ids]) > 0).all()
        for at, masked in enumerate(batch.masked_ids[cell].tolist()):
            if not masked:
                continue
            before = places[cell] < places[cell][masked - FIRST]
            np.testing.assert_array_equal(batch.known[cell, at], before)
            assert batch.prefixes[cell, at] == (before & (x[cell] > 0)).sum()
            size = np.exp(float(batch.log_depth[cell, at]))
            expected = np.where(before, np.log1p(x[cell] / size), 0.0)
            np.testing.assert_allclose(batch.visible[cell, at], expected, rtol=1e-5)
        assert batch.known[cell, -1].all()
        assert np.exp(float(batch.log_depth[cell, -1])) == pytest.approx(
            block.depth[cell] / tokenizer.binning.mean_depth
        )


def test_expressed_features_and_a_share_of_the_zeros_are_asked(tokenizer, block):
    asked, x = [], block.counts.toarray() > 0
    for epoch in range(30):
        ids = train(tokenizer, block, epoch=epoch).masked_ids.numpy()
        asked.append([np.isin(np.arange(M), row[row > 0] - FIRST) for row in ids])
    share = np.mean(asked, axis=0)
    assert (share[x] == 1).all()
    assert abs(share[~x].mean() - 0.5) < 0.02
    target = train(tokenizer, block)
    full = bin_rows(tokenizer.binning, block.counts.data, block.counts.indptr, block.depth)
    dense = np.zeros((len(x), M))
    dense[x] = full
    for ids, bins, own in zip(target.masked_ids.numpy(), target.target_bins.numpy(), dense, strict=True):
        np.testing.assert_array_equal(bins[ids > 0], own[ids[ids > 0] - FIRST])


def test_nothing_after_a_place_changes_what_is_before_it(tokenizer, block, make_network):
    """Every place in turn: later counts are tripled. Inputs and predictions before it have the same bits."""
    batch, places = train(tokenizer, block), places_of(tokenizer, block)
    config = {"width": 16, "n_layers": 2, "n_heads": 2, "n_latent": 8, "n_components": 8}
    network = make_network(ModelConfig(architecture="decoder", **config), Sizes(M, tokenizer.binning.n_values))
    with torch.no_grad():
        before = network(batch).log_probs
    at = np.where(
        batch.masked_ids > 0, np.take_along_axis(places, np.maximum(batch.masked_ids.numpy() - FIRST, 0), 1), M
    )
    token_places = np.take_along_axis(places, np.maximum(batch.context_ids.numpy() - FIRST, 0), 1)
    for place in range(0, M, 7):
        other = train(tokenizer, changed(block, places >= place))
        same = torch.from_numpy(at <= place)
        for name in ("prefixes", "visible", "known", "log_depth", "small_count_bins"):
            assert torch.equal(getattr(other, name)[:, :-1][same], getattr(batch, name)[:, :-1][same]), name
        early = torch.from_numpy(token_places < place)
        assert torch.equal(other.context_ids, batch.context_ids)
        assert torch.equal(other.context_bins[early], batch.context_bins[early])
        with torch.no_grad():
            after = network(other).log_probs
        assert torch.equal(after[same], before[same])
        if place:
            assert not torch.equal(after[~same], before[~same])


def test_tokens_over_the_budget_are_the_last_of_the_order(tokenizer, block):
    """So that it does not depend on later features which tokens there are."""
    whole, some = train(tokenizer, block), train(tokenizer, block, n_context=5)
    assert torch.equal(some.context_ids, whole.context_ids[:, :5])
    assert torch.equal(some.context_bins, whole.context_bins[:, :5])
    assert torch.equal(some.prefixes, whole.prefixes.clamp(max=5))


def test_a_batch_does_not_depend_on_its_other_cells(tokenizer, block):
    whole, rows = train(tokenizer, block, n_masked=8), np.array([5, 2])
    some = train(tokenizer, block.take(rows), rows, n_masked=8)
    n = some.context_ids.shape[1]
    for each in fields(some):
        value, full = getattr(some, each.name), getattr(whole, each.name)
        if isinstance(value, torch.Tensor):
            full = full[rows][:, :n] if each.name.startswith("context") else full[rows]
            assert torch.equal(value, full) or bool(full.isnan().all()), each.name


def test_at_inference_tokens_are_in_the_order_of_the_names(tokenizer, block):
    rows = np.arange(len(block.depth))
    batch = tokenizer.inference_batch(block, rows)
    assert batch.prefixes is None
    for ids, bins, x in zip(batch.context_ids.numpy(), batch.context_bins.numpy(), block.counts.toarray(), strict=True):
        own = ids[ids > 0] - FIRST
        assert (np.diff(tokenizer.name_order[own]) > 0).all()
        assert set(own) == set(np.flatnonzero(x))
        assert (bins[ids > 0] > 0).all()
        assert not ids[len(own) :].any()


def test_where_hardly_anything_is_visible_the_depth_is_near_the_mean(tokenizer, block):
    """And the more is visible, the nearer it is to the depth of the cell. All genes of these cells are modelled."""
    modelled = block.counts.sum(axis=1).A1.astype(np.float64)
    alone = replace(block, total=modelled)
    batch, places = train(tokenizer, alone), places_of(tokenizer, block)
    mean_depth = tokenizer.binning.mean_depth
    share = tokenizer.depth.natural.share.astype(float)
    weight = tokenizer.depth.natural.weights.sum()
    for cell in range(3):
        for at, masked in enumerate(batch.masked_ids[cell].tolist()):
            before = places[cell] < places[cell][masked - FIRST] if masked else None
            if before is None or before.all():
                continue
            known = max(1 - weight * share[~before].sum(), 1e-3)
            seen = alone.counts[cell].toarray().ravel()[before].sum()
            expected = np.log((seen + 0.01 * mean_depth) / (known + 0.01) / mean_depth)
            assert float(batch.log_depth[cell, at]) == pytest.approx(expected, abs=1e-5)
