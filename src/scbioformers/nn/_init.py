"""Initialisation of all weights of the network."""

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
from scbioformers.nn._blocks import Attention, TransformerBlock
from scbioformers.nn._decoder import Decoder
from scbioformers.nn._phenotypes import Phenotype
from scbioformers.nn._transformer import Transformer


@dataclass(frozen=True)
class InitialValues:
    """Statistics of the training data from which weights are initialised. M features, K components, V bin values."""

    components: NDArray[np.float32]
    """(M, K) right singular vectors of the centred log-normalised training profiles, in descending order."""
    profile_mean: NDArray[np.float32]
    """(M,) mean log-normalised profile."""
    component_scale: NDArray[np.float32]
    """(K,) standard deviation of the training profiles along each component."""
    rate: NDArray[np.float32]
    """(M,) log of the mean count at the mean depth.

    For data that are not counts: logit of the mean bin, as a share of the highest bin.
    """
    log_dispersion: NDArray[np.float32]
    """(M,) log of the inverse dispersion of the negative binomial, estimated by the method of moments."""
    batch_shift: NDArray[np.float32]
    """(n_batches, M) effect of each technical batch on the log-normalised profiles, relative to all cells."""
    batch_rate: NDArray[np.float32]
    """(n_batches, M) effect of each technical batch on the log of the rate, relative to the average batch."""
    log_bins: NDArray[np.float32]
    """(M, V + C) log frequency of each bin and of each small count 1 to C of each feature among masked entries.

    An entry with a small count is not counted in its bin.
    """
    phenotypes: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...] = ()
    """The same two effects (n, M) of each phenotype, given the batch."""
    weight: NDArray[np.float32] | None = None
    """(M,) factor of the profiles before their components are computed, if there are several modalities.

    With it, the leading components of all modalities have the same variance.
    """
    completions: NDArray[np.float32] | None = None
    """(2^N - 2, K, K), for N modalities and each choice of some but not all of them, counted in binary digits.

    They map the scores of the components over the chosen modalities to those over all modalities.
    """


