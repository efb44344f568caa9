"""Scores of embeddings and the simple baselines they are compared with, on plain arrays.

Nothing here knows AnnData's slots: pass ``adata.obsm["X_bioformer"]`` and ``adata.obs["cell_type"]``, or arrays from
anywhere else.
"""

from scbioformers.metrics._baselines import log1p_normalize, pca, pca_binned, pca_log1p
from scbioformers.metrics._calibration import (
    CalibrationCurve,
    calibration_curve,
    calibration_error,
    interval_coverage,
    natural_log_probabilities,
    top_label_calibration_error,
)
from scbioformers.metrics._embedding import EmbeddingScores, embedding_scores
from scbioformers.metrics._masked import MaskedScores, masked_scores, poisson_loss, thin_counts
from scbioformers.metrics._masked_baselines import bin_histogram, constant_bin, negative_binomial
from scbioformers.metrics._masked_cells import MaskedCells, TrainingCells
from scbioformers.metrics._masked_levels import knn_smoothing, low_rank
from scbioformers.metrics._masked_regressions import linear_predictions, linear_regression, softmax_regression

__all__ = [
    "CalibrationCurve",
    "EmbeddingScores",
    "MaskedCells",
    "MaskedScores",
    "TrainingCells",
    "bin_histogram",
    "calibration_curve",
    "calibration_error",
    "constant_bin",
    "embedding_scores",
    "interval_coverage",
    "knn_smoothing",
    "linear_predictions",
    "linear_regression",
    "log1p_normalize",
    "low_rank",
    "masked_scores",
    "natural_log_probabilities",
    "negative_binomial",
    "pca",
    "pca_binned",
    "pca_log1p",
    "poisson_loss",
    "softmax_regression",
    "thin_counts",
    "top_label_calibration_error",
]
