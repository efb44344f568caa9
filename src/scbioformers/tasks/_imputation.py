"""Imputation in blocks of cells: queried values are masked, predicted from the visible features, and decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.config import bin_levels
from scbioformers.core import (
    SCALES,
    SPECIALS,
    ConfigError,
    Scale,
    deviation,
    expected,
    posterior_mean,
    quantile,
    tqdm,
    uniform,
)
from scbioformers.data import Block, BlockSource
from scbioformers.model import BioFormer, predict_masked, run_network
from scbioformers.nn import Batch

BLOCK_CELLS = 1024  # cells that are decoded to dense rows at a time
N_FOLDS = 7  # a seventh of the genes is masked at a time, about the share that is masked in training
N_RELIABILITY_BINS = 20  # intervals of predicted probability for calibration
_FOLD_STREAM = 0xF01D

Plan = Callable[[Block], Iterator[csr_matrix]]
"""Function that returns the masks of a block: one (n, M) matrix per pass, non-zero at the positions to predict."""


@dataclass
class Evidence:
    """How well masked measured values were predicted, as sums over all masked values.

    ``predicted``, ``observed`` and ``count`` have the shape (N_RELIABILITY_BINS,). The intervals are of the predicted
    probability that the gene is expressed.
    """

    joint: NDArray[np.float64]
    """(V, V), expected number of predictions of each bin (columns) for each measured bin (rows)."""
    predicted: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_RELIABILITY_BINS))
    """Sum of the predicted probabilities that the gene is expressed, in each interval."""
    observed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_RELIABILITY_BINS))
    """Number of values in each interval that are expressed."""
    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_RELIABILITY_BINS))
    """Number of values in each interval."""
    nll_bits: float = 0.0
    """Sum of the negative log-likelihoods, in bits."""

    def add(self, batch: Batch, probabilities: NDArray[np.float32]) -> None:
        """Add the predictions of one batch."""
        target = batch.target_bins.cpu().numpy()
        not_padding = target >= 0
        bins, p = target[not_padding], probabilities[not_padding].astype(np.float64)
        for value in np.unique(bins):
            self.joint[value] += p[bins == value].sum(axis=0)
        expressed = 1.0 - p[:, 0]
        at = np.minimum((expressed * N_RELIABILITY_BINS).astype(int), N_RELIABILITY_BINS - 1)
        self.predicted += np.bincount(at, expressed, N_RELIABILITY_BINS)
        self.observed += np.bincount(at, bins > 0, N_RELIABILITY_BINS)
        self.count += np.bincount(at, minlength=N_RELIABILITY_BINS)
        self.nll_bits -= float(np.log2(np.maximum(p[np.arange(len(bins)), bins], 1e-12)).sum())

    def to_dict(self) -> dict[str, NDArray[np.float64]]:
        """Arrays to store in ``uns``. The negative log-likelihood is a mean."""
        n = max(float(self.count.sum()), 1.0)
        return {
            "joint": self.joint,
            "predicted": self.predicted,
            "observed": self.observed,
            "count": self.count,
            "nll_bits": np.array([self.nll_bits / n]),
        }


def check_request(output: str, quantiles: Sequence[float], batch_size: int) -> None:
    """Check the arguments before the computation.

    Raises
    ------
    ConfigError
        If the output scale, a quantile or the batch size is not valid.
    """
    if output not in SCALES:
        raise ConfigError(f"`output` is one of {SCALES}, found {output!r}.")
    if wrong := [q for q in quantiles if not 0 < q < 1]:
        raise ConfigError(f"`quantiles` must lie strictly between 0 and 1, found {wrong}.")
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, found {batch_size}.")


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
) -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
    """Predict the positions of the plan, in blocks of cells. Predictions are decoded in batches to save memory.

    With ``keep_measured``, positions that are not queried contain the measured values.

    Yields
    ------
    The first row of the block, and dense (n, M) arrays, which are NaN where nothing was queried. The arrays are
    ``"mean"`` and, if requested, ``"std"`` and each quantile, with the number as its name.
    """
    names = ["mean", *(["std"] if std else []), *(str(q) for q in quantiles)]
    with tqdm(total=source.n_obs, desc="Imputing cells", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            shape = (len(block.depth), source.n_features)
            values = {name: np.full(shape, np.nan, np.float32) for name in names}
            for query_mask in plan(block):
                for batch, probabilities in predict_masked(model, block, query_mask, batch_size):
                    if evidence is not None:
                        evidence.add(batch, probabilities)
                    _decode(model, batch, probabilities, scale, block.start, values)
                if keep_measured:
                    measured = model.tokenizer.measured(block, scale, query_mask)
                    values["mean"] = np.where(np.isnan(values["mean"]), measured, values["mean"])
            bar.update(len(block.depth))
            yield block.start, values


def posterior_blocks(
    model: BioFormer,
    source: BlockSource,
    *,
    scale: Scale,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> Iterator[tuple[int, dict[str, NDArray[np.float32]]]]:
    """Posterior mean of the expression given all measured values of a cell, including the gene itself, in blocks.

    Yields
    ------
    The first row of the block, and ``"mean"``, a dense array (n, M), averaged over the members.
    """
    with tqdm(total=source.n_obs, desc="Imputing cells", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            counts = block.counts.toarray()
            mean, size = np.zeros(counts.shape), np.ones((len(counts), 1))
            for network in model.members:
                dispersion = network.log_dispersion.detach().exp().cpu().double().numpy()
                for batch, output in run_network(model, network, [block], batch_size):
                    at = batch.rows.cpu().numpy() - block.start
                    size[at, 0] = batch.size_factor.cpu().numpy()
                    rate = output.log_rate.cpu().double().exp().numpy() * size[at]
                    mean[at] += posterior_mean(rate, dispersion, counts[at]) / len(model.members)
            if scale == "log1p":
                mean = np.log1p(mean / size)
            bar.update(len(block.depth))
            yield block.start, {"mean": mean.astype(np.float32)}


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
    levels = bin_levels(model.binnings["rna"], model.bin_mean, size, scale)
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
