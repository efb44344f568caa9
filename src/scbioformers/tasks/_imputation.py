"""Imputation in blocks of cells: queried values are masked, predicted from the visible features, and decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.config import bin_levels, bin_rows
from scbioformers.core import (
    SPECIALS,
    Scale,
    deviation,
    expected,
    log1p_rows,
    posterior_mean,
    quantile,
    tqdm,
    uniform,
)
from scbioformers.data import Block, BlockSource, MemorySource
from scbioformers.model import BioFormer, predict_masked, run_network
from scbioformers.nn import Batch
from scbioformers.tasks._imputation_evidence import Evidence, choose_evidence_cells
from scbioformers.training import find_validation

BLOCK_CELLS = 1024  # cells that are decoded to dense rows at a time
N_FOLDS = 7  # a seventh of the genes is masked at a time, about the share that is masked in training
LOW_DEPTH = 0.05  # cells with a lower share of the mean depth are flagged
_FOLD_STREAM = 0xF01D

Plan = Callable[[Block], Iterator[csr_matrix]]
"""Function that returns the masks of a block: one (n, M) matrix per pass, non-zero at the positions to predict."""


@dataclass(frozen=True, eq=False)
class ImputedBlock:
    """Imputed values of n consecutive cells."""

    cells: Block
    """The cells as they were read."""
    values: dict[str, NDArray[np.float32]]
    """Arrays (n, M): ``"mean"`` and, if requested, ``"std"`` and each quantile, with the number as its name."""
    low_depth: NDArray[np.bool_]
    """(n,) cells whose values are predicted from almost nothing, see :func:`low_depth`."""


def folds(n_features: int, n_folds: int, genes: NDArray[np.int64] | None = None) -> Plan:
    """Plan that predicts every gene, or only ``genes``, of every cell in ``n_folds`` passes.

    The genes of a fold are masked and predicted from the genes of the other folds. The folds are random and of equal
    size. They are the same for all cells, so that the result does not depend on the order of the cells.
    """
    rank = np.argsort(np.argsort(uniform(_FOLD_STREAM, np.arange(n_features)), kind="stable"))
    wanted = np.ones(n_features, dtype=bool)
    if genes is not None:
        wanted[:] = False
        wanted[genes] = True
    columns = [np.flatnonzero((rank % n_folds == k) & wanted) for k in range(n_folds)]

    def plan(block: Block) -> Iterator[csr_matrix]:
        n = len(block.depth)
        for fold in columns:
            if fold.size:
                indices, indptr = np.tile(fold, n), np.arange(n + 1) * fold.size
                yield csr_matrix((np.ones(indices.size, bool), indices, indptr), shape=(n, n_features))

    return plan


def positions(mask: csr_matrix) -> Plan:
    """Plan that predicts all non-zero positions of a (N, M) mask in one pass."""

    def plan(block: Block) -> Iterator[csr_matrix]:
        yield mask[block.start : block.start + len(block.depth)]

    return plan


def low_depth(model: BioFormer, block: Block) -> NDArray[np.bool_]:
    """(n,) cells without a value in the genes of the model, or with less than 5 % of the mean depth in training."""
    empty = np.diff(block.counts.indptr) == 0
    if not model.reading.counts:
        return empty
    return empty | (block.depth < LOW_DEPTH * float(model.binning.mean_depth or 1.0))


def beside(plan: Plan, hidden: csr_matrix) -> Plan:
    """Plan that also masks the non-zero positions of a (N, M) matrix in each pass."""

    def both(block: Block) -> Iterator[csr_matrix]:
        rows = hidden[block.start : block.start + len(block.depth)]
        for mask in plan(block):
            yield (mask + rows).astype(bool)

    return both


def impute_blocks(
    model: BioFormer,
    source: BlockSource,
    plan: Plan,
    *,
    scale: Scale,
    std: bool = False,
    quantiles: Sequence[float] = (),
    keep_measured: bool = False,
    evidence: Evidence | None = None,
    batch_size: int = 64,
    progress_bar: bool = False,
    title: str = "Imputing cells",
) -> Iterator[ImputedBlock]:
    """Predict the positions of the plan from the other genes. Predictions are decoded in batches to save memory.

    If a pass leaves nothing visible in a cell, its predictions are 0: the depth of the cell is then estimated as 0.

    With ``keep_measured``, positions that are not queried contain the measured values, with a standard deviation of 0.

    Yields
    ------
    Blocks of cells. The values are NaN where nothing was queried.
    """
    names = ["mean", *(["std"] if std else []), *(str(q) for q in quantiles)]
    with tqdm(total=source.n_obs, desc=title, unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            shape = (len(block.depth), source.n_features)
            values = {name: np.full(shape, np.nan, np.float32) for name in names}
            low = low_depth(model, block)
            masks, done = list(plan(block)), float(bar.n)
            for query_mask in masks:
                for batch, probabilities in predict_masked(model, block, query_mask, batch_size):
                    done += len(batch) / len(masks)
                    bar.advance_to(done)
                    if evidence is not None:
                        evidence.add(batch, probabilities)
                    _decode(model, batch, probabilities, scale, block.start, values)
                nothing = _nothing_visible(model, block, query_mask)
                queried = query_mask[nothing].tocoo()
                for array in values.values():
                    array[np.flatnonzero(nothing)[queried.row], queried.col] = 0
                low |= nothing
                if keep_measured:
                    measured = model.first_tokenizer.measured(block, scale, query_mask)
                    kept = np.isnan(values["mean"])
                    for name, array in values.items():
                        array[kept] = 0 if name == "std" else measured[kept]
            yield ImputedBlock(block, values, low)


def _nothing_visible(model: BioFormer, block: Block, query_mask: csr_matrix) -> NDArray[np.bool_]:
    """(n,) cells in which no count is visible; for data that are not counts, no value of a modelled gene."""
    visible = block.counts - block.counts.multiply(query_mask.astype(bool))
    if not model.reading.counts:
        return np.diff(visible.tocsr().indptr) == 0
    modelled, left = (np.asarray(x.sum(axis=1, dtype=np.float64)).ravel() for x in (block.counts, visible))
    return block.depth - (modelled - left) <= 1e-9 * block.depth  # sums of estimated counts are rounded


def posterior_blocks(
    model: BioFormer,
    source: BlockSource,
    *,
    scale: Scale,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> Iterator[ImputedBlock]:
    """Posterior mean of the expression given all measured values of a cell, including the gene itself.

    The values of a cell of depth 0 are 0. The values are averaged over the members.
    """
    mean_depth = float(model.binning.mean_depth or 1.0)
    with tqdm(total=source.n_obs, desc="Imputing cells", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            counts = block.counts.toarray()
            mean, size = np.zeros(counts.shape), (block.depth / mean_depth)[:, None]
            done = float(bar.n)
            for network in model.members:
                dispersion = network.log_dispersion.detach().exp().cpu().double().numpy()
                for batch, output in run_network(model, network, [block], batch_size):
                    at = batch.rows.cpu().numpy() - block.start
                    rate = output.log_rate.cpu().double().exp().numpy() * size[at]
                    mean[at] += posterior_mean(rate, dispersion, counts[at]) / len(model.members)
                    done += len(at) / len(model.members)
                    bar.advance_to(done)
            if scale == "log1p":
                mean = np.log1p(mean / np.where(size > 0, size, 1.0))
            yield ImputedBlock(block, {"mean": mean.astype(np.float32)}, low_depth(model, block))


def collect_evidence(
    model: BioFormer,
    source: BlockSource,
    cells: NDArray[np.int64],
    genes: NDArray[np.int64],
    *,
    hidden: csr_matrix | None = None,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> Evidence:
    """Predict measured values of some cells, masked in turn: a seventh of the genes at a time.

    Parameters
    ----------
    cells
        Rows of the cells, in ascending order.
    genes
        Positions of the genes whose values are predicted.
    hidden
        (N, M), non-zero at values of the source that are not measured. They stay masked and are not compared.
    """
    part = None if hidden is None else hidden[cells]
    evidence = Evidence.empty(model, hidden=part)
    plan = folds(source.n_features, N_FOLDS, genes)
    for _ in impute_blocks(
        model,
        MemorySource(source.rows(cells)),
        plan if part is None else beside(plan, part),
        scale="bins",
        evidence=evidence,
        batch_size=batch_size,
        progress_bar=progress_bar,
        title="Predicting masked values",
    ):
        pass
    return evidence


def find_evidence_cells(model: BioFormer, source: BlockSource, *, masked: bool) -> tuple[NDArray[np.int64], int]:
    """Rows of the cells for :func:`collect_evidence`, and how many of them are validation cells of the fit.

    With ``masked``, these are not known: some values of the source are not those of the fit.
    """
    known = np.zeros(source.n_obs, dtype=bool) if masked else find_validation(model, source)
    usable = np.concatenate([~low_depth(model, block) for block in source.blocks()])
    cells = choose_evidence_cells(usable, known, source.n_features)
    return cells, int(known[cells].sum())


def own_values(
    model: BioFormer, block: Block, others: csr_matrix, scale: Scale, depth: NDArray[np.float64]
) -> csr_matrix:
    """Measured values of genes that are not predicted, in the unit of the predictions.

    Parameters
    ----------
    block
        n cells, over the features of the model.
    others
        (n, K), the values of the other genes.
    scale
        Counts; log1p of the counts at the mean depth; or bins. Segment bins are ranks among the genes of the model.
    depth
        (n,) depth of the cells.
    """
    binning = model.binning
    if scale in ("counts", "values"):
        return others.astype(np.float32)
    if scale == "log1p":
        return log1p_rows(others, depth, float(binning.mean_depth or 1.0)).astype(np.float32)
    if binning.kind == "value":
        has_depth = depth > 0
        counts = np.where(np.repeat(has_depth, np.diff(others.indptr)), others.data, 0)
        bins = bin_rows(binning, counts, others.indptr, np.where(has_depth, depth, 1.0)).astype(np.float32)
    elif binning.kind == "quantile":  # of a feature that is not modelled, no quantiles are known
        bins = np.full(others.nnz, np.nan, np.float32)
    else:
        bins = np.zeros(others.nnz, np.float32)
        for i, (start, stop) in enumerate(zip(others.indptr[:-1], others.indptr[1:], strict=True)):
            ranked = np.sort(block.counts.data[block.counts.indptr[i] : block.counts.indptr[i + 1]])
            share = np.searchsorted(ranked, others.data[start:stop], side="right") / max(ranked.size, 1)
            bins[start:stop] = np.maximum(np.ceil(binning.n_bins * share), 1)
    return csr_matrix((bins, others.indices, others.indptr), shape=others.shape)


def _decode(
    model: BioFormer,
    batch: Batch,
    probabilities: NDArray[np.float32],
    scale: Scale,
    start: int,
    values: dict[str, NDArray[np.float32]],
) -> None:
    """Decode the predictions of one batch and write them to ``values``."""
    size = np.exp(batch.log_depth.cpu().numpy().astype(np.float64))
    levels = bin_levels(model.binning, model.bin_mean, size, scale)
    ids = batch.masked_ids.cpu().numpy()
    cell, at = np.nonzero(ids)
    rows, genes = batch.rows.cpu().numpy()[cell] - start, ids[cell, at] - len(SPECIALS)
    for name, array in values.items():
        if name == "mean":
            decoded = expected(probabilities, levels)
        elif name == "std":
            decoded = deviation(probabilities, levels)
        else:
            decoded = quantile(probabilities, levels, float(name))
        array[rows, genes] = decoded[cell, at]
