"""Scores of predicted masked bins (paper, section 3.2, Tables 2-4) and of predicted held-out counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import binom, rankdata

from scbioformers.core import Category, ConfigError, DataError, check_arguments, check_shapes, uniform

RATE_FLOOR = 1e-8  # a count of 1 where the predicted rate is 0 costs 18.4 nats, not infinity
SUM_TOLERANCE = 0.01  # for the sum of a row: above the rounding error of float16, small enough to detect logits
BLOCK_ROWS = 8192

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class MaskedScores:
    """Scores of predicted bins at masked positions. A share of an empty set is NaN.

    The predicted bin is the most probable one. In a tie it is the lowest of the tied bins.
    """

    nll_bits: float
    """Mean negative log-likelihood of the true bins, in bits; lower is better. This is the main score: only the true
    probabilities minimise it. In contrast, the constant prediction 1 can have a high `sensitivity`."""
    auroc: float
    """Area under the ROC curve of P(bin > 0), non-zero against zero."""
    sensitivity: float
    """Share of the non-zero positions whose true bin is predicted."""
    hel: float
    """High-expression sensitivity: share of the positions with a true bin above the cutoff whose predicted bin is at
    most one bin away."""
    hel_gene_mean: float
    """Mean of `hel` over the genes that have such positions. Every gene has the same weight."""
    npv50: float
    """Negative predictive value for equal numbers of zeros and non-zeros, independent of the mask:
    spec / (spec + FNR). FNR is the share of the non-zeros that are predicted zero. NaN if no position is predicted
    zero."""
    zero_specificity: float
    """Share of the zeros that are predicted zero (spec)."""
    bin_mae: float
    """Mean absolute difference of predicted and true bin, in bins."""
    macro_f1: float
    """F1 of each bin, mean over the bins that occur as true bins."""
    sensitivity_by_level: dict[str, float]
    """Share of exact predictions by the level of the true bin: "zero" (0), "one" (1), "low" (2 to the cutoff), "high"
    (above the cutoff)."""
    predicted_for_one: dict[str, float]
    """Predictions where the true bin is 1 (paper, Table 3): share predicted "zero" (0), "one" (1) and "more" (above 1).
    The third column of the table is named "> 0", but its rows sum to 1."""
    n: int
    """Number of masked positions."""

    def to_dict(self) -> dict[str, float]:
        """Return the scores as a flat dictionary, with keys such as "sensitivity_by_level_one"."""
        flat: dict[str, float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                flat |= {f"{field.name}_{key}": part for key, part in value.items()}
            else:
                flat[field.name] = value
        return flat


def masked_scores(
    log_probabilities: ArrayLike, target: ArrayLike, genes: ArrayLike | Sequence[Category], *, cutoff: int
) -> MaskedScores:
    """Score predicted distributions over bins at masked positions, pooled over cells.

    Parameters
    ----------
    log_probabilities
        Natural logarithms of the probabilities of bins 0 … V-1, shape (H, V), each row normalised.
    target
        True bin of each position, integers, shape (H,).
    genes
        Gene of each position (number or name), shape (H,).
    cutoff
        Highest bin that is not "high", at least 1. This is the cutoff c of the value binning.

    Returns
    -------
    :class:`MaskedScores`

    Raises
    ------
    DataError
        If shapes do not match, there are no positions, a target is not one of the bins, or rows are not normalised.
    ConfigError
        If `cutoff` is below 1.

    Examples
    --------
    Three positions and three bins. The last prediction is one bin too low.

    >>> import numpy as np
    >>> from scbioformers.metrics import masked_scores
    >>> probabilities = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
    >>> scores = masked_scores(np.log(probabilities), [0, 1, 2], ["CD4", "CD4", "CD8A"], cutoff=1)
    >>> round(scores.nll_bits, 6), scores.sensitivity, scores.hel, scores.npv50
    (1.333333, 0.5, 1.0, 1.0)
    """
    check_arguments(masked_scores, locals())
    logs = check_log_probabilities(log_probabilities)
    check_shapes(log_probabilities=(logs, "HV"), target=(target, "H"), genes=(genes, "H"))
    y = check_bins(target, logs.shape[1])
    names = np.asarray(genes)
    if cutoff < 1:
        raise ConfigError(f"`cutoff` must be at least 1, found {cutoff}.")
    predicted = logs.argmax(axis=1)
    exact, zero, one, high = predicted == y, y == 0, y == 1, y > cutoff
    close = np.abs(predicted - y)[high] <= 1
    specificity, missed = _share(exact[zero]), _share(predicted[~zero] == 0)
    _, gene = np.unique(names[high], return_inverse=True)
    hel_by_gene = np.bincount(gene, weights=close) / np.bincount(gene)
    low = ~(zero | one | high)
    return MaskedScores(
        nll_bits=float(-logs[np.arange(len(y)), y].mean(dtype=np.float64) / np.log(2)),
        auroc=_auroc(-logs[:, 0], ~zero),  # same order as P(bin > 0), more precise than 1 - P(0)
        sensitivity=_share(exact[~zero]),
        hel=_share(close),
        hel_gene_mean=_share(hel_by_gene),
        npv50=specificity / (specificity + missed) if specificity + missed > 0 else float("nan"),
        zero_specificity=specificity,
        bin_mae=float(np.abs(predicted - y).mean()),
        macro_f1=_macro_f1(predicted, y, logs.shape[1]),
        sensitivity_by_level={
            "zero": specificity,
            "one": _share(exact[one]),
            "low": _share(exact[low]),
            "high": _share(exact[high]),
        },
        predicted_for_one={
            "zero": _share(predicted[one] == 0),
            "one": _share(predicted[one] == 1),
            "more": _share(predicted[one] > 1),
        },
        n=len(y),
    )


def check_log_probabilities(log_probabilities: ArrayLike) -> Floats:
    """Return normalised log-probabilities as a float array (n, V), or raise a DataError."""
    check_shapes(log_probabilities=(log_probabilities, "HV"))
    logs = np.asarray(log_probabilities)
    if 0 in logs.shape:
        raise DataError(f"`log_probabilities` has the shape {logs.shape}. Pass at least one row and one bin.")
    if logs.dtype.kind != "f":
        logs = logs.astype(np.float64)
    for start in range(0, len(logs), BLOCK_ROWS):
        with np.errstate(over="ignore"):  # logits can overflow
            sums = np.exp(logs[start : start + BLOCK_ROWS]).sum(axis=1, dtype=np.float64)
        wrong = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
        if len(wrong):
            raise DataError(
                f"The probabilities of position {start + wrong[0]} sum to {sums[wrong[0]]:.4g}, not 1: pass natural "
                "logarithms of probabilities, such as a log-softmax of logits."
            )
    return logs


def check_bins(target: ArrayLike, n_bins: int) -> Integers:
    """Return true bins as an integer array with values 0 … n_bins-1, or raise a DataError."""
    y = np.asarray(target)
    if y.dtype.kind not in "iu":
        raise DataError(f"`target` must hold integer bins, found dtype {y.dtype}.")
    if y.min() < 0 or y.max() >= n_bins:
        raise DataError(f"`target` has bins {y.min()} to {y.max()}, but the predictions are of bins 0 to {n_bins - 1}.")
    return y.astype(np.int64)


def _share(values: NDArray[np.bool_] | Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _auroc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative. Ties count half; scores can be infinite."""
    n_positive = int(positive.sum())
    n_pairs = n_positive * (len(positive) - n_positive)
    if n_pairs == 0:
        return float("nan")
    return float((rankdata(score)[positive].sum() - n_positive * (n_positive + 1) / 2) / n_pairs)


