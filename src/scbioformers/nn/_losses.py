"""Objectives: functions ``(network, output, batch) -> loss``, which are chosen by name in the training config.

Each loss is first reduced within a cell and then averaged over the cells. So if several processes have parts of a
batch, the loss of the whole batch is the mean of their losses, weighted by the number of cells that each has.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from scbioformers.nn._batch import Batch
from scbioformers.nn._phenotypes import Phenotype
from scbioformers.nn._transformer import Output, Transformer


def masked_bins(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Cross-entropy over the bins of the masked features, in nats (paper, section 2.2)."""
    if network.sizes.parts:
        return mean_of_modalities(*masked_by_modality(network, output, batch))
    losses, scored = _masked(output, batch)
    return (losses.sum(dim=1) / scored.sum(dim=1).clamp(min=1)).mean()


def _masked(output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of each masked feature (B, H), and whether it is one and not padding (B, H)."""
    losses = functional.nll_loss(
        output.log_probs.flatten(0, 1), batch.target_bins.flatten(), ignore_index=-1, reduction="none"
    )
    return losses.view(batch.target_bins.shape), batch.target_bins >= 0


def masked_by_modality(network: Transformer, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean loss of the masked features of each modality (B, K), and whether the cell has such features (B, K)."""
    losses, scored = _masked(output, batch)
    of = functional.one_hot(network.modality_of(batch.masked_ids), len(network.sizes.parts)) * scored[..., None]
    return (losses[..., None] * of).sum(dim=1) / of.sum(dim=1).clamp(min=1), of.any(dim=1)


def mean_of_modalities(losses: Tensor, counts: Tensor) -> Tensor:
    """Mean over the modalities of a cell that count (B, K), then over the cells. Few proteins weigh as many genes."""
    return ((losses * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)).mean()


def profile_counts(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Negative log-likelihood of all counts under a negative binomial, in nats per expressed feature.

    The mean count is predicted from ``<cls>`` and scaled by the depth of the cell.
    """
    log_mean = output.log_rate + batch.size_factor.log()[:, None]
    return _of_counts(log_mean, network.log_dispersion, batch.target_counts, batch.present).mean()


def _of_counts(log_mean: Tensor, log_dispersion: Tensor, counts: Tensor, present: Tensor) -> Tensor:
    """(B,), negative log-likelihood of each cell, per expressed feature."""
    return count_losses(log_mean, log_dispersion, counts, present) / (counts > 0).sum(dim=1).clamp(min=1)


def count_losses(log_mean: Tensor, log_dispersion: Tensor, counts: Tensor, present: Tensor) -> Tensor:
    """(B,), negative log-likelihood of the counts (B, M) of each cell under a negative binomial, in nats.

    ``log_mean`` (B, M) is the log of the expected count, ``log_dispersion`` (M,) that of the inverse dispersion. Only
    features that are ``present`` (B, M) count: others were not measured, which is not a count of zero.
    """
    dispersion = log_dispersion.exp()
    losses = (counts + dispersion) * functional.softplus(log_mean - log_dispersion) - counts * (
        log_mean - log_dispersion
    )
    # lgamma(0 + r) - lgamma(r) = 0, so lgamma, which is slow, is computed only for expressed entries
    cell, feature = torch.nonzero(counts, as_tuple=True)
    x, r = counts[cell, feature], dispersion[feature]
    constant = torch.lgamma(r) + torch.lgamma(x + 1) - torch.lgamma(x + r)
    losses = losses * present
    return losses.sum(dim=1) + torch.zeros_like(losses[:, 0]).index_add(0, cell, constant)


def profile_bins(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Binomial cross-entropy of all bins, predicted from ``<cls>``, in nats per feature. For data that are not counts.

    A bin is treated as a number of successes out of the highest bin. So one parameter per feature is enough, and the
    order of the bins is used.
    """
    return _of_bins(output.log_rate, batch.target_counts, batch.present).mean()


def _of_bins(logits: Tensor, shares: Tensor, present: Tensor) -> Tensor:
    """(B,), binomial cross-entropy of each cell, per feature."""
    losses = functional.binary_cross_entropy_with_logits(logits, shares, reduction="none")
    return (losses * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def profile_modalities(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Mean over the modalities of a cell: of each the loss of its counts or, if it has no counts, of its bins."""
    return mean_of_modalities(*profiles_by_modality(network, output, batch))


def profiles_by_modality(network: Transformer, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of the profile of each modality (B, K), and whether the cell was measured in it (B, K)."""
    columns, sizes = network.sizes.columns, batch.size_factor.view(len(batch), -1)
    rates, targets, present, dispersions = (
        x.split_with_sizes(columns, dim=-1)
        for x in (output.log_rate, batch.target_counts, batch.present, network.log_dispersion)
    )
    losses = []
    for i, part in enumerate(network.sizes.modalities):
        if part.counts:
            log_mean = rates[i] + sizes[:, i : i + 1].log()
            losses.append(_of_counts(log_mean, dispersions[i], targets[i], present[i]))
        else:
            losses.append(_of_bins(rates[i], targets[i], present[i]))
    measured = torch.stack([each.any(dim=1) for each in present], dim=1)
    return torch.stack(losses, dim=1), measured


def masked_phenotypes(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Cross-entropy of the phenotypes, in nats per masked phenotype. It is 0 for cells of which none is masked."""
    phenotypes = cast("list[Phenotype]", network.phenotypes)
    targets = batch.target_phenotypes
    losses = [each.loss(output.phenotypes[:, i], targets[:, i]) for i, each in enumerate(phenotypes)]
    return (torch.stack(losses, dim=1).sum(dim=1) / (~targets.isnan()).sum(dim=1).clamp(min=1)).mean()


OBJECTIVES = {
    "masked_bins": masked_bins,
    "profile_counts": profile_counts,
    "profile_bins": profile_bins,
    "profile_modalities": profile_modalities,
    "masked_phenotypes": masked_phenotypes,
}

# of each modality, for objectives that are means of them if there are several: losses and whether they count, (B, K)
BY_MODALITY = {"masked_bins": masked_by_modality, "profile_modalities": profiles_by_modality}
