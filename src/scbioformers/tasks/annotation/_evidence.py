"""Evidence of labels: how well they agree with given labels, and whether their probabilities are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.metrics import calibration_curve

N_RELIABILITY_BINS = 10


def collect_evidence(
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    batches: Mapping[str, NDArray[np.bool_]] | None = None,
) -> dict[str, Any]:
    """Compare predicted with given labels, as plain JSON types.

    The macro-F1 is the mean over the given labels of ``2 TP / (n_given + n_predicted)``.

    Parameters
    ----------
    true
        (N,) position of the given label of each cell in ``rows``.
    predicted
        (N,) position of the predicted label in ``columns``, -1 for "unknown".
    confidence
        (N,) probability of the most probable label.
    rows, columns
        Given labels that have cells, and labels that can be predicted.
    batches
        Which of the cells (N,) belong to each batch, by its name.

    Returns
    -------
    dict with ``rows``, ``columns``, ``confusion`` (counts, with a last column for "unknown" cells), the reliability
    bins ``predicted``, ``observed`` and ``count`` of the cells that are not "unknown", ``accuracy``, ``macro_f1``,
    ``calibration_error`` (None if all cells are "unknown") and ``batches``: the last three for each of them.

    Examples
    --------
    >>> found = collect_evidence(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([1, 0.5, 1]), "ab", "ab")
    >>> found["confusion"], round(found["accuracy"], 2), round(found["macro_f1"], 2)
    ([[1, 1, 0], [0, 1, 0]], 0.67, 0.67)
    """
    confusion = np.zeros((len(rows), len(columns) + 1), np.int64)
    np.add.at(confusion, (true, predicted), 1)  # -1 is the last column
    match = np.array([[row == column for column in columns] for row in rows]).reshape(len(rows), len(columns))
    correct = (predicted >= 0) & match[true, np.maximum(predicted, 0)]
    known = predicted >= 0
    found: dict[str, Any] = {"rows": list(rows), "columns": list(columns), "confusion": confusion.tolist()}
    bins: dict[str, list[float]] = {"predicted": [], "observed": [], "count": []}
    if known.any():
        curve = calibration_curve(confidence[known], correct[known], n_bins=N_RELIABILITY_BINS)
        bins = {name: getattr(curve, name).tolist() for name in bins}
    found |= bins | _scores(confusion, match, confidence[known], correct[known])
    found["batches"] = {}
    for name, cells in (batches or {}).items():
        if cells.any():
            part = np.zeros_like(confusion)
            np.add.at(part, (true[cells], predicted[cells]), 1)
            found["batches"][name] = {
                "n": int(cells.sum()),
                **_scores(part, match, confidence[cells & known], correct[cells & known]),
            }
    return found


def _scores(
    confusion: NDArray[np.int64], match: NDArray[np.bool_], confidence: NDArray[np.float64], correct: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Scores from a table of counts, and from the probabilities of cells that are not "unknown"."""
    hits = (confusion[:, :-1] * match).sum(axis=1)
    given = confusion.sum(axis=1)
    called = (confusion[:, :-1].sum(axis=0) * match).sum(axis=1)  # 0 for a label that cannot be predicted
    f1 = 2 * hits / np.maximum(given + called, 1)
    error = None
    if confidence.size:
        curve = calibration_curve(confidence, correct, n_bins=N_RELIABILITY_BINS)
        error = float(np.abs(curve.predicted - curve.observed) @ curve.count / curve.count.sum())
    return {
        "accuracy": float(hits.sum() / max(given.sum(), 1)),
        "macro_f1": float(f1[given > 0].mean()) if given.any() else 0.0,
        "calibration_error": error,
    }