@torch.no_grad()
def initialise(network: Transformer, start: InitialValues, seed: int) -> None:
    """Initialise every weight, from the training data if possible and otherwise at random with ``seed``.

    * Linear layers: normal with variance 1 / fan-in, biases zero. The layers that write into the residual stream are
      divided by sqrt(2 n_layers), so that the scale of the stream does not depend on the number of layers.
    * Feature embeddings: with ``svd_init``, the leading columns are the SVD of the training profiles plus small noise.
      The bag of a cell then contains its principal components, centred and on a common scale. The effect of the
      technical batch is subtracted from the bag for ``<cls>`` and the latent. This shift is not trained.
    * Latent and profile: the latent starts as the leading dimensions of the bag. With ``svd_init``, the profile starts
      as the linear reconstruction from the latent around the mean expression. The non-linear parts start with small
      weights.
    * Biases: the bias of the decoder is the log mean expression, plus the effect of the technical batch. The bias of
      the bin logits is the log histogram of each feature. So the untrained network predicts about the same as the
      per-feature baseline.
    """
    config = network.config
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5, generator=random_generator(seed, name))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.02, generator=random_generator(seed, name))
    for module in network.modules():
        if isinstance(module, TransformerBlock):
            module.contract.weight.mul_((2 * config.n_layers) ** -0.5)
        elif isinstance(module, Attention):
            module.out.weight.mul_((2 * config.n_layers) ** -0.5)
    tokens = [("cls", network.cls), ("mask", network.mask)]
    if isinstance(network, Decoder):
        tokens.append(("start", network.start))
    for name, token in tokens:
        token.normal_(std=0.02, generator=random_generator(seed, name))

    embedding = network.feature.weight[len(SPECIALS) :]
    n_features, width = embedding.shape
    embedding.normal_(std=width**-0.5, generator=random_generator(seed, "feature"))
    components = torch.from_numpy(start.components[:, :width]).clone()  # aligned memory makes products reproducible
    if config.svd_init:
        # each column gets the expected norm of a random column of this table
        embedding.mul_(0.1)
        embedding[:, : components.shape[1]] += components * math.sqrt(n_features / width)
    network.feature.weight[0].zero_()
    if network.sizes.n_external:
        network.external.weight[0].zero_()
    columns = torch.tensor(network.sizes.columns, dtype=network.bag_size.dtype)
    network.bag_size.copy_(columns.view(network.bag_size.shape))
    network.profile_mean.copy_(torch.from_numpy(start.profile_mean))
    weight = torch.ones(n_features) if start.weight is None else torch.from_numpy(start.weight)
    if network.sizes.parts:
        network.bag_weight.copy_(weight)
    scores = torch.from_numpy(start.component_scale[:width])[:, None] * (components.T @ embedding)
    spread = float(scores.square().sum(dim=0).mean().sqrt())
    network.bag_scale.fill_(spread if spread > 1e-6 else 1.0)  # the spread of identical cells is 0
    if config.bag:
        if network.sizes.n_batches:
            shift = (torch.from_numpy(start.batch_shift) * weight).clone() @ embedding / network.bag_scale
            network.batch_shift.copy_(-shift)
        for each, (effect, _) in zip(cast("list[Phenotype]", network.phenotypes), start.phenotypes, strict=False):
            each.shift.copy_(-(torch.from_numpy(effect) * weight).clone() @ embedding / network.bag_scale)
        network.bag_to_cls.weight.copy_(torch.eye(width))
        network.bag_to_masked.weight.copy_(torch.eye(width))
        network.bag_to_latent.weight.copy_(torch.eye(config.n_latent, width))
        if network.sizes.parts:
            _initialise_completions(network, start, svd_init=config.svd_init)
    network.latent_out.weight.mul_(0.1)
    network.linear_rate.weight.mul_(0.1)
    if config.svd_init:
        k = min(config.n_latent, components.shape[1])
        scale = float(np.sqrt(np.square(start.component_scale[:k]).sum() / max(k, 1)))
        network.linear_rate.weight[:, :k] += scale * components[:, :k] / weight[:, None]
    network.rate.weight.mul_(0.1)
    network.rate.bias.copy_(torch.from_numpy(start.rate))
    if network.sizes.n_batches:
        network.batch_rate.weight.copy_(torch.from_numpy(start.batch_rate))
    for i, each in enumerate(cast("list[Phenotype]", network.phenotypes)):
        each.unknown.normal_(std=0.02, generator=random_generator(seed, f"phenotypes.{i}.unknown"))
        each.inner.weight.zero_()
        each.answer.weight.mul_(0.1)
        each.rate.weight.zero_()
        if start.phenotypes:
            each.rate.weight.copy_(torch.from_numpy(start.phenotypes[i][1]))
    network.log_dispersion.copy_(torch.from_numpy(start.log_dispersion))
    network.rate_feature_out.weight.mul_(0.1)
    if network.sizes.n_small_counts:
        # as large as the rate features
        network.small_counts.weight.normal_(std=0.3, generator=random_generator(seed, "small_counts"))
    network.bin_out.weight.mul_(0.1)
    network.bin_bias.weight.zero_()
    network.bin_bias.weight[len(SPECIALS) :] = torch.from_numpy(start.log_bins)


def _initialise_completions(network: Transformer, start: InitialValues, *, svd_init: bool) -> None:
    """The bag of some modalities is mapped to that of all by ridge regression of its components, if it has these."""
    for i, layer in enumerate(network.complete):
        weight = cast("nn.Linear", layer).weight
        weight.copy_(torch.eye(len(weight)))
        if svd_init and start.completions is not None:
            k = min(len(weight), start.completions.shape[1])
            weight[:k, :k] = torch.from_numpy(start.completions[i, :k, :k].T.copy())


def random_generator(seed: int, name: str) -> torch.Generator:
    """Random generator for one part of the network. Its draws do not depend on which other parts exist."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
