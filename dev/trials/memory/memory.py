"""A memory of reference cells on top of a fitted model: what it holds, how it is read, and the head that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

import scbioformers as bf
from scbioformers.baselines import MaskedCells
from scbioformers.config import Binning
from scbioformers.core import SPECIALS, LowRankProfile, MaskedRows
from scbioformers.data import Block
from scbioformers.model import make_batches, run_network

Array = NDArray[np.float64]
N_COMPONENTS = 10  # of the space in which kNN smoothing finds neighbours
RIDGE = 1.0


@dataclass(frozen=True, eq=False)
class Queries:
    """N cells with H masked entries, as the network sees them. Nothing is computed from the masked values but bins."""

    masked: MaskedCells
    latent: Array
    """(N, L), keys."""
    depth: Array
    """(N,), estimated depth over the mean depth."""
    log_probs: Array
    """(H, V), the network's prediction."""
    log_rate: Array
    """(H,), rate of the gene at the mean depth, decoded from ``<cls>``."""
    own: NDArray[np.int64]
    """(N,), row of the cell among the references, which it must not read. -1 if it is not one."""


@dataclass(frozen=True, eq=False)
class References:
    """R cells that are read. Absent genes have no exposure."""

    latent: Array
    """(R, L), keys."""
    counts: NDArray[np.float32]
    """(R, M)."""
    exposure: NDArray[np.float32]
    """(R, M), depth over the mean depth."""
    expected: NDArray[np.float32]
    """(R, M), counts that the network expects, from its rates for these cells."""
    positions: Array
    """(R, K), keys of kNN smoothing."""
    space: LowRankProfile
    """Space of these positions."""


def masked_queries(
    model: bf.BioFormer, block: Block, masked: MaskedCells, own: NDArray[np.int64] | None = None
) -> Queries:
    """Predict the masked entries of the cells of a block."""
    n, n_features = block.counts.shape
    starts = np.searchsorted(masked.cells, np.arange(n + 1))
    mask = csr_matrix((np.ones(masked.cells.size, bool), masked.genes, starts), shape=(n, n_features))
    network = model.members[0]
    log_probs = np.full((masked.bins.size, model.binning.n_values), np.nan)
    log_rate, latent, depth = np.full(masked.bins.size, np.nan), np.empty((n, model.config.n_latent)), np.empty(n)
    with torch.no_grad():
        for batch in make_batches(model, block, 64, mask, drawn=True):
            output, ids, rows = network(batch), batch.masked_ids.numpy(), batch.rows.numpy() - block.start
            cell, at = np.nonzero(ids)
            entries, genes = starts[rows[cell]] + at, ids[cell, at] - len(SPECIALS)
            if not np.array_equal(masked.genes[entries], genes):
                raise RuntimeError("The predictions of the model are not in the order of the masked entries.")
            log_probs[entries] = output.log_probs.numpy()[cell, at]
            log_rate[entries] = output.log_rate.numpy()[cell, genes]
            latent[rows], depth[rows] = output.latent.numpy(), np.exp(batch.log_depth.numpy())
    return Queries(masked, latent, depth, log_probs, log_rate, np.full(n, -1) if own is None else own)


def references(model: bf.BioFormer, block: Block) -> References:
    """Read whole cells."""
    n, mean_depth = len(block.depth), float(model.binning.mean_depth or 1.0)
    latent, rate = np.empty((n, model.config.n_latent)), np.empty(block.counts.shape, np.float32)
    for batch, output in run_network(model, model.members[0], [block], 64):
        rows = batch.rows.numpy() - block.start
        latent[rows], rate[rows] = output.latent.numpy(), output.log_rate.exp().numpy()
    exposure = ((block.depth / mean_depth)[:, None] * block.present).astype(np.float32)
    space = LowRankProfile.fit(block.counts, block.depth, mean_depth, n_components=N_COMPONENTS)
    none = np.empty(0, np.int64)
    positions = place(space, MaskedRows(block.counts, block.depth, none, none), block.depth)
    return References(latent, block.counts.toarray().astype(np.float32), exposure, exposure * rate, positions, space)


def joined(parts: Sequence[References]) -> References:
    """References of several data sets as one memory. kNN smoothing is not for it."""
    names = ("latent", "counts", "exposure", "expected", "positions")
    return References(
        **{name: np.concatenate([getattr(x, name) for x in parts]) for name in names}, space=parts[0].space
    )


def place(space: LowRankProfile, cells: MaskedRows, depth: Array) -> Array:
    """(N, K) coordinates on orthonormal components."""
    return space.scores(cells, depth) * np.sqrt((space.loadings.astype(np.float64) ** 2).sum(axis=0))


