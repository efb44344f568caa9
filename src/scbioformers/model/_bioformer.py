"""A fitted model: configuration, binning, vocabulary, weights and task heads, with methods to save and load it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scbioformers.config import Binning, Masking, ModelConfig, Reading
from scbioformers.core import DepthModels, ModelFormatError, Vocabulary, check_arguments
from scbioformers.data import ExternalTokens, ObsField
from scbioformers.model import _storage
from scbioformers.model._card import model_card
from scbioformers.model._head import Head
from scbioformers.model._parts import (
    Modality,
    modality_sizes,
    order_of_names,
    read_binnings,
    read_external,
    read_head,
    read_member,
    readings,
    with_additions,
)
from scbioformers.nn import Transformer
from scbioformers.tokens import DecoderTokenizer, JointTokenizer, Tokenizer

_ARRAYS = ("axes", "axes_mean", "gene_mean", "gene_share", "depth_share", "bin_mean")
_HASHED_SCHEMA = 4  # the hash of a network must stay the same when the files get another schema


@dataclass(frozen=True, eq=False)
class BioFormer:
    """A fitted model. :func:`scbioformers.tl.fit` makes it and :func:`scbioformers.get.model` reads it.

    It contains no cells. It contains everything from the training data that is needed to read other data: the
    vocabulary, the binning, the categories of the obs fields and the axes of the embedding.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> model = bf.get.model(adata)
    >>> len(model.vocabulary)
    40
    """

    config: ModelConfig
    """Architecture of the networks."""
    vocabulary: Vocabulary
    """Names of the modelled features."""
    binnings: dict[str, Binning]
    """Binning of each modality, in the order of the vocabulary. The key is ``"rna"`` for a model of an AnnData."""
    masking: Masking
    """Which features were masked in training."""
    depth: DepthModels | None
    """Estimates of the depth of a cell with masked features. ``None`` if the data are not counts."""
    batch: ObsField | None
    """The technical batch with its categories. The decoder is conditioned on it. ``None`` if there is no batch."""
    phenotypes: tuple[ObsField, ...]
    """Phenotypes with their categories. They are tokens of the model."""
    reading: Reading
    """How the training data were read. Every query is read in the same way."""
    gene_mean: NDArray[np.float32]
    """(M,), mean count of each feature over the training cells, at their mean depth."""
    gene_share: NDArray[np.float32]
    """(M,), share of the training cells that express each feature."""
    depth_share: NDArray[np.float32]
    """(M,), share of the depth of the training cells that each feature has: its counts divided by all their counts.

    For centred data, which have no depth, all features have the same share, 1 / M.
    """
    bin_mean: NDArray[np.float32]
    """(V,), mean of the (normalised) counts of the training cells within each bin."""
    members: tuple[Transformer, ...]
    """The networks of the ensemble, one for each member."""
    axes: NDArray[np.float32]
    """(M, K), axes of the default embedding in the space of decoded log1p profiles."""
    axes_mean: NDArray[np.float32]
    """(M,), origin of the axes."""
    score_quantiles: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(Q,), quantiles of the scores of validation cells, from the lowest to the highest, at equal distances.

    They say how well the model knows cells of the training data, see :func:`scbioformers.model.score_cells`. Empty if
    they are not known, for instance in a model that an earlier version stored. They are not part of the hash.
    """
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions of the packages, hash of the training data, and training parameters."""
    heads: dict[str, Head] = field(default_factory=dict)
    """Heads that tasks have added to the model, by name, such as ``"perturbation"``."""
    others: dict[str, Modality] = field(default_factory=dict)
    """How the modalities after the first are read, by name. ``reading`` and ``depth`` are those of the first."""
    external: ExternalTokens | None = None
    """External tokens of the features, as the networks have them. ``None`` if there are none."""
    part: int | None = None
    """Number of the modality that this is the state of, see :meth:`of`. ``None`` for a whole model."""

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.members[0].parameters())
        features = f"{len(self.vocabulary)} genes"
        if self.others:
            of_each = [f"{len(self.vocabulary.feature_names(name))} {name}" for name in self.modalities]
            features = f"{len(self.vocabulary)} features ({', '.join(of_each)})"
        return (
            f"BioFormer({features}, {self.config.n_layers} layers, width {self.config.width}, "
            f"{n:,} parameters, {len(self.members)} member{'s' * (len(self.members) > 1)}, hash {self.hash[:12]})"
        )

    @property
    def fields(self) -> tuple[ObsField, ...]:
        """Columns of ``obs`` that a query needs: the batch first, then the phenotypes."""
        return (*(() if self.batch is None else (self.batch,)), *self.phenotypes)

    @property
    def n_original_features(self) -> int:
        """Number of features of the first fit. Later fits can add features after them, in each modality."""
        bag_size = self.members[0].bag_size
        return int(bag_size.sum() if self.part is None else bag_size[self.part])

    @property
    def n_starts(self) -> int:
        """Number of members that started on their own.

        It is lower than the number of members if a fit with ``model=`` has added members: these start from the weights
        of others, so they agree more than members of independent fits.
        """
        n, former = len(self.members), self.provenance.get("started_from")
        while isinstance(former, dict):
            history = former.get("history")  # a list for each member
            n, former = min(n, len(history) if isinstance(history, list) and history else n), former.get("started_from")
        return n

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self.binnings)

    @property
    def binning(self) -> Binning:
        """Binning of the first modality."""
        return self.binnings[self.modalities[0]]

    def columns(self, modality: str) -> slice:
        """Positions of the features of a modality among all M features."""
        if not self.others:
            return slice(0, len(self.vocabulary))
        names = self.vocabulary.only(modality).names
        first = self.vocabulary.names.index(names[0])
        return slice(first, first + len(names))

    def of(self, modality: str) -> BioFormer:
        """What this modality is read by: the model with its vocabulary, binning and statistics alone.

        Its networks are those of all modalities, so they cannot be applied to one alone.
        """
        if not self.others:
            return self
        vocabulary, columns = self.vocabulary.only(modality), self.columns(modality)
        start = 0
        for name, binning in self.binnings.items():
            values = slice(start, start + binning.n_values)
            if name == modality:
                break
            start = values.stop
        state = self.others.get(modality, Modality(self.reading, self.depth))
        arrays = ("axes", "axes_mean", "gene_mean", "gene_share", "depth_share")
        return replace(
            self,
            vocabulary=vocabulary,
            binnings={modality: self.binnings[modality]},
            reading=state.reading,
            depth=state.depth,
            bin_mean=self.bin_mean[values],
            heads={},
            others={},
            external=None if self.external is None else self.external.take(columns),
            part=self.modalities.index(modality),
            **{name: getattr(self, name)[columns] for name in arrays},
        )

    @property
    def tokenizer(self) -> Tokenizer | JointTokenizer:
        """The tokenizer of this model, which converts counts to its input."""
        if self.others:
            return JointTokenizer(tuple(self.of(name).first_tokenizer for name in self.modalities))
        return self.first_tokenizer

    @property
    def first_tokenizer(self) -> Tokenizer:
        """The tokenizer of the first modality. In a model of one modality, it is the tokenizer."""
        options: dict[str, Any] = {
            "binning": self.binning,
            "n_features": len(self.vocabulary),
            "masking": self.masking,
            "depth": self.depth,
            "tokens": self.config.tokens,
            "max_tokens": self.config.max_tokens,
            "counts": self.reading.counts,
            "has_batches": self.batch is not None,
            "n_noise": self.config.noise_width(bool(self.fields)),
        }
        if self.config.architecture == "encoder":
            return Tokenizer(**options)
        return DecoderTokenizer(**options, zero_rate=self.zero_rate, name_order=order_of_names(self.vocabulary.names))

    @property
    def zero_rate(self) -> float:
        """Of a decoder: share of the zeros that are predicted in training, where all expressed features are."""
        share = self.gene_share[: self.n_original_features if self.members else None].astype(np.float64)
        odds = (1.0 - self.masking.nonzero_share) / self.masking.nonzero_share
        return float(min(1.0, odds * share.sum() / max(len(share) - share.sum(), 1e-9)))

    @property
    def hash(self) -> str:
        """SHA-256 of the networks and of the state that is used to read cells. Results store this hash.

        Heads, provenance and the scores of known cells are not part of the hash. So embeddings stay valid when a head
        is added. Heads have their own hashes.
        """
        network = replace(self, heads={}, provenance={})
        tensors, documents = network._tensors(), network._documents()
        del tensors["score_quantiles"]
        for i, member in enumerate(network.members):
            if float(member.bag_size.sum()) == len(network.vocabulary):
                del tensors[f"members.{i}.bag_size"]
        documents["config"]["schema"] = _HASHED_SCHEMA
        return hashlib.sha256(_storage.pack(tensors, documents)).hexdigest()

    def to_bytes(self) -> bytes:
        """The whole model as the bytes of one safetensors file. Pickle is not used."""
        return _storage.pack(self._tensors(), self._documents())

    @classmethod
    def from_bytes(cls, data: bytes) -> BioFormer:
        """Inverse of :meth:`to_bytes`.

        Raises
        ------
        ModelFormatError
            If the bytes are damaged, have another schema, or are not a model.
        """
        return cls._build(*_storage.unpack(data))

    def save(self, directory: str | Path) -> Path:
        """Write ``config.json``, ``vocabulary.json``, ``model.safetensors`` and a manifest with SHA-256 hashes.

        A card of the model, ``README.md``, says what it was trained on, how to use it, and its scores. Its text may be
        edited, for instance to state a licence. It is not part of the model.

        The files are written to a temporary directory, which is then renamed. So the directory is never incomplete. A
        former model in it is replaced, with its card.
        """
        check_arguments(BioFormer.save, locals())
        return _storage.save(Path(directory), self._tensors(), self._documents(), model_card(self))

    @classmethod
    def load(cls, directory: str | Path) -> BioFormer:
        """Load the model from a directory that :meth:`save` wrote.

        Raises
        ------
        ModelFormatError
            If a file is missing, damaged or changed, or has another schema.
        """
        check_arguments(BioFormer.load, locals())
        return cls._build(*_storage.load(Path(directory)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in (*_ARRAYS, "score_quantiles")}
        for i, binning in enumerate(self.binnings.values()):
            tensors |= {f"binnings.{i}.{name}": torch.from_numpy(x) for name, x in binning.to_arrays().items()}
        others = enumerate(self.others.values())  # by number, because names may have dots
        depths = {"depth": self.depth} | {f"others.{i}": other.depth for i, other in others}
        for prefix, depth in depths.items():
            if depth is not None:
                tensors |= {f"{prefix}.{name}": torch.from_numpy(x) for name, x in depth.to_arrays().items()}
        for i, network in enumerate(self.members):
            tensors |= {f"members.{i}.{name}": value for name, value in network.state_dict().items()}
        for name, head in self.heads.items():
            tensors |= {f"heads.{name}.{key}": torch.from_numpy(array) for key, array in head.arrays.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    @property
    def _schema(self) -> int:
        quantiles = any(binning.kind == "quantile" for binning in self.binnings.values())
        added = self.others or quantiles or self.external is not None or self.config.architecture == "decoder"
        return _storage.SCHEMA_OF_MODALITIES if added else _storage.SCHEMA

    def _documents(self) -> dict[str, Any]:
        config = {
            "schema": self._schema,
            "model": self.config.to_dict(),
            "binnings": {name: binning.to_dict() for name, binning in self.binnings.items()},
            "masking": self.masking.to_dict(),
            "batch": None if self.batch is None else self.batch.to_dict(),
            "phenotypes": [obs_field.to_dict() for obs_field in self.phenotypes],
            "reading": self.reading.to_dict(),
            "n_members": len(self.members),
            "provenance": self.provenance,
            "heads": {name: head.config for name, head in self.heads.items()},
        }
        if self.others:
            config["others"] = {name: other.reading.to_dict() for name, other in self.others.items()}
        if self.external is not None:
            config["external"] = self.external.to_dict()
        return {"config": config, "vocabulary": self.vocabulary.to_dict()}

    @classmethod
    def _build(cls, tensors: dict[str, torch.Tensor], documents: dict[str, Any]) -> BioFormer:
        try:
            stored = documents["config"]
            config = ModelConfig.from_dict(stored["model"])
            vocabulary = Vocabulary.from_dict(documents["vocabulary"])
            batch = None if stored["batch"] is None else ObsField.from_dict(stored["batch"])
            phenotypes = tuple(ObsField.from_dict(value) for value in stored["phenotypes"])
            binnings = read_binnings(stored["binnings"], vocabulary.modalities, tensors)
            reading, depth, others = readings(stored, tensors, vocabulary)
            n_external = len(stored["external"]["categories"]) if "external" in stored else 0
            sizes = modality_sizes(vocabulary, binnings, batch, phenotypes, reading, others, n_external)
            if stored["schema"] < 5:
                tensors = with_additions(tensors, len(vocabulary))
            members = tuple(read_member(config, sizes, tensors, f"members.{i}.") for i in range(stored["n_members"]))
            arrays: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
            n = len(vocabulary)
            expected = [(n, config.n_components), (n,), (n,), (n,), (n,), (sizes.n_values,)]
            if not members or [array.shape for array in arrays.values()] != expected:
                found_shapes = {name: array.shape for name, array in arrays.items()}
                raise ValueError(f"found {len(members)} members and arrays {found_shapes}, expected shapes {expected}")
            quantiles = tensors["score_quantiles"].numpy()
            if quantiles.ndim != 1 or quantiles.size == 1 or not (np.diff(quantiles) >= 0).all():
                raise ValueError("the score quantiles must be ascending")
            if wrong := {x.dtype for x in tensors.values()} - {torch.float32}:
                raise ValueError(f"found tensors of {wrong}, expected float32")
            return cls(
                config=config,
                vocabulary=vocabulary,
                binnings=binnings,
                masking=Masking.from_dict(stored["masking"]),
                batch=batch,
                phenotypes=phenotypes,
                reading=reading,
                depth=depth,
                others=others,
                external=read_external(stored.get("external"), members),
                members=members,
                score_quantiles=quantiles,
                provenance=dict(stored["provenance"]),
                heads={name: read_head(name, config, tensors) for name, config in stored["heads"].items()},
                **arrays,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, json.JSONDecodeError) as error:
            raise ModelFormatError(
                f"The stored model is incomplete or inconsistent: {error}. Fit again, or load another copy."
            ) from error
