"""Responses to perturbations: labels, measured effects, and the light head that predicts those of other targets."""

from scbioformers.perturbation._components import COMPONENTS
from scbioformers.perturbation._config import Perturbation
from scbioformers.perturbation._correlations import Correlations, measure_correlations
from scbioformers.perturbation._effects import Effects, log1p_rows, measure_effects
from scbioformers.perturbation._features import term_features, term_table
from scbioformers.perturbation._fit import fit_head, target_features
from scbioformers.perturbation._folds import n_trainings
from scbioformers.perturbation._head import PerturbationHead
from scbioformers.perturbation._labels import Targets, parse_label, require_known, require_singles

__all__ = [
    "COMPONENTS",
    "Correlations",
    "Effects",
    "Perturbation",
    "PerturbationHead",
    "Targets",
    "fit_head",
    "log1p_rows",
    "measure_correlations",
    "measure_effects",
    "n_trainings",
    "parse_label",
    "require_known",
    "require_singles",
    "target_features",
    "term_features",
    "term_table",
]
