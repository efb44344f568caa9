"""Extension of a fitted model by features and categories, before it is trained further."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
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
from scbioformers.model import BioFormer, Modality, modality_sizes, run_network
from scbioformers.nn import InitialValues, Phenotype, Transformer, random_generator
from scbioformers.training._initial_values import N_COMPONENTS, by_measured, compute_initial_values
from scbioformers.training._isolation import isolated
from scbioformers.training._start import depth_models, depth_share_of, filled, quantile_bins, set_external, thin

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Positions = NDArray[np.int64]
RIDGE = 1e-2  # of the mean square of the known loadings
MAX_SAMPLE = 10_000  # maximum number of cells for the output of the new features
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


def extend_model(
    model: BioFormer,
    vocabulary: Vocabulary,
    batch: ObsField | None,
    phenotypes: tuple[ObsField, ...],
    readings: Mapping[str, Reading],
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
        Its vocabulary with M - M0 features appended, in each modality after those that it has.
    batch, phenotypes
        The obs fields of the model with categories appended.
    readings
        How the new data are read, for each modality of the model.
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
    kept = vocabulary.index(model.vocabulary.names)
    new = np.setdiff1d(np.arange(len(vocabulary)), kept)
    extended = _extend_state(model, vocabulary, readings, parts, statistics, kept)
    extended = replace(extended, batch=batch, phenotypes=phenotypes, heads={}, external=external)
    tokenizer, groups = extended.tokenizer, by_measured(parts)
    profiles = [Profiles(tokenizer.profiles(part), _present(part)) for part in groups]
    measured = np.any([part.present for part in profiles], axis=0)[kept]
    if not measured.any():
        raise DataError("The data have none of the features of the model, so nothing of it can be carried over.")
    n_external = 0 if external is None else len(external.categories)
    sizes = modality_sizes(
        vocabulary, extended.binnings, batch, phenotypes, extended.reading, extended.others, n_external
    )
    start = compute_initial_values(parts, statistics, tokenizer, sizes, seed)
    if start.weight is None:
        loadings, _, _ = principal_components(profiles, N_COMPONENTS, seed)
    else:  # over all modalities, which have the same variance
        loadings = start.components.astype(np.float64)
    extended = _extend_depths(model, extended, parts, loadings, measured, seed)
    sample = by_measured(thin(parts, MAX_SAMPLE))
    members = []
    for i in range(n_members):
        former = model.members[i % len(model.members)]
        with isolated(seed):  # torch layers draw random weights, which are replaced
            network = _enlarged(former, Transformer(model.config, sizes), kept).eval()
        _fill_features(
            network, former, start, _map_loadings(loadings, kept, measured, _embeddings(former)), new, seed + i
        )
        _fill_batches(network, former, start)
        _fill_phenotypes(network, former, start, seed + i)
        set_external(network, external)
        if i >= len(model.members):
            _redraw_outputs(network, seed + i)
        if new.size:
            _fill_profile(network, start, extended, sample, new)
        members.append(network)
    return replace(extended, members=tuple(members))


def _extend_state(
    model: BioFormer,
    vocabulary: Vocabulary,
    readings: Mapping[str, Reading],
    parts: Sequence[Block],
    statistics: Statistics,
    kept: Positions,
) -> BioFormer:
    """The model with the binnings and statistics of new features, and the readings of the new data."""
    means, shares, depth_shares, binnings = [], [], [], {}
    for i, (name, known) in enumerate(zip(model.modalities, (statistics, *statistics.others), strict=True)):
        n_known, n_features = (len(each.feature_names(name)) for each in (model.vocabulary, vocabulary))
        own, binning = filled(parts, i), model.binnings[name]
        if n_features > n_known and not own:
            raise DataError(f"No training cell has a count in the modelled features of {name!r}. Leave it out.")
        if binning.quantiles is not None and n_features > n_known:
            added = quantile_bins(own, binning.n_bins, np.arange(n_known, n_features))
            binning = replace(binning, quantiles=binning.quantiles.append(added))
        binnings[name] = binning
        means.append(known.gene_mean)
        shares.append(known.gene_nnz / np.maximum(known.n_measured, 1))
        depth_shares.append(depth_share_of(known, readings[name]))
    first, *names = model.modalities
    return replace(
        model,
        vocabulary=vocabulary,
        binnings=binnings,
        reading=readings[first],
        others={name: replace(model.others[name], reading=readings[name]) for name in names},
        gene_mean=_fill(np.concatenate(means), kept, model.gene_mean),
        gene_share=_fill(np.concatenate(shares), kept, model.gene_share),
        depth_share=_fill(np.concatenate(depth_shares), kept, model.depth_share),
        axes=_fill(np.zeros((len(vocabulary), model.axes.shape[1])), kept, model.axes),
        axes_mean=_fill(np.zeros(len(vocabulary)), kept, model.axes_mean),
    )


def _fill(values: NDArray[np.floating], kept: Positions, former: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, ...), values of all features, with the former values where they are known."""
    whole = np.asarray(values, np.float32).copy()
    whole[kept] = former
    return whole


