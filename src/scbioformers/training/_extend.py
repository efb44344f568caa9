"""Extension of a fitted model by features and categories, before it is trained further."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.config import Reading
from scbioformers.core import (
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
from scbioformers.model import BioFormer, Modality, modality_sizes
from scbioformers.training._extend_network import (
    RIDGE,
    Positions,
    embeddings_of,
    extend_network,
    present_features,
)
from scbioformers.training._initial_values import N_COMPONENTS, by_measured, compute_initial_values
from scbioformers.training._start import depth_models, depth_share_of, filled, quantile_bins, thin

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
MAX_SAMPLE = 10_000  # maximum number of cells for the output of the new features


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
    extended = _extend_state(model, vocabulary, readings, parts, statistics, kept)
    extended = replace(extended, batch=batch, phenotypes=phenotypes, heads={}, external=external)
    tokenizer, groups = extended.tokenizer, by_measured(parts)
    profiles = [Profiles(tokenizer.profiles(part), present_features(part)) for part in groups]
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
        added = _map_loadings(loadings, kept, measured, embeddings_of(former))
        options: dict[str, Any] = {"fresh": i >= len(model.members), "seed": seed + i}
        members.append(extend_network(former, extended, sizes, start, added, kept, sample, **options))
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
