"""Which molecules are hidden from the model (paper, section 2.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import ConfigError, choose_masked, mask_sizes


@dataclass(frozen=True)
class Masking:
    """How many molecules of a cell are hidden, and how many of those are expressed.

    Examples
    --------
    >>> from scbioformers.config import Masking
    >>> Masking().counts(n_expressed=100, n_molecules=2000)
    (15, 15)
    >>> Masking(rule="paper", ratio=0.1, nonzero_share=0.5).counts(n_expressed=100, n_molecules=2000)
    (50, 100)
    """

    ratio: float = 0.15
    """Share hidden, m in the paper: of the cell's expressed molecules, or of all molecules under ``rule="paper"``."""
    nonzero_share: float = 0.5
    """Share of the hidden molecules that are expressed, p in the paper."""
    rule: Literal["expressed", "paper"] = "expressed"
    """``"expressed"`` hides ``ratio`` of the expressed molecules and (1-p)/p times as many zeros; ``"paper"`` hides
    ``ratio`` of all molecules, a share p of them expressed, but never more than half of the expressed."""

    def __post_init__(self) -> None:
        for name in ("ratio", "nonzero_share"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"Masking.{name} must lie strictly between 0 and 1, got {getattr(self, name)}.")
        if self.rule not in ("expressed", "paper"):
            raise ConfigError(f"Masking.rule is 'expressed' or 'paper', got {self.rule!r}.")

    def counts(self, n_expressed: int, n_molecules: int) -> tuple[int, int]:
        """Expressed molecules and zeros to hide in a cell with ``n_expressed`` of ``n_molecules`` expressed."""
        nonzero, zero = mask_sizes(n_expressed, n_molecules, self.ratio, self.nonzero_share, self.rule == "paper")
        return int(nonzero), int(zero)

    def odds(self, n_expressed: NDArray[np.floating], n_molecules: int) -> NDArray[np.float64]:
        """How much likelier a zero is to be hidden than an expressed molecule, for cells with ``n_expressed``.

        A model that was trained under the mask sees zeros in these odds; to divide by them gives natural probabilities.
        """
        n_molecules = max(n_molecules, 2)  # of a single molecule nothing can be said
        n = np.clip(np.asarray(n_expressed, np.float64), 1.0, n_molecules - 1.0)
        hidden = np.array([self.counts(round(each), n_molecules) for each in n], np.float64).reshape(-1, 2)
        share_of_expressed = np.maximum(hidden[:, 0], 1.0) / n
        share_of_zeros = np.maximum(hidden[:, 1], 1.0) / (n_molecules - n)
        return share_of_zeros / share_of_expressed

    def choose(
        self,
        indptr: NDArray[np.int64],
        indices: NDArray[np.int32],
        rows: NDArray[np.int64],
        n_molecules: int,
        *,
        seed: int,
        epoch: int,
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int32]]:
        """Choose the hidden molecules of CSR rows; a function of (seed, epoch, row, molecule) and of nothing else.

        Parameters
        ----------
        indptr, indices
            CSR structure of B cells, (B + 1,) and (nnz,).
        rows
            (B,) identity of each cell in its source.
        n_molecules
            Modelled molecules, M.
        seed, epoch
            Counters of the random numbers; evaluation passes a fixed epoch.

        Returns
        -------
        hidden
            bool (nnz,), the expressed entries that are hidden.
        zero_indptr, zeros
            int64 (B + 1,) and int32, the hidden zeros of each cell, ascending.
        """
        paper = self.rule == "paper"
        return choose_masked(indptr, indices, rows, n_molecules, self.ratio, self.nonzero_share, paper, seed, epoch)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Masking:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)
