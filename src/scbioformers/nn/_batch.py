"""What one step of the model reads."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

FEW_COUNTS = 4


@dataclass(frozen=True)
class Batch:
    """Token batch: B cells, C context tokens, H hidden tokens, M modelled molecules, F obs fields.

    ``context_*`` and ``visible`` are all that the model may see; ``target*`` is what it is scored on.
    """

    rows: Tensor
    """int64 (B,), the row of each cell in its source."""
    context_ids: Tensor
    """int64 (B, C), vocabulary ids of the visible molecules that attention reads; 0 is padding."""
    context_bins: Tensor
    """int64 (B, C), their bins, made from the visible counts and the visible depth."""
    context_external: Tensor | None
    """int64 (B, C), external token of each visible molecule, 0 for none; None where nothing carries one."""
    hidden_ids: Tensor
    """int64 (B, H), vocabulary ids of the molecules to predict; 0 is padding."""
    hidden_external: Tensor | None
    """int64 (B, H), external token of each hidden molecule, 0 for none; None where nothing carries one."""
    visible: Tensor
    """float32 (B, M), log1p of the visible counts at the mean depth, 0 where hidden or not expressed."""
    known: Tensor
    """bool (B, M), whether the model is told the value: not of what is hidden, or absent from the data."""
    log_depth: Tensor
    """float32 (B,), log of the depth to expect of the whole cell, relative to the training mean."""
    few_bins: Tensor
    """int64 (B, FEW_COUNTS), the bins that counts of 1, 2, … would have in a cell of that depth."""
    fields: Tensor
    """int64 (B, F), category codes of the sample-level tokens."""
    target_bins: Tensor
    """int64 (B, H), bins of the hidden molecules at the full depth; -1 for padding."""
    target_counts: Tensor
    """float32 (B, M), all counts (values on another scale where there are no counts)."""
    size_factor: Tensor
    """float32 (B,), full depth relative to its training mean."""
    noise: Tensor | None = None
    """float32 (B, L), standard normal, added to the latent in training; drawn here so that it depends on the cell and
    the epoch alone."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in tensors.items()})
