"""Reading cells with a fitted model, and predicting what is masked. The model itself is never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from scbioformers.core import ConfigError, tqdm
from scbioformers.data import Block, BlockSource
from scbioformers.model._bioformer import BioFormer
from scbioformers.nn import Batch, Output, Transformer

Use = Literal["profile", "cls", "latent", "mean"]
USES = ("profile", "cls", "latent", "mean")
READ_CHUNK = 4096  # cells read and sorted by length at a time
MAX_BATCH_TOKENS = 2**16  # of one inference batch, so that memory does not grow with the length of the cells


@torch.no_grad()
def embed_cells(
    model: BioFormer,
    source: BlockSource,
    *,
    use: Use = "profile",
    batch_size: int = 128,
    progress_bar: bool = False,
) -> NDArray[np.float32]:
    """Sample representations (paper, section 2.3), independent of batch size, order and chunking.

    Everything here computes on the device of the model's networks; see :func:`on_device`.

    Parameters
    ----------
    source
        N cells over this model's features.
    use
        ``"profile"``: leading components of the decoded log1p profile of ``<cls>``, (N, n_components);
        ``"cls"``: the ``<cls>`` vector, (N, width); ``"latent"``: the latent behind the profile, (N, n_latent);
        ``"mean"``: the mean of the feature outputs, (N, width).

    Returns
    -------
    float32 (N, K). Members of an ensemble are averaged in profile space and concatenated for the other uses.

    Raises
    ------
    ConfigError
        If ``use`` or ``batch_size`` is out of range.
    """
    if use not in USES:
        raise ConfigError(f"`use` is one of {USES}, got {use!r}.")
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}.")
    parts: list[NDArray[np.float32]] = []
    for network in model.members:
        read = run_network(model, network, source.blocks(READ_CHUNK), batch_size, contextual=use == "mean")
        with tqdm(total=source.n_obs, desc="Reading cells", unit="cell", disable=not progress_bar) as bar:
            rows: list[tuple[torch.Tensor, torch.Tensor]] = []
            for batch, output in read:
                rows.append((batch.rows.cpu(), _represent(model, network, output, batch, use).cpu()))
                bar.update(len(batch))
        result = np.empty((source.n_obs, rows[0][1].shape[1]), np.float32)
        for index, values in rows:
            result[index.numpy()] = values.numpy()
        parts.append(result)
    if use == "profile":
        mean: NDArray[np.float32] = np.mean(parts, axis=0, dtype=np.float32)
        return mean
    return np.concatenate(parts, axis=1)


def _represent(model: BioFormer, network: Transformer, output: Output, batch: Batch, use: Use) -> torch.Tensor:
    if use == "cls":
        return output.cls
    if use == "latent":
        return output.latent
    if use == "mean" and output.context is not None:
        read = (batch.context_ids > 0).unsqueeze(-1)
        return (output.context * read).sum(dim=1) / read.sum(dim=1).clamp(min=1)
    # sums over thousands of features in float64: the result must not depend on how a batch is cut
    axes, mean = (torch.from_numpy(x).double() for x in (model.axes, model.axes_mean))
    return (network.profile(output.latent).cpu().double() - mean) @ axes


@torch.no_grad()
def run_network(
    model: BioFormer,
    network: Transformer,
    blocks: Iterable[Block],
    batch_size: int,
    *,
    contextual: bool = False,
) -> Iterator[tuple[Batch, Output]]:
    """Read every cell once, in batches of similar length; ``batch.rows`` are the rows of the cells in their source."""
    for block in blocks:
        for batch in make_batches(model, block, batch_size):
            batch = batch.to(network.cls.device)
            yield batch, network(batch, contextual=contextual)


@torch.no_grad()
def predict_masked(
    model: BioFormer,
    block: Block,
    query_mask: csr_matrix,
    batch_size: int,
    *,
    natural: bool = True,
) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Mask the queried positions of each cell and predict their bins from the rest.

    Parameters
    ----------
    block
        N cells.
    query_mask
        (N, M), non-zero at the positions to predict.
    natural
        Take out the odds by which the training mask showed more expressed features than there are. False says that
        the positions were drawn by such a mask, and gives the probabilities under it.

    Yields
    ------
    A batch of cells with ``masked_ids`` (B, H), and the probabilities (B, H, V) of their bins, averaged over the
    members.
    """
    device = model.members[0].cls.device
    for batch in make_batches(model, block, batch_size, query_mask, drawn=not natural):
        odds = _odds(model, batch).log().to(device)[:, None, None] if natural else 0.0
        batch = batch.to(device)
        mean: Tensor | None = None
        for network in model.members:
            logits = network(batch).logits
            logits = torch.cat([logits[..., :1] - odds, logits[..., 1:]], dim=-1)
            share = logits.softmax(dim=-1) / len(model.members)
            mean = share if mean is None else mean + share
        if mean is not None:
            yield batch, mean.cpu().numpy()


def make_batches(
    model: BioFormer, block: Block, batch_size: int, query_mask: csr_matrix | None = None, *, drawn: bool = False
) -> Iterator[Batch]:
    """Tokens of the cells of a block, in batches of similar length.

    Parameters
    ----------
    block
        N cells.
    batch_size
        Cells in a batch at most; fewer where they are long.
    query_mask
        (N, M), non-zero at the positions to hide.
    drawn
        Whether these positions were drawn by a training mask.

    Yields
    ------
    Batches on the CPU, each cell once; ``batch.rows`` tells which cells they are.
    """
    tokenizer = model.tokenizer
    lengths = tokenizer.n_context(block, query_mask)  # not of what is masked, which must not even tell the order
    if query_mask is not None:
        lengths = lengths + np.asarray(query_mask.astype(bool).sum(axis=1)).ravel()
    order = np.argsort(-lengths, kind="stable")  # the first of a batch is its longest
    start = 0
    while start < len(order):
        size = max(1, min(batch_size, MAX_BATCH_TOKENS // max(int(lengths[order[start]]), 1)))
        chosen = order[start : start + size]
        wanted = None if query_mask is None else query_mask[chosen]
        yield tokenizer.inference_batch(block.take(chosen), block.start + chosen, wanted, drawn=drawn)
        start += size


def _odds(model: BioFormer, batch: Batch) -> Tensor:
    """(B,) odds of the training mask for cells like these, judged by what is known of them alone."""
    share = model.gene_share.astype(np.float64)
    # not a matrix product, whose last bits depend on the other cells
    known = np.where(batch.known.numpy(), share, 0.0).sum(axis=1)
    n_expressed = (batch.visible.numpy() > 0).sum(axis=1) / np.maximum(known, 1e-9) * share.sum()
    return torch.from_numpy(model.masking.odds(n_expressed, len(model.vocabulary))).float()


def on_device(model: BioFormer, device: str) -> BioFormer:
    """The model itself, or a copy with its networks on another device: the tensors of a model stay where they are."""
    if model.members[0].cls.device == torch.device(device):
        return model
    return replace(model, members=tuple(deepcopy(network).to(device) for network in model.members))
