"""Blocks of counts to token batches: mask first, then bin what is visible."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import ndtri

from scbioformers.config import Binning, Masking, bin_rows
from scbioformers.core import SPECIALS, Scale, hash_uniform, log1p_rows, uniform
from scbioformers.data import Block
from scbioformers.nn import N_SMALL_COUNTS, Batch

# keep the choice of tokens apart from the choice of the mask
_CONTEXT_STREAM, _MASKED_STREAM, _NOISE_STREAM, _BAG_STREAM = 0x9E37, 0x79B9, 0x7F4A, 0x7C15


@dataclass(frozen=True)
class _Rows:
    """Entries of B cells in CSR order: feature, value (bin or count) and where each cell starts."""

    indptr: NDArray[np.int64]
    features: NDArray[np.int32]
    values: NDArray[np.float64]

    @property
    def cells(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.indptr.size - 1), np.diff(self.indptr))

    def keep(self, entries: NDArray[np.bool_]) -> _Rows:
        kept = np.concatenate(([0], np.cumsum(entries)))[self.indptr]
        return _Rows(kept, self.features[entries], self.values[entries])

    def merge(self, other: _Rows) -> _Rows:
        """Both sets of entries, cell by cell in the order of the features."""
        cells, features = np.concatenate((self.cells, other.cells)), np.concatenate((self.features, other.features))
        order = np.lexsort((features, cells))
        values = np.concatenate((self.values, other.values))
        return _Rows(self.indptr + other.indptr, features[order], values[order])


@njit(cache=True, nogil=True)
def _fill_random(first_id, indptr, indices, values, rows, budget, seed, epoch, ids_out, values_out):  # type: ignore[no-untyped-def]
    """The entries of each row with the ``budget`` smallest random keys, in CSR order."""
    for i in range(rows.size):
        start, stop = indptr[i], indptr[i + 1]
        keys, threshold = np.zeros(stop - start), 0.0
        if stop - start > budget:
            for k in range(start, stop):
                keys[k - start] = hash_uniform(seed, epoch, rows[i], indices[k])
            threshold = np.partition(keys, budget - 1)[budget - 1]
        at = 0
        for k in range(start, stop):
            if keys[k - start] <= threshold:
                ids_out[i, at] = indices[k] + first_id
                values_out[i, at] = values[k]
                at += 1


@njit(cache=True, nogil=True)
def _fill_highest(first_id, indptr, indices, values, counts, budget, ids_out, values_out):  # type: ignore[no-untyped-def]
    """The entries of each row with the ``budget`` highest (count, id), in CSR order."""
    for i in range(indptr.size - 1):
        start, stop = indptr[i], indptr[i + 1]
        keep = np.ones(stop - start, dtype=np.bool_)
        if stop - start > budget:
            # a stable ascending sort of counts in id order ends with the highest (count, id)
            keep[np.argsort(counts[start:stop], kind="mergesort")[: stop - start - budget]] = False
        at = 0
        for k in range(start, stop):
            if keep[k - start]:
                ids_out[i, at] = indices[k] + first_id
                values_out[i, at] = values[k]
                at += 1


def _aligned(array: NDArray[np.float32]) -> torch.Tensor:
    """A copy in torch's own memory: on unaligned memory a matrix product may round differently from run to run."""
    return torch.from_numpy(array).clone()


