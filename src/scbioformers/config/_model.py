"""Size of the transformer, and which of its parts are used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from scbioformers.core import ConfigError, check_fields


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a :class:`~scbioformers.BioFormer` (paper, section 2).

    The presets are :meth:`small`, the default for a CPU, :meth:`no_attention`, :meth:`decoder`, and :meth:`paper`, the
    size used in the paper.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.ModelConfig.paper().n_layers
    8
    """

    architecture: Literal["encoder", "decoder"] = "encoder"
    """Which features a prediction is made from.

    In an ``"encoder"``, a masked feature is predicted from all visible features. In a ``"decoder"``, features have a
    random order, and each is predicted from those before it. So cells can be generated with
    :func:`scbioformers.tl.generate`. It reads counts of one modality.
    """
    n_layers: int = 1
    """Number of transformer blocks."""
    n_heads: int = 4
    """Number of attention heads per block. It must divide ``width``."""
    width: int = 128
    """Width of the embeddings (D in the paper)."""
    feedforward: int = 4
    """Width of the feed-forward layer, in multiples of ``width``."""
    dropout: float = 0.0
    """Dropout rate after attention and feed-forward layers, in training."""
    n_latent: int = 32
    """Width of the latent representation between ``<cls>`` and the predicted profile."""
    latent_noise: float = 1.5
    """Standard deviation of the noise that is added to the (normalised) latent in training.

    It is used only if the model was fitted with a ``batch_key``. The decoder is conditioned on the batch. The noise
    makes it costly to store the batch in the latent as well.
    """
    n_components: int = 32
    """Number of components of the decoded profile that form the default cell embedding.

    It is at most the number of features.
    """
    value_embedding: Literal["scalar", "lookup"] = "scalar"
    """How bins are embedded.

    ``"scalar"`` applies a small network to the bin as a number, which keeps the order of the bins. ``"lookup"`` uses a
    table with one row per bin.
    """
    tokens: Literal["expressed", "all"] = "expressed"
    """Which features are tokens.

    ``"expressed"`` uses only the expressed and the masked features. ``"all"`` uses every feature, including zeros, as
    in the paper.
    """
    max_tokens: int = 2048
    """Maximum number of visible features per cell at inference. The highest by (count, id) are kept."""
    attention: bool = True
    """``False`` removes self-attention and keeps only the feed-forward blocks, for ablation experiments."""
    bag: bool = True
    """Whether ``<cls>`` and the masked features are initialised with the bag of the visible features.

    The bag is the normalised weighted sum of the feature embeddings.
    """
    svd_init: bool = True
    """Whether the feature embeddings are initialised from the SVD of the log-normalised training counts.

    Otherwise they are initialised at random.
    """
    attend_masked: bool = False
    """Whether masked features are also attended to, as in the paper.

    If ``False``, the other masked features enter the prediction of a masked feature through the estimated depth alone.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        positive = ("n_layers", "n_heads", "width", "feedforward", "n_latent", "n_components", "max_tokens")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"ModelConfig.{name} must be at least 1, found {getattr(self, name)}.")
        if self.width % self.n_heads:
            raise ConfigError(
                f"ModelConfig.width={self.width} must be divisible by n_heads={self.n_heads}; "
                f"the nearest valid width: {round(self.width / self.n_heads) * self.n_heads or self.n_heads}."
            )
        if self.architecture == "decoder" and (self.tokens == "all" or self.attend_masked):
            setting = "tokens='all'" if self.tokens == "all" else "attend_masked=True"
            raise ConfigError(
                f"A decoder (ModelConfig.architecture='decoder') reads only expressed features, but {setting} was "
                "passed. Leave it out, or use architecture='encoder'."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"ModelConfig.dropout must lie in [0, 1), found {self.dropout}.")
        if self.latent_noise < 0.0:
            raise ConfigError(f"ModelConfig.latent_noise must not be negative, found {self.latent_noise}.")

    def noise_width(self, conditioned: bool) -> int:
        """Width of the noise on the latent in training. It is 0 if the decoder is not conditioned on columns of obs."""
        return self.n_latent if conditioned and self.latent_noise else 0

    @classmethod
    def small(cls) -> ModelConfig:
        """The default size. With a few thousand cells it trains in about a minute on the CPU of a laptop."""
        return cls()

    @classmethod
    def no_attention(cls) -> ModelConfig:
        """The default size without attention: cells are read through the bag alone, in less time.

        It has no attention networks and no attention heat maps.
        """
        return cls(attention=False)

    @classmethod
    def decoder(cls) -> ModelConfig:
        """The default size as a decoder, which can generate cells. The other methods are as with an encoder."""
        return cls(architecture="decoder")

    @classmethod
    def paper(cls) -> ModelConfig:
        """Size and input of the paper: 8 layers, 8 heads, width 512, one token per feature, full self-attention."""
        return cls(n_layers=8, n_heads=8, width=512, dropout=0.1, n_latent=64, tokens="all", attend_masked=True)

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """The preset with this name: ``"small"``, ``"no_attention"``, ``"decoder"`` or ``"paper"``.

        Raises
        ------
        ConfigError
            If there is no such preset.
        """
        presets = {"small": cls.small, "no_attention": cls.no_attention, "decoder": cls.decoder, "paper": cls.paper}
        if name not in presets:
            raise ConfigError(f"No preset {name!r}; there are {sorted(presets)}. Use one of these, or a ModelConfig.")
        return presets[name]()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the input of :meth:`from_dict`."""
        values = dataclasses.asdict(self)
        if self.architecture == "encoder":
            del values["architecture"]  # stored models without it are encoders, and keep their hash
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of :meth:`to_dict`. Raises :class:`~scbioformers.core.ConfigError` for unknown names."""
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ConfigError(f"ModelConfig has no {unknown}; it has {sorted(names)}.")
        return cls(**values)
