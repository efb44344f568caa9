"""What a network says of features: attention between them, their embeddings and their predicted rates.

The M features are those of all modalities of the model. :class:`Features` says which of them a modality has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch.nn import functional

from scbioformers.core import SPECIALS, tqdm
from scbioformers.data import Block, BlockSource
from scbioformers.model import BioFormer, make_batches, run_network
from scbioformers.nn import Transformer

# attention in more cells is summed over blocks of this size, which need not be in memory together
STREAM_CELLS = 16_384
_BATCH = 128
_MAX_PAIRS = 2**21  # maximum number of attention weights per head in memory


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one modality in a model of several. In a model of one modality, all features."""

    columns: slice
    """Their places among all features of the model."""
    number: int
    """Number of the modality."""
    state: BioFormer
    """What the modality is read by, see :meth:`BioFormer.of`."""

    @classmethod
    def of(cls, model: BioFormer, modality: str | None = None) -> Features:
        """The features of a modality. None means the first one."""
        name = model.modalities[0] if modality is None else modality
        return cls(model.columns(name), model.modalities.index(name), model.of(name))

    def cells(self, block: Block) -> Block:
        """The cells of a block in this modality."""
        return block.modalities[self.number]

    def n_expressing(self, cells: BlockSource) -> NDArray[np.int64]:
        """(T,), number of cells that express each feature."""
        blocks = cells.blocks(STREAM_CELLS)
        zero = np.zeros(self.columns.stop - self.columns.start, np.int64)
        return sum((self.cells(block).counts.getnnz(axis=0) for block in blocks), zero)


@torch.no_grad()
def sum_attention(
    model: BioFormer,
    network: Transformer,
    blocks: Iterable[Block],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    bar: tqdm,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Attention of each visible gene (row) to the other genes, summed over cells, and the number of cells of each pair.

    Attention weights after the softmax are averaged over the chosen layers and heads. An array of the size
    cells x heads x M x M is never created.
    """
    n = len(model.vocabulary)
    total, count = np.zeros((n, n)), np.zeros((n, n), np.int64)
    chosen = range(model.config.n_layers) if layers is None else layers
    network = network.eval()
    device = network.cls.device
    for cells in blocks:
        longest = int(cells.n_expressed.max(initial=1)) if model.config.tokens == "expressed" else n
        size = max(1, min(_BATCH, _MAX_PAIRS // min(longest, len(model.modalities) * model.config.max_tokens) ** 2))
        for batch in make_batches(model, cells, size):
            bar.update(len(batch))
            if not batch.context_ids.shape[1]:  # all cells are empty
                continue
            weights = torch.zeros((), device=device)
            for layer in network.attend(batch.to(device), chosen):
                weights = weights + (layer if heads is None else layer[:, list(heads)]).mean(dim=1) / len(chosen)
            for ids, weight in zip(batch.context_ids.numpy(), weights.cpu().numpy(), strict=True):
                tokens = np.flatnonzero(ids)  # the tokens of each modality are padded
                here = ids[tokens] - len(SPECIALS)
                pairs = np.ix_(here, here)
                total[pairs] += weight[np.ix_(tokens, tokens)]
                count[pairs] += 1
    return total, count


def input_embedding(network: Transformer) -> NDArray[np.float64]:
    """(M, width), input embedding of each gene."""
    return network.feature.weight[len(SPECIALS) :].detach().cpu().double().numpy()


@torch.no_grad()
def contextual_embedding(model: BioFormer, network: Transformer, cells: Block, bar: tqdm) -> NDArray[np.float64]:
    """(M, L), Jacobian of the predicted log rate of each gene with respect to the latent, averaged over the cells.

    The decoder has a single non-linear activation. So its mean Jacobian is computed from the mean slope of the
    activation.
    """
    decoder = cast("torch.nn.Linear", network.from_latent[0])
    slope, n = torch.zeros(decoder.out_features, dtype=torch.float64), 0
    for _, output in run_network(model, network, [cells], _BATCH):
        with torch.enable_grad():
            inner = decoder(output.latent).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(functional.gelu(inner).sum(), inner)
        slope += gradient.cpu().double().sum(dim=0)
        n += len(gradient)
        bar.update(len(gradient))
    rate, linear, first = (x.weight.cpu().double() for x in (network.rate, network.linear_rate, decoder))
    return ((rate * (slope / max(n, 1))) @ first + linear).numpy()


def log_rates(model: BioFormer, network: Transformer, cells: Block, bar: tqdm) -> NDArray[np.float32]:
    """(N, M), log of the expected count of every gene at the mean depth. If there are no counts: logit of the bin."""
    rates = np.empty((len(cells.depth), len(model.vocabulary)), np.float32)
    for batch, output in run_network(model, network, [cells], _BATCH):
        rates[batch.rows.cpu().numpy()] = output.log_rate.cpu().numpy()
        bar.update(len(batch))
    return rates


def explained_share(features: Features, cells: Block, rates: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T,), standard deviation over cells of the predicted profile divided by that of the measured profile, at most 1.

    A low share means that the model does not predict how the gene varies between cells. Predicted changes of such a
    gene are not reliable. ``rates`` (N, M) are those of all features of the model, see :func:`log_rates`.
    """
    measured, rates = features.state.tokenizer.profiles(features.cells(cells)), rates[:, features.columns]
    mean = np.asarray(measured.mean(axis=0)).ravel()
    variance = np.asarray(measured.multiply(measured).mean(axis=0)).ravel() - mean**2
    predicted = (np.logaddexp(0.0, rates) if features.state.reading.counts else expit(rates)).std(
        axis=0, dtype=np.float64
    )
    spread = np.sqrt(np.maximum(variance, 0.0))
    share = np.divide(predicted, spread, out=np.zeros_like(spread), where=spread > 0)
    return np.minimum(share, 1.0)
