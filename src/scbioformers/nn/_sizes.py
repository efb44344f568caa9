"""Sizes of a network that depend on the data, and the names of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scbioformers.nn._batch import N_SMALL_COUNTS

# parameters of each part that can be frozen, by the first part of their names
PART_OF = {
    **dict.fromkeys(("feature", "value", "phenotypes", "cls", "start", "mask", "depth"), "embeddings"),
    **dict.fromkeys(("other_values", "modality", "external"), "embeddings"),
    **dict.fromkeys(("blocks", "norm"), "blocks"),
    **dict.fromkeys(("bag_to_cls", "bag_to_masked", "bag_to_latent", "complete"), "bag"),
    **dict.fromkeys(("bin_inner", "bin_out", "bin_bias", "small_counts"), "bins"),
    **dict.fromkeys(("rate_feature_in", "rate_feature_inner", "rate_feature_out"), "bins"),
    **dict.fromkeys(("latent_inner", "latent_out", "batch_rate", "from_latent"), "decoder"),
    **dict.fromkeys(("rate", "linear_rate", "log_dispersion"), "decoder"),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network that depend on the data."""

    n_features: int
    """Number of modelled features, M."""
    n_values: int
    """Number of bin values, V."""
    n_batches: int = 0
    """Number of technical batches, on which the decoder is conditioned. 0 if there is no batch."""
    phenotype_sizes: tuple[int, ...] = ()
    """Number of categories of each phenotype."""
    counts: bool = True
    """Whether the decoded profile predicts counts (a rate) or bins (a share of the highest bin)."""
    n_small_counts: int = N_SMALL_COUNTS
    """Number of small counts that are predicted as counts, C. 0 for segment bins, which are ranks."""
    n_external: int = 0
    """Number of external tokens that features have, for all modalities. 0 if there are none."""
    parts: tuple[Sizes, ...] = ()
    """The sizes of each modality if there are several. The numbers above are then their sums."""

    @property
    def modalities(self) -> tuple[Sizes, ...]:
        """The sizes of each modality."""
        return self.parts or (self,)

    @property
    def columns(self) -> list[int]:
        """Number of features of each modality, by which columns of features are split."""
        return [part.n_features for part in self.modalities]


def join_sizes(parts: Sequence[Sizes]) -> Sizes:
    """Sizes of a network of several modalities."""
    if len(parts) == 1:
        return parts[0]
    sums = {name: sum(getattr(part, name) for part in parts) for name in ("n_features", "n_values", "n_small_counts")}
    return replace(parts[0], **sums, counts=all(part.counts for part in parts), parts=tuple(parts))