@dataclass(frozen=True)
class Tokenizer:
    """Turns blocks of counts into a :class:`Batch`; frozen on the training cells, as its binning is.

    The model must not learn of a masked count through the depth or the ranks of its cell, so the order is: hide,
    then bin what is visible by the visible depth. Targets are binned by the full depth.
    """

    binning: Binning
    """Frozen on the training cells."""
    gene_mean: NDArray[np.floating]
    """(M,) mean count of each feature over the training cells, at their mean depth: what hiding it takes away."""
    masking: Masking
    masked_share: float = 0.15
    """Share of the expressed features that the masks hide, over the training cells."""
    tokens: str = "expressed"
    max_tokens: int = 2048
    counts: bool = True
    """Whether the data are counts; otherwise their bins stand in for counts in the profile."""
    has_batches: bool = False
    """Whether the first obs field of a block is the technical batch; the others are phenotypes."""
    n_noise: int = 0
    """Width of the noise on the latent, drawn in training."""

    @property
    def n_features(self) -> int:
        """Modelled features, M."""
        return len(self.gene_mean)

    def training_batch(
        self,
        block: Block,
        rows: NDArray[np.int64],
        *,
        seed: int,
        epoch: int,
        n_context: int,
        n_masked: int,
        bag_dropout: float = 0.0,
    ) -> Batch:
        """Hide features, then read at most ``n_context`` of the visible and score at most ``n_masked`` of the masked.

        Every choice is a function of (``seed``, ``epoch``, row, feature), whatever the batch.

        Parameters
        ----------
        block
            B cells.
        rows
            int64 (B,), identity of each cell in its source.
        bag_dropout
            Up to this share of the features, drawn for each cell, are kept from the bag.
        """
        full = self._rows(block)
        masked, zero_indptr, at_zeros = self.masking.choose(
            full.indptr, full.features, rows, block.present, seed=seed, epoch=epoch
        )
        zeros = _Rows(zero_indptr, at_zeros, np.zeros(at_zeros.size))
        scored, context, target_bins = self._hide(block, full, masked, zeros, drawn=True)
        widest = min(int(np.diff(scored.indptr).max(initial=0)), n_masked)
        masked_ids, hidden_bins = (
            np.zeros((len(rows), widest), np.int64),
            np.full((len(rows), widest), -1, np.int64),
        )
        _fill_random(
            *(
                len(SPECIALS),
                scored.indptr,
                scored.features,
                scored.values,
                rows,
                n_masked,
                seed ^ _MASKED_STREAM,
                epoch,
            ),
            *(masked_ids, hidden_bins),
        )
        widest = min(int(np.diff(context.tokens.indptr).max(initial=0)), n_context)
        ids, bins = np.zeros((len(rows), widest), np.int64), np.zeros((len(rows), widest), np.int64)
        tokens = context.tokens
        _fill_random(
            *(
                len(SPECIALS),
                tokens.indptr,
                tokens.features,
                tokens.values,
                rows,
                n_context,
                seed ^ _CONTEXT_STREAM,
                epoch,
            ),
            *(ids, bins),
        )
        batch = self._batch(block, rows, context, (ids, bins), (masked_ids, hidden_bins), (full, target_bins))
        if bag_dropout:
            share = bag_dropout * uniform(seed ^ _BAG_STREAM, epoch, rows)[:, None]
            kept = uniform(seed ^ _BAG_STREAM, epoch, rows[:, None], np.arange(1, self.n_features + 1)) >= share
            batch = replace(batch, known=batch.known & torch.from_numpy(kept))
        if not self.n_noise:
            return batch
        draws = uniform(seed ^ _NOISE_STREAM, epoch, rows[:, None], np.arange(self.n_noise))
        return replace(batch, noise=torch.from_numpy(ndtri(np.maximum(draws, 2.0**-53)).astype(np.float32)))

    def inference_batch(
        self, block: Block, rows: NDArray[np.int64], query_mask: csr_matrix | None = None, *, drawn: bool = False
    ) -> Batch:
        """Read every expressed feature, above ``max_tokens`` the highest by (count, id), and nothing at random.

        Parameters
        ----------
        block
            B cells.
        rows
            int64 (B,), identity of each cell in its source.
        query_mask
            (B, M), non-zero at the features to hide and predict; by default none.
        drawn
            Whether they were drawn by the rule of the training masks, which prefers expressed features.
        """
        full = self._rows(block)
        query_mask = csr_matrix(block.counts.shape, dtype=bool) if query_mask is None else query_mask
        masked, zeros = _split(full, query_mask)
        scored, context, bins_of_all = self._hide(block, full, masked, zeros, drawn=drawn)
        tokens = context.tokens
        widest = min(int(np.diff(tokens.indptr).max(initial=0)), self.max_tokens)
        ids, bins = np.zeros((len(rows), widest), np.int64), np.zeros((len(rows), widest), np.int64)
        _fill_highest(
            len(SPECIALS), tokens.indptr, tokens.features, tokens.values, context.order, self.max_tokens, ids, bins
        )
        widest = int(np.diff(scored.indptr).max(initial=0))
        masked_ids, hidden_bins = (
            np.zeros((len(rows), widest), np.int64),
            np.full((len(rows), widest), -1, np.int64),
        )
        _fill_highest(
            len(SPECIALS), scored.indptr, scored.features, scored.values, scored.values, widest, masked_ids, hidden_bins
        )
        return self._batch(block, rows, context, (ids, bins), (masked_ids, hidden_bins), (full, bins_of_all))

    def profiles(self, block: Block) -> csr_matrix:
        """float64 (B, M) log-normalised profiles of whole cells (their bins, scaled, where the data are not counts)."""
        full = self._rows(block)
        return csr_matrix((self._levels(full, block.depth), full.features, full.indptr), shape=block.counts.shape)

    def measured(self, block: Block, scale: Scale, query_mask: csr_matrix) -> NDArray[np.float32]:
        """What was measured where nothing is queried, at the depth that :meth:`inference_batch` makes of the rest.

        Parameters
        ----------
        block
            B cells.
        scale
            Counts, log1p of the counts at the mean depth, or bins.
        query_mask
            (B, M), non-zero at what is not to be looked at, not even for the depth or the ranks.

        Returns
        -------
        float32 (B, M), NaN for absent and queried features.
        """
        full = self._rows(block)
        masked, zeros = _split(full, query_mask)
        _, context, _ = self._hide(block, full, masked, zeros, drawn=False)
        if scale == "log1p":
            dense = context.profile
        else:
            visible = full.keep(~masked)
            values = visible.values if scale == "counts" else context.visible_bins
            dense = np.zeros(block.counts.shape, np.float32)
            dense[visible.cells, visible.features] = values
        dense[~context.known] = np.nan
        return dense

    def n_context(self, block: Block, query_mask: csr_matrix | None = None) -> NDArray[np.int64]:
        """int64 (B,), the most context tokens that :meth:`inference_batch` makes of each cell."""
        n = np.diff(block.counts.indptr) if self.tokens == "expressed" else np.full(len(block.depth), self.n_features)
        if query_mask is not None:
            masked = query_mask.astype(bool)  # by value: a stored False asks for nothing
            if self.tokens == "expressed":
                masked = masked.multiply(block.counts.astype(bool))
            n = n - np.asarray(masked.sum(axis=1)).ravel()
        return np.minimum(n, self.max_tokens).astype(np.int64)

    def _rows(self, block: Block) -> _Rows:
        x = block.counts
        return _Rows(x.indptr.astype(np.int64), x.indices.astype(np.int32), x.data.astype(np.float64))

    def _hide(
        self, block: Block, full: _Rows, masked: NDArray[np.bool_], zeros: _Rows, *, drawn: bool
    ) -> tuple[_Rows, _Context, NDArray[np.float64]]:
        """The masked entries with their bins, what the model may see of the rest, and the bins of all entries."""
        target_bins = self._bins(full, block.depth)
        scored = _Rows(full.indptr, full.features, target_bins).keep(masked).merge(zeros)
        known = np.ones((len(block.depth), self.n_features), dtype=bool)
        known[scored.cells, scored.features] = False
        known[:, ~block.present] = False
        hidden_depth = np.bincount(full.cells[masked], weights=full.values[masked], minlength=len(block.depth))
        depth = self._whole_depth(block.depth - hidden_depth, block.present, None if drawn else known)
        return scored, self._context(full.keep(~masked), depth, known), target_bins

    def _whole_depth(
        self, visible: NDArray[np.float64], present: NDArray[np.bool_], known: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        """The depth to expect of the whole cell: the visible depth over the share of a mean cell's that is visible.

        Masks of the training draw expressed features far too often for their means to tell what is masked: without
        ``known`` the share is the same for all cells. Otherwise it is that of the features which are known.
        """
        mean_depth, gene_mean = float(self.binning.mean_depth or 1.0), self.gene_mean.astype(np.float64)
        if known is None:
            unseen = np.full(visible.shape, self.masked_share * gene_mean.sum() + gene_mean[~present].sum())
        else:  # not a matrix product, whose last bits depend on the other cells
            unseen = np.where(known, 0.0, gene_mean).sum(axis=1)
        return visible * (mean_depth / np.maximum(mean_depth - unseen, 1e-3 * mean_depth))

    def _size(self, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Depth relative to its training mean; 1 for an empty cell, and where the data have no depth."""
        mean_depth = float(self.binning.mean_depth or 1.0)
        return np.where(depth > 0, depth, mean_depth) / mean_depth if self.counts else np.ones_like(depth)

    def _bins(self, rows: _Rows, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        bins = bin_rows(self.binning, rows.values, rows.indptr, depth, float(self.binning.mean_depth or 1.0))
        return bins.astype(np.float64)

    def _levels(self, rows: _Rows, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """The profile's entry for each entry: log1p at the mean depth, or the bin as a share of the highest."""
        if not self.counts:
            return self._bins(rows, depth) / float(self.binning.n_values - 1)
        counts = csr_matrix((rows.values, rows.features, rows.indptr), shape=(len(depth), self.n_features))
        return log1p_rows(counts, depth, float(self.binning.mean_depth or 1.0)).data

    def _few_bins(self, depth: NDArray[np.float64]) -> NDArray[np.int64]:
        """(B, N_SMALL_COUNTS) bins of counts of 1, 2, … at that depth: zeros where bins do not follow from counts."""
        shape = (len(depth), N_SMALL_COUNTS)
        if self.binning.kind == "segment":
            return np.zeros(shape, np.int64)
        counts, indptr = (
            np.broadcast_to(np.arange(1.0, N_SMALL_COUNTS + 1), shape),
            np.arange(len(depth) + 1) * N_SMALL_COUNTS,
        )
        few = _Rows(indptr, np.zeros(counts.size, np.int32), counts.ravel())
        mean_depth = float(self.binning.mean_depth or 1.0)  # of an empty cell
        return self._bins(few, np.where(depth > 0, depth, mean_depth)).reshape(shape).astype(np.int64)

    def _context(self, visible: _Rows, depth: NDArray[np.float64], known: NDArray[np.bool_]) -> _Context:
        bins = self._bins(visible, depth)
        tokens, order = _Rows(visible.indptr, visible.features, bins), visible.values
        if self.tokens == "all":
            zero = known.copy()
            zero[visible.cells, visible.features] = False
            features = np.nonzero(zero)[1].astype(np.int32)
            zeros = _Rows(np.concatenate(([0], np.cumsum(zero.sum(axis=1)))), features, np.zeros(features.size))
            order = visible.merge(zeros).values
            tokens = tokens.merge(zeros)
        profile = np.zeros(known.shape, np.float32)
        profile[visible.cells, visible.features] = self._levels(visible, depth)
        return _Context(tokens, order, bins, profile, known, np.log(self._size(depth)), self._few_bins(depth))

    def _batch(
        self,
        block: Block,
        rows: NDArray[np.int64],
        context: _Context,
        read: tuple[NDArray[np.int64], NDArray[np.int64]],
        masked: tuple[NDArray[np.int64], NDArray[np.int64]],
        full: tuple[_Rows, NDArray[np.float64]],
    ) -> Batch:
        everything, bins = full
        fields = block.fields.astype(np.int64)
        profile = np.zeros((len(rows), self.n_features), np.float32)
        levels = everything.values if self.counts else bins / float(self.binning.n_values - 1)
        profile[everything.cells, everything.features] = levels
        return Batch(
            rows=torch.from_numpy(np.asarray(rows, np.int64)),
            context_ids=torch.from_numpy(read[0]),
            context_bins=torch.from_numpy(read[1]),
            masked_ids=torch.from_numpy(masked[0]),
            visible=_aligned(context.profile),
            known=torch.from_numpy(context.known),
            present=torch.from_numpy(block.present).expand(len(rows), -1),
            log_depth=torch.from_numpy(context.log_depth.astype(np.float32)),
            small_count_bins=torch.from_numpy(context.small_count_bins),
            batch_codes=torch.from_numpy(fields[:, 0].copy() if self.has_batches else np.zeros(len(rows), np.int64)),
            phenotypes=torch.from_numpy(fields[:, int(self.has_batches) :].copy()),
            target_bins=torch.from_numpy(masked[1]),
            target_counts=_aligned(profile),
            size_factor=torch.from_numpy(self._size(block.depth).astype(np.float32)),
        )


@dataclass(frozen=True)
class _Context:
    """What is visible of B cells: tokens, the counts that order them, bins of entries, profile for the bag, depth."""

    tokens: _Rows
    order: NDArray[np.float64]
    visible_bins: NDArray[np.float64]
    profile: NDArray[np.float32]
    known: NDArray[np.bool_]
    log_depth: NDArray[np.float64]
    small_count_bins: NDArray[np.int64]


def _split(full: _Rows, query_mask: csr_matrix) -> tuple[NDArray[np.bool_], _Rows]:
    """Which entries are queried, and the queried positions that are zeros."""
    wanted = query_mask.astype(bool).toarray()  # by value: a stored False asks for nothing
    masked = wanted[full.cells, full.features]
    wanted[full.cells, full.features] = False
    features = np.nonzero(wanted)[1].astype(np.int32)
    return masked, _Rows(np.concatenate(([0], np.cumsum(wanted.sum(axis=1)))), features, np.zeros(features.size))
