"""Token batches of a decoder: the features of each cell in an order, and what is known before a place of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core import N_DEPTHS, SPECIALS, uniform
from scbioformers.data import Block
from scbioformers.nn import Batch
from scbioformers.tokens._context import Context
from scbioformers.tokens._rows import Rows, fill_random
from scbioformers.tokens._tokenizer import MASKED_STREAM, Floats, Tokenizer, mask_phenotypes

_ORDER_STREAM, _ZERO_STREAM, _PROFILE_STREAM = 0x08DE, 0x2E80, 0x9F0F


@dataclass(frozen=True)
class Known:
    """What is known of B cells after each number of features 0 … M of their order."""

    places: NDArray[np.int64]
    """(B, M), place of each feature in the order of the cell. Features that are not measured are last."""
    depth: Floats
    """(B, M + 1), estimated depth of the whole cell."""
    depths: Floats
    """(B, M + 1, 7), equally likely depths."""


@dataclass(frozen=True)
class DecoderTokenizer(Tokenizer):
    """A tokenizer whose training batches have an order of the features in each cell. See :class:`Batch` for prefixes.

    At inference all visible features are the prefix, in an order that depends on their names alone.
    """

    zero_rate: float = 1.0
    """Share of the zeros that are predicted in a training step, if all expressed features are.

    It is the same in all cells: a share that depends on the number of expressed features would tell this number.
    """
    name_order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(M,), place of each feature in the order of inference."""

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
        """Order the features of each cell at random, and choose ``n_masked`` of them that are predicted.

        The first ``n_context`` expressed features of a cell are tokens. Every choice depends only on (``seed``,
        ``epoch``, row, feature). ``bag_dropout`` is the maximum share of the features that the prefix of the profile
        lacks. ``hidden`` is not used, a decoder has one modality.
        """
        full, n = self._rows(block), len(rows)
        random = uniform(seed ^ _ORDER_STREAM, epoch, rows[:, None], np.arange(self.n_features))
        known = self._known(block, full, random)
        target_bins = self._bins(full, block.depth)
        scored = self._scored(block, Rows(full.indptr, full.features, target_bins), rows, seed, epoch)
        masked_ids, masked_bins = np.zeros((n, n_masked), np.int64), np.full((n, n_masked), -1, np.int64)
        where = (scored.indptr, scored.features, scored.values, rows, n_masked, seed ^ MASKED_STREAM, epoch)
        fill_random(len(SPECIALS), *where, masked_ids, masked_bins)
        ids, bins, places = self._first_tokens(full, known, n_context)
        dropped = bag_dropout * uniform(seed ^ _PROFILE_STREAM, epoch, rows)
        last = np.rint((1.0 - dropped) * int(block.present.sum())).astype(np.int64)
        at = np.where(masked_ids > 0, np.take_along_axis(known.places, np.maximum(masked_ids - len(SPECIALS), 0), 1), 0)
        at = np.column_stack([at, last])  # (B, S), number of features in each prefix
        context = self._context_of(block, full, known, at)
        batch = self._batch(block, rows, context, (ids, bins), (masked_ids, masked_bins), (full, target_bins))
        prefixes = (places[:, None, :] < at[:, :, None]).sum(axis=2)
        batch = mask_phenotypes(replace(batch, prefixes=torch.from_numpy(prefixes)), rows, seed, epoch)
        return self._with_noise(batch, rows, seed, epoch)

    def inference_batch(
        self,
        block: Block,
        rows: NDArray[np.int64],
        query_mask: csr_matrix | None = None,
        *,
        drawn: bool = False,
        hidden: NDArray[np.bool_] | None = None,
    ) -> Batch:
        """As that of the encoder, with the visible features in an order that depends on their names alone."""
        batch = super().inference_batch(block, rows, query_mask, drawn=drawn, hidden=hidden)
        ids = batch.context_ids
        last = torch.from_numpy(np.concatenate([np.full(len(SPECIALS), len(self.name_order)), self.name_order]))
        order = last[ids].argsort(dim=1, stable=True)
        return replace(batch, context_ids=ids.gather(1, order), context_bins=batch.context_bins.gather(1, order))

    def _known(self, block: Block, full: Rows, random: Floats) -> Known:
        """Only the counts before a place enter what is known at it, with those of features that are not modelled."""
        order = np.argsort(np.where(block.present, random, 2.0), axis=1, kind="stable")
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(self.n_features)[None], axis=1)
        counts = np.zeros(order.shape)
        counts[full.cells, places[full.cells, full.features]] = full.values
        before = _sums(counts)
        visible = (block.total - before[:, -1])[:, None] + before
        shape = (*before.shape, N_DEPTHS)
        if self.depth is None:
            return Known(places, visible, np.broadcast_to(visible[:, :, None], shape))
        model, share, present = self.depth.natural, block.rule.share, block.present
        shares = np.where(present, model.share, 0.0).astype(np.float64)
        if block.rule.modelled_only:
            shares *= share / max(shares.sum(), 1e-300)
        missing, variance = (
            _sums(values[order][:, ::-1])[:, ::-1] for values in (shares, np.where(present, model.variance, 0.0))
        )
        depth, depths = model.estimate_from_sums(visible, missing, variance, share)
        return Known(places, depth, depths)

    def _scored(self, block: Block, bins: Rows, rows: NDArray[np.int64], seed: int, epoch: int) -> Rows:
        """All expressed features, and a share of the zeros."""
        zero = uniform(seed ^ _ZERO_STREAM, epoch, rows[:, None], np.arange(self.n_features)) < self.zero_rate
        zero &= block.present
        zero[bins.cells, bins.features] = False
        features = np.nonzero(zero)[1].astype(np.int32)
        return bins.merge(Rows(np.concatenate(([0], np.cumsum(zero.sum(axis=1)))), features, np.zeros(features.size)))

    def _first_tokens(
        self, full: Rows, known: Known, budget: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Ids, bins and places (B, C) of the first ``budget`` expressed features of each cell, in their order.

        Which are chosen must not depend on later ones. A token is binned at the depth that is estimated when it is
        read: from the features up to it.
        """
        places = known.places[full.cells, full.features]
        order = np.lexsort((places, full.cells))  # entries stay with their cell
        at = np.arange(order.size) - np.repeat(full.indptr[:-1], np.diff(full.indptr))
        order, at = order[at < budget], at[at < budget]
        cells, features, values = full.cells[order], full.features[order], full.values[order]
        shape = known.places.shape[0], int(at.max(initial=-1)) + 1
        ids, bins, places_of = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, self.n_features)
        ids[cells, at], places_of[cells, at] = features + len(SPECIALS), places[order]
        own = Rows(np.arange(values.size + 1), features, values)
        bins[cells, at] = self._bins(own, known.depth[cells, places[order] + 1]).astype(np.int64)
        return ids, bins, places_of

    def _context_of(self, block: Block, full: Rows, known: Known, at: NDArray[np.int64]) -> Context:
        """What is visible in the prefixes of ``at`` (B, S) features."""
        n, n_prefixes = at.shape
        before = known.places[:, None, :] < at[:, :, None]  # (B, S, M)
        cells = np.arange(n)[:, None]
        depth, depths = known.depth[cells, at], known.depths[cells, at]
        profile = np.zeros(before.shape, np.float32)
        entry, prefix = np.nonzero(known.places[full.cells, full.features][:, None] < at[full.cells])
        cell, feature = full.cells[entry], full.features[entry]
        size = self._size(depth)[cell, prefix]
        profile[cell, prefix, feature] = np.log1p(full.values[entry] / size)
        small = self.small_count_bins(depths.reshape(n * n_prefixes, -1))
        nothing = Rows(np.zeros(n + 1, np.int64), np.zeros(0, np.int32), np.zeros(0))
        return Context(
            tokens=nothing,
            order=nothing.values,
            visible_bins=nothing.values,
            profile=profile,
            known=before & block.present,
            log_depth=np.log(self._size(depth)),
            small_count_bins=small.reshape(n, n_prefixes, *small.shape[1:]),
            depth=depth,
        )


def _sums(values: Floats) -> Floats:
    """(B, M + 1), sums of the first 0 … M values (B, M)."""
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