@dataclass(frozen=True)
class Reading:
    """How references are weighted: ``attention`` with a temperature, ``knn`` with a number, or ``mean``.

    ``components`` is attention in the space of kNN smoothing, with a temperature relative to the mean distance² of the
    fifteenth neighbour.
    """

    kind: str
    value: float = 0.0

    def weights(
        self, queries: Queries, refs: References, rows: NDArray[np.int64], model_depth: float
    ) -> NDArray[np.float32]:
        """(N, R) weights of the references ``rows``, times their effective number."""
        if self.kind in ("knn", "components"):
            masked = queries.masked
            cells = MaskedRows(masked.visible, masked.depth, masked.cells, masked.genes)
            x, y = place(refs.space, cells, queries.depth * model_depth), refs.positions[rows]
        else:
            x, y = queries.latent, refs.latent[rows]
        distance = (x**2).sum(axis=1)[:, None] - 2 * x @ y.T + (y**2).sum(axis=1)
        itself = queries.own[:, None] == rows
        distance[itself] = np.inf
        if self.kind == "knn":
            k = min(int(self.value), len(rows) - 1)
            weights = np.zeros(distance.shape)
            np.put_along_axis(weights, np.argpartition(distance, k - 1, axis=1)[:, :k], 1.0, axis=1)
        elif self.kind == "mean":
            weights = 1.0 - itself
        else:
            scale = np.partition(distance, 14, axis=1)[:, 14].mean() if self.kind == "components" else 1.0
            weights = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / (scale * self.value))
        weights /= weights.sum(axis=1, keepdims=True)
        return np.asarray(weights / (weights**2).sum(axis=1, keepdims=True), np.float32)


def memory_features(
    queries: Queries, refs: References, reading: Reading, rows: NDArray[np.int64], depth: float
) -> Array:
    """(H, 2) log of attended counts over those that the query's rate, and the references' rates, would give."""
    weights, at = reading.weights(queries, refs, rows, depth), (queries.masked.cells, queries.masked.genes)
    counts, exposure, expected = ((weights @ x[rows])[at] for x in (refs.counts, refs.exposure, refs.expected))
    return np.log((counts + 1.0)[:, None] / (1.0 + np.column_stack([exposure * np.exp(queries.log_rate), expected])))


def head_inputs(queries: Queries, memory: Array | None) -> Array:
    """(H, 4) inputs of the head without memory, or (H, 10) with memory."""
    depth = np.log(queries.depth)[queries.masked.cells]
    count = np.clip(queries.log_rate + depth, -6, 4) / 2
    zero = np.clip(queries.log_probs[:, 0], -8, -1e-3)
    inputs = [np.ones_like(count), count, depth, zero - np.log(-np.expm1(zero))]
    if memory is not None:
        m = np.clip(memory, -3, 3)
        inputs += [*m.T, *(m**2).T, *(m * count[:, None]).T]
    return np.column_stack(inputs)


def value_basis(binning: Binning) -> Array:
    """(V, 2): whether a bin is above 0, and its log2 level over that of bin 1."""
    lower, upper = binning.edges()
    level = 0.5 * np.log2(np.maximum(lower, 0.5) * np.maximum(upper, 0.5))
    above = np.arange(level.size) > 0
    return np.column_stack([above, above * (level - level[1])])


def tilted(log_probs: Array, inputs: Array, weights: Array, basis: Array) -> Array:
    """(H, V) log probabilities: log p + inputs · weights · basis, normalised."""
    logits = log_probs + inputs @ weights @ basis.T
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def fit_head(log_probs: Array, inputs: Array, bins: NDArray[np.int64], basis: Array) -> Array:
    """(F, 2) weights of the highest penalised likelihood, by Newton steps."""
    n_inputs, weights = inputs.shape[1], np.zeros((inputs.shape[1], 2))
    for _ in range(12):
        p = np.exp(tilted(log_probs, inputs, weights, basis))
        mean = p @ basis
        gradient = (inputs.T @ (mean - basis[bins]) + RIDGE * weights).T.ravel()
        hessian = RIDGE * np.eye(2 * n_inputs)
        for r in range(2):
            for s in range(2):
                covariance = p @ (basis[:, r] * basis[:, s]) - mean[:, r] * mean[:, s]
                at = slice(r * n_inputs, (r + 1) * n_inputs), slice(s * n_inputs, (s + 1) * n_inputs)
                hessian[at] += inputs.T @ (inputs * covariance[:, None])
        step = np.linalg.solve(hessian, gradient).reshape(2, n_inputs).T
        weights = weights - step * min(1.0, 1.0 / max(np.abs(step).max(), 1e-9))
        if np.abs(step).max() < 1e-4:
            break
    return weights


def bits(log_probs: Array, bins: NDArray[np.int64]) -> float:
    """Mean negative log likelihood in bits."""
    return float(-log_probs[np.arange(bins.size), bins].mean() / np.log(2))
