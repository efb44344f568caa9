"""Objectives against plain numpy and scipy."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import nbinom

from scbioformers.nn import OBJECTIVES, Batch, Output, Sizes

SIZES = Sizes(n_features=30, n_values=12, phenotype_sizes=(3, 2))


@pytest.fixture
def network(make_network):
    return make_network(sizes=SIZES)


@pytest.fixture
def batch(make_batch):
    made = make_batch(n_cells=6, sizes=SIZES)
    nan = torch.nan  # the second phenotype is a number between two knots, or beyond them
    targets = torch.tensor([[0, nan], [nan, nan], [2, 0.25], [1, nan], [nan, 1], [nan, 1.5]])
    return replace(made, target_phenotypes=targets)


@pytest.fixture
def output(batch):
    """Random numbers in place of what the network says."""
    random = torch.Generator().manual_seed(0)
    log_probs = torch.randn(*batch.masked_ids.shape, SIZES.n_values, generator=random).log_softmax(dim=-1)
    log_rate = torch.randn(len(batch), SIZES.n_features, generator=random)
    nothing = torch.zeros(len(batch), 1)
    phenotypes = torch.randn(len(batch), 2, 16, generator=random)
    return Output(
        log_probs=log_probs, context=None, cls=nothing, phenotypes=phenotypes, latent=nothing, log_rate=log_rate
    )


def rows(values, start, stop):
    """Some cells of a batch or an output."""
    parts = {field.name: getattr(values, field.name) for field in fields(values)}
    return replace(values, **{name: x[start:stop] for name, x in parts.items() if isinstance(x, torch.Tensor)})


def shares(batch: Batch) -> Batch:
    """The batch with targets on another scale: bins as a share of the highest."""
    return replace(batch, target_counts=batch.target_counts / batch.target_counts.max())


# --- by formula ----------------------------------------------------------------------------------------------------


def test_masked_bins_is_the_cross_entropy_a_mean_within_and_then_over_cells(network, output, batch):
    log_p, target = log_softmax(output.log_probs.double().numpy(), axis=-1), batch.target_bins.numpy()
    cells = [-np.mean([log_p[i, j, b] for j, b in enumerate(row) if b >= 0]) for i, row in enumerate(target)]
    assert (target < 0).any()
    assert OBJECTIVES["masked_bins"](network, output, batch).item() == pytest.approx(np.mean(cells), rel=1e-5)


def test_masked_phenotypes_is_the_cross_entropy_of_the_categories_or_of_both_knots(network, output, batch):
    answers = [each.answer(output.phenotypes[:, i]).detach().double() for i, each in enumerate(network.phenotypes)]
    first, second = (log_softmax(each.numpy(), axis=-1) for each in answers)
    between = -(0.75 * second[2, 0] + 0.25 * second[2, 1])
    cells = [-first[0, 0], 0.0, (-first[2, 2] + between) / 2, -first[3, 1], -second[4, 1], -second[5, 1]]
    assert OBJECTIVES["masked_phenotypes"](network, output, batch).item() == pytest.approx(np.mean(cells), rel=1e-5)


@pytest.mark.parametrize("log_dispersion", [-3.0, 0.0, 3.0])
def test_profile_counts_is_the_negative_binomial_of_scipy(log_dispersion, network, output, batch):
    with torch.no_grad():
        network.log_dispersion += log_dispersion
    counts, size = batch.target_counts.double().numpy(), batch.size_factor.double().numpy()
    r = network.log_dispersion.detach().double().exp().numpy()
    mean = np.exp(output.log_rate.double().numpy()) * size[:, None]
    nll = -nbinom.logpmf(counts, r, r / (r + mean))
    cells = nll.sum(axis=1) / (counts > 0).sum(axis=1)
    assert OBJECTIVES["profile_counts"](network, output, batch).item() == pytest.approx(cells.mean(), rel=1e-4)


def test_profile_bins_is_the_binary_cross_entropy_of_every_feature(network, output, batch):
    batch = shares(batch)
    y, p = batch.target_counts.double().numpy(), 1 / (1 + np.exp(-output.log_rate.double().numpy()))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert OBJECTIVES["profile_bins"](network, output, batch).item() == pytest.approx(expected, rel=1e-5)


# --- properties ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_mean_over_two_equal_halves_is_the_loss_of_the_whole(name, network, output, batch):
    batch = shares(batch) if name == "profile_bins" else batch
    loss = OBJECTIVES[name]
    halves = [loss(network, rows(output, *half), rows(batch, *half)).item() for half in ((0, 3), (3, 6))]
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)
    assert np.mean(halves) == pytest.approx(loss(network, output, batch).item(), rel=1e-5)


def test_padding_of_the_masked_does_not_change_masked_bins(network, output, batch):
    wider = replace(
        batch,
        masked_ids=torch.nn.functional.pad(batch.masked_ids, (0, 3)),
        target_bins=torch.nn.functional.pad(batch.target_bins, (0, 3), value=-1),
    )
    padded = replace(output, log_probs=torch.nn.functional.pad(output.log_probs, (0, 0, 0, 3), value=50.0))
    loss = OBJECTIVES["masked_bins"]
    assert loss(network, padded, wider).item() == pytest.approx(loss(network, output, batch).item(), rel=1e-6)


def test_masked_bins_is_lowest_where_the_target_is_certain(network, output, batch):
    sure = torch.nn.functional.one_hot(batch.target_bins.clamp(min=0), SIZES.n_values) * 100.0 - 100.0
    loss = OBJECTIVES["masked_bins"]
    assert loss(network, replace(output, log_probs=sure), batch).item() == pytest.approx(0.0, abs=1e-6)


def test_profile_counts_has_no_gradient_at_the_observed_mean(network, output, batch):
    # of one cell whose predicted means are its counts, the rates are at their maximum likelihood
    batch = replace(batch, target_counts=batch.target_counts + 1)
    log_rate = (batch.target_counts.log() - batch.size_factor.log()[:, None]).requires_grad_()
    OBJECTIVES["profile_counts"](network, replace(output, log_rate=log_rate), batch).backward()
    assert log_rate.grad.abs().max() < 1e-5


def test_cells_with_nothing_to_predict_give_finite_losses_and_gradients(network, output, batch):
    empty = replace(
        batch,
        target_bins=torch.full_like(batch.target_bins, -1),
        target_counts=torch.zeros_like(batch.target_counts),
        size_factor=torch.ones_like(batch.size_factor),
    )
    output = replace(output, log_probs=output.log_probs.requires_grad_(), log_rate=output.log_rate.requires_grad_())
    losses = {name: loss(network, output, empty) for name, loss in OBJECTIVES.items()}
    assert losses["masked_bins"].item() == 0.0
    torch.stack(list(losses.values())).sum().backward()
    assert torch.isfinite(output.log_probs.grad).all()
    assert torch.isfinite(output.log_rate.grad).all()


def test_a_batch_without_masked_features_has_no_masked_loss(network, output, batch):
    nothing = replace(batch, masked_ids=batch.masked_ids[:, :0], target_bins=batch.target_bins[:, :0])
    output = replace(output, log_probs=output.log_probs[:, :0])
    assert OBJECTIVES["masked_bins"](network, output, nothing).item() == 0.0


def test_large_counts_stay_finite(network, output, batch):
    batch = replace(batch, target_counts=batch.target_counts * 1e5, size_factor=batch.size_factor * 1e3)
    output = replace(output, log_rate=(output.log_rate * 8).requires_grad_())
    loss = OBJECTIVES["profile_counts"](network, output, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(output.log_rate.grad).all()


@pytest.mark.parametrize("name", ["profile_counts", "profile_bins"])
def test_an_absent_feature_has_no_likelihood(name, network, output, batch):
    """Whatever stands in its column, the loss and its gradient are those of the other features."""
    absent = [2, 7]
    present = batch.present.clone()
    present[:, absent] = False
    counts = batch.target_counts.clamp(max=1) if name == "profile_bins" else batch.target_counts.clone()
    counts[:, absent] = 0.0
    batch = replace(batch, present=present, target_counts=counts)
    rate = output.log_rate.detach().clone().requires_grad_()
    loss = OBJECTIVES[name](network, replace(output, log_rate=rate), batch)
    loss.backward()
    assert not rate.grad[:, absent].any()
    assert rate.grad[:, [0, 1, 3]].any()
    other = rate.detach().clone()
    other[:, absent] += 5.0
    assert OBJECTIVES[name](network, replace(output, log_rate=other), batch).item() == pytest.approx(
        loss.item(), rel=1e-6
    )
