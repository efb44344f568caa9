"""Simple baselines that a model should outperform, on plain arrays."""

from scbioformers.baselines._counterfactual import linear_effect, mean_effect
from scbioformers.baselines._grn import expression_edges, genie3_edges, pearson_edges, spearman_edges
from scbioformers.baselines._masked import bin_histogram, bin_masses, constant_bin, negative_binomial
from scbioformers.baselines._masked_cells import MaskedCells, TrainingCells
from scbioformers.baselines._masked_features import estimate_depth, fit_depth, zero_odds
from scbioformers.baselines._masked_levels import knn_smoothing, low_rank
from scbioformers.baselines._masked_regressions import linear_predictions, linear_regression, softmax_regression
from scbioformers.baselines._pca import log1p_normalize, pca, pca_binned, pca_log1p
from scbioformers.baselines._perturbation import (
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
    "MaskedCells",
    "TrainingCells",
    "additive",
    "bin_histogram",
    "bin_masses",
    "constant_bin",
    "estimate_depth",
    "expression_edges",
    "fit_depth",
    "genie3_edges",
    "knn_features",
    "knn_smoothing",
    "linear_bilinear",
    "linear_effect",
    "linear_predictions",
    "linear_regression",
    "log1p_normalize",
    "low_rank",
    "mean_effect",
    "mlp_features",
    "negative_binomial",
    "no_change",
    "pca",
    "pca_binned",
    "pca_log1p",
    "pearson_edges",
    "ridge_features",
    "softmax_regression",
    "spearman_edges",
    "target_falls",
    "training_mean",
    "zero_odds",
]
