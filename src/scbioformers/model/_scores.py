"""How well a model knows cells: their likelihood, compared with that of cells which the model draws itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scbioformers.data import Block
from scbioformers.model._bioformer import BioFormer
from scbioformers.model._inference import make_batches
from scbioformers.nn import Batch, Transformer, count_losses

N_DRAWS = 4  # per cell; the mean over 500 cells has a standard error of about 0.002 from them
N_QUANTILES = 21  # 0, 5, 10, … 100 %
MAX_LOG_MEAN = 20.0  # of drawn counts, so that no rate overflows
_STREAM = 0x5C03E


@torch.no_grad()
def score_cells(model: BioFormer, block: Block, *, batch_size: int = 64) -> NDArray[np.float64]:
    """Score each cell: how likely its counts are, compared with counts that the model draws for this cell.

    The model predicts the rates of a cell from ``<cls>``. The score is the log-likelihood of the measured counts minus
    the mean log-likelihood of counts drawn with these rates, divided by the number of expressed genes. It is about 0 if
    the cell is as the model predicts, and negative if the model does not know such cells. A log-likelihood alone would
    depend on the depth of the cells and on the genes that are measured. The drawn counts have the same depth and the
    same genes.

    For data that are not counts: the divergence of the predicted from the measured bins, with a negative sign.

    Parameters
    ----------
    model
        A fitted model. The members of an ensemble are averaged.
    block
        N cells with the features of the model.
    batch_size
        Maximum number of cells in a batch. It does not change the scores by more than rounding.

    Returns
    -------
    float64 (N,), nats per expressed gene. NaN for cells without a count in the genes of the model.
    """
    scores = np.zeros(len(block.depth))
    for network in model.members:
        for batch in make_batches(model, block, batch_size):
            batch = batch.to(network.cls.device)
            rows = batch.rows.cpu().numpy() - block.start
            scores[rows] += _scores(network, network(batch).log_rate, batch).cpu().numpy() / len(model.members)
    n_expressed = block.n_expressed
    return np.where(n_expressed > 0, scores / np.maximum(n_expressed, 1), np.nan)


def score_quantiles(model: BioFormer, blocks: Sequence[Block]) -> NDArray[np.float32]:
    """Quantiles (0, 5, … 100 %) of the scores of cells that the model knows: ``BioFormer.score_quantiles``.

    ``blocks`` should hold validation cells, because training cells are known too well. Cells without counts are
    ignored. The result is empty if fewer than two cells are left.
    """
    scores = np.concatenate([score_cells(model, block) for block in blocks])
    scores = scores[np.isfinite(scores)]
    if scores.size < 2:
        return np.zeros(0, np.float32)
    return np.quantile(scores, np.linspace(0, 1, N_QUANTILES)).astype(np.float32)


def _scores(network: Transformer, log_rate: Tensor, batch: Batch) -> Tensor:
    """(B,), sum of the scores of all modalities."""
    columns, sizes = network.sizes.columns, batch.size_factor.view(len(batch), -1)
    tensors = (log_rate, network.log_dispersion, batch.target_counts, batch.present)
    scores = log_rate.new_zeros(len(batch))
    for i, (rate, dispersion, target, present) in enumerate(
        zip(*(x.split_with_sizes(columns, dim=-1) for x in tensors), strict=True)
    ):
        if network.sizes.modalities[i].counts:
            log_mean = (rate + sizes[:, i : i + 1].log()).clamp(max=MAX_LOG_MEAN)
            scores = scores + _count_scores(log_mean, dispersion, target, present, batch.rows)
        else:
            scores = scores + _bin_scores(rate, target, present)
    return scores


def _count_scores(log_mean: Tensor, dispersion: Tensor, counts: Tensor, present: Tensor, rows: Tensor) -> Tensor:
    """(B,), log-likelihood of the counts minus the mean of that of drawn counts."""
    scores = -count_losses(log_mean, dispersion, counts, present)
    for drawn in _draw(log_mean, dispersion, rows):
        scores = scores + count_losses(log_mean, dispersion, drawn * present, present) / N_DRAWS
    return scores


def _draw(log_mean: Tensor, log_dispersion: Tensor, rows: Tensor) -> Tensor:
    """Counts (N_DRAWS, B, M) from the negative binomial of each cell. They depend on its row, not on other cells."""
    mean, size = log_mean.double().exp().cpu().numpy(), log_dispersion.double().exp().cpu().numpy()
    share = np.clip(size / (size + mean), 1e-12, 1.0)
    drawn = np.empty((N_DRAWS, *mean.shape), np.float32)
    for i, row in enumerate(rows.tolist()):
        generator = np.random.default_rng([_STREAM, row])
        drawn[:, i] = generator.negative_binomial(size, share[i], size=(N_DRAWS, mean.shape[1]))
    return torch.from_numpy(drawn).to(log_mean.device)


def _bin_scores(logits: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """(B,), Kullback-Leibler divergence of the predicted from the measured shares of the highest bin, negative."""
    entropy = torch.special.entr(target) + torch.special.entr(1.0 - target)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((entropy - losses) * present).sum(dim=1)
