"""The model before it is trained: its binning, its statistics and its initial networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import vstack

from scbioformers.config import Binning, Masking, ModelConfig, Reading
from scbioformers.core import SPECIALS, ConfigError, DataError, DepthModels, QuantileBins, Vocabulary, bin_normalized
from scbioformers.data import Block, ExternalTokens, ObsField, Statistics
from scbioformers.model import BioFormer, Modality, modality_sizes
from scbioformers.nn import Sizes, Transformer, initialise, make_network
from scbioformers.tokens import JointTokenizer, Tokenizer
from scbioformers.training._depth import fit_depth_models
from scbioformers.training._initial_values import bin_means, compute_initial_values
from scbioformers.training._isolation import isolated

MAX_DEPTH_COUNTS = 1_500_000  # maximum number of non-zero counts for the estimates of the depth
_MAX_EXACT_BIN = 2**15 - 2


def new_model(
    parts: Sequence[Block],
    statistics: Statistics,
    vocabulary: Vocabulary,
    binning: Binning,
    config: ModelConfig,
    masking: Masking,
    *,
    batch: ObsField | None,
    phenotypes: tuple[ObsField, ...],
    reading: Reading,
    others: Mapping[str, tuple[Binning, Reading]] = MappingProxyType({}),
    external: ExternalTokens | None = None,
    n_models: int,
    seed: int,
) -> BioFormer:
    """A model whose networks have their initial weights.

    Parameters
    ----------
    parts
        Sample of the training cells, without empty cells, one block for each data set.
    statistics
        Statistics of all training cells.
    binning
        Binning, which is frozen on these cells unless it is frozen already.
    others
        Binning and reading of the modalities after the first.
    external
        External tokens of the features.
    """
    n_features, n_cells = len(vocabulary), sum(len(part.depth) for part in parts)
    config = replace(config, n_components=max(1, min(config.n_components, n_features, n_cells - 1)))
    first, *names = vocabulary.modalities
    how, states = {first: (binning, reading), **others}, []
    for i, name in enumerate((first, *names)):
        own = filled(parts, i)
        if not own:
            raise DataError(f"No training cell has a count in the modelled features of {name!r}. Leave it out.")
        known = statistics if i == 0 else statistics.others[i - 1]
        named = vocabulary if not names else vocabulary.only(name)
        fields: dict[str, Any] = {"batch": batch, "phenotypes": phenotypes, "seed": seed}
        states.append(_read_state(own, known, named, *how[name], config, masking, **fields))
    model = _join_states(states)
    tokenizer = model.tokenizer
    n_external = 0 if external is None else len(external.categories)
    sizes = modality_sizes(vocabulary, model.binnings, batch, phenotypes, reading, model.others, n_external)
    members = [_new_network(config, sizes, parts, statistics, tokenizer, (seed + i) % 2**63) for i in range(n_models)]
    for network in members:
        set_external(network, external)
    return replace(model, members=tuple(members), external=external)


def set_external(network: Transformer, external: ExternalTokens | None) -> None:
    """Tell a network which external token each feature has."""
    if external is not None:
        network.external_code[len(SPECIALS) :] = torch.from_numpy(external.codes)


def filled(parts: Sequence[Block], number: int) -> list[Block]:
    """The cells that have counts in a modality, as cells of this modality alone."""
    found = []
    for part in parts:
        own = replace(part.modalities[number], others=())
        rows = np.diff(own.counts.indptr) > 0
        found.append(own if rows.all() else own.take(np.flatnonzero(rows)))
    return [own for own in found if len(own.depth)]


def _join_states(states: Sequence[BioFormer]) -> BioFormer:
    """The state of a model of several modalities."""
    first, *others = states
    if not others:
        return first
    arrays = ("axes", "axes_mean", "gene_mean", "gene_share", "depth_share", "bin_mean")
    joined: dict[str, Any] = {name: np.concatenate([getattr(state, name) for state in states]) for name in arrays}
    return replace(
        first,
        vocabulary=Vocabulary(tuple(name for state in states for name in state.vocabulary.names)),
        binnings={name: binning for state in states for name, binning in state.binnings.items()},
        others={state.modalities[0]: Modality(state.reading, state.depth) for state in others},
        **joined,
    )


def _read_state(
    parts: Sequence[Block],
    statistics: Statistics,
    vocabulary: Vocabulary,
    binning: Binning,
    reading: Reading,
    config: ModelConfig,
    masking: Masking,
    *,
    batch: ObsField | None,
    phenotypes: tuple[ObsField, ...],
    seed: int,
) -> BioFormer:
    """What one modality is read by: a model without networks."""
    frozen, n_features = _freeze(binning, statistics, parts), len(vocabulary)
    model = BioFormer(
        config=config,
        vocabulary=vocabulary,
        binnings={vocabulary.modalities[0]: frozen},
        masking=masking,
        depth=depth_models(parts, masking, frozen, seed) if reading.counts else None,
        batch=batch,
        phenotypes=phenotypes,
        reading=reading,
        gene_mean=statistics.gene_mean.astype(np.float32),
        gene_share=(statistics.gene_nnz / np.maximum(statistics.n_measured, 1)).astype(np.float32),
        depth_share=depth_share_of(statistics, reading),
        bin_mean=np.zeros(frozen.n_values, np.float32),
        members=(),
        axes=np.zeros((n_features, config.n_components), np.float32),
        axes_mean=np.zeros(n_features, np.float32),
    )
    return replace(model, bin_mean=bin_means(parts, model.first_tokenizer).astype(np.float32))


def _new_network(
    config: ModelConfig,
    sizes: Sizes,
    parts: Sequence[Block],
    statistics: Statistics,
    tokenizer: Tokenizer | JointTokenizer,
    seed: int,
) -> Transformer:
    with isolated(seed):  # torch layers draw random weights, which `initialise` replaces
        network = make_network(config, sizes)
    initialise(network, compute_initial_values(parts, statistics, tokenizer, sizes, seed), seed)
    return network


def depth_models(parts: Sequence[Block], masking: Masking, binning: Binning, seed: int) -> DepthModels:
    """Estimates of the depth, fitted to at most 1,500,000 counts of the cells."""
    n_cells, n_counts = sum(len(part.depth) for part in parts), sum(part.counts.nnz for part in parts)
    some = thin(parts, max(100, n_cells * MAX_DEPTH_COUNTS // max(n_counts, 1)))
    return fit_depth_models(some, masking, float(binning.mean_depth or 1.0), seed)


def thin(parts: Sequence[Block], size: int) -> list[Block]:
    """At most ``size`` cells in equal distances, because the data may be sorted by batch."""
    n = sum(len(part.depth) for part in parts)
    if n <= size:
        return list(parts)
    kept, ends = np.linspace(0, n - 1, size).astype(np.int64), np.cumsum([0, *(len(part.depth) for part in parts)])
    own = [kept[(kept >= first) & (kept < end)] - first for first, end in pairwise(ends)]
    return [part.take(rows) for part, rows in zip(parts, own, strict=True) if rows.size]


def _freeze(binning: Binning, statistics: Statistics, parts: Sequence[Block]) -> Binning:
    if binning.quantiles is not None:  # it does not say which features these are
        raise ConfigError(
            f"`binning` has the quantiles of {len(binning.quantiles.means)} features of another model, which may be "
            f"others here. Pass `bf.Binning('quantile', n_bins={binning.n_bins})`, or start from that model: "
            "`bf.tl.fit(adata, model=model)`."
        )
    if binning.mean_depth is not None:
        return binning
    if binning.kind != "value":
        # centred data may have no positive depth, and ranks do not need it
        depth = statistics.mean_depth if statistics.mean_depth > 0 else 1.0
        quantiles = None if binning.kind == "segment" else quantile_bins(parts, binning.n_bins)
        return binning.freeze(mean_depth=depth, max_bin=binning.n_bins, quantiles=quantiles)
    highest = statistics.max_normalized if binning.normalize else statistics.max_count
    max_bin = int(bin_normalized([highest], binning.cutoff, binning.bins_per_doubling)[0])
    return binning.freeze(mean_depth=statistics.mean_depth, max_bin=min(max_bin, _MAX_EXACT_BIN))


def quantile_bins(
    parts: Sequence[Block], n_bins: int, features: NDArray[np.int64] | slice = slice(None)
) -> QuantileBins:
    """Quantiles of the values of all features, or of these, without zeros."""
    values = vstack([part.counts for part in parts], format="csc")[:, features]
    return QuantileBins.fit(np.split(values.data, values.indptr[1:-1]), n_bins)


def depth_share_of(statistics: Statistics, reading: Reading) -> NDArray[np.float32]:
    if reading.scale == "centered" or not statistics.depth_share.any():
        return np.full(len(statistics.depth_share), 1 / len(statistics.depth_share), np.float32)
    return statistics.depth_share.astype(np.float32)
