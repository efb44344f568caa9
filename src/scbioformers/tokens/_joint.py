"""Token batches of several modalities: each is masked and binned by its own tokenizer, then they are joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core import uniform
from scbioformers.data import Block
from scbioformers.nn import N_SMALL_COUNTS, Batch, join_modalities
from scbioformers.tokens._tokenizer import Tokenizer

DROPPED = 0.5  # share of the cells with several modalities in which some of them are hidden in a training step
_MODALITY_STREAM, _DROP_STREAM = 0x3D0DA117, 0xD209


@dataclass(frozen=True)
class JointTokenizer:
    """Has the methods of a :class:`scbioformers.tokens.Tokenizer`, for cells of several modalities.

    The input of a modality is computed from its own block alone. So nothing of a hidden modality can reach the input.
    """

    modalities: tuple[Tokenizer, ...]
    """The tokenizer of each modality."""

    @property
    def n_features(self) -> int:
        """Number of features of all modalities."""
        return sum(tokenizer.n_features for tokenizer in self.modalities)

    @property
    def tokens(self) -> str:
        """``"expressed"`` or ``"all"``, the same for all modalities."""
        return self.modalities[0].tokens

    def training_batch(self, block: Block, rows: NDArray[np.int64], *, seed: int, epoch: int, **options: Any) -> Batch:
        """Mask and bin each modality. In half of the cells that have several modalities, some of them are hidden.

        Which modalities stay visible is drawn from all choices of at least one and not all, with equal probability.
        A modality has a budget of ``n_context`` and ``n_masked`` tokens of its own.
        """
        hidden = self._dropped(block, rows, seed, epoch)
        batches = []
        for i, (tokenizer, part) in enumerate(zip(self.modalities, block.modalities, strict=True)):
            own: dict[str, Any] = {
                "seed": (seed ^ (i * _MODALITY_STREAM)) % 2**63,
                "epoch": epoch,
                "hidden": hidden[:, i],
            }
            batches.append(tokenizer.training_batch(part, rows, **own, **options))
        return join_modalities(batches, self._small_counts)

    def inference_batch(
        self, block: Block, rows: NDArray[np.int64], query_mask: csr_matrix | None = None, *, drawn: bool = False
    ) -> Batch:
        """As the method of a tokenizer. ``query_mask`` (B, M) is over the features of all modalities.

        Where all measured features of a modality are queried, nothing of it is read, not even the depth of a cell from
        features that are not modelled.
        """
        batches = []
        for tokenizer, part, mask in self._parts(block, query_mask):
            batches.append(tokenizer.inference_batch(part, rows, mask, drawn=drawn, hidden=hidden_cells(part, mask)))
        return join_modalities(batches, self._small_counts)

    def profiles(self, block: Block) -> csr_matrix:
        """float64 (B, M), the profiles of all modalities without masking."""
        return sp.hstack([tokenizer.profiles(part) for tokenizer, part, _ in self._parts(block)], format="csr")

    def n_context(self, block: Block, query_mask: csr_matrix | None = None) -> NDArray[np.int64]:
        """int64 (B,), maximum number of context tokens per cell in :meth:`inference_batch`."""
        return np.sum([tokenizer.n_context(part, mask) for tokenizer, part, mask in self._parts(block, query_mask)], 0)

    @property
    def _small_counts(self) -> list[int]:
        return [N_SMALL_COUNTS if tokenizer.binning.kind == "value" else 0 for tokenizer in self.modalities]

    def _parts(
        self, block: Block, query_mask: csr_matrix | None = None
    ) -> Iterator[tuple[Tokenizer, Block, csr_matrix | None]]:
        start = 0
        for tokenizer, part in zip(self.modalities, block.modalities, strict=True):
            columns = slice(start, start + tokenizer.n_features)
            yield tokenizer, part, None if query_mask is None else query_mask[:, columns]
            start = columns.stop

    def _dropped(self, block: Block, rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.bool_]:
        """(B, K), modalities that are hidden in this step, or that the cell lacks."""
        measured = np.stack([part.measured for part in block.modalities], axis=1)
        draws = uniform(seed ^ _DROP_STREAM, epoch, rows)
        hidden = ~measured
        for choice in np.unique(measured, axis=0):
            at = np.flatnonzero((measured == choice).all(axis=1) & (draws < DROPPED))
            kept = _proper_subsets(np.flatnonzero(choice))
            if kept:  # there is none of a single modality
                drawn = (draws[at] / DROPPED * len(kept)).astype(np.int64)
                hidden[at] = ~np.stack([np.isin(np.arange(len(choice)), each) for each in kept])[drawn]
        return hidden


def hidden_cells(part: Block, query_mask: csr_matrix | None) -> NDArray[np.bool_]:
    """(B,) cells that lack a modality, or in which all of its measured features are queried."""
    if query_mask is None:
        return ~part.measured
    asked = query_mask.astype(bool) @ part.present.astype(np.int64)
    return ~part.measured | (asked == part.present.sum())


def _proper_subsets(numbers: NDArray[np.int64]) -> list[Sequence[int]]:
    """All choices of at least one and not all of the numbers."""
    n = len(numbers)
    return [[int(numbers[i]) for i in range(n) if choice >> i & 1] for choice in range(1, 2**n - 1)]
