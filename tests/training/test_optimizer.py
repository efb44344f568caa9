"""Which weights learn how fast, and what is read in a step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scbioformers.config import ModelConfig, TrainConfig
from scbioformers.data import AnnDataSource
from scbioformers.nn import Sizes
from scbioformers.tokens import Sampler
from scbioformers.training._data import BatchDataset
from scbioformers.training._module import BATCH_LR, DISPERSION_LR, EMBEDDING_LR, TrainingModule

CONFIG = ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
SIZES = Sizes(n_features=30, n_values=12, n_batches=3)
TRAIN = TrainConfig(lr=0.02, weight_decay=0.3, warmup_steps=10)


def configured(network, total_steps=1000):
    """Settings by the name of the parameter, and the schedule."""
    module = TrainingModule(network, TRAIN, total_steps, {"masked_bins": 1.0})
    found = module.configure_optimizers()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = found["optimizer"].param_groups
    settings = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(settings) == len(names)  # every parameter once
    assert dict(settings).keys() == set(names.values())
    return dict(settings), found["lr_scheduler"]["scheduler"], found["optimizer"]


@pytest.mark.parametrize("svd_init", [True, False])
def test_only_a_feature_table_that_starts_from_the_data_learns_slowly(svd_init, make_network):
    network = make_network(replace(CONFIG, svd_init=svd_init), SIZES)
    settings, _, _ = configured(network)
    assert (EMBEDDING_LR, DISPERSION_LR) == (0.1, 20.0)
    own = {"log_dispersion": 0.4, "batch_rate.weight": 0.1} | ({"feature.weight": 0.002} if svd_init else {})
    for name, group in settings.items():
        assert group["initial_lr"] == pytest.approx(own.get(name, 0.02)), name
        matrix = network.get_parameter(name).ndim > 1
        assert group["weight_decay"] == (0.3 if matrix and name not in own else 0.0), name


def test_the_rates_of_batches_learn_fast_and_the_shift_of_the_bag_is_fixed(make_network):
    network = make_network(CONFIG, replace(SIZES, n_batches=3))
    settings, _, _ = configured(network)
    assert BATCH_LR == 5.0
    assert settings["batch_rate.weight"]["initial_lr"] == pytest.approx(0.1)
    assert settings["batch_rate.weight"]["weight_decay"] == 0.0
    assert "batch_shift" not in settings
    assert "batch_shift" in network.state_dict()  # stored with the model


def test_all_groups_warm_up_and_cool_down_together(make_network):
    settings, schedule, optimizer = configured(make_network(CONFIG, SIZES), total_steps=100)
    slow, fast = settings["feature.weight"], settings["bin_out.weight"]
    rates = []
    for _ in range(100):
        assert slow["lr"] == pytest.approx(0.1 * fast["lr"])
        rates.append(fast["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.02 / 10)
    assert max(rates) == pytest.approx(0.02, rel=0.03)
    assert np.argmax(rates) == 9
    assert rates[-1] < 1e-4
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[9:]) < 0).all()


def test_the_feature_table_moves_a_tenth_as_far_in_a_step(make_network, make_batch):
    moved = {}
    for svd_init in (True, False):
        network = make_network(replace(CONFIG, svd_init=svd_init), SIZES)
        module = TrainingModule(network, TRAIN, 1, {"masked_bins": 1.0, "profile_counts": 1.0})
        optimizer = module.configure_optimizers()["optimizer"]
        module.log = module.log_dict = lambda *args, **kwargs: None
        before = network.feature.weight.detach().clone()
        module.training_step(make_batch(sizes=SIZES), 0).backward()
        optimizer.step()
        moved[svd_init] = (network.feature.weight.detach() - before).abs().median().item()
    # the first step of Adam is as long as the learning rate
    assert moved[True] == pytest.approx(0.002, rel=0.05)
    assert moved[False] == pytest.approx(0.02, rel=0.05)


def test_a_part_of_a_batch_counts_by_its_weight_and_is_logged_by_its_number_of_cells(make_network, make_batch):
    module = TrainingModule(make_network(sizes=SIZES), TRAIN, 1, {"masked_bins": 1.0})
    logged = []
    module.log = lambda *args, **kwargs: None
    module.log_dict = lambda losses, **kwargs: logged.append((float(losses["train_loss"]), kwargs["batch_size"]))
    batch = make_batch(sizes=SIZES)
    batches = [replace(batch, weight=weight) for weight in (1.0, 0.75, 0.0)]
    whole, part, none = (module.training_step(batch, 0).item() for batch in batches)
    assert whole > 0
    assert part == pytest.approx(0.75 * whole)
    assert none == 0
    assert logged == [(whole, 5), (whole, 5), (whole, 0)]


def test_real_numbers_of_a_batch_take_the_dtype_of_the_network(make_network, make_batch):
    module = TrainingModule(make_network(sizes=SIZES).double(), TRAIN, 1, {"masked_bins": 1.0})
    batch = module.transfer_batch_to_device(make_batch(sizes=SIZES), torch.device("cpu"), 0)
    assert batch.visible.dtype == batch.size_factor.dtype == torch.float64
    assert batch.rows.dtype == batch.masked_ids.dtype == torch.int64
    assert batch.known.dtype == torch.bool
    module.log = module.log_dict = lambda *args, **kwargs: None
    assert module.training_step(batch, 0).dtype == torch.float64


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(simulated, make_tokenizer):
    """The batches of an epoch of the simulated cells."""
    source = AnnDataSource(simulated)
    tokenizer = make_tokenizer(source.read(0, 60))

    def draw(*, training=True, epoch=0, tokens="expressed", **config):
        sampler = Sampler(np.ones(60, bool), 16, 7)
        settings = (TrainConfig(batch_size=16, **config), epoch, training)
        return list(BatchDataset(source, replace(tokenizer, tokens=tokens), sampler, *settings))

    return draw


def widths(batches):
    return [batch.context_ids.shape[1] for batch in batches]


def test_attention_reads_a_random_number_of_features_within_bounds(batches):
    few = [width for epoch in range(10) for width in widths(batches(n_context=(3, 9), epoch=epoch))]
    assert min(few) == 3
    assert max(few) in (8, 9)
    assert len(set(few)) > 4
    assert np.median(few) < 6  # log-uniform
    assert widths(batches(n_context=(5, 5))) == [5] * 3
    assert set(widths(batches(n_context=(3, 9), training=False))) == {9}


def test_without_bounds_and_with_all_tokens_attention_reads_all_that_is_visible(batches):
    for batch in batches(n_context=None, bag_dropout=0.0):
        assert torch.equal((batch.context_ids > 0).sum(dim=1), (batch.visible > 0).sum(dim=1))
    for batch in batches(n_context=(3, 9), tokens="all", bag_dropout=0.0):
        assert torch.equal((batch.context_ids > 0).sum(dim=1), batch.known.sum(dim=1))


def test_the_bag_lacks_features_in_training_only(batches):
    whole, dropped = (torch.cat([b.known for b in batches(bag_dropout=x)]).float().mean() for x in (0.0, 0.6))
    assert dropped / whole == pytest.approx(0.7, abs=0.07)
    held_out = [batches(bag_dropout=x, training=False) for x in (0.0, 0.6)]
    for first, second in zip(*held_out, strict=True):
        assert torch.equal(first.known, second.known)
        assert not first.known.all()  # what is masked


def test_a_block_that_lacks_features_trains_without_them(simulated, make_tokenizer):
    source = AnnDataSource(simulated, columns=np.where(np.arange(40) == 7, -1, np.arange(40)))
    tokenizer = make_tokenizer(source.read(0, 60))
    sampler = Sampler(np.ones(60, bool), 16, 7)
    for batch in BatchDataset(source, tokenizer, sampler, TrainConfig(batch_size=16), 0, True):
        assert not batch.known[:, 7].any()
