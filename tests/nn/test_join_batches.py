"""Batches of cells of several data sets, and the parts of the network that can be frozen."""

from dataclasses import fields, replace

import pytest
import torch

from scbioformers.config import ModelConfig
from scbioformers.config._train import PARTS
from scbioformers.nn import OBJECTIVES, Sizes, join_batches, join_sizes
from scbioformers.nn import make_network as network_of
from scbioformers.nn._transformer import PART_OF

SIZES = Sizes(n_features=30, n_values=12, n_batches=3, phenotype_sizes=(2, 4))


@pytest.fixture(params=[1, 2], ids=["one layer", "two layers"])
def network(request, make_network):
    config = ModelConfig(width=16, n_layers=request.param, n_heads=2, n_latent=8, n_components=8)
    return make_network(config, SIZES)


@pytest.fixture
def parts(make_batch):
    """Cells of three data sets, with other numbers of tokens and other features measured."""
    shapes = [(4, 9, 4), (3, 5, 7), (2, 12, 1)]
    batches = [make_batch(*shape, SIZES, seed=seed) for seed, shape in enumerate(shapes)]
    present = torch.arange(30) < 25
    return [batches[0], replace(batches[1], present=batches[1].present & present), batches[2]]


def test_the_output_of_a_cell_is_the_same_as_in_a_batch_of_its_data_set(network, parts):
    joined = join_batches(parts)
    assert joined.context_ids.shape == (9, 12)
    assert joined.masked_ids.shape == (9, 7)
    with torch.no_grad():
        whole, first = network(joined, contextual=True), 0
        for part in parts:
            alone, at = network(part, contextual=True), slice(first, first + len(part))
            n_masked, n_context = part.masked_ids.shape[1], part.context_ids.shape[1]
            torch.testing.assert_close(whole.log_probs[at, :n_masked], alone.log_probs, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(whole.context[at, :n_context], alone.context, atol=1e-6, rtol=1e-6)
            for name in ("cls", "latent", "log_rate"):
                torch.testing.assert_close(getattr(whole, name)[at], getattr(alone, name), atol=1e-6, rtol=1e-6)
            first += len(part)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_the_mean_over_all_cells(network, parts, objective):
    if objective == "profile_bins":  # whose targets are shares
        parts = [replace(part, target_counts=part.target_counts.clamp(max=1)) for part in parts]
    loss, joined = OBJECTIVES[objective], join_batches(parts)
    with torch.no_grad():
        each = [len(part) * loss(network, network(part), part) for part in parts]
        torch.testing.assert_close(loss(network, network(joined), joined), sum(each) / 9, atol=1e-6, rtol=1e-6)


def test_padding_is_not_read_and_not_scored(network, parts):
    joined = join_batches(parts)
    padding, unscored = joined.context_ids == 0, joined.masked_ids == 0
    assert padding[4:7, 5:].all() and unscored[7:, 1:].all() and (joined.target_bins[unscored] == -1).all()
    noisy = replace(joined, context_bins=torch.where(padding, 7, joined.context_bins))
    loss = OBJECTIVES["masked_bins"]
    with torch.no_grad():
        torch.testing.assert_close(network(noisy).latent, network(joined).latent, atol=0, rtol=0)
        output = network(joined)
        wrong = replace(output, log_probs=torch.where(unscored[..., None], -100.0, output.log_probs))
        assert loss(network, wrong, joined) == loss(network, output, joined)


def test_the_fields_of_the_cells_follow_each_other(parts):
    parts = [replace(part, noise=torch.full((len(part), 2), float(i)), weight=0.9) for i, part in enumerate(parts)]
    joined = join_batches(parts)
    assert joined.weight == 0.9
    for name in {each.name for each in fields(joined)} - {"context_external", "external", "weight", "prefixes"}:
        value = getattr(joined, name)
        assert len(value) == 9
        for at, part in zip((slice(0, 4), slice(4, 7), slice(7, 9)), parts, strict=True):
            own = getattr(part, name)
            found = value[at] if own.ndim == 1 else value[at, : own.shape[1]]
            assert found.nan_to_num(-9).equal(own.nan_to_num(-9)), name
    assert join_batches(parts[:1]) is parts[0]


# --- parts of the network ------------------------------------------------------------------------------------------

CONFIGS = {
    "small": (ModelConfig(width=16, n_heads=2), Sizes(20, 9)),
    "all": (ModelConfig(width=16, n_heads=2, n_layers=2), replace(SIZES, n_features=20)),
    "no attention": (ModelConfig(width=16, n_heads=2, attention=False), Sizes(20, 9, n_batches=2)),
    "no bag": (ModelConfig(width=16, n_heads=2, bag=False), Sizes(20, 9, n_batches=2)),
    "segment": (ModelConfig(width=16, n_heads=2), Sizes(20, 9, counts=False, n_small_counts=0)),
    "lookup": (ModelConfig(width=16, n_heads=2, value_embedding="lookup"), Sizes(20, 9, phenotype_sizes=(3,))),
    "decoder": (ModelConfig(width=16, n_heads=2, architecture="decoder"), Sizes(20, 9)),
    "two modalities": (ModelConfig(width=16, n_heads=2), join_sizes([Sizes(20, 9), Sizes(5, 12)])),
    "external tokens": (ModelConfig(width=16, n_heads=2), Sizes(20, 9, n_external=2)),
}


@pytest.mark.parametrize(("config", "sizes"), CONFIGS.values(), ids=CONFIGS)
def test_each_parameter_is_in_exactly_one_part(config, sizes):
    with torch.device("meta"):
        network = network_of(config, sizes)
    found = []
    for part in PARTS:
        network.freeze((part,))
        found += [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert sorted(found) == sorted(name for name, _ in network.named_parameters())
    network.freeze(("blocks", "bins"))
    frozen = {name.split(".")[0] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    expected = {"blocks", "norm", "small_counts", "rate_feature_in", "rate_feature_inner", "rate_feature_out"}
    expected |= {"bin_inner", "bin_out", "bin_bias"}
    assert frozen == expected - ({"small_counts"} if not sizes.n_small_counts else set())
    network.freeze(())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_no_name_of_a_part_is_unused():
    names = set()
    for config, sizes in CONFIGS.values():
        with torch.device("meta"):
            names |= {name.split(".")[0] for name, _ in network_of(config, sizes).named_parameters()}
    assert set(PART_OF) == names
    assert set(PART_OF.values()) == set(PARTS)
