"""All initialisation of the network in one place."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scbioformers.core import SPECIALS
from scbioformers.nn._transformer import Attention, Transformer, TransformerBlock


@dataclass(frozen=True)
class InitialValues:
    """What the training data say before the first step; M features, K components, V bin values."""

    components: NDArray[np.float32]
    """(M, K) right singular vectors of the centred log-normalised training profiles, leading first."""
    profile_mean: NDArray[np.float32]
    """(M,) mean log-normalised profile."""
    component_scale: NDArray[np.float32]
    """(K,) standard deviation of the training profiles along each component."""
    rate: NDArray[np.float32]
    """(M,) log of the mean count at the mean depth; logit of the mean share of the highest bin for other data."""
    log_dispersion: NDArray[np.float32]
    """(M,) log of the negative binomial's inverse dispersion, by moments."""
    batch_means: NDArray[np.float32]
    """(n_batches, M) mean log-normalised profile of each technical batch, less the mean of all cells."""
    log_bins: NDArray[np.float32]
    """(M, V) log probability of each bin where it is masked, by counting."""


@torch.no_grad()
def initialise(network: Transformer, start: InitialValues, seed: int) -> None:
    """Set every weight, from the data where it can say something and from ``seed`` otherwise.

    * Linear layers: normal with variance 1 / fan-in, biases zero; the layers that write into the residual stream are
      scaled down by sqrt(2 n_layers), so that the depth does not change the scale of the stream.
    * Feature embeddings: the SVD of the training profiles in the leading columns (``svd_init``), with small noise.
      The bag of a cell is then its principal components, centred, on a common scale; ``<cls>`` starts with the mean of
      its technical batch taken out, which training may put back.
    * The latent starts as the leading directions of the bag, the profile as their linear reconstruction around the mean
      expression (``svd_init``); the networks beside these linear maps start small.
    * The decoder's bias is the log mean expression and the bin logits' bias the log histogram of each feature, so that
      the network starts as the per-feature baseline and learns departures from it.
    """
    config = network.config
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5, generator=_generator(seed, name))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.02, generator=_generator(seed, name))
    for module in network.modules():
        if isinstance(module, TransformerBlock):
            module.contract.weight.mul_((2 * config.n_layers) ** -0.5)
        elif isinstance(module, Attention):
            module.out.weight.mul_((2 * config.n_layers) ** -0.5)
    for name, token in (("cls", network.cls), ("mask", network.mask)):
        token.normal_(std=0.02, generator=_generator(seed, name))

    embedding = network.feature.weight[len(SPECIALS) :]
    n_features, width = embedding.shape
    embedding.normal_(std=width**-0.5, generator=_generator(seed, "feature"))
    components = torch.from_numpy(start.components[:, :width]).clone()  # aligned, so that products are repeatable
    if config.svd_init:
        # each column gets the norm that a random column of this table would have
        embedding.mul_(0.1)
        embedding[:, : components.shape[1]] += components * math.sqrt(n_features / width)
    network.feature.weight[0].zero_()
    network.profile_mean.copy_(torch.from_numpy(start.profile_mean))
    scores = torch.from_numpy(start.component_scale[:width])[:, None] * (components.T @ embedding)
    spread = float(scores.square().sum(dim=0).mean().sqrt())
    network.bag_scale.fill_(spread if spread > 1e-6 else 1.0)  # identical cells have no spread to scale to
    if config.bag:
        if network.sizes.n_batches:
            shift = torch.from_numpy(start.batch_means).clone() @ embedding / network.bag_scale
            network.batch_shift.weight.copy_(-shift)
        network.bag_to_cls.weight.copy_(torch.eye(width))
        network.bag_to_masked.weight.copy_(torch.eye(width))
        network.bag_to_latent.weight.copy_(torch.eye(config.n_latent, width))
    network.latent_out.weight.mul_(0.1)
    network.linear_rate.weight.mul_(0.1)
    if config.svd_init:
        k = min(config.n_latent, components.shape[1])
        scale = float(np.sqrt(np.square(start.component_scale[:k]).sum() / max(k, 1)))
        network.linear_rate.weight[:, :k] += scale * components[:, :k]
    network.rate.weight.mul_(0.1)
    network.rate.bias.copy_(torch.from_numpy(start.rate))
    network.log_dispersion.copy_(torch.from_numpy(start.log_dispersion))
    network.rate_feature_out.weight.mul_(0.1)
    for few in network.small_counts:
        cast("nn.Embedding", few).weight.mul_(15.0)  # to .3: as wide as what the rates add to it
    network.bin_out.weight.mul_(0.1)
    network.bin_bias.weight.zero_()
    network.bin_bias.weight[len(SPECIALS) :] = torch.from_numpy(start.log_bins)


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator for one part: parts that are added or removed leave the draws of the others as they are."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
