"""The network of several modalities: own values and answers, a bag and losses that do not drown the small ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS
from scbioformers.nn import OBJECTIVES, Encoder, InitialValues, Sizes, initialise, join_batches, join_sizes
from scbioformers.nn import join_modalities as join
from scbioformers.training._temperature import fit_temperature

FIRST = len(SPECIALS)
RNA, PROT = Sizes(30, 12), Sizes(5, 7, counts=False, n_small_counts=0)
SIZES = join_sizes([RNA, PROT])
CONFIG = ModelConfig(width=16, n_layers=2, n_heads=2, n_latent=8)


@pytest.fixture
def batch(make_batch):
    parts = [make_batch(6, 9, 4, RNA), make_batch(6, 2, 2, PROT, seed=1)]
    shares = torch.rand(parts[1].target_counts.shape, generator=torch.Generator().manual_seed(0))
    return join([parts[0], replace(parts[1], target_counts=shares)], [8, 0])


@pytest.fixture
def network():
    random = np.random.default_rng(0)
    arrays = {
        "components": np.linalg.qr(random.normal(size=(35, 4)))[0],
        "profile_mean": random.uniform(size=35),
        "component_scale": np.linspace(2, 1, 4),
        "rate": random.normal(size=35),
        "log_dispersion": random.normal(size=35),
        "batch_shift": np.zeros((0, 35)),
        "batch_rate": np.zeros((0, 35)),
        "log_bins": random.normal(size=(35, 27)),
        "weight": np.repeat([1.0, 2.5], [30, 5]),
    }
    with torch.random.fork_rng():
        made = Encoder(CONFIG, SIZES)
    initialise(made, InitialValues(**{name: x.astype(np.float32) for name, x in arrays.items()}), seed=0)
    return made.eval()


def test_sizes_of_a_network_of_several_modalities():
    assert (SIZES.n_features, SIZES.n_values, SIZES.n_small_counts, SIZES.columns) == (35, 19, 8, [30, 5])
    assert join_sizes([RNA]) is RNA
    assert RNA.modalities == (RNA,)


def test_ids_know_their_modality(network):
    ids = torch.tensor([0, FIRST, FIRST + 29, FIRST + 30, FIRST + 34])
    assert network.modality_of(ids).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_a_feature_is_answered_with_bins_of_its_own_modality(network, batch, training):
    log_probs = network.train(training)(batch).log_probs.exp()
    for ids, probs in zip(batch.masked_ids.flatten(), log_probs.flatten(0, 1), strict=True):
        own = slice(12, 19) if ids >= FIRST + 30 else slice(12)
        assert probs[own].sum().item() == pytest.approx(1.0, abs=1e-5)
        assert probs.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_equal_bins_of_two_modalities_have_other_embeddings(network):
    tables = network.values(torch.arange(19))
    assert torch.equal(tables[:12], network.value.values())
    assert torch.equal(tables[12:], network.other_values[0].values())
    assert not torch.allclose(tables[1], tables[13])


def test_the_bag_is_the_sum_of_those_of_the_modalities(network, batch):
    """Each is normalised by its own known features, from the definition with plain sums."""
    bag = network.bag(batch)
    embedding = network.feature.weight[FIRST:]
    for row in range(6):
        expected = torch.zeros(16)
        for columns, weight in ((range(30), 1.0), (range(30, 35), 2.5)):
            known = [j for j in columns if batch.known[row, j]]
            part = sum((batch.visible[row, j] - network.profile_mean[j]) * weight * embedding[j] for j in known)
            expected = expected + part / max(len(known) / len(columns), 0.05)
        torch.testing.assert_close(bag[row], expected / network.bag_scale, atol=1e-5, rtol=1e-4)


def test_the_bag_of_some_modalities_is_completed_by_their_own_map(network, batch):
    with torch.no_grad():
        for i, layer in enumerate(network.complete, start=1):
            layer.weight.copy_(torch.eye(16) * (10 * i))
    known = batch.known.clone()
    known[0, 30:] = False  # RNA alone: the first choice
    known[1, :30] = False  # proteins alone: the second
    bag, parts = network.bag(replace(batch, known=known)), []
    for rows, columns, factor in (([0], slice(30), 10), ([1], slice(30, 35), 20)):
        departure = (batch.visible - network.profile_mean)[rows, columns] * known[rows, columns]
        weight = 2.5 if columns.start else 1.0
        share = known[rows, columns].float().mean().clamp(min=0.05)
        parts.append(factor * weight * departure @ network.feature.weight[FIRST:][columns] / share)
    torch.testing.assert_close(bag[:2], torch.cat(parts) / network.bag_scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bag[2:], network.bag(batch)[2:])


def test_without_a_modality_its_values_change_nothing(network, batch):
    known = batch.known.clone()
    known[:, 30:] = False
    ids = torch.where(batch.context_ids >= FIRST + 30, 0, batch.context_ids)
    hidden = replace(batch, known=known, context_ids=ids)
    other = replace(hidden, visible=hidden.visible + 9 * ~known)
    first, second = network(hidden), network(other)
    assert torch.equal(first.log_rate, second.log_rate)
    assert torch.equal(first.log_probs, second.log_probs)
    assert not torch.allclose(first.cls, network(batch).cls)


def test_each_modality_has_a_temperature_for_cells_in_which_it_is_hidden_and_one_for_the_others(network, batch):
    known = batch.known.clone()
    known[:2, 30:] = False
    known[2:4, :30] = False
    batch = replace(batch, known=known)
    plain = network(batch).log_probs
    network.temperature.copy_(torch.tensor([[3.0, 1.0], [4.0, 2.0]]))
    warm = network(batch).log_probs
    proteins, hidden = batch.masked_ids >= FIRST + 30, torch.zeros_like(batch.masked_ids, dtype=torch.bool)
    hidden[:2], hidden[2:4] = proteins[:2], ~proteins[2:4]
    for divisor, of_proteins, is_hidden in ((3, False, True), (1, False, False), (4, True, True), (2, True, False)):
        own = (proteins == of_proteins) & (hidden == is_hidden) & (batch.masked_ids > 0)
        assert own.any()
        torch.testing.assert_close(warm[own], functional.log_softmax(plain[own] / divisor, dim=-1))


def test_temperatures_are_those_from_which_the_bins_were_drawn(network, batch):
    known = batch.known.clone()
    known[:3, 30:] = False
    batch = replace(batch, known=known)
    true, n_draws = torch.tensor([[1.0, 0.8], [1.7, 1.2]]), 500
    log_probs = network(batch).log_probs
    modality = network.modality_of(batch.masked_ids)
    divisor = true[modality, network.is_known(batch).long().gather(1, modality)][..., None]
    probs = functional.softmax(log_probs / divisor, dim=-1)
    drawn = torch.multinomial(
        probs.flatten(0, 1), n_draws, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    targets = torch.where(batch.masked_ids > 0, drawn.T.reshape(n_draws, *batch.masked_ids.shape), -1)
    fit_temperature(network, [replace(batch, target_bins=each) for each in targets])
    assert network.temperature[0, 0] == 1.0  # RNA is hidden in no cell
    torch.testing.assert_close(network.temperature, true, atol=0.1, rtol=0)


def test_losses_are_means_within_a_modality_then_over_modalities(network, batch):
    """A cell without proteins is scored by its RNA alone. From the definition, cell by cell."""
    lacking = torch.tensor([True, False, True, False, False, False])
    of_proteins = batch.masked_ids >= FIRST + 30
    present = batch.present.clone()
    present[lacking, 30:] = False
    batch = replace(
        batch, present=present, target_bins=torch.where(of_proteins & lacking[:, None], -1, batch.target_bins)
    )
    output = network(batch)
    masked, profile = [], []
    for row in range(6):
        parts = []
        for is_protein in (False, True):
            asked = [
                h for h in range(batch.masked_ids.shape[1])
                if batch.target_bins[row, h] >= 0 and bool(of_proteins[row, h]) == is_protein
            ]  # fmt: skip
            if asked:
                parts.append(np.mean([-output.log_probs[row, h, batch.target_bins[row, h]].item() for h in asked]))
        masked.append(np.mean(parts))
        counts, rate = batch.target_counts[row].double(), output.log_rate[row].double()
        nll = 0.0
        for j in range(30):
            r = network.log_dispersion[j].double().exp()
            mean = rate[j].exp() * batch.size_factor[row, 0].double()
            nll -= torch.distributions.NegativeBinomial(r, logits=(mean / r).log()).log_prob(counts[j]).item()
        parts = [nll / max(int((counts[:30] > 0).sum()), 1)]
        if not lacking[row]:
            p = rate[30:].sigmoid()
            parts.append(-(counts[30:] * p.log() + (1 - counts[30:]) * (1 - p).log()).mean().item())
        profile.append(np.mean(parts))
    found = OBJECTIVES["masked_bins"](network, output, batch).item()
    assert found == pytest.approx(np.mean(masked), rel=1e-4)
    found = OBJECTIVES["profile_modalities"](network, output, batch).item()
    assert found == pytest.approx(np.mean(profile), rel=1e-4)


def test_the_profile_has_counts_and_shares_of_bins(network, batch):
    latent = network(batch).latent
    rate, profile = network.decode(latent, None, batch.phenotypes), network.profile(latent, batch.phenotypes)
    torch.testing.assert_close(profile[:, :30], torch.log1p(rate[:, :30].exp()))
    torch.testing.assert_close(profile[:, 30:], 1 / (1 + (-rate[:, 30:]).exp()))


def test_the_rate_of_a_feature_is_scaled_with_the_depth_of_its_modality(network, batch):
    """The other modality's depth enters the token, but not the rate features."""
    log_rate = network(batch).log_rate
    deeper = replace(batch, log_depth=batch.log_depth + torch.tensor([0.0, math.log(3)]))
    proteins = batch.masked_ids >= FIRST + 30
    first, second = (network.rate_features(log_rate, x) for x in (batch, deeper))
    assert torch.equal(first[~proteins], second[~proteins])
    assert not torch.isclose(first[proteins], second[proteins]).all(dim=-1).any()


