"""Imputation in blocks of cells: queried values are masked, predicted from the visible features, and decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
from scbioformers.model import BioFormer, predict_with_rates, run_network
from scbioformers.nn import Batch
from scbioformers.tasks._imputation_evidence import LOW_DEPTH, Evidence, choose_evidence_cells
from scbioformers.tasks._query_memory import QueryMemory
from scbioformers.tasks._query_memory_reader import masked_in_all
from scbioformers.training import find_validation

BLOCK_CELLS = 1024  # cells that are decoded to dense rows at a time
N_FOLDS = 7  # a seventh of the genes is masked at a time, about the share that is masked in training
_FOLD_STREAM = 0xF01D


@dataclass(frozen=True, eq=False)
class Plan:
    """Which positions are masked and predicted together, in one pass or several. See :func:`folds`."""

    n_features: int
    """Number of features, M."""
    columns: tuple[NDArray[np.int64], ...]
    """Features that each pass masks in all cells."""
    mask: csr_matrix | None = None
    """(N, M), non-zero at positions that each pass masks besides."""

    def __call__(self, block: Block) -> Iterator[csr_matrix]:
        """The masks of a block: one (n, M) matrix per pass, non-zero at the positions to predict."""
        rows = None if self.mask is None else self.mask[block.start : block.start + len(block.depth)]
        for columns in self.columns:
            yield masked_in_all((len(block.depth), self.n_features), columns, rows)


@dataclass(frozen=True, eq=False)
class ImputedBlock:
    """Imputed values of n consecutive cells."""

    cells: Block
    """The cells as they were read."""
    values: dict[str, NDArray[np.float32]]
    """Arrays (n, M): ``"mean"`` and, if requested, ``"std"`` and each quantile, with the number as its name."""
    low_depth: NDArray[np.bool_]
    """(n,) cells whose values are predicted from almost nothing, see :func:`low_depth`."""
    references: csr_matrix | None = None
    """(n, N) mean weights of the cells that each cell reads most. None without a memory."""


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
    columns = (np.flatnonzero((rank % n_folds == k) & wanted) for k in range(n_folds))
    return Plan(n_features, tuple(fold for fold in columns if fold.size))


def positions(mask: csr_matrix) -> Plan:
    """Plan that predicts all non-zero positions of a (N, M) mask in one pass."""
    return Plan(mask.shape[1], (np.zeros(0, np.int64),), mask)


def low_depth(model: BioFormer, block: Block) -> NDArray[np.bool_]:
    """(n,) cells without a value in the genes of the model, or with less than 5 % of the mean depth in training."""
    empty = np.diff(block.counts.indptr) == 0
    if not model.reading.counts:
        return empty
    return empty | (block.depth < LOW_DEPTH * float(model.binning.mean_depth or 1.0))


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
    memory: QueryMemory | None = None,
    batch_size: int = 64,
    progress_bar: bool = False,
    title: str = "Imputing cells",
) -> Iterator[ImputedBlock]:
    """Predict the positions of the plan from the other genes. Predictions are decoded in batches to save memory.

    If a pass leaves nothing visible in a cell, its predictions are 0: the depth of the cell is then estimated as 0.

    With ``keep_measured``, positions that are not queried contain the measured values, with a standard deviation of 0.

    With ``memory``, predictions are changed by what similar cells of the source showed.

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
            weights: list[NDArray[np.float64]] = []
            for columns, query_mask in zip(plan.columns, masks, strict=True):
                attended = None if memory is None else memory.read(block, query_mask, columns)
                if attended is not None:
                    weights.append(attended.weights)
                for batch, probabilities, rates in predict_with_rates(model, block, query_mask, batch_size):
                    done += len(batch) / len(masks)
                    bar.advance_to(done)
                    if memory is not None and attended is not None:
                        probabilities = memory.tilt(block, attended, batch, probabilities, rates)
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
            yield ImputedBlock(block, values, low, _strongest(memory, weights))


def _nothing_visible(model: BioFormer, block: Block, query_mask: csr_matrix) -> NDArray[np.bool_]:
    """(n,) cells in which no count is visible; for data that are not counts, no value of a modelled gene."""
    visible = block.counts - block.counts.multiply(query_mask.astype(bool))
    if not model.reading.counts:
        return np.diff(visible.tocsr().indptr) == 0
    modelled, left = (np.asarray(x.sum(axis=1, dtype=np.float64)).ravel() for x in (block.counts, visible))
    return block.depth - (modelled - left) <= 1e-9 * block.depth  # sums of estimated counts are rounded


def _strongest(memory: QueryMemory | None, weights: list[NDArray[np.float64]]) -> csr_matrix | None:
    return None if memory is None or not weights else memory.strongest(np.mean(weights, axis=0))


def posterior_blocks(
    model: BioFormer,
    source: BlockSource,
    *,
    scale: Scale,
    memory: QueryMemory | None = None,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> Iterator[ImputedBlock]:
    """Posterior mean of the expression given all measured values of a cell, including the gene itself.

    The values of a cell of depth 0 are 0. The values are averaged over the members. With ``memory``, what similar cells
    of the source showed is further evidence.
    """
    mean_depth = float(model.binning.mean_depth or 1.0)
    with tqdm(total=source.n_obs, desc="Imputing cells", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            counts = block.counts.toarray()
            mean, size = np.zeros(counts.shape), (block.depth / mean_depth)[:, None]
            done = float(bar.n)
            attended = None if memory is None else memory.read(block)
            for network in model.members:
                dispersion = network.log_dispersion.detach().exp().cpu().double().numpy()
                for batch, output in run_network(model, network, [block], batch_size):
                    at = batch.rows.cpu().numpy() - block.start
                    rate = output.log_rate.cpu().double().exp().numpy() * size[at]
                    if memory is not None and attended is not None:
                        rate = memory.prior(attended, rate, dispersion, at)
                    mean[at] += posterior_mean(rate, dispersion, counts[at]) / len(model.members)
                    done += len(at) / len(model.members)
                    bar.advance_to(done)
            if scale == "log1p":
                mean = np.log1p(mean / np.where(size > 0, size, 1.0))
            references = _strongest(memory, [] if attended is None else [attended.weights])
            yield ImputedBlock(block, {"mean": mean.astype(np.float32)}, low_depth(model, block), references)


def collect_evidence(
    model: BioFormer,
    source: BlockSource,
    cells: NDArray[np.int64],
    genes: NDArray[np.int64],
    *,
    hidden: csr_matrix | None = None,
    memory: QueryMemory | None = None,
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
    memory
        What the cells of the source read of each other.
    """
    part = None if hidden is None else hidden[cells]
    evidence = Evidence.empty(model, hidden=part)
    plan = folds(source.n_features, N_FOLDS, genes)
    for _ in impute_blocks(
        model,
        MemorySource(source.rows(cells)),
        replace(plan, mask=part),
        scale="bins",
        evidence=evidence,
        memory=None if memory is None else memory.take(cells),
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
