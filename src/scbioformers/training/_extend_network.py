"""Extension of a network by features and categories, from statistics of the new data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scbioformers.core import SPECIALS
from scbioformers.data import Block
from scbioformers.model import BioFormer, run_network
from scbioformers.nn import InitialValues, Phenotype, Sizes, Transformer, make_network, random_generator
from scbioformers.training._isolation import isolated
from scbioformers.training._start import set_external

Array = NDArray[np.float64]
Positions = NDArray[np.int64]
RIDGE = 1e-2  # of the mean square of the known loadings
# tensors of a network with an entry for each feature, by the axis of the features
AXIS_OF_FEATURES = {
    "feature.weight": 0,
    "bin_bias.weight": 0,
    "bag_weight": 0,
    "profile_mean": 0,
    "rate.weight": 0,
    "rate.bias": 0,
    "linear_rate.weight": 0,
    "log_dispersion": 0,
    "external_code": 0,
    "batch_rate.weight": 1,
    "phenotypes.rate.weight": 1,  # without the number of the phenotype
}


def extend_network(
    former: Transformer,
    model: BioFormer,
    sizes: Sizes,
    start: InitialValues,
    embeddings: Array,
    kept: Positions,
    parts: Sequence[Block],
    *,
    fresh: bool,
    seed: int,
) -> Transformer:
    """A network of other sizes that predicts from what the former one knew as that did.

    Parameters
    ----------
    model
        The extended model, whose networks are not used.
    start
        Statistics of the new data over all M features.
    embeddings
        (M - M0, D), of the new features.
    kept
        int64 (M0,), positions of the features of the former network.
    parts
        Training cells, each part of cells that were measured in the same modalities.
    fresh
        Whether the output layers are drawn anew.
    """
    new = np.setdiff1d(np.arange(sizes.n_features), kept)
    with isolated(seed):  # torch layers draw random weights, which are replaced
        network = _enlarged(former, make_network(model.config, sizes), kept).eval()
    _fill_features(network, former, start, embeddings, new, seed)
    _fill_batches(network, former, start)
    _fill_phenotypes(network, former, start, seed)
    set_external(network, model.external)
    if fresh:
        _redraw_outputs(network, seed)
    if new.size:
        _fill_profile(network, start, model, parts, new)
    return network


def present_features(part: Block) -> NDArray[np.bool_]:
    """(M,), whether each feature of all modalities is measured."""
    return np.concatenate([each.present for each in part.modalities])


@torch.no_grad()
def _latents(model: BioFormer, network: Transformer, part: Block, known: NDArray[np.bool_]) -> Array:
    """(N, L), latents of cells, computed from the ``known`` features (M,) alone."""
    latents = np.zeros((len(part.depth), model.config.n_latent))
    of_parts = np.split(known, np.cumsum([len(each.present) for each in part.modalities])[:-1])
    first, *others = (
        replace(each, present=each.present & own, others=())
        for each, own in zip(part.modalities, of_parts, strict=True)
    )
    only_known = replace(first, start=0, others=tuple(others))
    for batch, output in run_network(model, network, [only_known], batch_size=128):
        latents[batch.rows.numpy()] = output.latent.double().numpy()
    return latents


@torch.no_grad()
def _enlarged(former: Transformer, network: Transformer, kept: Positions) -> Transformer:
    """Copy all weights of the former network. Rows and columns that it does not have stay 0."""
    old = former.state_dict()
    for name, value in network.state_dict().items():
        value.zero_()
        if name not in old:
            continue
        known = tuple(torch.arange(n) for n in old[name].shape)
        if (axis := AXIS_OF_FEATURES.get(re.sub(r"\.\d+\.", ".", name))) is not None:
            n_specials = old[name].shape[axis] - len(kept)  # rows that are no feature, which stand first
            rows = torch.cat([torch.arange(n_specials), n_specials + torch.from_numpy(kept)])
            known = (*known[:axis], rows, *known[axis + 1 :])
        if known:
            value[torch.meshgrid(*known, indexing="ij")] = old[name]
        else:
            value.copy_(old[name])
    return network


def embeddings_of(network: Transformer) -> Array:
    """(M0, D), embeddings of the features."""
    return network.feature.weight[len(SPECIALS) :][: network.sizes.n_features].detach().double().numpy()


@torch.no_grad()
def _fill_features(
    network: Transformer, former: Transformer, start: InitialValues, embeddings: Array, new: Positions, seed: int
) -> None:
    """Embeddings (M - M0, D), means and bins of the ``new`` features. Each weighs in the bag as its modality does."""
    first = len(SPECIALS)
    added = torch.from_numpy(embeddings).float()
    noise = torch.empty_like(added).normal_(std=0.1 * added.shape[1] ** -0.5, generator=random_generator(seed, "added"))
    network.feature.weight[first + new] = added + noise
    network.bin_bias.weight[first + new] = torch.from_numpy(start.log_bins[new])
    network.profile_mean[new] = torch.from_numpy(start.profile_mean[new])
    if network.sizes.parts:
        weights = former.bag_weight.split_with_sizes(former.sizes.columns)
        means = torch.stack([own.mean() for own in weights])
        network.bag_weight[new] = means[network.modality_of(torch.from_numpy(first + new))]


@torch.no_grad()
def _fill_profile(
    network: Transformer, start: InitialValues, model: BioFormer, parts: Sequence[Block], new: Positions
) -> None:
    """Output rows of the decoder for the new features: ridge regression of their profiles on the latents.

    ``parts`` are cells that were measured in the same modalities.
    """
    known = ~np.isin(np.arange(network.sizes.n_features), new)
    latent = np.concatenate([_latents(model, network, part, known) for part in parts])
    middle = latent.mean(axis=0)
    x = latent - middle
    ends = np.cumsum([len(part.depth) for part in parts])[:-1]
    products = np.zeros((x.shape[1], len(new)))
    for part, own in zip(parts, np.split(x, ends), strict=True):
        values, mean = model.tokenizer.profiles(part)[:, new], start.profile_mean[new] * present_features(part)[new]
        products += (values.T @ own).T - np.outer(own.sum(axis=0), mean)
    penalty = max(RIDGE * np.square(x).sum() / x.shape[1], 1e-12)  # the latents of equal cells are equal
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), products).T
    network.linear_rate.weight[new] = torch.from_numpy(weights).float()
    network.rate.bias[new] = torch.from_numpy(start.rate[new] - weights @ middle).float()
    network.log_dispersion[new] = torch.from_numpy(start.log_dispersion[new])


def _weighted(shift: NDArray[np.float32], network: Transformer) -> Tensor:
    """(n, M), effects on the profiles, weighted as the features are in the bag."""
    effects = torch.from_numpy(shift)
    return effects * network.bag_weight if network.sizes.parts else effects


@torch.no_grad()
def _fill_batches(network: Transformer, former: Transformer, start: InitialValues) -> None:
    """Rows of new batches: their effects around the average batch of the former model, which stays as it is."""
    n_former, n_batches = former.sizes.n_batches, network.sizes.n_batches
    if n_batches == n_former:
        return
    features = network.feature.weight[len(SPECIALS) : len(SPECIALS) + network.sizes.n_features]
    shift = -_weighted(start.batch_shift, network) @ features / network.bag_scale
    rate = torch.from_numpy(start.batch_rate)
    tables = [(network.batch_rate.weight, rate)] + ([(network.batch_shift, shift)] if network.config.bag else [])
    for table, effect in tables:
        new = effect[n_former:]
        former_mean = table[:n_former].mean(dim=0) if n_former else torch.zeros_like(table[0])
        table[n_former:] = new - new.mean(dim=0) + former_mean


@torch.no_grad()
def _fill_phenotypes(network: Transformer, former: Transformer, start: InitialValues, seed: int) -> None:
    """Tables of new phenotypes, and rows of new categories, whose effects are around the mean of the former ones."""
    features = network.feature.weight[len(SPECIALS) : len(SPECIALS) + network.sizes.n_features]
    n_former = former.sizes.phenotype_sizes
    for i, (each, (shift, rate)) in enumerate(zip(network.phenotypes, start.phenotypes, strict=True)):
        known = n_former[i] if i < len(n_former) else 0
        if known == len(rate):
            continue
        part = cast("Phenotype", each)
        effects = -_weighted(shift, network) @ features / network.bag_scale, torch.from_numpy(rate)
        for table, effect in zip((part.shift, part.rate.weight), effects, strict=True):
            mean = table[:known].mean(dim=0) if known else torch.zeros_like(table[0])
            new = effect[known:]
            table[known:] = new - (new.mean(dim=0) if known else 0) + mean
        drawn = random_generator(seed, f"phenotypes.{i}")
        for weight in [part.token.weight[known:], *([] if known else [part.unknown])]:
            weight.normal_(std=0.02, generator=drawn)


@torch.no_grad()
def _redraw_outputs(network: Transformer, seed: int) -> None:
    """Draw the inner output layers anew, so that the members of an ensemble differ where they share a start."""
    for name in ("bin_inner", "rate_feature_inner", "latent_inner"):
        layer: Any = getattr(network, name)
        weight: Tensor = layer.weight
        weight.normal_(std=weight.shape[1] ** -0.5, generator=random_generator(seed, name))
        layer.bias.zero_()
