"""Inference with a fitted model: embeddings of cells and predictions of masked features. The model is not changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
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
READ_CHUNK = 4096  # number of cells that are read and sorted by length at a time
MAX_BATCH_TOKENS = 2**16  # maximum number of tokens in a batch, which limits the memory


@dataclass(frozen=True, eq=False)
class EmbeddedBlock:
    """Embeddings of n consecutive cells."""

    start: int
    """Row of the first cell."""
    values: NDArray[np.float32]
    """(n, K), the embeddings."""
    n_expressed: NDArray[np.int64]
    """(n,), number of features of the model that each cell expresses."""


def embed_cells(
    model: BioFormer,
    source: BlockSource,
    *,
    use: Use | Sequence[Use] = "profile",
    batch_size: int = 64,
    progress_bar: bool = False,
) -> NDArray[np.float32]:
    """Cell embeddings as one array (N, K). See :func:`embed_blocks`."""
    result: NDArray[np.float32] | None = None
    for block in embed_blocks(model, source, use=use, batch_size=batch_size, progress_bar=progress_bar):
        if result is None:
            result = np.empty((source.n_obs, block.values.shape[1]), np.float32)
        # not kept in a list: many small arrays that stay keep the memory between them from being freed
        result[block.start : block.start + len(block.values)] = block.values
    return np.zeros((0, 0), np.float32) if result is None else result


def embed_blocks(
    model: BioFormer,
    source: BlockSource,
    *,
    use: Use | Sequence[Use] = "profile",
    batch_size: int = 64,
    progress_bar: bool = False,
) -> Iterator[EmbeddedBlock]:
    """Cell embeddings in blocks of cells (paper, section 2.3), in one pass over the source.

    They do not depend on the batch size or on the order of the cells.

    All functions of this module compute on the device of the networks of the model, see
    :func:`scbioformers.model.on_device`.

    Parameters
    ----------
    source
        N cells with the features of the model.
    use
        ``"profile"``: leading components of the log1p profile decoded from ``<cls>``, (N, n_components).
        ``"cls"``: output of ``<cls>``, (N, width).
        ``"latent"``: latent from which the profile is decoded, (N, n_latent).
        ``"mean"``: mean of the outputs of the visible features, (N, width).
        The columns of several embeddings are concatenated.

    Yields
    ------
    Blocks of cells. For ``"profile"`` the members of an ensemble are averaged. For the others they are concatenated.

    Raises
    ------
    ConfigError
        If ``use`` or ``batch_size`` is not valid.
    """
    uses: tuple[Use, ...] = (use,) if isinstance(use, str) else tuple(use)
    if not uses or set(uses) - set(USES):
        raise ConfigError(f"`use` must be one of {USES}, found {use!r}.")
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, found {batch_size}.")
    return _embed_blocks(model, source, uses, batch_size, progress_bar)


@torch.no_grad()
def _embed_blocks(
    model: BioFormer, source: BlockSource, uses: Sequence[Use], batch_size: int, progress_bar: bool
) -> Iterator[EmbeddedBlock]:
    device = model.members[0].cls.device
    with tqdm(total=source.n_obs, desc="Embedding cells", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(READ_CHUNK):
            found: dict[tuple[Use, int], NDArray[np.float32]] = {}  # by member
            for batch in make_batches(model, block, batch_size):
                batch = batch.to(device)
                rows = batch.rows.cpu().numpy() - block.start
                for member, network in enumerate(model.members):
                    output = network(batch, contextual="mean" in uses)
                    for each in uses:
                        values = _represent(model, network, output, batch, each).cpu().numpy()
                        if (each, member) not in found:
                            found[each, member] = np.empty((len(block.depth), values.shape[1]), np.float32)
                        found[each, member][rows] = values
                bar.update(len(batch))
            joined = [_join([found[each, i] for i in range(len(model.members))], each) for each in uses]
            yield EmbeddedBlock(block.start, np.hstack(joined), block.n_expressed)


def _join(members: list[NDArray[np.float32]], use: Use) -> NDArray[np.float32]:
    """The embedding by all members: their mean where they share axes, else side by side."""
    return np.asarray(np.mean(members, axis=0, dtype=np.float32)) if use == "profile" else np.hstack(members)


def _represent(model: BioFormer, network: Transformer, output: Output, batch: Batch, use: Use) -> torch.Tensor:
    if use == "cls":
        return output.cls
    if use == "latent":
        return output.latent
    if use == "mean" and output.context is not None:
        visible = (batch.context_ids > 0).unsqueeze(-1)
        return (output.context * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1)
    # sum in float64, so that rounding does not depend on how cells are grouped into batches
    axes, mean = (torch.from_numpy(x).double() for x in (model.axes, model.axes_mean))
    return (network.profile(output.latent, batch.phenotypes).cpu().double() - mean) @ axes


@torch.no_grad()
def run_network(
    model: BioFormer,
    network: Transformer,
    blocks: Iterable[Block],
    batch_size: int,
    *,
    contextual: bool = False,
) -> Iterator[tuple[Batch, Output]]:
    """Run the network once on every cell, in batches of cells with similar numbers of tokens.

    ``batch.rows`` are the rows of the cells in their source.
    """
    for block in blocks:
        for batch in make_batches(model, block, batch_size):
            batch = batch.to(network.cls.device)
            yield batch, network(batch, contextual=contextual)


def predict_masked(
    model: BioFormer,
    block: Block,
    query_mask: csr_matrix,
    batch_size: int,
    *,
    natural: bool = True,
) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Mask the queried positions of each cell and predict their bins from the visible features.

    Parameters
    ----------
    block
        N cells.
    query_mask
        (N, M), non-zero at the positions to predict.
    natural
        Whether to correct the probability of a zero for the training mask, which favours expressed features. Use False
        if the positions were drawn by such a mask. The probabilities then refer to this mask.

    Yields
    ------
    A batch of cells with ``masked_ids`` (B, H), and the probabilities (B, H, V) of the bins, averaged over the members.
    """
    for batch, probabilities, _ in predict_with_rates(model, block, query_mask, batch_size, natural=natural):
        yield batch, probabilities