def test_cells_do_not_depend_on_the_batch(network, batch, make_batch):
    parts = [make_batch(3, 12, 6, RNA, seed=5), make_batch(3, 3, 2, PROT, seed=6)]
    more = join_batches([batch, join(parts, [8, 0])])
    alone, together = network(batch), network(more)
    torch.testing.assert_close(alone.cls, together.cls[:6], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.log_rate, together.log_rate[:6], atol=1e-5, rtol=0)


def test_the_linear_decoder_reconstructs_weighted_components(network):
    """A latent step along component k changes features by the component, whatever the weight of their modality."""
    weight = torch.tensor([1.0, 2.5]).repeat_interleave(torch.tensor([30, 5]))
    scaled = network.linear_rate.weight[:, :4] * weight[:, None]
    gram = scaled.T @ scaled
    gram = gram / gram.diagonal().mean()
    assert (gram - torch.eye(4)).abs().max() < 0.5


def test_padding_follows_the_tokens_of_all_modalities(make_batch):
    """So a batch is the same whether it was made at once or in parts, as by several workers."""
    parts = [make_batch(6, 9, 4, RNA), make_batch(6, 3, 2, PROT, seed=1)]
    ids, bins = parts[0].context_ids.clone(), parts[0].context_bins.clone()
    ids[:3, 5:], bins[:3, 5:] = 0, 0  # the first cells have fewer tokens
    parts[0] = replace(parts[0], context_ids=ids, context_bins=bins)
    whole = join(parts, [8, 0])
    padded = whole.context_ids == 0
    assert padded[:3].any()
    assert (padded[:, :-1] <= padded[:, 1:]).all()
    first = [
        replace(part, **{name: value[:3] for name, value in vars(part).items() if isinstance(value, torch.Tensor)})
        for part in parts
    ]
    short = replace(first[0], context_ids=first[0].context_ids[:, :5], context_bins=first[0].context_bins[:, :5])
    some = join([short, first[1]], [8, 0])
    width = some.context_ids.shape[1]
    assert torch.equal(some.context_ids, whole.context_ids[:3, :width])
    assert torch.equal(some.context_bins, whole.context_bins[:3, :width])
    assert not whole.context_ids[:3, width:].any()
