"""The fit of the depth estimates to masked training cells, and the temperature of the predictions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.special import log_softmax

from scbioformers.config import Masking, ModelConfig, TrainConfig
from scbioformers.data import Block, MemorySource
from scbioformers.nn import Sizes
from scbioformers.training import _depth, _temperature
from scbioformers.training._data import TrainingData
from scbioformers.training._depth import N_DRAWS, fit_depth_models
from scbioformers.training._start import thin
from scbioformers.training._temperature import fit_temperature

SIZES = Sizes(n_features=30, n_values=12)


def arrays_of(models):
    return {name: array.tobytes() for name, array in models.to_arrays().items()}


@pytest.fixture(scope="module")
def sample(make_block) -> Block:
    return make_block(n_cells=300, n_features=80, seed=6)


# --- depth ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(sample):
    first, second, other = (fit_depth_models([sample], Masking(), 100.0, seed) for seed in (3, 3, 4))
    assert arrays_of(first) == arrays_of(second)
    assert all(arrays_of(other)[name] != x for name, x in arrays_of(first).items() if name.startswith("drawn."))
    assert arrays_of(other)["natural.share"] != arrays_of(first)["natural.share"]


@pytest.mark.parametrize("masking", [Masking(), Masking(rule="paper", ratio=0.3)], ids=["default", "paper"])
def test_the_share_of_a_feature_is_larger_where_the_mask_favours_the_expressed(masking, sample):
    models = fit_depth_models([sample], masking, float(sample.depth.mean()), seed=0)
    shares = sample.counts.toarray() / sample.depth[:, None]
    expressed, zero = masking.shares(np.diff(sample.counts.indptr), 80)
    n_expressed = (shares > 0).sum(axis=0)
    often = n_expressed > 50  # the expressed and the zeros of a feature are masked at their own rates
    where_masked = expressed * shares.sum(axis=0) / (expressed * n_expressed + zero * (300 - n_expressed))
    np.testing.assert_allclose(models.natural.share[often], shares.mean(axis=0)[often], rtol=0.25)
    np.testing.assert_allclose(models.drawn.share[often], where_masked[often], rtol=0.25)
    assert np.corrcoef(models.natural.share, shares.mean(axis=0))[0, 1] > 0.99
    assert np.corrcoef(models.drawn.share, where_masked)[0, 1] > 0.98


@pytest.mark.parametrize("form", ["drawn", "natural"])
def test_new_cells_are_estimated_better_than_by_a_constant_share(form, sample, make_tokenizer):
    rows = np.arange(300)
    train, test = (sample.take(rows[part::2]) for part in (0, 1))
    tokenizer = make_tokenizer(train)
    assert tokenizer.depth.drawn.exact is False
    assert tokenizer.depth.natural.exact is True
    batch = tokenizer.training_batch(test, rows[1::2], seed=1, epoch=2, n_context=99, n_masked=99)
    masked = ~batch.known.numpy()
    if form == "natural":
        masked = np.random.default_rng(0).random(masked.shape) < 0.15
        batch = tokenizer.inference_batch(test, rows[1::2], query_mask=csr_matrix(masked))
    found = batch.log_depth.double().exp().numpy() * tokenizer.binning.mean_depth
    visible = test.depth - np.where(masked, test.counts.toarray(), 0).sum(axis=1)
    assert np.log(found / test.depth).std() < 0.8 * np.log(visible / test.depth).std()
    assert abs(np.log(found / test.depth).mean()) < 0.02


def test_masks_of_the_fit_are_those_of_the_rule_and_absent_features_are_in_none(sample):
    x = sample.counts.toarray()
    x[:, [4, 50]] = 0
    present = ~np.isin(np.arange(80), [4, 50])
    models = fit_depth_models([replace(sample, counts=csr_matrix(x), present=present)], Masking(), 100.0, seed=0)
    for model in (models.drawn, models.natural):
        # only the entry of the average feature that is added to each
        assert model.share[4] == model.share[50] > 0
        assert model.variance[4] == model.variance[50] > 0
    assert N_DRAWS == 8


def test_even_masks_are_drawn_over_some_of_many_cells(sample, monkeypatch):
    """Their number grows with cells times features. Cells in equal distances are used, because data may be sorted."""
    third = fit_depth_models([sample.take(np.arange(0, 300, 3))], Masking(), 100.0, seed=0)
    whole = fit_depth_models([sample], Masking(), 100.0, seed=0)
    monkeypatch.setattr(_depth, "MAX_POSITIONS", 100 * 80)
    found = fit_depth_models([sample], Masking(), 100.0, seed=0)
    np.testing.assert_array_equal(found.natural.share, third.natural.share)
    np.testing.assert_array_equal(found.drawn.share, whole.drawn.share)
    assert not np.array_equal(found.natural.share, whole.natural.share)


@pytest.mark.parametrize(("size", "rows"), [(4, [0, 3, 6, 9]), (10, range(10)), (99, range(10)), (1, [0])])
def test_a_part_of_the_sample_are_cells_in_equal_distances(size, rows, make_block):
    """So every batch is in it if the cells are sorted by batch."""
    block = make_block(n_cells=10, n_features=7)
    (found,) = thin([block], size)
    np.testing.assert_array_equal(found.counts.toarray(), block.counts.toarray()[list(rows)])
    assert found.depth.tolist() == block.depth[list(rows)].tolist()


# --- temperature ---------------------------------------------------------------------------------------------------


@pytest.fixture
def network(make_network):
    return make_network(ModelConfig(width=16, n_layers=1, n_heads=2), SIZES)


@pytest.fixture
@torch.no_grad()
def batches(network, make_batch):
    """Bins as they would be if the predictions were to be divided by about 1.4."""
    batches, generator = [], torch.Generator().manual_seed(0)
    for seed in range(5):
        batch = make_batch(n_cells=40, sizes=SIZES, seed=seed)
        shares = torch.softmax(network(batch).log_probs / 1.4, dim=-1)
        target = torch.multinomial(shares.flatten(0, 1), 1, generator=generator).view(batch.target_bins.shape)
        batches.append(replace(batch, target_bins=torch.where(batch.target_bins < 0, -1, target)))
    return batches


@torch.no_grad()
def loss_at(network, batches, temperature):
    """Mean over all masked features."""
    losses = []
    for batch in batches:
        log_probs = network(batch).log_probs.double().numpy()
        target = batch.target_bins.numpy()
        scaled = log_softmax(log_probs / temperature, axis=-1)
        losses += [-scaled[i, j, b] for (i, j), b in np.ndenumerate(target) if b >= 0]
    return np.mean(losses)


def test_the_temperature_is_that_of_the_lowest_loss(network, batches):
    grid = np.linspace(0.5, 2.0, 151)
    losses = [loss_at(network, batches, temperature) for temperature in grid]
    expected = grid[np.argmin(losses)]
    assert expected == pytest.approx(1.4, abs=0.2)
    fit_temperature(network, batches)
    assert network.temperature.item() == pytest.approx(expected, abs=0.01)
    assert not network.training
    assert loss_at(network, batches, 1.0) == pytest.approx(min(losses), abs=1e-4)
    # again, from another temperature
    found = network.temperature.clone()
    fit_temperature(network, batches)
    assert torch.equal(network.temperature, found)


def test_without_anything_to_score_the_temperature_is_1(network, batches):
    nothing = [replace(batch, target_bins=torch.full_like(batch.target_bins, -1)) for batch in batches]
    for few in ([], nothing):
        fit_temperature(network, few)
        assert network.temperature == 1


def test_the_number_of_scored_features_has_a_limit(network, batches, monkeypatch):
    first = int((batches[0].target_bins >= 0).sum())
    fit_temperature(network, batches[:1])
    expected = network.temperature.clone()
    monkeypatch.setattr(_temperature, "MAX_SCORED", first)
    fit_temperature(network, batches)
    assert torch.equal(network.temperature, expected)


def test_training_predictions_have_no_temperature(network, batches):
    """The loss of the training is that of the network itself."""
    network.temperature.fill_(1.7)
    with torch.no_grad():
        evaluated, trained = network(batches[0]).log_probs, network.train()(batches[0]).log_probs
    torch.testing.assert_close(evaluated, torch.log_softmax(trained / 1.7, dim=-1))


def test_all_processes_see_all_validation_cells(sample, make_tokenizer):
    training = np.arange(300) % 4 > 0
    data = TrainingData(
        MemorySource(sample), make_tokenizer(sample), TrainConfig(batch_size=16), training, ~training, seed=2
    )
    found = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, current_epoch=0)
        found.append(list(data.validation_batches()))
    rows = torch.cat([batch.rows for batch in found[0]])
    assert sorted(rows.tolist()) == np.flatnonzero(~training).tolist()
    for first, second in zip(*found, strict=True):
        for name in ("rows", "masked_ids", "target_bins", "visible", "log_depth"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
