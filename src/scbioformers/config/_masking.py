"""Which features are masked (paper, section 2.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, check_fields, choose_masked, mask_sizes


@dataclass(frozen=True)
class Masking:
    """How many features of a cell are masked, and how many of the masked features are expressed.

    Examples
    --------
    >>> from scbioformers.config import Masking
    >>> Masking().counts(n_expressed=100, n_features=2000)
    (15, 15)
    >>> Masking(rule="paper", ratio=0.1, nonzero_share=0.5).counts(n_expressed=100, n_features=2000)
    (50, 100)
    """

    ratio: float = 0.15
    """Share of features that are masked (m in the paper).

    It is a share of the expressed features of the cell with ``rule="expressed"``, and of all features with
    ``rule="paper"``.
    """
    nonzero_share: float = 0.5
    """Share of the masked features that are expressed (p in the paper)."""
    rule: Literal["expressed", "paper"] = "expressed"
    """How the number of masked features is computed.

    ``"expressed"`` masks a share ``ratio`` of the expressed features, and (1-p)/p times as many zeros. ``"paper"``
    masks a share ``ratio`` of all features. A share p of these is expressed, but at most half of the expressed features
    are masked.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("ratio", "nonzero_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"Masking.{name} must lie strictly between 0 and 1, found {getattr(self, name)}.")

    def counts(self, n_expressed: int, n_features: int) -> tuple[int, int]:
        """Numbers of expressed features and of zeros to mask in a cell that expresses ``n_expressed`` features."""
        nonzero, zero = mask_sizes(n_expressed, n_features, self.ratio, self.nonzero_share, self.rule == "paper")
        return int(nonzero), int(zero)

    def odds(self, n_expressed: NDArray[np.floating], n_features: int) -> NDArray[np.float64]:
        """Probability that a zero is masked, divided by the probability that an expressed feature is masked.

        There is one value for each cell, given its number of expressed features ``n_expressed``. The predicted odds of
        a zero depend on this ratio, because the model is trained on masked features. Dividing them by the ratio gives
        probabilities for features that were not chosen by the training mask.
        """
        n_features = max(n_features, 2)  # the ratio is not defined for a single feature
        n = np.clip(np.asarray(n_expressed, np.float64), 1.0, n_features - 1.0)
        masked = np.array([self.counts(round(number), n_features) for number in n], np.float64).reshape(-1, 2)
        share_of_expressed = np.maximum(masked[:, 0], 1.0) / n
        share_of_zeros = np.maximum(masked[:, 1], 1.0) / (n_features - n)
        return share_of_zeros / share_of_expressed

    def shares(self, n_expressed: NDArray[np.integer], n_features: int) -> tuple[float, float]:
        """Masked share of the expressed features and masked share of the zeros, over all cells together.

        ``n_expressed`` holds the number of expressed features of each cell.
        """
        masked = np.array([self.counts(int(number), n_features) for number in n_expressed], np.int64).reshape(-1, 2)
        total = int(np.sum(n_expressed))
        nonzero, zero = (int(n) for n in masked.sum(axis=0))
        return nonzero / max(total, 1), zero / max(len(n_expressed) * n_features - total, 1)

    def choose(
        self,
        indptr: NDArray[np.int64],
        indices: NDArray[np.int32],
        rows: NDArray[np.int64],
        present: NDArray[np.bool_],
        *,
        seed: int,
        epoch: int,
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int32]]:
        """Choose the masked features of CSR rows. The choice depends only on (seed, epoch, row, feature).

        Parameters
        ----------
        indptr, indices
            CSR structure of B cells, (B + 1,) and (nnz,).
        rows
            (B,) row of each cell in its source.
        present
            (M,) whether each modelled feature is measured in the data. A feature that is not measured is not masked.
        seed, epoch
            Counters of the random numbers. Evaluation passes a fixed epoch.

        Returns
        -------
        masked
            bool (nnz,), whether each expressed entry is masked.
        zero_indptr, zeros
            int64 (B + 1,) and int32, the masked zeros of each cell in ascending order.
        """
        paper = self.rule == "paper"
        return choose_masked(indptr, indices, rows, present, self.ratio, self.nonzero_share, paper, seed, epoch)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Masking:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)