@torch.no_grad()
def predict_with_rates(
    model: BioFormer,
    block: Block,
    query_mask: csr_matrix,
    batch_size: int,
    *,
    natural: bool = True,
) -> Iterator[tuple[Batch, NDArray[np.float32], NDArray[np.float32]]]:
    """As :func:`predict_masked`, also with the mean count (B, M) of each feature at the mean depth.

    It is decoded from ``<cls>``, and averaged over the members too. For data that are not counts, it is a level.
    """
    device = model.members[0].cls.device
    for batch in make_batches(model, block, batch_size, query_mask, drawn=not natural):
        odds = _log_odds(model, batch, natural=natural)
        odds = None if odds is None else odds.to(device)
        batch = batch.to(device)
        mean: Tensor | None = None
        rate: Tensor | None = None
        for network in model.members:
            output = network(batch)
            log_probs = output.log_probs
            if odds is not None:
                zeros = np.cumsum([0, *(sizes.n_values for sizes in network.sizes.modalities)])[:-1]
                log_probs[..., zeros] -= odds[:, None]
            part, own = log_probs.softmax(dim=-1) / len(model.members), output.log_rate.exp() / len(model.members)
            mean, rate = (part, own) if mean is None or rate is None else (mean + part, rate + own)
        if mean is not None and rate is not None:
            yield batch, mean.cpu().numpy(), rate.cpu().numpy()


def make_batches(
    model: BioFormer, block: Block, batch_size: int, query_mask: csr_matrix | None = None, *, drawn: bool = False
) -> Iterator[Batch]:
    """Convert a block to batches of cells with similar numbers of tokens.

    Parameters
    ----------
    block
        N cells.
    batch_size
        Maximum number of cells in a batch. It is lower for cells with many tokens.
    query_mask
        (N, M), non-zero at the positions to mask.
    drawn
        Whether these positions were drawn by a training mask.

    Yields
    ------
    Batches on the CPU. Each cell is in one batch. ``batch.rows`` are the rows of the cells in their source.
    """
    tokenizer = model.tokenizer
    lengths = tokenizer.n_context(block, query_mask)  # masked values must not influence the order of the cells
    if query_mask is not None:
        lengths = lengths + np.asarray(query_mask.astype(bool).sum(axis=1)).ravel()
    order = np.argsort(-lengths, kind="stable")  # longest first, so the first cell sets the size of its batch
    start = 0
    while start < len(order):
        size = max(1, min(batch_size, MAX_BATCH_TOKENS // max(int(lengths[order[start]]), 1)))
        chosen = order[start : start + size]
        queried = None if query_mask is None else query_mask[chosen]
        yield tokenizer.inference_batch(block.take(chosen), block.start + chosen, queried, drawn=drawn)
        start += size


def _log_odds(model: BioFormer, batch: Batch, *, natural: bool) -> Tensor | None:
    """(B, K), log factor by which the networks predict zeros too often, None if they do not.

    A decoder learns from a share of the zeros that is the same in all cells, whatever the mask of a query.
    """
    if model.config.architecture == "encoder":
        return _odds(model, batch).log() if natural else None
    learnt = torch.full((len(batch), 1), np.log(model.zero_rate), dtype=torch.float32)
    return learnt if natural else learnt - _odds(model, batch).log()


def _odds(model: BioFormer, batch: Batch) -> Tensor:
    """(B, K) odds of the training mask of each modality.

    They follow from the number of expressed features, which is estimated from the known features. Features that a later
    fit added count in the cells in which some of them are known.
    """
    columns, odds = model.members[0].sizes.columns, []
    shares = np.split(model.gene_share.astype(np.float64), np.cumsum(columns)[:-1])
    parts = ([part.numpy() for part in x.split_with_sizes(columns, dim=1)] for x in (batch.known, batch.visible))
    n_original = model.members[0].bag_size.view(-1).long().tolist()
    for share, n_first, known, visible in zip(shares, n_original, *parts, strict=True):
        own, added = np.zeros(len(batch)), known[:, n_first:].any(axis=1)
        for cells, n in ((added, len(share)), (~added, n_first)):
            if cells.any():
                n_expressed = _n_expressed(model, share[:n], known[cells, :n], visible[cells, :n])
                own[cells] = model.masking.odds(n_expressed, n)
        odds.append(own)
    return torch.from_numpy(np.stack(odds, axis=1)).float()


def _n_expressed(
    model: BioFormer, share: NDArray[np.float64], known: NDArray[np.bool_], visible: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(B,) estimated number of features of a modality that each cell expresses, from the ``known`` (B, M) ones.

    If nothing of one of several modalities is known in a cell, it is that of the mean cell.
    """
    # a matrix product would round differently depending on the other cells of the batch
    known_share = np.where(known, share, 0.0).sum(axis=1)
    n_expressed = (visible > 0).sum(axis=1) / np.maximum(known_share, 1e-9) * share.sum()
    return np.where(known.any(axis=1), n_expressed, share.sum()) if model.others else n_expressed


def on_device(model: BioFormer, device: str) -> BioFormer:
    """Return the model itself if it is on this device, else a copy with its networks on this device."""
    if model.members[0].cls.device == torch.device(device):
        return model
    return replace(model, members=tuple(deepcopy(network).to(device) for network in model.members))
