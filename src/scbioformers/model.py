"""A fitted model: configuration, binning, vocabulary and weights, and the reading of cells with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from scbioformers import _storage
from scbioformers.core import Binning, ConfigError, ModelFormatError, Vocabulary, tqdm
from scbioformers.data import Block, ObsField, Source
from scbioformers.nn import ModelConfig, Network, Output, Sizes, require_device
from scbioformers.perturbation import PerturbationHead
from scbioformers.tokens import Batch, Masking, Tokenizer

Use = Literal["profile", "cls", "latent", "mean"]
USES = ("profile", "cls", "latent", "mean")
READ_CHUNK = 4096  # cells read and sorted by length at a time
_PERTURBATION = "perturbation."
_ARRAYS = ("axes", "axes_mean", "gene_mean", "gene_share", "bin_mean")
MAX_BATCH_TOKENS = 2**16  # of one inference batch, so that memory does not grow with the length of the cells


@dataclass(frozen=True, eq=False)
class BioFormer:
    """A fitted model; made by :func:`scbioformers.tl.fit`, read back by :func:`scbioformers.get.model`.

    Holds no cells. Everything that belongs to the training data and that other data must be read with is frozen in it:
    the vocabulary, the binning, the categories of the obs fields and the axes of the embedding.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> model = bf.get.model(adata)
    >>> len(model.vocabulary)
    40
    """

    config: ModelConfig
    vocabulary: Vocabulary
    binnings: dict[str, Binning]
    """By modality, ``"rna"`` where there is one."""
    masking: Masking
    hidden_share: float
    """Share of the expressed molecules that the masks hid, over the training cells."""
    fields: tuple[ObsField, ...]
    """The sample-level tokens, e.g. the batch, with their categories."""
    counts: bool
    """Whether the model was fitted on counts."""
    gene_mean: NDArray[np.float32]
    """(M,), mean count of each molecule over the training cells, at their mean depth."""
    gene_share: NDArray[np.float32]
    """(M,), share of the training cells that express each molecule."""
    bin_mean: NDArray[np.float32]
    """(V,), mean of the (normalised) counts of the training cells within each bin."""
    members: tuple[Network, ...]
    """One network per member of the ensemble."""
    axes: NDArray[np.float32]
    """(M, K), axes of the default embedding in the space of decoded log1p profiles."""
    axes_mean: NDArray[np.float32]
    """(M,), origin of the axes."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions of the packages, hash of the training data, training parameters."""
    perturbation: PerturbationHead | None = None
    """What predicts responses to perturbations, if the model was fitted with such a task."""

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.members[0].parameters())
        return (
            f"BioFormer({len(self.vocabulary)} molecules, {self.config.n_layers} layers, width {self.config.width}, "
            f"{n:,} parameters, {len(self.members)} member{'s' * (len(self.members) > 1)}, hash {self.hash[:12]})"
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """How this model reads counts."""
        return Tokenizer(
            binning=self.binnings["rna"],
            gene_mean=self.gene_mean,
            masking=self.masking,
            hidden_share=self.hidden_share,
            tokens=self.config.tokens,
            max_tokens=self.config.max_tokens,
            counts=self.counts,
            n_noise=self.config.n_latent if self.config.latent_noise and self.fields else 0,
        )

    @property
    def hash(self) -> str:
        """SHA-256 over configuration and weights: what results record to tell which model they came from."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @torch.no_grad()
    def embed(
        self,
        source: Source,
        *,
        use: Use = "profile",
        batch_size: int = 128,
        device: str = "cpu",
        progress_bar: bool = False,
    ) -> NDArray[np.float32]:
        """Sample representations (paper, section 2.3), independent of batch size, order and chunking.

        Parameters
        ----------
        source
            N cells over this model's molecules.
        use
            ``"profile"``: leading components of the decoded log1p profile of ``<cls>``, (N, n_components);
            ``"cls"``: the ``<cls>`` vector, (N, width); ``"latent"``: the latent behind the profile, (N, n_latent);
            ``"mean"``: the mean of the molecule outputs, (N, width).

        Returns
        -------
        float32 (N, K). Members of an ensemble are averaged in profile space and concatenated for the other uses.

        Raises
        ------
        ConfigError
            If ``use`` or ``batch_size`` is out of range, or the device is not there.
        """
        if use not in USES:
            raise ConfigError(f"`use` is one of {USES}, got {use!r}.")
        if batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}.")
        require_device(device)
        parts: list[NDArray[np.float32]] = []
        for network in self.members:
            read = self.outputs(network, source.blocks(READ_CHUNK), batch_size, device=device, contextual=use == "mean")
            with tqdm(total=source.n_obs, desc="Reading cells", unit="cell", disable=not progress_bar) as bar:
                rows: list[tuple[torch.Tensor, torch.Tensor]] = []
                for batch, output in read:
                    rows.append((batch.rows.cpu(), self._represent(network, output, batch, use).cpu()))
                    bar.update(len(batch))
            result = np.empty((source.n_obs, rows[0][1].shape[1]), np.float32)
            for index, values in rows:
                result[index.numpy()] = values.numpy()
            parts.append(result)
        if use == "profile":
            mean: NDArray[np.float32] = np.mean(parts, axis=0, dtype=np.float32)
            return mean
        return np.concatenate(parts, axis=1)

    def _represent(self, network: Network, output: Output, batch: Batch, use: Use) -> torch.Tensor:
        if use == "cls":
            return output.cls
        if use == "latent":
            return output.latent
        if use == "mean" and output.molecules is not None:
            read = (batch.context_ids > 0).unsqueeze(-1)
            return (output.molecules * read).sum(dim=1) / read.sum(dim=1).clamp(min=1)
        # sums over thousands of molecules in float64: the result must not depend on how a batch is cut
        axes, mean = (torch.from_numpy(x).to(output.latent.device, torch.float64) for x in (self.axes, self.axes_mean))
        return (network.profile(output.latent).double() - mean) @ axes

    @torch.no_grad()
    def outputs(
        self,
        network: Network,
        blocks: Iterable[Block],
        batch_size: int,
        *,
        device: str = "cpu",
        contextual: bool = False,
    ) -> Iterator[tuple[Batch, Output]]:
        """Read every cell once, in batches of similar length; ``batch.rows`` tells which cells they are."""
        network = network.to(device).eval()
        for block in blocks:
            for batch in self.batches(block, batch_size):
                batch = batch.to(device)
                yield batch, network(batch, contextual=contextual)

    @torch.no_grad()
    def predict(
        self, block: Block, asked: csr_matrix, batch_size: int, *, device: str = "cpu", natural: bool = True
    ) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
        """Hide the asked positions of each cell and predict their bins from the rest.

        Parameters
        ----------
        block
            N cells.
        asked
            (N, M), non-zero at the positions to predict.
        natural
            Take out the odds by which the training mask showed more expressed molecules than there are. False says that
            the positions were drawn by such a mask, and gives the probabilities under it.

        Yields
        ------
        A batch of cells with ``hidden_ids`` (B, H), and the probabilities (B, H, V) of their bins, averaged over the
        members.
        """
        networks = [network.to(device).eval() for network in self.members]
        for batch in self.batches(block, batch_size, asked, drawn=not natural):
            odds = self._odds(batch).log().to(device)[:, None, None] if natural else 0.0
            batch = batch.to(device)
            mean: Tensor | None = None
            for network in networks:
                logits = network(batch).logits
                logits = torch.cat([logits[..., :1] - odds, logits[..., 1:]], dim=-1)
                share = logits.softmax(dim=-1) / len(networks)
                mean = share if mean is None else mean + share
            if mean is not None:
                yield batch, mean.cpu().numpy()

    def batches(
        self, block: Block, batch_size: int, asked: csr_matrix | None = None, *, drawn: bool = False
    ) -> Iterator[Batch]:
        """Tokens of the cells of a block, in batches of similar length.

        Parameters
        ----------
        block
            N cells.
        batch_size
            Cells in a batch at most; fewer where they are long.
        asked
            (N, M), non-zero at the positions to hide.
        drawn
            Whether these positions were drawn by a training mask.

        Yields
        ------
        Batches on the CPU, each cell once; ``batch.rows`` tells which cells they are.
        """
        tokenizer = self.tokenizer
        lengths = tokenizer.n_context(block, asked)  # not of what is hidden, which must not even tell the order
        if asked is not None:
            lengths = lengths + np.asarray(asked.astype(bool).sum(axis=1)).ravel()
        order = np.argsort(-lengths, kind="stable")  # the first of a batch is its longest
        start = 0
        while start < len(order):
            size = max(1, min(batch_size, MAX_BATCH_TOKENS // max(int(lengths[order[start]]), 1)))
            chosen = order[start : start + size]
            wanted = None if asked is None else asked[chosen]
            yield tokenizer.read(block.take(chosen), block.start + chosen, wanted, drawn=drawn)
            start += size

    def _odds(self, batch: Batch) -> Tensor:
        """(B,) odds of the training mask for cells like these, judged by what is known of them alone."""
        share = self.gene_share.astype(np.float64)
        # not a matrix product, whose last bits depend on the other cells
        known = np.where(batch.known.numpy(), share, 0.0).sum(axis=1)
        n_expressed = (batch.visible.numpy() > 0).sum(axis=1) / np.maximum(known, 1e-9) * share.sum()
        return torch.from_numpy(self.masking.odds(n_expressed, len(self.vocabulary))).float()

    def to_bytes(self) -> bytes:
        """The whole model as one safetensors file; no pickle."""
        return _storage.pack(self._tensors(), self._documents())

    @classmethod
    def from_bytes(cls, data: bytes) -> BioFormer:
        """The model that :meth:`to_bytes` wrote.

        Raises
        ------
        ModelFormatError
            If the bytes are damaged, of another schema, or no model.
        """
        return cls._build(*_storage.unpack(data))

    def save(self, directory: str | Path) -> Path:
        """Write ``config.json``, ``vocabulary.json``, ``model.safetensors`` and, last, a SHA-256 manifest.

        The directory appears at once and complete, or not at all.
        """
        return _storage.save(Path(directory), self._tensors(), self._documents())

    @classmethod
    def load(cls, directory: str | Path) -> BioFormer:
        """The model of a directory that :meth:`save` wrote.

        Raises
        ------
        ModelFormatError
            If a file is missing, damaged or altered, or of another schema.
        """
        return cls._build(*_storage.load(Path(directory)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in _ARRAYS}
        for i, network in enumerate(self.members):
            tensors |= {f"members.{i}.{name}": value for name, value in network.state_dict().items()}
        if self.perturbation is not None:
            arrays = self.perturbation.tensors().items()
            tensors |= {f"{_PERTURBATION}{name}": torch.from_numpy(value) for name, value in arrays}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def _documents(self) -> dict[str, Any]:
        config = {
            "schema": _storage.SCHEMA,
            "model": self.config.to_dict(),
            "binnings": {name: binning.to_dict() for name, binning in self.binnings.items()},
            "masking": self.masking.to_dict(),
            "fields": [obs_field.to_dict() for obs_field in self.fields],
            "counts": self.counts,
            "hidden_share": self.hidden_share,
            "n_members": len(self.members),
            "provenance": self.provenance,
        }
        if self.perturbation is not None:
            config["perturbation"] = self.perturbation.to_dict()
        return {"config": config, "vocabulary": self.vocabulary.to_dict()}

    @classmethod
    def _build(cls, tensors: dict[str, torch.Tensor], documents: dict[str, Any]) -> BioFormer:
        try:
            stored = documents["config"]
            config = ModelConfig.from_dict(stored["model"])
            vocabulary = Vocabulary.from_dict(documents["vocabulary"])
            fields = tuple(ObsField.from_dict(value) for value in stored["fields"])
            binnings = {name: Binning.from_dict(value) for name, value in stored["binnings"].items()}
            sizes = Sizes(
                len(vocabulary), binnings["rna"].n_values, tuple(len(f.categories) for f in fields), stored["counts"]
            )
            members = tuple(_network(config, sizes, tensors, f"members.{i}.") for i in range(stored["n_members"]))
            arrays = {name: tensors[name].numpy() for name in _ARRAYS}
            n = len(vocabulary)
            expected = [(n, config.n_components), (n,), (n,), (n,), (sizes.n_values,)]
            if not members or [array.shape for array in arrays.values()] != expected:
                found_shapes = {name: array.shape for name, array in arrays.items()}
                raise ValueError(f"{len(members)} members, {found_shapes}, expected {expected}")
            if found := {x.dtype for x in tensors.values()} - {torch.float32}:
                raise ValueError(f"tensors of {found}")
            return cls(
                config=config,
                vocabulary=vocabulary,
                binnings=binnings,
                masking=Masking.from_dict(stored["masking"]),
                fields=fields,
                counts=bool(stored["counts"]),
                hidden_share=float(stored["hidden_share"]),
                members=members,
                provenance=dict(stored["provenance"]),
                perturbation=_head(stored, vocabulary, tensors),
                **arrays,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, json.JSONDecodeError) as error:
            raise ModelFormatError(f"The stored model is incomplete or inconsistent: {error}") from error


def _head(stored: dict[str, Any], vocabulary: Vocabulary, tensors: dict[str, Tensor]) -> PerturbationHead | None:
    """The optional part; models without it load as before."""
    if "perturbation" not in stored:
        return None
    found = {name: value for name, value in tensors.items() if name.startswith(_PERTURBATION)}
    arrays = {name.removeprefix(_PERTURBATION): value.numpy() for name, value in found.items()}
    return PerturbationHead.build(tuple(vocabulary.molecules()), stored["perturbation"], arrays)


def _network(config: ModelConfig, sizes: Sizes, tensors: dict[str, torch.Tensor], prefix: str) -> Network:
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if config.n_layers > len(weights):
        raise ValueError(f"{config.n_layers} layers in {len(weights)} tensors")
    with torch.device("meta"):  # an absurd configuration must fail on its shapes, not on memory
        network = Network(config, sizes)
    network.load_state_dict(weights, assign=True)
    return network.eval()