def _present(part: Block) -> NDArray[np.bool_]:
    return np.concatenate([each.present for each in part.modalities])


def _map_loadings(loadings: Array, kept: Positions, measured: NDArray[np.bool_], values: Array) -> Array:
    """(M - M0, D), values of new features, which have loadings (M, K): by ridge regression on those of known features.

    ``values`` (M0, D) are those of the known features, which are at ``kept`` (M0,). Of these, the data measure
    ``measured`` (M0,).
    """
    known, new = loadings[kept][measured], np.delete(loadings, kept, axis=0)
    if not known.size or not len(new):
        return np.zeros((len(new), values.shape[1]))
    penalty = RIDGE * np.square(known).sum() / known.shape[1]
    weights = np.linalg.solve(known.T @ known + penalty * np.eye(known.shape[1]), known.T @ values[measured])
    return np.asarray(new @ weights)


def _extend_depths(
    model: BioFormer,
    extended: BioFormer,
    parts: Sequence[Block],
    loadings: Array,
    measured: NDArray[np.bool_],
    seed: int,
) -> BioFormer:
    """The extended model with estimates of the depth that know its new features."""
    depths = {}
    for i, name in enumerate(model.modalities):
        former, columns, known = model.of(name), extended.columns(name), model.columns(name)
        depths[name] = former.depth
        if former.depth is not None and columns.stop - columns.start > known.stop - known.start:
            fitted = depth_models(filled(parts, i), model.masking, former.binning, seed)
            depths[name] = _extend_depth(former.depth, fitted, loadings[columns], measured[known])
    others = {name: Modality(other.reading, depths[name]) for name, other in extended.others.items()}
    return replace(extended, depth=depths[model.modalities[0]], others=others)


def _extend_depth(
    former: DepthModels, fitted: DepthModels, loadings: Array, measured: NDArray[np.bool_]
) -> DepthModels:
    """The former estimates, with the means and variances of the new features from the fitted ones."""
    old, new, known = former.drawn.profile, fitted.drawn.profile, np.arange(len(former.drawn.share))
    added = _map_loadings(loadings, known, measured, old.loadings.astype(np.float64))
    profile = LowRankProfile(
        old.mean_depth,
        _fill(new.mean, known, old.mean),
        np.concatenate([old.loadings, added.astype(np.float32)]),
        old.noise,
    )

    def extended(of: DepthModel, by: DepthModel) -> DepthModel:
        share, variance = _fill(by.share, known, of.share), _fill(by.variance, known, of.variance)
        return replace(of, profile=profile, share=share, variance=variance)

    return DepthModels(extended(former.drawn, fitted.drawn), extended(former.natural, fitted.natural))


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


def _embeddings(network: Transformer) -> Array:
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
        values, mean = model.tokenizer.profiles(part)[:, new], start.profile_mean[new] * _present(part)[new]
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
