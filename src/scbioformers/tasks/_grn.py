"""Gene regulatory networks from a fitted model: attention, gene embeddings or in-silico knock-outs (section 3.4).

In all matrices rows are target genes and columns are regulators. Both are among the M modelled genes. In a model of
several modalities, targets are the T features of one modality, and regulators are features of the same one or another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import (
    ConfigError,
    Consensus,
    average_product_correction,
    cosine_similarity,
    tqdm,
    uniform,
)
from scbioformers.data import Block, BlockSource, ChosenCells, MemorySource, concatenate
from scbioformers.model import BioFormer
from scbioformers.nn import Transformer
from scbioformers.tasks._gene_signals import (
    STREAM_CELLS,
    Features,
    contextual_embedding,
    explained_share,
    input_embedding,
    log_rates,
    sum_attention,
)
from scbioformers.tasks._grn_edges import ConsensusGRN

Method = Literal["knockout", "embedding", "attention"]
METHODS = ("knockout", "embedding", "attention")
N_PROBES = 32  # maximum number of cells in which a regulator is knocked out, chosen from those that express it
MAX_HELD = 0.1  # maximum share of the pairs that count as edges of a member
PRIOR_COUNT = 10  # attention: number of cells at which the weight of a pair is shrunk to half
_CHUNK = 1024  # cells with a knock-out that are processed together
_PROBE_STREAM = 0x6124


@dataclass(frozen=True)
class EdgeWeights:
    """Weights of all pairs of target and regulator by one member of a model."""

    weight: NDArray[np.float64]
    """(T, R), positive means that the regulator activates the target: without the regulator, the target is lower.

    NaN for pairs with too few cells and for pairs of a gene with itself.
    """
    count: NDArray[np.int64]
    """(T, R), number of cells from which each weight was computed, at most the number that express the rarer gene."""
    signed: bool
    """Whether pairs are ranked by the absolute weight, so that a negative weight means repression."""
    received: NDArray[np.float64] | None = None
    """(R,), attention to each regulator, summed over target genes and averaged over cells. None for other methods."""

    @property
    def strength(self) -> NDArray[np.float64]:
        """(T, R), values by which pairs are ranked."""
        return np.abs(self.weight) if self.signed else self.weight


@dataclass(frozen=True)
class EdgeScorer:
    """Computes the weights of all pairs of target and regulator by one of the methods."""

    model: BioFormer
    """Fitted model."""
    method: Method
    """``"knockout"``, ``"embedding"`` or ``"attention"``."""
    regulators: NDArray[np.int64]
    """(R,), positions of the regulators among the genes of their modality."""
    layers: tuple[int, ...] | None = None
    """Only for attention: blocks to average over. None uses all blocks."""
    heads: tuple[int, ...] | None = None
    """Only for attention: heads to average over. None uses all heads."""
    contextual: bool = True
    """Only for embedding: whether embeddings depend on the cells. If not, input embeddings are used."""
    directed: bool = True
    """Only for embedding: if not, a weight is the mean over both directions of the pair, and a pair is one edge."""
    min_count: int = 1
    """Minimum number of cells of a weight."""
    modality: str | None = None
    """Modality of the targets. None is the only one."""
    regulator_modality: str | None = None
    """Modality of the regulators. None is that of the targets."""

    @cached_property
    def targets(self) -> Features:
        """The features that can be targets."""
        return Features.of(self.model, self.modality)

    @cached_property
    def sources(self) -> Features:
        """The features that can be regulators."""
        return self.targets if self.within else Features.of(self.model, self.regulator_modality)

    @property
    def within(self) -> bool:
        """Whether targets and regulators are of one modality."""
        return self.regulator_modality in (None, self.modality)

    def __post_init__(self) -> None:
        config = self.model.config
        if self.method not in METHODS:
            raise ConfigError(f"`method` must be one of {METHODS}, found {self.method!r}.")
        if self.method == "attention" and not config.attention:
            raise ConfigError(
                "The model was fitted without attention (ModelConfig.attention=False). "
                "Pass `method='knockout'` or `method='embedding'`."
            )
        for name, chosen, n in (("layers", self.layers, config.n_layers), ("heads", self.heads, config.n_heads)):
            if chosen is not None and (not chosen or not all(0 <= i < n for i in chosen)):
                raise ConfigError(f"`{name}` must hold numbers from 0 to {n - 1}, found {list(chosen)}.")

    def score(self, network: Transformer, cells: BlockSource, seed: int, bar: tqdm) -> EdgeWeights:
        """Compute the weights by one member, in the cells of one condition."""
        if self.method == "attention":
            pairs = self._attention(network, cells, bar)
        elif self.method == "embedding":
            pairs = self._embedding(network, cells.read(0, cells.n_obs), bar)
        else:
            pairs = self._knockout(network, cells.read(0, cells.n_obs), seed, bar)
        # an embedding or a rate is computed in all cells, but a gene that one cell expresses was learnt from that cell
        expressing = self.targets.n_expressing(cells)
        regulating = expressing if self.within else self.sources.n_expressing(cells)
        count = np.minimum(pairs.count, np.minimum.outer(expressing, regulating[self.regulators]))
        weight = np.where(count >= self.min_count, pairs.weight, np.nan)
        if self.within:
            weight[self.regulators, np.arange(len(self.regulators))] = np.nan
        return replace(pairs, weight=weight, count=count)

    def n_steps(self, cells: BlockSource) -> int:
        """Number of steps of the progress bar in :meth:`score`: the cells that the network reads."""
        n = cells.n_obs
        if self.method == "knockout":
            return n + int(np.minimum(self.sources.n_expressing(cells)[self.regulators], N_PROBES).sum())
        return n if self.method == "attention" else 2 * n * self.contextual

    def _attention(self, network: Transformer, cells: BlockSource, bar: tqdm) -> EdgeWeights:
        blocks = cells.blocks(STREAM_CELLS)
        total, count = sum_attention(self.model, network, blocks, self.layers, self.heads, bar)
        np.fill_diagonal(count, 0)
        block = self.targets.columns, self.sources.columns
        total, count = total[block], count[block]
        mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        # the mean over a few cells is unreliable, so it is shrunk towards 0
        corrected = average_product_correction(mean) * (count / (count + PRIOR_COUNT))
        received = total.sum(axis=0)[self.regulators] / cells.n_obs
        return EdgeWeights(corrected[:, self.regulators], count[:, self.regulators], signed=False, received=received)

    def _embedding(self, network: Transformer, cells: Block, bar: tqdm) -> EdgeWeights:
        rows, columns = self.targets.columns, self.sources.columns
        embedding = (
            contextual_embedding(self.model, network, cells, bar) if self.contextual else input_embedding(network)
        )
        similarity = cosine_similarity(embedding[rows], None if self.within else embedding[columns])
        if self.contextual:
            rates = log_rates(self.model, network, cells, bar)
            share = np.sqrt(explained_share(self.targets, cells, rates))
            similarity *= share if self.within else np.sqrt(explained_share(self.sources, cells, rates))
            # for data that are not counts, the share of the target gave no improvement (dev/experiments.md, 61)
            if self.targets.state.reading.counts:
                similarity *= share[:, None]
        if not self.directed:
            similarity = (similarity + similarity.T) / 2
        similarity = similarity[:, self.regulators]
        return EdgeWeights(similarity, np.full(similarity.shape, len(cells.depth)), signed=True)

    def _knockout(self, network: Transformer, cells: Block, seed: int, bar: tqdm) -> EdgeWeights:
        targets = self.targets.columns
        effect = np.zeros((targets.stop - targets.start, len(self.regulators)))
        count = np.zeros(effect.shape, np.int64)
        rates = log_rates(self.model, network, cells, bar)
        before = rates[:, targets]
        waiting: list[tuple[int, NDArray[np.int64], Block]] = []

        def process_waiting() -> None:
            after = log_rates(self.model, network, concatenate([block for _, _, block in waiting]), bar)
            after = after[:, targets]
            start = 0
            for at, rows, _ in waiting:
                effect[:, at] = (before[rows] - after[start : start + rows.size]).mean(axis=0)
                start += rows.size
            waiting.clear()

        expressed = self.sources.cells(cells).counts.tocsc()
        for at, gene in enumerate(self.regulators):
            rows = expressed.indices[expressed.indptr[gene] : expressed.indptr[gene + 1]].astype(np.int64)
            rows = np.sort(rows[np.argsort(uniform(seed ^ _PROBE_STREAM, gene, rows), kind="stable")[:N_PROBES]])
            count[:, at] = rows.size
            if not rows.size:
                continue
            knocked_out = cells.take(rows).scaled(np.full(rows.size, gene), 0, self.sources.number)
            waiting.append((at, rows, knocked_out))
            if sum(len(block.depth) for _, _, block in waiting) >= _CHUNK:
                process_waiting()
        if waiting:
            process_waiting()
        if self.within:
            effect[self.regulators, np.arange(len(self.regulators))] = 0.0
        share = explained_share(self.targets, cells, rates)
        effect *= share[:, None]
        length = np.linalg.norm(effect, axis=0)
        unit = np.divide(effect, length, out=np.zeros_like(effect), where=length > 0)
        # with equal lengths, regulators that few cells express would rank as high as others; so scale by their share
        share = share if self.within else explained_share(self.sources, cells, rates)
        return EdgeWeights(unit * share[self.regulators], count, signed=True)


def infer_grn(
    scorer: EdgeScorer,
    source: BlockSource,
    rows: NDArray[np.int64],
    measured: NDArray[np.bool_],
    top_k: int,
    seed: int,
    shown: str | None,
) -> ConsensusGRN:
    """Compute the weights by every member in the cells of one condition, and their consensus.

    The cells are held in memory. Only attention in more than 16,384 cells is computed in blocks of them.

    Parameters
    ----------
    scorer
        Method, model and regulators.
    source, rows
        Cells, and the rows of those of the condition in ascending order.
    measured
        (T,), whether each target is measured in the data. Pairs with other targets have no weight.
    top_k
        Number of pairs that count as edges of a member, at most a tenth of all pairs. Without a direction, both orders
        of two genes are one pair.
    seed
        Seed of the choice of cells in which regulators are knocked out.
    shown
        Name of the condition on the progress bar. None for no bar.
    """
    unmeasured = np.where(measured[:, None], 0.0, np.nan)
    unranked = np.repeat(unmeasured, scorer.regulators.size, axis=1)
    if not scorer.directed:  # the other order of two genes is the same edge
        unranked[np.arange(len(measured))[:, None] < scorer.regulators] = np.nan
    n_held = max(1, min(top_k, int(MAX_HELD * np.isfinite(unranked).sum())))
    consensus, members, received = Consensus(n_held), scorer.model.members, []
    cells: BlockSource = ChosenCells(source, rows)
    if scorer.method != "attention" or len(rows) <= STREAM_CELLS:
        cells = MemorySource(cells.read(0, len(rows)))
    steps = scorer.n_steps(cells) * len(members)
    with tqdm(total=steps, desc=f"GRN of {shown}", disable=shown is None or not steps) as bar:
        for network in members:
            pairs = scorer.score(network, cells, seed, bar)
            consensus.add(pairs.weight + unmeasured, pairs.strength + unranked)
            if pairs.received is not None:
                received.append(pairs.received)
    return ConsensusGRN(consensus, pairs.count, np.mean(received, axis=0) if received else None)


def draw_conditions(
    codes: NDArray[np.int64], n_cells: int | None, seed: int, *, equal: bool = True
) -> Iterator[NDArray[np.int64]]:
    """Rows of each condition (codes 0, 1, …; -1 for none), at most ``n_cells``, and the same number if ``equal``.

    The choice of rows does not depend on the code, so the order of the categories has no effect.
    """
    sizes = np.bincount(codes[codes >= 0])
    most = len(codes) if n_cells is None else n_cells
    n = min(int(sizes.min()), most) if equal else most
    for code in range(len(sizes)):
        rows = np.flatnonzero(codes == code)
        yield np.sort(rows[np.argsort(uniform(seed, 0, rows), kind="stable")[:n]])
