"""What goes around attention: the bag of the known features, the words of a batch, what <cls> says of the masked."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS
from scbioformers.nn import Sizes

SIZES = Sizes(n_features=30, n_values=12, n_batches=3, phenotype_sizes=(2,))
CONFIG = ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
FIRST = len(SPECIALS)


@pytest.fixture
def network(make_network):
    """Every weight far from its start."""
    network = make_network(CONFIG, SIZES)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return network


@pytest.fixture
def batch(make_batch):
    return make_batch(sizes=SIZES)


def knowing(batch, share, seed=2):
    """The same cells, of which a random share of the features is known."""
    known = torch.rand(batch.known.shape, generator=torch.Generator().manual_seed(seed)) < share
    return replace(batch, known=known)


def differs(first, second):
    return bool((first - second).abs().max() > 1e-3)


# --- the bag -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_the_bag_is_the_sum_of_the_departures_of_the_known(share, network, batch):
    batch = knowing(batch, share)
    embedding = network.feature.weight.detach().double().numpy()[FIRST:]
    mean, scale = network.profile_mean.double().numpy(), network.bag_scale.double().numpy()
    expected = np.zeros((5, 16))
    for cell in range(5):
        known = [j for j in range(30) if batch.known[cell, j]]
        for j in known:
            expected[cell] += (float(batch.visible[cell, j]) - mean[j]) * embedding[j] / scale
        expected[cell] *= 30 / len(known)  # as if the unknown departed as the known do
    with torch.no_grad():
        found = network.bag(batch).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_feature_that_is_not_known_adds_nothing_whatever_is_written_there(network, batch):
    batch = knowing(batch, 0.6)
    other = replace(batch, visible=torch.where(batch.known, batch.visible, 7.0))
    assert differs(batch.visible, other.visible)
    with torch.no_grad():
        assert torch.equal(network.bag(batch), network.bag(other))
        assert torch.equal(network(batch).log_probs, network(other).log_probs)
        some = batch.known.nonzero()[0]
        visible = batch.visible.index_put(tuple(some), torch.tensor(7.0))
        assert differs(network.bag(batch), network.bag(replace(batch, visible=visible)))


def test_a_known_feature_at_its_mean_and_an_unknown_one_differ_in_scale_alone(network, batch):
    batch = replace(batch, known=torch.ones_like(batch.known))
    visible = batch.visible.clone()
    visible[:, :6] = network.profile_mean[:6]
    known = batch.known.clone()
    known[:, :6] = False
    with torch.no_grad():
        at_the_mean = network.bag(replace(batch, visible=visible))
        unknown = network.bag(replace(batch, visible=visible, known=known))
    torch.testing.assert_close(unknown, at_the_mean * 30 / 24)


def test_a_cell_of_which_nothing_is_known_has_an_empty_bag(network, batch):
    nothing = replace(batch, known=torch.zeros_like(batch.known))
    with torch.no_grad():
        assert not network.bag(nothing).any()
        assert torch.isfinite(network(nothing).log_probs).all()


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_the_words_of_a_batch_are_its_distinct_tokens(external, network, batch):
    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 3, batch.context_ids.shape, generator=random) if external else None
    # few features, so that cells share words
    ids = torch.where(batch.context_ids > 0, FIRST + batch.context_ids % 4, 0)
    table = torch.randn(3, network.config.width, generator=random) if external else None
    batch = replace(batch, context_ids=ids, context_bins=batch.context_bins % 3, context_external=drawn, external=table)
    with torch.no_grad():
        words, which = network.context_tokens(batch)
        expected = network.feature(batch.context_ids) + network.value(batch.context_bins)
        if drawn is not None:
            expected = expected + table[drawn]
    torch.testing.assert_close(words[which], expected)
    columns = [batch.context_ids, batch.context_bins, *([drawn] if external else [])]
    distinct = set(zip(*(x.flatten().tolist() for x in columns), strict=True))
    assert len(words) == len(distinct) < which.numel()


def test_the_same_word_in_many_cells_gathers_their_gradients(network, batch):
    """Twice the same cell is twice its gradient."""
    twice = {name: torch.cat([x, x]) for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    gradients = []
    for each in (batch, replace(batch, **twice)):
        network.zero_grad()
        network(each).log_probs.square().sum().backward()
        gradients.append(network.value.out.weight.grad.clone())
    torch.testing.assert_close(gradients[1], 2 * gradients[0], rtol=1e-3, atol=1e-3)


# --- what <cls> says of the masked ---------------------------------------------------------------------------------


def test_what_is_expected_of_a_feature_is_a_network_of_its_rate_and_the_depth_alone(network, batch):
    """Rate, departure from the usual rate, depth, and the bins that small counts fall in; one feature at a time."""
    log_rate = torch.randn(5, 30, generator=torch.Generator().manual_seed(3))
    gelu = torch.nn.functional.gelu
    with torch.no_grad():
        found = network.rate_features(log_rate, batch)
        assert found.shape == (*batch.masked_ids.shape, 16)
        for cell, row in enumerate(batch.masked_ids.tolist()):
            for at, feature in enumerate(row):
                if feature:
                    rate = log_rate[cell, feature - FIRST]
                    usual = network.rate.bias[feature - FIRST]
                    told = torch.stack([rate, rate - usual, batch.log_depth[cell]])
                    h = network.rate_feature_in.weight @ told + network.rate_feature_in.bias
                    for few, bin_ in product(range(8), range(12)):
                        h = (
                            h
                            + batch.small_count_bins[cell, few, bin_] * network.small_counts.weight[:, 12 * few + bin_]
                        )
                    expected = network.rate_feature_out(gelu(network.rate_feature_inner(gelu(h))))
                    torch.testing.assert_close(found[cell, at], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", ["small_count_bins", "log_depth"])
def test_the_depth_reaches_what_is_masked_and_not_cls(changed, network, batch):
    """<cls> is to say what the cell is, at the mean depth."""
    other = getattr(batch, changed)
    other = other.roll(1, dims=-1) if changed == "small_count_bins" else other + 0.5
    with torch.no_grad():
        before, after = network(batch), network(replace(batch, **{changed: other}))
    assert differs(before.log_probs, after.log_probs)
    assert torch.equal(before.cls, after.cls)
    assert torch.equal(before.log_rate, after.log_rate)


def test_the_logits_depend_on_the_rate_that_cls_decodes_and_on_no_other(network, batch):
    """The decoder of a feature is in its own logits, and in nobody else's."""
    asked = int(batch.masked_ids[0, 0])
    with torch.no_grad():
        before = network(batch)
        network.linear_rate.weight[asked - FIRST, 0] += 1.0
        after = network(batch)
    of_it = batch.masked_ids == asked
    rate_differs = (after.log_rate - before.log_rate).abs() > 1e-3
    assert rate_differs.any(dim=0).nonzero().ravel().tolist() == [asked - FIRST]
    differing = ((after.log_probs - before.log_probs).abs() > 1e-5).any(dim=-1)
    assert differing[0, 0]
    assert not (differing & ~of_it).any()
    assert torch.equal(before.cls, after.cls)


def test_the_logits_are_taught_through_the_decoder(network, batch):
    network.zero_grad()
    network(batch).log_probs.square().sum().backward()
    for parameter in (network.latent_out.weight, network.linear_rate.weight, network.small_counts.weight):
        assert parameter.grad.abs().max() > 1e-4


def test_the_noise_on_the_latent_is_not_in_the_rate_that_the_logits_read(make_network, batch):
    network = make_network(replace(CONFIG, latent_noise=2.0), SIZES).train()
    noisy = replace(batch, noise=torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        quiet, loud = network(batch), network(noisy)
    assert torch.equal(quiet.log_probs, loud.log_probs)
    assert differs(quiet.log_rate, loud.log_rate)
