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
from scbioformers.metrics._enrichment import edge_enrichment, enrichment
from scbioformers.metrics._grn import GRNScores, grn_scores, jaccard_top
from scbioformers.metrics._grn_baselines import expression_edges, genie3_edges, pearson_edges, spearman_edges
from scbioformers.metrics._grn_null import NullComparison, compare_with_null, degree_preserving_null
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
    "GRNScores",
    "MaskedCells",
    "MaskedScores",
    "NullComparison",
    "PerturbationScores",
    "TrainingCells",
    "additive",
    "bin_histogram",
    "calibration_curve",
    "calibration_error",
    "compare_with_null",
    "constant_bin",
    "degree_preserving_null",
    "edge_enrichment",
    "embedding_scores",
    "enrichment",
    "expression_edges",
    "genie3_edges",
    "grn_scores",
    "interval_coverage",
    "jaccard_top",
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
    "pearson_edges",
    "perturbation",
    "poisson_loss",
    "ridge_features",
    "similarity_between",
    "softmax_regression",
    "spearman_edges",
    "split_half",
    "target_falls",
    "thin_counts",
    "top_label_calibration_error",
    "training_mean",
]
