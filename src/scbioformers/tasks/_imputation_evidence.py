"""Evidence of imputation: how well measured values were predicted after they were masked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.config import bin_levels
from scbioformers.core import SPECIALS, uniform
from scbioformers.model import BioFormer
from scbioformers.nn import Batch

LOW_DEPTH = 0.05  # cells with a lower share of the mean depth are flagged
N_RELIABILITY_BINS = 20  # intervals of predicted probability for calibration
MAX_EVIDENCE_CELLS, MIN_EVIDENCE_CELLS = 2000, 50
_EVIDENCE_VALUES = 1_000_000  # with many genes, fewer cells have enough values
_EVIDENCE_STREAM = 0xE71D


@dataclass
class Evidence:
    """How well masked measured values were predicted, as sums over all masked values.

    ``predicted``, ``observed`` and ``count`` have the shape (N_RELIABILITY_BINS,). The intervals are of the predicted
    probability that the gene is expressed. Nearly all values with quantile bins are, so there it is the probability of
    a bin in the upper half: a value above the median of the training cells.
    """

    joint: NDArray[np.float64]
    """(V, V), expected number of predictions of each bin (columns) for each measured bin (rows)."""
    predicted: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_RELIABILITY_BINS))
    """Sum of these predicted probabilities, in each interval."""
    observed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_RELIABILITY_BINS))
    """Number of values in each interval that are expressed, or above the median."""
    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_RELIABILITY_BINS))
    """Number of values in each interval."""
    threshold: int = 0
    """The probability is that of a higher bin. 0: that the gene is expressed."""
    nll_bits: float = 0.0
    """Sum of the negative log-likelihoods, in bits."""
    cells: NDArray[np.bool_] | None = None
    """(N,) cells of the source whose predictions are added. None means all."""
    level: NDArray[np.float64] | None = None
    """(V,) count at the mean depth that each bin stands for, None for bins that are ranks."""
    hidden: csr_matrix | None = None
    """(N, M), non-zero at positions that are not measured values, so they are not added. None means none."""

    @classmethod
    def empty(
        cls, model: BioFormer, *, cells: NDArray[np.bool_] | None = None, hidden: csr_matrix | None = None
    ) -> Evidence:
        """Evidence without any value."""
        binning = model.binning
        level = bin_levels(binning, model.bin_mean, np.ones(1), "counts")[0] if binning.kind == "value" else None
        joint, threshold = np.zeros((binning.n_values, binning.n_values)), 0
        if binning.kind == "quantile":
            threshold = (binning.n_values - 1) // 2
        return cls(joint, threshold=threshold, cells=cells, level=level, hidden=hidden)

    def add(self, batch: Batch, probabilities: NDArray[np.float32]) -> None:
        """Add the predictions of one batch."""
        target = batch.target_bins.cpu().numpy()
        scored, rows = target >= 0, batch.rows.cpu().numpy()  # the others are padding
        if self.cells is not None:
            scored &= self.cells[rows][:, None]
        if self.hidden is not None:
            features = np.maximum(batch.masked_ids.cpu().numpy() - len(SPECIALS), 0)
            scored &= ~np.take_along_axis(self.hidden[rows].toarray() > 0, features, axis=1)
        self._add(target[scored], probabilities[scored])

    def add_values(
        self, rows: NDArray[np.int64], target: NDArray[np.int64], probabilities: NDArray[np.float32]
    ) -> None:
        """Add predictions (B, H, V) of measured bins (B, H) in the cells ``rows`` (B,). Bins of -1 are not measured."""
        scored = target >= 0
        if self.cells is not None:
            scored &= self.cells[rows][:, None]
        self._add(target[scored], probabilities[scored])

    def _add(self, bins: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
        p = probabilities.astype(np.float64)
        for value in np.unique(bins):
            self.joint[value] += p[bins == value].sum(axis=0)
        # rounding errors must not make it negative
        above = (1.0 - p[:, : self.threshold + 1].sum(axis=1)).clip(min=0.0)
        at = np.minimum((above * N_RELIABILITY_BINS).astype(int), N_RELIABILITY_BINS - 1)
        self.predicted += np.bincount(at, above, N_RELIABILITY_BINS)
        self.observed += np.bincount(at, bins > self.threshold, N_RELIABILITY_BINS)
        self.count += np.bincount(at, minlength=N_RELIABILITY_BINS)
        self.nll_bits -= float(np.log2(np.maximum(p[np.arange(len(bins)), bins], 1e-12)).sum())

    def to_dict(self) -> dict[str, NDArray[np.float64]]:
        """Arrays to store in ``uns``. The negative log-likelihood is a mean."""
        n = max(float(self.count.sum()), 1.0)
        return ({} if self.level is None else {"level": self.level}) | {
            "joint": self.joint,
            "predicted": self.predicted,
            "observed": self.observed,
            "count": self.count,
            "nll_bits": np.array([self.nll_bits / n]),
            "threshold": np.array([float(self.threshold)]),
        }


def choose_evidence_cells(
    usable: NDArray[np.bool_], validation: NDArray[np.bool_], n_features: int
) -> NDArray[np.int64]:
    """Rows of the cells whose masked values are predicted as evidence, validation cells of the fit first.

    There are at most 2,000 cells, and with more than 500 genes only as many as have a million values. If there are at
    least 50 validation cells, no other cell is used, because the model was fitted to the others. The choice is random
    and depends only on the rows.

    Examples
    --------
    >>> validation = np.arange(4000) < 150
    >>> choose_evidence_cells(np.ones(4000, bool), validation, n_features=500).max()
    np.int64(149)
    """
    first = usable & validation
    rows = np.flatnonzero(first if first.sum() >= MIN_EVIDENCE_CELLS else usable)
    n_cells = min(MAX_EVIDENCE_CELLS, max(_EVIDENCE_VALUES // max(n_features, 1), MIN_EVIDENCE_CELLS))
    order = np.lexsort((uniform(_EVIDENCE_STREAM, rows), ~first[rows]))
    return np.sort(rows[order[:n_cells]])
