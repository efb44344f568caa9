"""What one step of the model reads."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

N_SMALL_COUNTS = 4


@dataclass(frozen=True)
class Batch:
    """Token batch: B cells, C context tokens, H masked tokens, M modelled features, P phenotypes.

    ``context_*`` and ``visible`` are all that the model may see; ``target*`` is what it is scored on.
    """

    rows: Tensor
    """int64 (B,), the row of each cell in its source."""
    context_ids: Tensor
    """int64 (B, C), vocabulary ids of the visible features that attention reads; 0 is padding."""
    context_bins: Tensor
    """int64 (B, C), their bins, made from the visible counts and the visible depth."""
    masked_ids: Tensor
    """int64 (B, H), vocabulary ids of the features to predict; 0 is padding."""
    visible: Tensor
    """float32 (B, M), log1p of the visible counts at the mean depth, 0 where masked or not expressed."""
    known: Tensor
    """bool (B, M), whether the model is given the value: False for what is masked, or absent from the data."""
    present: Tensor
    """bool (B, M), whether the data of the cell measure the feature at all; no loss depends on one that is absent."""
    log_depth: Tensor
    """float32 (B,), log of the estimated depth of the whole cell, relative to the training mean."""
    small_count_bins: Tensor
    """int64 (B, N_SMALL_COUNTS), the bins that counts of 1, 2, … would have in a cell of that depth."""
    batch_codes: Tensor
    """int64 (B,), category of the technical batch, on which the decoder is conditioned; 0 where there is none."""
    phenotypes: Tensor
    """int64 (B, P), categories of the phenotypes, which are tokens of the sentence."""
    target_bins: Tensor
    """int64 (B, H), bins of the masked features at the full depth; -1 for padding."""
    target_counts: Tensor
    """float32 (B, M), all counts (values on another scale where there are no counts)."""
    size_factor: Tensor
    """float32 (B,), full depth relative to its training mean."""
    noise: Tensor | None = None
    """float32 (B, L), standard normal, added to the latent in training; drawn here so that it depends on the cell and
    the epoch alone."""
    context_external: Tensor | None = None
    """int64 (B, C), external token of each visible feature: a row of ``external``, 0 for none."""
    external: Tensor | None = None
    """float32 (E, D), embeddings of the external tokens (Eq. 7); the first is 0 and stands for none."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in tensors.items()})
