"""The predicted bins: a mixture of bins and of small counts, whose bins follow from the likely depths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from scbioformers.nn import Sizes

SIZES = Sizes(n_features=30, n_values=12)


def answers(network, masked, ids):
    """Probabilities of the V bins and the C counts, by plain sums."""
    gelu = torch.nn.functional.gelu
    with torch.no_grad():
        h = gelu(masked @ network.bin_inner.weight.T + network.bin_inner.bias)
        logits = h @ network.bin_out.weight.T + network.bin_out.bias + network.bin_bias.weight[ids]
    return softmax(logits.double().numpy(), axis=-1)


@pytest.fixture
def masked(make_batch):
    """Outputs of the blocks for the masked features."""
    batch = make_batch(sizes=SIZES)
    return batch, torch.randn(*batch.masked_ids.shape, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def predicted(network, masked, batch):
    return network.bin_log_probs(masked, batch).double().exp().numpy()


def test_the_probability_of_a_count_goes_to_its_bins(make_network, masked):
    network, (batch, hidden) = make_network(sizes=SIZES), masked
    found, shares = predicted(network, hidden, batch), answers(network, hidden, batch.masked_ids)
    assert found.shape == (*batch.masked_ids.shape, 12)
    assert shares.shape[-1] == 20
    bins = batch.small_count_bins.double().numpy()
    for cell, at in np.ndindex(*batch.masked_ids.shape):
        expected = shares[cell, at, :12].copy()
        for count in range(8):
            for bin_ in range(12):
                expected[bin_] += shares[cell, at, 12 + count] * bins[cell, count, bin_]
        np.testing.assert_allclose(found[cell, at], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)


def test_a_certain_count_has_the_bins_of_the_likely_depths(make_network, masked):
    """2 of 7 likely depths put a count of 3 into bin 4, the others into bin 5."""
    network, (batch, hidden) = make_network(sizes=SIZES), masked
    bins = torch.zeros_like(batch.small_count_bins)
    bins[:, 2, 4], bins[:, 2, 5] = 2 / 7, 5 / 7
    with torch.no_grad():
        network.bin_bias.weight[:, 12 + 2] = 100.0
    found = predicted(network, hidden, replace(batch, small_count_bins=bins))
    np.testing.assert_allclose(found[..., 4], 2 / 7, rtol=1e-4)
    np.testing.assert_allclose(found[..., 5], 5 / 7, rtol=1e-4)
    assert np.isfinite(np.log(found)).all()  # bins that are never reached have a probability, though a small one


def test_segment_bins_are_predicted_as_bins_alone(make_network, masked):
    """The bin of a rank does not follow from a count and a depth."""
    sizes, (batch, hidden) = replace(SIZES, n_small_counts=0), masked
    network = make_network(sizes=sizes)
    assert not [name for name, _ in network.named_parameters() if "small_counts" in name]
    assert network.bin_out.out_features == 12
    np.testing.assert_allclose(
        predicted(network, hidden, batch), answers(network, hidden, batch.masked_ids), rtol=1e-4, atol=1e-7
    )
    other = replace(batch, small_count_bins=torch.zeros_like(batch.small_count_bins))
    with torch.no_grad():
        assert torch.equal(network(batch).log_probs, network(other).log_probs)


@pytest.mark.parametrize("temperature", [0.5, 1.6])
def test_the_temperature_divides_the_log_probabilities_at_inference_alone(temperature, make_network, masked):
    network, (batch, hidden) = make_network(sizes=SIZES), masked
    plain = predicted(network, hidden, batch)
    network.temperature.fill_(temperature)
    expected = plain ** (1 / temperature)
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(predicted(network, hidden, batch), expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(predicted(network.train(), hidden, batch), plain, rtol=1e-4, atol=1e-7)
