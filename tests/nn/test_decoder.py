"""The decoder: each masked feature is predicted from its prefix, in one pass over all prefixes or in one pass each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS, uniform
from scbioformers.nn import N_SMALL_COUNTS, OBJECTIVES, Decoder, Sizes
from scbioformers.nn._decoder import _ORDER_STREAM, N_ORDERS

FIRST = len(SPECIALS)
SIZES = Sizes(n_features=30, n_values=12, n_batches=3, phenotype_sizes=(2,))
CONFIG = ModelConfig(architecture="decoder", width=16, n_layers=2, n_heads=2, n_latent=8, n_components=8)
CONFIGS = [
    pytest.param(CONFIG, id="default"),
    pytest.param(replace(CONFIG, n_layers=1), id="one-layer"),
    pytest.param(replace(CONFIG, n_layers=3, value_embedding="lookup"), id="three-layers"),
    pytest.param(replace(CONFIG, bag=False), id="no-bag"),
    pytest.param(replace(CONFIG, attention=False), id="no-attention"),
]


@pytest.fixture
def build(make_network):
    """A network in float64 whose every weight is far from its start, so that no path through it is closed."""

    def make(config=CONFIG):
        network = make_network(config, SIZES).double()
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        return network

    return make


@pytest.fixture
def batch(make_batch):
    """A training batch in float64: prefixes of 0, 1, … tokens, each with a bag and a depth of its own."""
    found = make_batch(sizes=SIZES)
    n, n_prefixes, random = len(found), found.masked_ids.shape[1] + 1, np.random.default_rng(2)
    n_tokens = (found.context_ids > 0).sum(dim=1).numpy()
    arrays = {
        "prefixes": np.sort(random.integers(0, n_tokens[:, None] + 1, (n, n_prefixes)), axis=1),
        "visible": random.gamma(0.5, 1.0, (n, n_prefixes, 30)),
        "known": random.random((n, n_prefixes, 30)) < np.linspace(0, 1, n_prefixes)[:, None],
        "log_depth": random.normal(size=(n, n_prefixes)),
        "small_count_bins": random.dirichlet(np.full(12, 0.2), (n, n_prefixes, N_SMALL_COUNTS)),
    }
    found = replace(found, **{name: torch.from_numpy(array) for name, array in arrays.items()})
    found.phenotypes[0] = torch.nan
    return found.to("cpu", torch.float64)


def one_prefix(batch, cell, at):
    """The cell as a batch of one, with one prefix that is all that it knows, and the masked feature that is asked."""
    rows = slice(cell, cell + 1)
    own = {name: x[rows] for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    n = int(batch.prefixes[cell, at])
    asked = slice(at, at + 1) if at < batch.masked_ids.shape[1] else slice(0, 0)
    own |= {name: own[name][:, at] for name in ("visible", "known", "log_depth", "small_count_bins")}
    own |= {name: own[name][:, :n] for name in ("context_ids", "context_bins")}
    own |= {name: own[name][:, asked] for name in ("masked_ids", "target_bins")}
    return replace(batch, **(own | {"prefixes": None}))


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_all_prefixes_at_once_are_as_each_prefix_by_itself(config, build, batch):
    """The chain rule: the likelihood of a cell is the product of the predictions of its steps."""
    network = build(config)
    together = network(batch)
    total = 0.0
    for cell in range(len(batch)):
        for at in range(batch.masked_ids.shape[1]):
            alone = network(one_prefix(batch, cell, at))
            torch.testing.assert_close(alone.log_probs[0, 0], together.log_probs[cell, at], rtol=1e-9, atol=1e-9)
            total += alone.log_probs[0, 0, batch.target_bins[cell, at].clamp(min=0)]
        last = network(one_prefix(batch, cell, batch.masked_ids.shape[1]))
        for name in ("cls", "phenotypes", "latent", "log_rate"):
            torch.testing.assert_close(getattr(last, name)[0], getattr(together, name)[cell], rtol=1e-9, atol=1e-9)
    chosen = together.log_probs.gather(2, batch.target_bins.clamp(min=0)[..., None])
    assert float(chosen.sum()) == pytest.approx(float(total), abs=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_nothing_looks_ahead(config, build, batch):
    """Later tokens, bags and depths change, with the lengths as they are: what was before has the same bits."""
    network = build(config).float()
    batch = batch.to("cpu")
    before = network(batch).log_probs
    for at in range(batch.masked_ids.shape[1]):
        later = torch.arange(batch.context_ids.shape[1])[None, :] >= batch.prefixes[:, at : at + 1]
        later &= batch.context_ids > 0
        changed = {
            "context_bins": torch.where(later, (batch.context_bins + 5) % 12, batch.context_bins),
            "context_ids": torch.where(later, FIRST + (batch.context_ids - FIRST + 7) % 30, batch.context_ids),
        }
        for name in ("visible", "log_depth", "small_count_bins"):
            changed[name] = getattr(batch, name).clone()
            changed[name][:, at + 1 :] += 0.5
        after = network(replace(batch, **changed)).log_probs
        assert torch.equal(after[:, : at + 1], before[:, : at + 1])
        assert torch.equal(after, before) == (at + 1 == batch.masked_ids.shape[1])


@torch.no_grad()
def test_visible_features_have_read_those_before_them(build, batch):
    network, whole = build(), one_prefix(batch, 0, batch.masked_ids.shape[1])
    whole = replace(whole, context_ids=batch.context_ids[:1], context_bins=batch.context_bins[:1])
    found = network(whole, contextual=True).context
    shorter = replace(whole, context_ids=whole.context_ids[:, :5], context_bins=whole.context_bins[:, :5])
    torch.testing.assert_close(network(shorter, contextual=True).context, found[:, :5], rtol=1e-9, atol=1e-9)
    later = replace(
        whole, context_bins=torch.cat([whole.context_bins[:, :5], whole.context_bins[:, 5:] % 3 + 4], dim=1)
    )
    torch.testing.assert_close(network(later, contextual=True).context[:, :5], found[:, :5], rtol=1e-9, atol=1e-9)
    assert float((network(later, contextual=True).context[:, 5:] - found[:, 5:]).abs().max()) > 1e-4


@torch.no_grad()
def test_attention_is_the_mean_over_orders_of_that_to_the_features_before(build, batch):
    """One cell, one order and one feature at a time, in a network of one layer."""
    network = build(replace(CONFIG, n_layers=1))
    block = network.blocks[0]
    names = ("visible", "known", "log_depth", "small_count_bins")
    plain = replace(batch, **{name: getattr(batch, name)[:, -1] for name in names}, prefixes=None)
    (found,) = network.attend(plain, [0])
    n_tokens = (plain.context_ids > 0).sum(dim=1)
    state = network.prefix_of_queries(plain.log_depth, network.share_known(plain), network.bag(plain))
    for cell in range(2):
        n, ids = int(n_tokens[cell]), plain.context_ids[cell]
        expected = torch.zeros(2, n, n, dtype=torch.float64)
        for k in range(N_ORDERS):
            keys = uniform(_ORDER_STREAM, k, ids[:n].numpy())
            for order in (np.argsort(keys), np.argsort(-keys)):
                tokens = network.feature.weight[ids[order]] + network.values(plain.context_bins[cell][order])
                tokens = torch.cat([network.start_tokens(plain.phenotypes)[cell], tokens])[None]
                n_start = tokens.shape[1] - n
                for place, i in enumerate(order):
                    query = network.features(ids[i]) + network.mask + state[cell]
                    read = block.keys(tokens[:, : n_start + place])
                    every = torch.ones(read.shape[1], dtype=torch.bool)
                    weights = block.attention.weights(block.attention_norm(query[None, None]), read, every)[0, :, 0]
                    expected[:, i, order[:place]] += weights[:, n_start:] / N_ORDERS
        torch.testing.assert_close(found[cell][:, :n, :n], expected, rtol=1e-9, atol=1e-9)
        assert not found[cell].diagonal(dim1=1, dim2=2).any()


def test_all_parameters_are_trained(build, batch):
    """By the bins, the profile or the phenotypes: none has no gradient."""
    network = build().train()
    target = torch.where(batch.phenotypes.isnan(), 1.0, torch.nan)
    batch = replace(batch, target_phenotypes=target)
    output = network(batch)
    names = ("masked_bins", "profile_counts", "masked_phenotypes")
    sum(OBJECTIVES[name](network, output, batch) for name in names).backward()
    assert isinstance(network, Decoder)
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
