"""Conversion of blocks of counts to token batches: features are masked first, then the visible ones are binned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import ndtri

from scbioformers.config import Binning, Masking, bin_rows
from scbioformers.core import N_DEPTHS, SPECIALS, DepthModels, MaskedRows, Scale, log1p_rows, uniform
from scbioformers.data import Block
from scbioformers.nn import N_SMALL_COUNTS, Batch
from scbioformers.tokens._context import Context, split_queried
from scbioformers.tokens._rows import Rows, fill_highest, fill_random

Floats = NDArray[np.float64]

# constants that make the random numbers of different purposes independent
_CONTEXT_STREAM, MASKED_STREAM, _NOISE_STREAM, _BAG_STREAM = 0x9E37, 0x79B9, 0x7F4A, 0x7C15
_PHENOTYPE_STREAM = 0xF39C
MASKED_PHENOTYPES = 0.25  # probability that a phenotype of a cell is masked in a training step


def _aligned(array: NDArray[np.float32]) -> torch.Tensor:
    """Copy to memory of torch, which is aligned. On unaligned memory, matrix products may differ between runs."""
    return torch.from_numpy(array).clone()


def mask_phenotypes(batch: Batch, rows: NDArray[np.int64], seed: int, epoch: int) -> Batch:
    """Mask phenotypes at random. They are targets then."""
    numbers = np.arange(batch.phenotypes.shape[1])
    draws = uniform(seed ^ _PHENOTYPE_STREAM, epoch, rows[:, None], numbers)
    masked, nan = torch.from_numpy(draws < MASKED_PHENOTYPES), torch.nan
    return replace(
        batch,
        phenotypes=batch.phenotypes.masked_fill(masked, nan),
        target_phenotypes=batch.phenotypes.masked_fill(~masked, nan),
    )


@dataclass(frozen=True)
class Tokenizer:
    """Converts blocks of counts to a :class:`~scbioformers.nn.Batch`. Its parameters are frozen on the training cells.

    The input must not contain information on masked counts through the depth or the ranks of the cell. So features are
    masked first. The visible features are then binned by the depth estimated from them, the targets by the full depth.
    """

    binning: Binning
    """Binning that is frozen on the training cells."""
    n_features: int
    """Number of modelled features, M."""
    masking: Masking
    """Which features are masked in training."""
    depth: DepthModels | None = None
    """Estimates of the depth of a cell with masked features. ``None`` if the data are not counts."""
    tokens: str = "expressed"
    """``"expressed"`` or ``"all"``, see :class:`~scbioformers.ModelConfig`."""
    max_tokens: int = 2048
    """Maximum number of visible features per cell at inference."""
    counts: bool = True
    """Whether the data are counts. If not, the profile contains bins, as shares of the highest bin or value."""
    has_batches: bool = False
    """Whether the first obs field of a block is the technical batch. The other fields are phenotypes."""
    n_noise: int = 0
    """Width of the noise on the latent in training."""

    @property
    def modalities(self) -> tuple[Tokenizer, ...]:
        """The tokenizer of each modality: of one, itself."""
        return (self,)

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
        hidden: NDArray[np.bool_] | None = None,
    ) -> Batch:
        """Mask features, then choose at most ``n_context`` visible and at most ``n_masked`` masked features per cell.

        Every choice depends only on (``seed``, ``epoch``, row, feature), not on the other cells of the batch.

        Parameters
        ----------
        block
            B cells.
        rows
            int64 (B,), row of each cell in its source.
        bag_dropout
            Maximum share of the features that are left out of the bag. The share is drawn for each cell.
        hidden
            bool (B,), cells of which nothing is visible, not even their depth. Their masked features are predicted.
        """
        full = self._rows(block)
        masked, zero_indptr, zero_features = self.masking.choose(
            full.indptr, full.features, rows, block.present, seed=seed, epoch=epoch
        )
        zeros = Rows(zero_indptr, zero_features, np.zeros(zero_features.size))
        scored, context, target_bins = self._mask(block, full, masked, zeros, drawn=True, hidden=hidden)
        widest = min(int(np.diff(scored.indptr).max(initial=0)), n_masked)
        masked_ids = np.zeros((len(rows), widest), np.int64)
        masked_bins = np.full((len(rows), widest), -1, np.int64)
        fill_random(
            len(SPECIALS),
            scored.indptr,
            scored.features,
            scored.values,
            rows,
            n_masked,
            seed ^ MASKED_STREAM,
            epoch,
            masked_ids,
            masked_bins,
        )
        widest = min(int(np.diff(context.tokens.indptr).max(initial=0)), n_context)
        ids, bins = np.zeros((len(rows), widest), np.int64), np.zeros((len(rows), widest), np.int64)
        tokens = context.tokens
        fill_random(
            len(SPECIALS),
            tokens.indptr,
            tokens.features,
            tokens.values,
            rows,
            n_context,
            seed ^ _CONTEXT_STREAM,
            epoch,
            ids,
            bins,
        )
        batch = self._batch(block, rows, context, (ids, bins), (masked_ids, masked_bins), (full, target_bins))
        batch = mask_phenotypes(batch, rows, seed, epoch)
        if bag_dropout:
            share = bag_dropout * uniform(seed ^ _BAG_STREAM, epoch, rows)[:, None]
            kept = uniform(seed ^ _BAG_STREAM, epoch, rows[:, None], np.arange(1, self.n_features + 1)) >= share
            batch = replace(batch, known=batch.known & torch.from_numpy(kept))
        return self._with_noise(batch, rows, seed, epoch)

    def _with_noise(self, batch: Batch, rows: NDArray[np.int64], seed: int, epoch: int) -> Batch:
        if not self.n_noise:
            return batch
        draws = uniform(seed ^ _NOISE_STREAM, epoch, rows[:, None], np.arange(self.n_noise))
        return replace(batch, noise=torch.from_numpy(ndtri(np.maximum(draws, 2.0**-53)).astype(np.float32)))

    def inference_batch(
        self,
        block: Block,
        rows: NDArray[np.int64],
        query_mask: csr_matrix | None = None,
        *,
        drawn: bool = False,
        hidden: NDArray[np.bool_] | None = None,
    ) -> Batch:
        """Use every expressed feature, at most the ``max_tokens`` highest by (count, id). Nothing is drawn at random.

        Parameters
        ----------
        block
            B cells.
        rows
            int64 (B,), row of each cell in its source.
        query_mask
            (B, M), non-zero at the features to mask and predict. By default none.
        drawn
            Whether they were drawn by the masking rule of the training, which favours expressed features.
        hidden
            bool (B,), cells of which nothing is visible, not even their depth.
        """
        full = self._rows(block)
        query_mask = csr_matrix(block.counts.shape, dtype=bool) if query_mask is None else query_mask
        masked, zeros = split_queried(full, query_mask)
        scored, context, target_bins = self._mask(block, full, masked, zeros, drawn=drawn, hidden=hidden)
        tokens = context.tokens
        widest = min(int(np.diff(tokens.indptr).max(initial=0)), self.max_tokens)
        ids, bins = np.zeros((len(rows), widest), np.int64), np.zeros((len(rows), widest), np.int64)
        fill_highest(
            len(SPECIALS), tokens.indptr, tokens.features, tokens.values, context.order, self.max_tokens, ids, bins
        )
        widest = int(np.diff(scored.indptr).max(initial=0))
        masked_ids = np.zeros((len(rows), widest), np.int64)
        masked_bins = np.full((len(rows), widest), -1, np.int64)
        fill_highest(
            len(SPECIALS), scored.indptr, scored.features, scored.values, scored.values, widest, masked_ids, masked_bins
        )
        return self._batch(block, rows, context, (ids, bins), (masked_ids, masked_bins), (full, target_bins))

    def profiles(self, block: Block) -> csr_matrix:
        """float64 (B, M), log-normalised profiles of the cells without masking; scaled bins if there are no counts."""
        full = self._rows(block)
        return csr_matrix((self._levels(full, block.depth), full.features, full.indptr), shape=block.counts.shape)

    def measured(self, block: Block, scale: Scale, query_mask: csr_matrix) -> NDArray[np.float32]:
        """Measured values of the features that are not queried, scaled as in :meth:`inference_batch`.

        Parameters
        ----------
        block
            B cells.
        scale
            Counts, log1p of the counts at the mean depth, or bins.
        query_mask
            (B, M), non-zero at the queried features. Their values are not used, not even for the depth or the ranks.

        Returns
        -------
        float32 (B, M), NaN for queried features and for features that are not measured.
        """
        full = self._rows(block)
        masked, zeros = split_queried(full, query_mask)
        _, context, _ = self._mask(block, full, masked, zeros, drawn=False)
        if scale == "log1p":
            dense = context.profile
        else:
            visible = full.keep(~masked)
            values = context.visible_bins if scale == "bins" else visible.values
            dense = np.zeros(block.counts.shape, np.float32)
            dense[visible.cells, visible.features] = values
        dense[~context.known] = np.nan
        return dense

    def whole_depth(self, block: Block, query_mask: csr_matrix | None = None) -> NDArray[np.float64]:
        """(B,) depth of each cell; with ``query_mask`` (B, M), as estimated from the features that are not queried."""
        if query_mask is None:
            return block.depth
        full = self._rows(block)
        masked, zeros = split_queried(full, query_mask)
        _, context, _ = self._mask(block, full, masked, zeros, drawn=False)
        return context.depth

    def n_context(self, block: Block, query_mask: csr_matrix | None = None) -> NDArray[np.int64]:
        """int64 (B,), maximum number of context tokens per cell in :meth:`inference_batch`."""
        n = np.diff(block.counts.indptr) if self.tokens == "expressed" else np.full(len(block.depth), self.n_features)
        if query_mask is not None:
            masked = query_mask.astype(bool)  # a stored False is not queried
            if self.tokens == "expressed":
                masked = masked.multiply(block.counts.astype(bool))
            n = n - np.asarray(masked.sum(axis=1)).ravel()
        return np.minimum(n, self.max_tokens).astype(np.int64)

    def _rows(self, block: Block) -> Rows:
        x = block.counts
        return Rows(x.indptr.astype(np.int64), x.indices.astype(np.int32), x.data.astype(np.float64))

    def _mask(
        self,
        block: Block,
        full: Rows,
        masked: NDArray[np.bool_],
        zeros: Rows,
        *,
        drawn: bool,
        hidden: NDArray[np.bool_] | None = None,
    ) -> tuple[Rows, Context, NDArray[np.float64]]:
        """The masked entries with their bins, the visible part of the cells, and the bins of all entries."""
        target_bins = self._bins(full, block.depth)
        scored = Rows(full.indptr, full.features, target_bins).keep(masked).merge(zeros)
        known = np.ones((len(block.depth), self.n_features), dtype=bool)
        known[scored.cells, scored.features] = False
        known[:, ~block.present] = False
        masked_depth = np.bincount(full.cells[masked], weights=full.values[masked], minlength=len(block.depth))
        visible, total = ~masked, block.total - masked_depth
        if hidden is not None:  # a cell without counts is read at the mean depth
            visible, total = visible & ~hidden[full.cells], np.where(hidden, 0.0, total)
            known[hidden] = False
        kept = full.keep(visible)
        depth, depths = self._whole_depth(block, kept, scored, total, drawn)
        return scored, self._context(kept, depth, depths, known), target_bins

    def _whole_depth(
        self, block: Block, visible: Rows, masked: Rows, total: Floats, drawn: bool
    ) -> tuple[Floats, Floats]:
        """Estimated depth (B,) of the whole cells, and equally likely values of it (B, 7). Only visible counts enter.

        ``total`` (B,) is the total of the visible counts. If the data have lost features, it is first scaled to what it
        would be with all features. ``drawn`` masks were drawn by the rule of the training. They have an estimate of
        their own, because this rule masks expressed features more often.
        """
        share, present = block.rule.share, block.present
        if self.depth is None:
            return total / share, np.repeat(total[:, None] / share, N_DEPTHS, axis=1)
        measured = present[masked.features]
        cells, features = masked.cells[measured], masked.features[measured].astype(np.int64)
        counts = csr_matrix((visible.values, visible.features, visible.indptr), shape=block.counts.shape)
        model = self.depth.drawn if drawn else self.depth.natural
        if share != 1.0:
            shares = model.share.astype(np.float64)
            if block.rule.modelled_only:  # the shares of all measured features must add up to that of the total
                shares *= share / max(shares[present].sum(), 1e-300)
            missing = np.minimum(np.bincount(cells, shares[features], len(total)), 0.999 * share)
            # total / share if nothing is masked, as the block. Features that were added to a model are not part of
            # its depth, so their masked shares may add up to more than 1.
            total = total * np.maximum(1.0 - missing, 0.001) / (share - missing)
        return model.estimate(MaskedRows(counts, total, cells, features, ~present))

    def _size(self, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Depth relative to the training mean. It is 1 for empty cells and for data that are not counts."""
        mean_depth = float(self.binning.mean_depth or 1.0)
        return np.where(depth > 0, depth, mean_depth) / mean_depth if self.counts else np.ones_like(depth)

    def _bins(self, rows: Rows, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        mean_depth = float(self.binning.mean_depth or 1.0)
        bins = bin_rows(self.binning, rows.values, rows.indptr, depth, mean_depth, rows.features)
        return bins.astype(np.float64)

    def _levels(self, rows: Rows, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Value of each entry in the profile: log1p at the mean depth, or the share of the highest value or bin."""
        if not self.counts:
            return self._shares(self._bins(rows, depth), rows)
        counts = csr_matrix((rows.values, rows.features, rows.indptr), shape=(len(depth), self.n_features))
        return log1p_rows(counts, depth, float(self.binning.mean_depth or 1.0)).data

    def _shares(self, bins: NDArray[np.float64], rows: Rows) -> NDArray[np.float64]:
        """Bins of entries as shares of the highest bin. Quantile bins: as shares of the highest value, see there."""
        if self.binning.quantiles is None:
            return bins / float(self.binning.n_values - 1)
        return self.binning.quantiles.shares[rows.features, bins.astype(np.int64)]

    def small_count_bins(self, depths: Floats) -> NDArray[np.float32]:
        """(B, N_SMALL_COUNTS, V), share of the equally likely depths at which the counts 1, 2, … are in each bin.

        Zeros for segment bins, which are ranks.
        """
        (n_cells, n_depths), n_values = depths.shape, self.binning.n_values
        shape = (n_cells, N_SMALL_COUNTS, n_values)
        if self.binning.kind != "value":
            return np.zeros(shape, np.float32)
        depth = np.repeat(depths.ravel(), N_SMALL_COUNTS)  # every count is a row of its own
        counts = np.tile(np.arange(1.0, N_SMALL_COUNTS + 1), depths.size)
        rows = Rows(np.arange(len(counts) + 1), np.zeros(len(counts), np.int32), counts)
        mean_depth = float(self.binning.mean_depth or 1.0)  # used for empty cells
        bins = self._bins(rows, np.where(depth > 0, depth, mean_depth)).astype(np.int64)
        cell, _, count = np.unravel_index(np.arange(len(counts)), (n_cells, n_depths, N_SMALL_COUNTS))
        number = np.bincount((cell * N_SMALL_COUNTS + count) * n_values + bins, minlength=int(np.prod(shape)))
        return (number.reshape(shape) / n_depths).astype(np.float32)

    def _context(self, visible: Rows, depth: Floats, depths: Floats, known: NDArray[np.bool_]) -> Context:
        bins = self._bins(visible, depth)
        tokens, order = Rows(visible.indptr, visible.features, bins), visible.values
        if self.tokens == "all":
            zero = known.copy()
            zero[visible.cells, visible.features] = False
            features = np.nonzero(zero)[1].astype(np.int32)
            zeros = Rows(np.concatenate(([0], np.cumsum(zero.sum(axis=1)))), features, np.zeros(features.size))
            order = visible.merge(zeros).values
            tokens = tokens.merge(zeros)
        profile = np.zeros(known.shape, np.float32)
        profile[visible.cells, visible.features] = self._levels(visible, depth)
        log_depth = np.log(self._size(depth))
        return Context(tokens, order, bins, profile, known, log_depth, self.small_count_bins(depths), depth)

    def _batch(
        self,
        block: Block,
        rows: NDArray[np.int64],
        context: Context,
        visible: tuple[NDArray[np.int64], NDArray[np.int64]],
        masked: tuple[NDArray[np.int64], NDArray[np.int64]],
        full: tuple[Rows, NDArray[np.float64]],
    ) -> Batch:
        entries, bins = full
        batches, phenotypes = np.split(block.fields.astype(np.float32), [int(self.has_batches)], axis=1)
        profile = np.zeros((len(rows), self.n_features), np.float32)
        levels = entries.values if self.counts else self._shares(bins, entries)
        profile[entries.cells, entries.features] = levels
        return Batch(
            rows=torch.from_numpy(np.asarray(rows, np.int64)),
            context_ids=torch.from_numpy(visible[0]),
            context_bins=torch.from_numpy(visible[1]),
            masked_ids=torch.from_numpy(masked[0]),
            visible=_aligned(context.profile),
            known=torch.from_numpy(context.known),
            present=torch.from_numpy(block.present & block.measured[:, None])
            if not block.measured.all()
            else torch.from_numpy(block.present).expand(len(rows), -1),
            log_depth=torch.from_numpy(context.log_depth.astype(np.float32)),
            small_count_bins=_aligned(context.small_count_bins),
            batch_codes=torch.from_numpy(batches.astype(np.int64).sum(axis=1)),  # of one column, or of none
            phenotypes=_aligned(phenotypes),
            target_phenotypes=torch.full(phenotypes.shape, torch.nan),
            target_bins=torch.from_numpy(masked[1]),
            target_counts=_aligned(profile),
            size_factor=torch.from_numpy(self._size(block.depth).astype(np.float32)),
        )
