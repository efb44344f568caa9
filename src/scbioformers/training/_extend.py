"""Extension of a fitted model by features and categories, before it is trained further."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scbioformers.config import Reading
from scbioformers.core import (
    SPECIALS,
    DataError,
    DepthModel,
    DepthModels,
    LowRankProfile,
    Profiles,
    Vocabulary,
    principal_components,
    short_list,
)
from scbioformers.data import Block, ExternalTokens, ObsField, Statistics
from scbioformers.model import BioFormer, network_sizes, run_network
from scbioformers.nn import InitialValues, Phenotype, Transformer, random_generator
from scbioformers.training._initial_values import N_COMPONENTS, compute_initial_values
from scbioformers.training._isolation import isolated
from scbioformers.training._start import depth_models, set_external, thin

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
RIDGE = 1e-2  # of the mean square of the known loadings
MAX_SAMPLE = 10_000  # maximum number of cells for the output of the new features


def extend_model(
    model: BioFormer,
    vocabulary: Vocabulary,
    batch: ObsField | None,
    phenotypes: tuple[ObsField, ...],
    reading: Reading,
    parts: Sequence[Block],
    statistics: Statistics,
    *,
    external: ExternalTokens | None = None,
    n_members: int,
    seed: int,
) -> BioFormer:
    """The model with features and categories appended, so that it predicts for what it knew as before.

    Parameters
    ----------
    model
        The fitted model.
    vocabulary
        Its vocabulary with M - M0 features appended.
    batch, phenotypes
        The obs fields of the model with categories appended.
    reading
        How the new data are read.
    parts
        Training cells of the new data over all M features.
    statistics
        Statistics of all of these cells.
    external
        External tokens of all M features, if the model has some.
    n_members
        Number of members. Members after the first are copies of those of the model, with output layers drawn anew.
    seed
        Seed of what is drawn.
    """
    known = len(model.vocabulary)
    binning = model.binning
    if binning.kind == "quantile" and len(vocabulary) > known:
        raise DataError(
            f"The model has quantile bins of its {known} features, found {len(vocabulary) - known} others. Pass "
            "`mask_var=` of the model's features, or fit a model to these data."
        )
    depth = depth_models(parts, model.masking, binning, seed) if model.reading.counts else None
    tokenizer = replace(model.first_tokenizer, n_features=len(vocabulary), depth=depth)
    profiles = [Profiles(tokenizer.profiles(part), part.present) for part in parts]
    loadings, _, _ = principal_components(profiles, N_COMPONENTS, seed)
    measured = np.any([part.present for part in parts], axis=0)[:known]
    if not measured.any():
        raise DataError("The data have none of the features of the model, so nothing of it can be carried over.")
    sizes = network_sizes(len(vocabulary), binning, batch, phenotypes, counts=model.reading.counts)
    sizes = replace(sizes, n_external=0 if external is None else len(external.categories))
    extended = replace(
        model,
        vocabulary=vocabulary,
        batch=batch,
        phenotypes=phenotypes,
        reading=reading,
        depth=_extend_depth(model.depth, depth, loadings, measured),
        gene_mean=_append(model.gene_mean, statistics.gene_mean),
        gene_share=_append(model.gene_share, statistics.gene_nnz / np.maximum(statistics.n_measured, 1)),
        depth_share=_append(model.depth_share, statistics.depth_share),
        axes=_append(model.axes, np.zeros((len(vocabulary), model.axes.shape[1]))),
        axes_mean=_append(model.axes_mean, np.zeros(len(vocabulary))),
        heads={},
        external=external,
    )
    start = compute_initial_values(parts, statistics, tokenizer, sizes, seed)
    sample = thin(parts, MAX_SAMPLE)
    members = []
    for i in range(n_members):
        former = model.members[i % len(model.members)]
        with isolated(seed):  # torch layers draw random weights, which are replaced
            network = _enlarged(former, Transformer(model.config, sizes)).eval()
        _fill_features(network, former, start, loadings, measured, known, seed + i)
        _fill_batches(network, former, start)
        _fill_phenotypes(network, former, start, seed + i)
        set_external(network, external)
        if i >= len(model.members):
            _redraw_outputs(network, seed + i)
        if len(vocabulary) > known:
            _fill_profile(network, start, extended, sample, known)
        members.append(network)
    return replace(extended, members=tuple(members))


def _append(former: NDArray[np.float32], whole: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.concatenate([former, np.asarray(whole[len(former) :], np.float32)])


def _map_loadings(loadings: Array, measured: NDArray[np.bool_], values: Array) -> Array:
    """(M - M0, D), values of new features, which have loadings (M, K): by ridge regression on those of known features.

    ``values`` (M0, D) are those of the known features. Of these, the data measure ``measured`` (M0,).
    """
    known, new = loadings[: len(measured)][measured], loadings[len(measured) :]
    if not known.size or not len(new):
        return np.zeros((len(new), values.shape[1]))
    penalty = RIDGE * np.square(known).sum() / known.shape[1]
    weights = np.linalg.solve(known.T @ known + penalty * np.eye(known.shape[1]), known.T @ values[measured])
    return np.asarray(new @ weights)


def _extend_depth(
    former: DepthModels | None, fitted: DepthModels | None, loadings: Array, measured: NDArray[np.bool_]
) -> DepthModels | None:
    """The former estimates, with the means and variances of the new features from the fitted ones."""
    if former is None or fitted is None or len(fitted.drawn.share) == len(former.drawn.share):
        return former
    old, new = former.drawn.profile, fitted.drawn.profile
    added = _map_loadings(loadings, measured, old.loadings.astype(np.float64))
    profile = LowRankProfile(
        old.mean_depth,
        _append(old.mean, new.mean),
        np.concatenate([old.loadings, added.astype(np.float32)]),
        old.noise,
    )

    def extended(of: DepthModel, by: DepthModel) -> DepthModel:
        share, variance = _append(of.share, by.share), _append(of.variance, by.variance)
        return replace(of, profile=profile, share=share, variance=variance)

    return DepthModels(extended(former.drawn, fitted.drawn), extended(former.natural, fitted.natural))


@torch.no_grad()
def _latents(model: BioFormer, network: Transformer, part: Block, known: int) -> Array:
    """(N, L), latents of cells, computed from the known features alone."""
    latents = np.zeros((len(part.depth), model.config.n_latent))
    only_known = replace(part, start=0, present=part.present & (np.arange(len(part.present)) < known))
    for batch, output in run_network(model, network, [only_known], batch_size=128):
        latents[batch.rows.numpy()] = output.latent.double().numpy()
    return latents


@torch.no_grad()
def _enlarged(former: Transformer, network: Transformer) -> Transformer:
    """Copy all weights of the former network. Rows and columns that it does not have stay 0."""
    old = former.state_dict()
    for name, value in network.state_dict().items():
        value.zero_()
        if name in old:
            value[tuple(slice(n) for n in old[name].shape)] = old[name]
    return network


@torch.no_grad()
def _fill_features(
    network: Transformer,
    former: Transformer,
    start: InitialValues,
    loadings: Array,
    measured: NDArray[np.bool_],
    known: int,
    seed: int,
) -> None:
    """Embeddings, means and bins of the new features."""
    first = len(SPECIALS)
    embeddings = former.feature.weight[first : first + known].double().numpy()
    added = torch.from_numpy(_map_loadings(loadings, measured, embeddings)).float()
    noise = torch.empty_like(added).normal_(std=0.1 * added.shape[1] ** -0.5, generator=random_generator(seed, "added"))
    network.feature.weight[first + known :] = added + noise
    network.bin_bias.weight[first + known :] = torch.from_numpy(start.log_bins[known:])
    network.profile_mean[known:] = torch.from_numpy(start.profile_mean[known:])


@torch.no_grad()
def _fill_profile(
    network: Transformer, start: InitialValues, model: BioFormer, parts: Sequence[Block], known: int
) -> None:
    """Output rows of the decoder for the new features: ridge regression of their profiles on the latents."""
    latent = np.concatenate([_latents(model, network, part, known) for part in parts])
    middle = latent.mean(axis=0)
    x = latent - middle
    ends = np.cumsum([len(part.depth) for part in parts])[:-1]
    products = np.zeros((x.shape[1], network.sizes.n_features - known))
    for part, own in zip(parts, np.split(x, ends), strict=True):
        values, mean = model.tokenizer.profiles(part)[:, known:], start.profile_mean[known:] * part.present[known:]
        products += (values.T @ own).T - np.outer(own.sum(axis=0), mean)
    penalty = max(RIDGE * np.square(x).sum() / x.shape[1], 1e-12)  # the latents of equal cells are equal
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), products).T
    network.linear_rate.weight[known:] = torch.from_numpy(weights).float()
    network.rate.bias[known:] = torch.from_numpy(start.rate[known:] - weights @ middle).float()
    network.log_dispersion[known:] = torch.from_numpy(start.log_dispersion[known:])


@torch.no_grad()
def _fill_batches(network: Transformer, former: Transformer, start: InitialValues) -> None:
    """Rows of new batches: their effects around the average batch of the former model, which stays as it is."""
    n_former, n_batches = former.sizes.n_batches, network.sizes.n_batches
    if n_batches == n_former:
        return
    features = network.feature.weight[len(SPECIALS) : len(SPECIALS) + network.sizes.n_features]
    shift = -torch.from_numpy(start.batch_shift) @ features / network.bag_scale
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
        effects = -torch.from_numpy(shift) @ features / network.bag_scale, torch.from_numpy(rate)
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


def extended_field(former: ObsField | None, found: ObsField | None) -> ObsField | None:
    """The field of the model with the categories of the data appended. Known categories keep their codes.

    A batch may have another column in the data than in the model, such as ``"sample"`` for ``"donor"``. It is then read
    from the column of the data.

    Raises
    ------
    DataError
        If both columns have a category of the same name, which need not be the same batch.
    """
    if former is None or found is None:
        return former if found is None else found
    if bool(former.knots) != bool(found.knots):
        kinds = ["numbers" if each.knots else "categories" for each in (former, found)]
        raise DataError(
            f"The model was fitted to {kinds[0]} of adata.obs[{former.name!r}], found {kinds[1]}. Convert the column."
        )
    if former.knots:
        return former  # other numbers are interpolated or extrapolated
    common = [category for category in found.categories if category in former.categories]
    if common and found.name != former.name:
        column, known = f"adata.obs[{found.name!r}]", f"adata.obs[{former.name!r}]"
        raise DataError(
            f"The batch of the model is {former.name!r}, that of the data {found.name!r}, and both have the categories "
            f"{short_list(common)}. If these are the same batches, call `{known} = {column}` and pass "
            f"`batch_key={former.name!r}`. Else call `{column} = 'new_' + {column}.astype(str)`."
        )
    if found.name != former.name:
        logger.info("The batch of the model was adata.obs[%r]. It is now read from %r.", former.name, found.name)
    new = [category for category in found.categories if category not in former.categories]
    return ObsField(found.name, (*former.categories, *new))