def _macro_f1(predicted: Integers, y: Integers, n_bins: int) -> float:
    n_true, n_predicted = np.bincount(y, minlength=n_bins), np.bincount(predicted, minlength=n_bins)
    n_both = np.bincount(y[predicted == y], minlength=n_bins)
    occurs = n_true > 0
    return float((2 * n_both[occurs] / (n_true + n_predicted)[occurs]).mean())


def thin_counts(
    counts: sparse.spmatrix | sparse.sparray, fraction: float, seed: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split counts at random into two parts, for molecular cross-validation (Batson, Royer and Webber 2019).

    Each UMI is in the first part with the probability `fraction`. If the counts are Poisson distributed, both parts are
    Poisson distributed and independent. A model that reads the first part can therefore be scored on the second. The
    expected value of the second part is (1 - fraction) / fraction times that of the first.

    Parameters
    ----------
    counts
        Non-negative whole numbers of any dtype, shape (n_cells, n_features); not changed.
    fraction
        Probability of a UMI to be in the first part, between 0 and 1.
    seed
        Seed of the draws. Each draw depends only on the seed, the row, the column and the count.

    Returns
    -------
    The kept and the held-out counts: two CSR matrices of the shape and dtype of `counts`, whose sum is `counts`.

    Raises
    ------
    DataError
        If counts are negative or not whole.
    ConfigError
        If `fraction` is not between 0 and 1.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from scbioformers.metrics import thin_counts
    >>> counts = csr_matrix([[0, 1000], [1, 0]])
    >>> kept, held = thin_counts(counts, 0.9, seed=0)
    >>> (kept + held).toarray().tolist()
    [[0, 1000], [1, 0]]
    """
    check_arguments(thin_counts, locals())
    if not 0 < fraction < 1:
        raise ConfigError(f"`fraction` must be between 0 and 1, found {fraction}.")
    whole = sparse.csr_matrix(counts, copy=True)
    whole.sum_duplicates()
    x = whole.data.astype(np.float64)
    if not ((x >= 0) & (x < np.inf) & (x == np.floor(x))).all():
        raise DataError("Only counts can be thinned, but `counts` has values that are negative or not whole.")
    rows = np.repeat(np.arange(whole.shape[0]), np.diff(whole.indptr))
    u = 1 - uniform(seed, rows, whole.indices)  # in (0, 1], because the binomial quantile of 0 is -1
    drawn = binom.ppf(u, x, fraction)
    parts = []
    for values in (drawn, x - drawn):
        part = whole.copy()
        part.data = values.astype(whole.dtype)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def poisson_loss(rate: ArrayLike, held: sparse.spmatrix | sparse.sparray) -> float:
    """Mean Poisson loss of predicted rates for held-out counts: ``rate - x * log(rate)``, in nats.

    The term log(x!) does not depend on the prediction and is left out. The loss can therefore be negative.

    Parameters
    ----------
    rate
        Expected counts, shape (n_cells, n_features), not negative. In the logarithm, rates below 1e-8 are set to 1e-8.
    held
        Counts, shape (n_cells, n_features), for example the second part of :func:`thin_counts`.

    Returns
    -------
    Mean over all n_cells × n_features entries.

    Raises
    ------
    DataError
        If the shapes differ or are empty, or a rate is negative, NaN or infinite.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from scbioformers.metrics import poisson_loss
    >>> poisson_loss([[1.0, 0.5]], csr_matrix([[3, 0]]))
    0.75
    """
    check_arguments(poisson_loss, locals())
    check_shapes(held=(held, "NM"), rate=(rate, "NM"))
    expected, observed = np.asarray(rate), sparse.csr_matrix(held)
    if expected.size == 0:
        raise DataError(f"`rate` has the shape {expected.shape}. Pass the rates of at least one cell and one gene.")
    total = 0.0
    for start in range(0, len(expected), BLOCK_ROWS):
        block, counted = expected[start : start + BLOCK_ROWS], observed[start : start + BLOCK_ROWS].tocoo()
        if not (block.min() >= 0 and block.max() < np.inf):
            raise DataError(f"`rate` has negative, NaN or infinite values in rows {start} to {start + len(block) - 1}.")
        rates = block[counted.row, counted.col].astype(np.float64)
        total += block.sum(dtype=np.float64) - counted.data @ np.log(np.maximum(rates, RATE_FLOOR))
    return float(total / expected.size)
