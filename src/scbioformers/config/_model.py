"""How large the transformer is, and which of its parts are switched on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from scbioformers.core import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a :class:`~scbioformers.BioFormer` (paper, section 2).

    Two presets: :meth:`small`, the default for a CPU, and :meth:`paper`, the size of the paper.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.ModelConfig.paper().n_layers
    8
    """

    n_layers: int = 1
    """Transformer blocks."""
    n_heads: int = 4
    """Attention heads per block; must divide ``width``."""
    width: int = 128
    """Embedding width, D in the paper."""
    feedforward: int = 4
    """Width of the feed-forward layer, in multiples of ``width``."""
    dropout: float = 0.0
    """Dropout after attention and feed-forward, in training."""
    n_latent: int = 32
    """Width of the small latent between ``<cls>`` and the predicted profile."""
    latent_noise: float = 1.5
    """Standard deviation of the noise on the (normalised) latent in training, where there are obs fields such as the
    batch: the decoder is told them, so with noise they are not worth their place in the latent. Not used otherwise."""
    n_components: int = 32
    """Components of the decoded profile that make the default cell embedding (at most the number of features)."""
    value_embedding: Literal["scalar", "lookup"] = "scalar"
    """A small network on the scalar bin, which keeps magnitudes ordered, or a table with a row per bin."""
    tokens: Literal["expressed", "all"] = "expressed"
    """Read expressed and masked features only, or every feature, zeros included, as the paper does."""
    max_tokens: int = 2048
    """Visible features read per cell at inference; above it the highest by (count, id) are kept."""
    attention: bool = True
    """``False`` removes self-attention and leaves feed-forward blocks: the ablation of every benchmark."""
    bag: bool = True
    """Start ``<cls>`` and the masked features from the normalised bag of the visible features."""
    svd_init: bool = True
    """Start the feature embeddings from the SVD of the log-normalised training counts, else at random."""
    attend_masked: bool = False
    """Let masked features be attended to as well, as the paper does. Without it a prediction does not depend on
    which other features are asked for."""

    def __post_init__(self) -> None:
        positive = ("n_layers", "n_heads", "width", "feedforward", "n_latent", "n_components", "max_tokens")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"ModelConfig.{name} must be at least 1, got {getattr(self, name)}.")
        if self.width % self.n_heads:
            raise ConfigError(
                f"ModelConfig.width={self.width} must be divisible by n_heads={self.n_heads}; "
                f"the nearest that is: {round(self.width / self.n_heads) * self.n_heads or self.n_heads}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"ModelConfig.dropout must lie in [0, 1), got {self.dropout}.")
        if self.latent_noise < 0.0:
            raise ConfigError(f"ModelConfig.latent_noise must not be negative, got {self.latent_noise}.")
        if self.value_embedding not in ("scalar", "lookup"):
            raise ConfigError(f"ModelConfig.value_embedding is 'scalar' or 'lookup', got {self.value_embedding!r}.")
        if self.tokens not in ("expressed", "all"):
            raise ConfigError(f"ModelConfig.tokens is 'expressed' or 'all', got {self.tokens!r}.")

    def noise_width(self, has_batches: bool) -> int:
        """Width of the noise on the latent in training; 0 where the decoder is not conditioned on a batch."""
        return self.n_latent if has_batches and self.latent_noise else 0

    @classmethod
    def small(cls) -> ModelConfig:
        """The default: trains on a laptop's CPU in about a minute for a few thousand cells."""
        return cls()

    @classmethod
    def paper(cls) -> ModelConfig:
        """The paper's size and input: 8 layers, 8 heads, D 512, every feature a token, full self-attention."""
        return cls(n_layers=8, n_heads=8, width=512, dropout=0.1, n_latent=64, tokens="all", attend_masked=True)

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """The preset of that name, ``"small"`` or ``"paper"``.

        Raises
        ------
        ConfigError
            If there is no such preset.
        """
        presets = {"small": cls.small, "paper": cls.paper}
        if name not in presets:
            raise ConfigError(f"No preset {name!r}; there are {sorted(presets)}. Or pass a ModelConfig.")
        return presets[name]()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as :meth:`from_dict` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration that :meth:`to_dict` wrote; unknown names are an error."""
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ConfigError(f"ModelConfig has no {unknown}; it has {sorted(names)}.")
        return cls(**values)
