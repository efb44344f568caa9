"""Objectives: functions ``(network, output, batch) -> loss``, which are chosen by name in the training config.

Each loss is first reduced within a cell and then averaged over the cells. So if several processes have parts of a
batch, the loss of the whole batch is the mean of their losses, weighted by the number of cells that each has.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scbioformers.nn._batch import Batch
from scbioformers.nn._transformer import Output, Transformer


def masked_bins(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Cross-entropy over the bins of the masked features, in nats (paper, section 2.2)."""
    losses = functional.nll_loss(
        output.log_probs.flatten(0, 1), batch.target_bins.flatten(), ignore_index=-1, reduction="none"
    )
    scored = (batch.target_bins >= 0).sum(dim=1).clamp(min=1)
    return (losses.view(batch.target_bins.shape).sum(dim=1) / scored).mean()


def profile_counts(network: Transformer, output: Output, batch: Batch) -> Tensor:
    """Negative log-likelihood of all counts under a negative binomial, in nats per expressed feature.

    The mean count is predicted from ``<cls>`` and scaled by the depth of the cell.
    """
    log_mean = output.log_rate + batch.size_factor.log()[:, None]
    losses = count_losses(log_mean, network.log_dispersion, batch.target_counts, batch.present)
    return (losses / (batch.target_counts > 0).sum(dim=1).clamp(min=1)).mean()


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
    losses = functional.binary_cross_entropy_with_logits(output.log_rate, batch.target_counts, reduction="none")
    return ((losses * batch.present).sum(dim=1) / batch.present.sum(dim=1).clamp(min=1)).mean()


OBJECTIVES = {"masked_bins": masked_bins, "profile_counts": profile_counts, "profile_bins": profile_bins}
