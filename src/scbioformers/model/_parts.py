"""Parts of a model: how a modality is read, the sizes of the networks, and what is made of stored tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scbioformers.config import Binning, ModelConfig, Reading
from scbioformers.core import SPECIALS, DepthModels, Vocabulary
from scbioformers.data import ExternalTokens, ObsField
from scbioformers.model._head import Head
from scbioformers.nn import N_SMALL_COUNTS, Sizes, Transformer, join_sizes, make_network


@dataclass(frozen=True, eq=False)
class Modality:
    """How one modality is read."""

    reading: Reading
    """How the training data were read."""
    depth: DepthModels | None
    """Estimates of the depth of a cell with masked features. ``None`` if the data are not counts."""


def network_sizes(
    n_features: int, binning: Binning, batch: ObsField | None, phenotypes: Sequence[ObsField], *, counts: bool
) -> Sizes:
    """Sizes of a network that depend on the data."""
    return Sizes(
        n_features,
        binning.n_values,
        n_batches=0 if batch is None else len(batch.categories),
        phenotype_sizes=tuple(len(phenotype.categories) for phenotype in phenotypes),
        counts=counts,
        n_small_counts=N_SMALL_COUNTS if binning.kind == "value" else 0,
    )


def modality_sizes(
    vocabulary: Vocabulary,
    binnings: dict[str, Binning],
    batch: ObsField | None,
    phenotypes: Sequence[ObsField],
    reading: Reading,
    others: dict[str, Modality],
    n_external: int = 0,
) -> Sizes:
    """Sizes of a network of all modalities."""
    readings = {name: others[name].reading if name in others else reading for name in binnings}
    parts = [
        network_sizes(len(vocabulary.feature_names(name)), binning, batch, phenotypes, counts=readings[name].counts)
        for name, binning in binnings.items()
    ]
    return replace(join_sizes(parts), n_external=n_external)


def network_bytes(
    config: ModelConfig,
    n_features: int,
    binning: Binning,
    batch: ObsField | None = None,
    phenotypes: Sequence[ObsField] = (),
) -> int:
    """Size of the weights of a network in bytes, without allocating them. 100 bins are assumed if it is not frozen."""
    frozen = binning if binning.max_bin else Binning().freeze(mean_depth=1.0, max_bin=99)
    with torch.device("meta"):
        network = make_network(config, network_sizes(n_features, frozen, batch, phenotypes, counts=True))
    return sum(p.numel() * p.element_size() for p in network.parameters())


def order_of_names(names: Sequence[str]) -> NDArray[np.int64]:
    """(M,), place of each feature in an order that depends on the names alone, not on their order here."""
    keys = [hashlib.sha256(name.encode()).digest() for name in names]
    places = np.empty(len(keys), np.int64)
    places[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return places


def with_additions(tensors: dict[str, Tensor], n_features: int) -> dict[str, Tensor]:
    """Tensors of schema 4 with those that schema 5 has added: no scores, and all features are of the first fit."""
    members = [name.removesuffix("cls") for name in tensors if name.startswith("members.") and name.endswith(".cls")]
    sizes = {f"{member}bag_size": torch.full((), float(n_features)) for member in members}
    return {"score_quantiles": torch.zeros(0), **sizes, **tensors}


def readings(
    stored: dict[str, Any], tensors: dict[str, Tensor], vocabulary: Vocabulary
) -> tuple[Reading, DepthModels | None, dict[str, Modality]]:
    """How the first modality is read, its depth, and both of the others."""
    first, *names = vocabulary.modalities
    reading, others = Reading.from_dict(stored["reading"]), {}
    for i, name in enumerate(names):
        other = Reading.from_dict(stored["others"][name])
        others[name] = Modality(other, _read_depth(tensors, f"others.{i}.", len(vocabulary.feature_names(name)), other))
    return reading, _read_depth(tensors, "depth.", len(vocabulary.feature_names(first)), reading), others


def _read_depth(tensors: dict[str, Tensor], prefix: str, n_features: int, reading: Reading) -> DepthModels | None:
    if not reading.counts:
        return None
    arrays = {name.removeprefix(prefix): x.numpy() for name, x in tensors.items() if name.startswith(prefix)}
    return DepthModels.from_arrays(arrays, n_features)


def read_binnings(stored: dict[str, Any], modalities: Sequence[str], tensors: dict[str, Tensor]) -> dict[str, Binning]:
    """The binning of each modality, in this order."""
    found = {}
    for i, name in enumerate(modalities):
        prefix = f"binnings.{i}."
        arrays = {key.removeprefix(prefix): x.numpy() for key, x in tensors.items() if key.startswith(prefix)}
        found[name] = Binning.from_dict(stored[name], arrays)
    return found


def read_external(stored: dict[str, Any] | None, members: Sequence[Transformer]) -> ExternalTokens | None:
    """The external tokens of the features, whose codes are in each network."""
    if stored is None:
        return None
    codes = [member.external_code[len(SPECIALS) :].numpy() for member in members]
    if any((other != codes[0]).any() for other in codes):
        raise ValueError("the members have different external tokens")
    return ExternalTokens.from_dict(stored, codes[0])


def read_head(name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Head:
    # names of arrays have no dot, but names of heads may: "annotation:type" is not "annotation:type.fine"
    parts = {key: key.rpartition(".") for key in tensors}
    arrays = {array: tensors[key].numpy() for key, (head, _, array) in parts.items() if head == f"heads.{name}"}
    return Head(dict(config), arrays)


def read_member(config: ModelConfig, sizes: Sizes, tensors: dict[str, torch.Tensor], prefix: str) -> Transformer:
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if config.n_layers > len(weights):
        raise ValueError(f"found {len(weights)} tensors for {config.n_layers} layers")
    with torch.device("meta"):  # a wrong configuration must fail on the shapes, not run out of memory
        network = make_network(config, sizes)
    network.load_state_dict(weights, assign=True)
    return network.eval()
