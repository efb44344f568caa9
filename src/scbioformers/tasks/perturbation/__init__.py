"""Responses to perturbations: labels, measured effects, and the head that predicts effects of other targets."""

from scbioformers.tasks.perturbation._components import COMPONENTS
from scbioformers.tasks.perturbation._correlations import Correlations, measure_correlations
from scbioformers.tasks.perturbation._design import Design, read_design
from scbioformers.tasks.perturbation._effects import Effects, measure_effects
from scbioformers.tasks.perturbation._fit import fit_head, target_features
from scbioformers.tasks.perturbation._folds import n_trainings
from scbioformers.tasks.perturbation._head import PerturbationHead
from scbioformers.tasks.perturbation._labels import Targets, parse_label, require_known, require_singles
from scbioformers.tasks.perturbation._observed import control_rows, observed_effects
from scbioformers.tasks.perturbation._task import (
    choose_probes,
    fit_perturbation,
    pair_chances,
    requested_targets,
    require_head,
)
from scbioformers.tasks.perturbation._token import TokenPredictor

__all__ = [
    "COMPONENTS",
    "Correlations",
    "Design",
    "Effects",
    "PerturbationHead",
    "Targets",
    "TokenPredictor",
    "choose_probes",
    "control_rows",
    "fit_head",
    "fit_perturbation",
    "measure_correlations",
    "measure_effects",
    "n_trainings",
    "observed_effects",
    "pair_chances",
    "parse_label",
    "read_design",
    "requested_targets",
    "require_head",
    "require_known",
    "require_singles",
    "target_features",
]
