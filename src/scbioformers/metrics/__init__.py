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
from scbioformers.metrics._perturbation import (
    PerturbationScores,
    paired_bootstrap,
    perturbation,
    similarity_between,
    split_half,
)
from scbioformers.metrics._perturbation_baselines import (
    additive,
    knn_features,
    linear_bilinear,
    mlp_features,
    no_change,
    ridge_features,
    target_falls,
    training_mean,
)

__all__ = [
    "CalibrationCurve",
    "EmbeddingScores",
    "MaskedCells",
    "MaskedScores",
    "PerturbationScores",
    "TrainingCells",
    "additive",
    "bin_histogram",
    "calibration_curve",
    "calibration_error",
    "constant_bin",
    "embedding_scores",
    "interval_coverage",
    "knn_features",
    "knn_smoothing",
    "linear_bilinear",
    "linear_predictions",
    "linear_regression",
    "log1p_normalize",
    "low_rank",
    "masked_scores",
    "mlp_features",
    "natural_log_probabilities",
    "negative_binomial",
    "no_change",
    "paired_bootstrap",
    "pca",
    "pca_binned",
    "pca_log1p",
    "perturbation",
    "poisson_loss",
    "ridge_features",
    "similarity_between",
    "softmax_regression",
    "split_half",
    "target_falls",
    "thin_counts",
    "top_label_calibration_error",
    "training_mean",
]
