"""Fit of the depth estimates to masked training cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.config import Masking
from scbioformers.core import (
    DepthModel,
    DepthModels,
    Draw,
    LowRankProfile,
    MaskedRows,
    Profiles,
    log1p_rows,
    uniform,
)
from scbioformers.data import Block

N_DRAWS = 8
EVEN_SHARES = (0.05, 0.15, 0.15, 0.3)  # shares of the features that are masked evenly, one for each draw
MAX_POSITIONS = 10_000_000  # maximum cells x features that are masked evenly: limits the memory
_DRAWN_STREAM, _EVEN_STREAM = 0xDE97, 0xE7E9


def fit_depth_models(parts: Sequence[Block], masking: Masking, mean_depth: float, seed: int) -> DepthModels:
    """Fit the estimates for masks of the training and for masks that do not depend on the counts.

    ``parts`` are training cells of each source. Cells that stop the training early are not among them.
    """
    profiles = [Profiles(log1p_rows(part.counts, part.depth, mean_depth), part.present) for part in parts]
    profile = LowRankProfile.of_profiles(profiles, mean_depth, seed)
    drawn = [Draw(part.counts, part.depth, _draw(part, masking, seed, i)) for part in parts for i in range(N_DRAWS)]
    n_cells, n_features = sum(len(part.depth) for part in parts), len(profile.mean)
    step = max(1, -(-n_cells * n_features // MAX_POSITIONS))
    some = [part.take(np.arange(0, len(part.depth), step)) for part in parts]
    even = [
        Draw(part.counts, part.depth, _draw_evenly(part, share, seed, i))
        for part in some
        for i, share in enumerate(EVEN_SHARES)
    ]
    return DepthModels(DepthModel.fit(profile, drawn), DepthModel.fit(profile, even, exact=True))


def _draw(sample: Block, masking: Masking, seed: int, epoch: int) -> MaskedRows:
    counts, rows = sample.counts, np.arange(len(sample.depth))
    indptr, features = counts.indptr.astype(np.int64), counts.indices.astype(np.int32)
    masked, zero_indptr, zeros = masking.choose(
        indptr, features, rows, sample.present, seed=seed ^ _DRAWN_STREAM, epoch=epoch
    )
    zero_cells = np.repeat(rows, np.diff(zero_indptr))
    return _masked_rows(sample, masked, zero_cells, zeros.astype(np.int64))


def _draw_evenly(sample: Block, share: float, seed: int, epoch: int) -> MaskedRows:
    counts, n_features = sample.counts, sample.counts.shape[1]
    rows = np.arange(len(sample.depth))
    parts = [rows[start : start + 500, None] for start in range(0, len(rows), 500)]  # limits the memory
    chosen = np.concatenate(
        [uniform(seed ^ _EVEN_STREAM, epoch, part, np.arange(n_features)) < share for part in parts]
    )
    chosen &= sample.present
    cells = np.repeat(rows, np.diff(counts.indptr))
    masked = chosen[cells, counts.indices]
    chosen[cells, counts.indices] = False
    return _masked_rows(sample, masked, *np.nonzero(chosen))


def _masked_rows(
    sample: Block, masked: NDArray[np.bool_], zero_cells: NDArray[np.int64], zeros: NDArray[np.int64]
) -> MaskedRows:
    counts, n = sample.counts, len(sample.depth)
    cells = np.repeat(np.arange(n), np.diff(counts.indptr))
    visible = csr_matrix((counts.data[~masked], (cells[~masked], counts.indices[~masked])), shape=counts.shape)
    # features that were added to a model are not part of its depth, so the masked counts may exceed it
    depth = np.maximum(sample.depth - np.bincount(cells[masked], weights=counts.data[masked], minlength=n), 0.0)
    all_cells = np.concatenate([cells[masked], zero_cells])
    features = np.concatenate([counts.indices[masked].astype(np.int64), zeros])
    # as CSR rows, because this sorts in linear time
    entries = csr_matrix((np.ones(len(features), bool), (all_cells, features)), shape=counts.shape)
    entries.sort_indices()
    all_cells = np.repeat(np.arange(n), np.diff(entries.indptr))
    return MaskedRows(visible, depth, all_cells, entries.indices.astype(np.int64), ~sample.present)
