"""The input of the network for one step: a batch of cells as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

N_SMALL_COUNTS = 8  # counts 1 to 8, which are predicted as counts and whose bins are inputs of the network
_PADDING = {"context_ids": 0, "context_bins": 0, "masked_ids": 0, "target_bins": -1}  # of tokens that a cell lacks


@dataclass(frozen=True)
class Batch:
    """A batch of B cells with C context tokens, H masked tokens, M modelled features and P phenotypes.

    ``context_*`` and ``visible`` contain only visible values. ``target*`` are used only by the losses.
    """

    rows: Tensor
    """int64 (B,), row of each cell in its source."""
    context_ids: Tensor
    """int64 (B, C), vocabulary ids of the visible features that are tokens. 0 is padding."""
    context_bins: Tensor
    """int64 (B, C), bins of these features. They are computed from the visible counts and the estimated depth."""
    masked_ids: Tensor
    """int64 (B, H), vocabulary ids of the masked features, which are predicted. 0 is padding."""
    visible: Tensor
    """float32 (B, M), log1p of the visible counts at the mean depth. 0 where masked or not expressed."""
    known: Tensor
    """bool (B, M), whether the value is an input of the model. False if it is masked or not measured."""
    present: Tensor
    """bool (B, M), whether the feature is measured in the cell. Features that are not measured have no loss."""
    log_depth: Tensor
    """float32 (B,), log of the estimated depth of the whole cell relative to the training mean.

    With K modalities (B, K): each has a depth of its own.
    """
    small_count_bins: Tensor
    """float32 (B, N_SMALL_COUNTS, V), probability of each bin for the counts 1, 2, …, over the likely depths."""
    batch_codes: Tensor
    """int64 (B,), category of the technical batch. The decoder is conditioned on it. 0 if there is no batch.

    -1 is the average batch, for cells of a batch that was not in the training data.
    """
    phenotypes: Tensor
    """float32 (B, P), phenotypes, which are tokens: the category, or the position among the knots of a number.

    NaN where a phenotype is not known, or masked.
    """
    target_phenotypes: Tensor
    """float32 (B, P), phenotypes that are masked and predicted. NaN where there is nothing to predict."""
    target_bins: Tensor
    """int64 (B, H), bins of the masked features at the full depth. -1 is padding."""
    target_counts: Tensor
    """float32 (B, M), all counts. If the data are not counts: the bins as shares of the highest bin."""
    size_factor: Tensor
    """float32 (B,), full depth of the cell relative to the training mean. With K modalities (B, K)."""
    noise: Tensor | None = None
    """float32 (B, L), standard normal noise, which is added to the latent in training.

    It is part of the batch so that it depends only on the cell and the epoch.
    """
    prefixes: Tensor | None = None
    """int64 (B, S), for a decoder in training: number of context tokens in each of S = H + 1 prefixes of a cell.

    Each masked feature has a prefix, and the last one is that of the profile. ``visible`` and ``known`` are then
    (B, S, M), ``log_depth`` is (B, S) and ``small_count_bins`` (B, S, N_SMALL_COUNTS, V). Without prefixes, a decoder
    predicts all masked features from all that is visible.
    """
    context_external: Tensor | None = None
    """int64 (B, C), external token of each visible feature, as a row of ``external``. 0 means no external token."""
    external: Tensor | None = None
    """float32 (E, D), embeddings of the external tokens (Eq. 7). Row 0 is zero and means no external token."""
    weight: float = 1.0
    """Weight of the mean loss of these cells, if several processes have unequal parts of a batch. 0: do not count."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """The same batch on another device, with real numbers of another dtype."""
        tensors: dict[str, Any] = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        dtypes = {name: dtype if x.is_floating_point() else x.dtype for name, x in tensors.items()}
        return replace(self, **{name: x.to(device, dtypes[name], non_blocking=True) for name, x in tensors.items()})


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of the cells of several batches. Tokens are padded to the longest, external tokens are not joined."""
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Any] = {"context_external": None, "external": None, "weight": batches[0].weight}
    for each in fields(Batch):
        if each.name in joined:
            continue
        tensors = [getattr(batch, each.name) for batch in batches]
        if each.name in _PADDING:
            width = max(tensor.shape[1] for tensor in tensors)
            padding = _PADDING[each.name]
            tensors = [functional.pad(tensor, (0, width - tensor.shape[1]), value=padding) for tensor in tensors]
        joined[each.name] = None if tensors[0] is None else torch.cat(tensors)
    return Batch(**joined)


def join_modalities(batches: Sequence[Batch], n_small_counts: Sequence[int]) -> Batch:
    """One batch of the same cells from the batches of K modalities.

    Ids and bins of a modality follow those of the one before. A modality has bins for the first ``n_small_counts``
    counts.
    """
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, list[Tensor]] = {name: [] for name in (*_PADDING, "visible", "known", "present", "target_counts")}
    n_features = n_values = 0
    for batch in batches:
        ids = {name: getattr(batch, name) for name in ("context_ids", "masked_ids")}
        for name, value in ids.items():
            joined[name].append(torch.where(value > 0, value + n_features, 0))
        joined["context_bins"].append(torch.where(ids["context_ids"] > 0, batch.context_bins + n_values, 0))
        joined["target_bins"].append(torch.where(batch.target_bins >= 0, batch.target_bins + n_values, -1))
        for name in ("visible", "known", "present", "target_counts"):
            joined[name].append(getattr(batch, name))
        n_features, n_values = n_features + batch.visible.shape[1], n_values + batch.small_count_bins.shape[2]
    small = batches[0].small_count_bins.new_zeros(len(batches[0]), sum(n_small_counts), n_values)
    row = column = 0
    for batch, n in zip(batches, n_small_counts, strict=True):
        width = batch.small_count_bins.shape[2]
        small[:, row : row + n, column : column + width] = batch.small_count_bins[:, :n]
        row, column = row + n, column + width
    whole: dict[str, Any] = {name: torch.cat(tensors, dim=1) for name, tensors in joined.items()}
    for of_ids, of_bins in (("context_ids", "context_bins"), ("masked_ids", "target_bins")):
        # padding last: sums then do not depend on which cells a modality was padded with
        padded = whole[of_ids] == 0
        n_tokens = int((~padded).sum(dim=1).max()) if padded.numel() else 0
        order = padded.byte().argsort(dim=1, stable=True)[:, :n_tokens]
        whole |= {name: whole[name].gather(1, order) for name in (of_ids, of_bins)}
    for name in ("log_depth", "size_factor"):
        whole[name] = torch.stack([getattr(batch, name) for batch in batches], dim=1)
    return replace(batches[0], small_count_bins=small, **whole)
