"""Which features are masked from the model (paper, section 2.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, choose_masked, mask_sizes


@dataclass(frozen=True)
class Masking:
    """How many features of a cell are masked, and how many of those are expressed.

    Examples
    --------
    >>> from scbioformers.config import Masking
    >>> Masking().counts(n_expressed=100, n_features=2000)
    (15, 15)
    >>> Masking(rule="paper", ratio=0.1, nonzero_share=0.5).counts(n_expressed=100, n_features=2000)
    (50, 100)
    """

    ratio: float = 0.15
    """Share masked, m in the paper: of the cell's expressed features, or of all features under ``rule="paper"``."""
    nonzero_share: float = 0.5
    """Share of the masked features that are expressed, p in the paper."""
    rule: Literal["expressed", "paper"] = "expressed"
    """``"expressed"`` masks ``ratio`` of the expressed features and (1-p)/p times as many zeros; ``"paper"`` masks
    ``ratio`` of all features, a share p of them expressed, but never more than half of the expressed."""

    def __post_init__(self) -> None:
        for name in ("ratio", "nonzero_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"Masking.{name} must lie strictly between 0 and 1, got {getattr(self, name)}.")
        if self.rule not in ("expressed", "paper"):
            raise ConfigError(f"Masking.rule is 'expressed' or 'paper', got {self.rule!r}.")

    def counts(self, n_expressed: int, n_features: int) -> tuple[int, int]:
        """Expressed features and zeros to hide in a cell with ``n_expressed`` of ``n_features`` expressed."""
        nonzero, zero = mask_sizes(n_expressed, n_features, self.ratio, self.nonzero_share, self.rule == "paper")
        return int(nonzero), int(zero)

    def odds(self, n_expressed: NDArray[np.floating], n_features: int) -> NDArray[np.float64]:
        """How much likelier a zero is to be masked than an expressed feature, for cells with ``n_expressed``.

        A model that was trained under the mask sees zeros in these odds; to divide by them gives natural probabilities.
        """
        n_features = max(n_features, 2)  # of a single feature nothing can be said
        n = np.clip(np.asarray(n_expressed, np.float64), 1.0, n_features - 1.0)
        masked = np.array([self.counts(round(each), n_features) for each in n], np.float64).reshape(-1, 2)
        share_of_expressed = np.maximum(masked[:, 0], 1.0) / n
        share_of_zeros = np.maximum(masked[:, 1], 1.0) / (n_features - n)
        return share_of_zeros / share_of_expressed

    def shares(self, n_expressed: NDArray[np.integer], n_features: int) -> tuple[float, float]:
        """Shares of the expressed features and of the zeros that are masked, over cells with ``n_expressed`` each."""
        masked = np.array([self.counts(int(each), n_features) for each in n_expressed], np.int64).reshape(-1, 2)
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
        """Choose the masked features of CSR rows; a function of (seed, epoch, row, feature) and of nothing else.

        Parameters
        ----------
        indptr, indices
            CSR structure of B cells, (B + 1,) and (nnz,).
        rows
            (B,) identity of each cell in its source.
        present
            (M,) whether the data measure each modelled feature. Others are no zeros, and are not masked.
        seed, epoch
            Counters of the random numbers; evaluation passes a fixed epoch.

        Returns
        -------
        masked
            bool (nnz,), the expressed entries that are masked.
        zero_indptr, zeros
            int64 (B + 1,) and int32, the masked zeros of each cell, ascending.
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
