"""Where the network starts."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import scbioformers as bf
from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS
from scbioformers.nn import Encoder, Sizes, initialise

SIZES = Sizes(n_features=80, n_values=12, n_batches=3)
CONFIG = ModelConfig(width=16, n_layers=2, n_heads=2, n_latent=8, n_components=8)
CONFIGS = [
    pytest.param(CONFIG, id="default"),
    pytest.param(replace(CONFIG, svd_init=False), id="random"),
    pytest.param(replace(CONFIG, bag=False, attention=False), id="bare"),
    pytest.param(replace(CONFIG, value_embedding="lookup"), id="lookup"),
]


def leading_subspace(embedding, n):
    """Orthonormal basis of the n leading directions of the columns."""
    return np.linalg.svd(embedding, full_matrices=False)[0][:, :n]


def smallest_cosine(network, start):
    """Of the principal angles between the leading columns of the embedding and the PCA subspace; 1 if they agree."""
    embedding = network.feature.weight.detach().numpy()[-SIZES.n_features :]
    n = start.components.shape[1]
    return np.linalg.svd(leading_subspace(embedding, n).T @ start.components)[1].min()


def bags_of(network, make_batch, profiles):
    """Bags of cells of which every feature is known."""
    visible = torch.from_numpy(profiles.astype(np.float32))
    batch = replace(make_batch(sizes=SIZES), visible=visible, known=torch.ones_like(visible, dtype=torch.bool))
    with torch.no_grad():
        return network.bag(batch).numpy()


# --- randomness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_every_weight_is_set_by_the_seed_and_the_data_alone(config, make_start):
    weights = []
    for global_seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            network = Encoder(config, SIZES)
        initialise(network, make_start(SIZES), 5)
        weights.append(network.state_dict())
    assert [name for name, values in weights[0].items() if not torch.equal(values, weights[1][name])] == []


def test_another_seed_gives_other_weights_and_the_same_baseline(make_network, make_batch):
    first, second = make_network(CONFIG, SIZES, seed=0), make_network(CONFIG, SIZES, seed=1)
    batch = make_batch(sizes=SIZES, n_context=20)
    with torch.no_grad():
        a, b = first(batch), second(batch)
    assert not torch.equal(a.cls, b.cls)
    assert not torch.equal(a.log_probs, b.log_probs)
    assert torch.equal(first.rate.bias, second.rate.bias)


def test_the_global_generators_are_left_alone(make_network, make_start):
    network = make_network(CONFIG, SIZES)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    initialise(network, make_start(SIZES), 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_fitting_leaves_the_global_generators_alone(simulated, tiny_config):
    torch.manual_seed(12)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    bf.tl.fit(simulated, config=tiny_config, train=bf.TrainConfig(max_steps=1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


# --- what the data say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_at_step_zero_the_bins_are_those_of_the_histogram_of_each_feature(config, make_network, make_start, make_batch):
    network, start = make_network(config, SIZES), make_start(SIZES)
    batch = make_batch(n_cells=40, n_context=30, n_masked=20, sizes=SIZES, full=True)
    with torch.no_grad():
        predicted = network(batch).log_probs.exp().numpy()
    features = batch.masked_ids.numpy() - len(SPECIALS)
    histogram = np.exp(start.log_bins)[features]
    # small counts have columns of their own; their bins are those at the depth of the cell
    histogram = histogram[..., :12] + histogram[..., 12:] @ batch.small_count_bins.numpy()
    histogram /= histogram.sum(axis=-1, keepdims=True)
    distance = 0.5 * np.abs(predicted - histogram).sum(axis=-1)
    of_another = 0.5 * np.abs(predicted - histogram[:, ::-1]).sum(axis=-1)
    assert distance.mean() < 0.1
    assert distance.max() < 0.4 * of_another.mean()


@pytest.mark.parametrize("config", CONFIGS)
def test_at_step_zero_the_profile_is_the_mean_expression(config, make_network, make_start, make_batch):
    config = replace(config, svd_init=False)  # else it is the reconstruction from the leading components
    network, start = make_network(config, SIZES), make_start(SIZES)
    with torch.no_grad():
        log_rate = network(make_batch(n_cells=40, n_context=30, sizes=SIZES)).log_rate.numpy()
    assert np.abs(log_rate - start.rate).mean() < 0.25
    assert np.corrcoef(log_rate.mean(axis=0), start.rate)[0, 1] > 0.98


def test_the_feature_embeddings_span_the_pca_subspace_with_svd_init_only(make_network, make_start):
    start = make_start(SIZES)
    assert smallest_cosine(make_network(CONFIG, SIZES), start) > 0.95
    assert smallest_cosine(make_network(replace(CONFIG, svd_init=False), SIZES), start) < 0.5


@pytest.mark.parametrize("svd_init", [True, False])
def test_the_bag_of_the_training_cells_is_centred_and_on_a_common_scale(svd_init, make_network, make_start, make_batch):
    network, start = make_network(replace(CONFIG, svd_init=svd_init), SIZES), make_start(SIZES)
    scores = np.random.default_rng(0).normal(size=(4000, 5)) * start.component_scale
    bag = bags_of(network, make_batch, start.profile_mean + scores @ start.components.T)
    assert bag.var(axis=0).mean() == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(bag.mean(axis=0), 0.0, atol=0.15)


def test_with_svd_init_distances_between_bags_are_those_between_principal_components(
    make_network, make_start, make_batch
):
    network, start = make_network(CONFIG, SIZES), make_start(SIZES)
    scores = np.random.default_rng(0).normal(size=(50, 5)) * start.component_scale
    bags = bags_of(network, make_batch, start.profile_mean + scores @ start.components.T)
    pairs = np.triu_indices(50, 1)
    of_bags, of_scores = (np.linalg.norm(x[:, None] - x[None], axis=-1)[pairs] for x in (bags, scores))
    assert np.corrcoef(of_bags, of_scores)[0, 1] > 0.98


def test_cls_starts_with_the_effect_of_its_batch_taken_out(make_network, make_start, make_batch):
    network, start = make_network(CONFIG, SIZES), make_start(SIZES)
    batch = make_batch(n_cells=6, sizes=SIZES)
    codes = np.array([0, 1, 2, 0, 1, 2])
    cell = np.repeat(np.random.default_rng(0).normal(size=(2, SIZES.n_features)), 3, axis=0)
    visible = torch.from_numpy((start.profile_mean + cell + start.batch_shift[codes]).astype(np.float32))
    known = torch.ones_like(visible, dtype=torch.bool)
    batch = replace(batch, visible=visible, known=known, batch_codes=torch.from_numpy(codes))
    with torch.no_grad():
        cls = network.query_tokens(batch, network.bag(batch))[0][:, 0].numpy()
    np.testing.assert_allclose(cls[:3] - cls[0], 0.0, atol=1e-4)
    np.testing.assert_allclose(cls[3:] - cls[3], 0.0, atol=1e-4)
    assert np.abs(cls[0] - cls[3]).max() > 0.1


def test_the_decoder_starts_with_the_factors_of_the_batches(make_network, make_start):
    network, start = make_network(CONFIG, SIZES), make_start(SIZES)
    latent = torch.randn(2, CONFIG.n_latent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (network.decode(latent, torch.full((2,), code), torch.zeros(2, 0)) for code in (0, 1))
    expected = np.tile(start.batch_rate[0] - start.batch_rate[1], (2, 1))
    np.testing.assert_allclose((first - second).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("n_components", [0, 1, 40], ids=["none", "one", "more-than-the-width"])
def test_any_number_of_components_will_do(n_components, make_start, make_batch):
    with torch.random.fork_rng():
        network = Encoder(CONFIG, SIZES)
    initialise(network, make_start(SIZES, n_components), 0)
    with torch.no_grad():
        output = network(make_batch(sizes=SIZES))
    assert torch.isfinite(output.log_probs).all()
    assert torch.isfinite(output.log_rate).all()


def test_padding_starts_as_nothing(make_network):
    network = make_network(CONFIG, SIZES)
    assert not network.feature.weight[0].any()


def test_a_part_that_is_added_leaves_the_draws_of_the_others_as_they_are(make_network):
    plain = make_network(CONFIG, replace(SIZES, n_batches=0), seed=5)
    more = make_network(CONFIG, replace(SIZES, phenotype_sizes=(4,)), seed=5)
    others = dict(more.named_parameters())
    assert set(others) > {name for name, _ in plain.named_parameters()}
    assert all(torch.equal(value, others[name]) for name, value in plain.named_parameters())
    assert not torch.equal(plain.cls, make_network(CONFIG, SIZES, seed=6).cls)
