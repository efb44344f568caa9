"""Figures."""

from scbioformers.pl._imputation import calibration, imputation
from scbioformers.pl._perturbation import perturbation, perturbation_screen
from scbioformers.pl._training import training

__all__ = ["calibration", "imputation", "perturbation", "perturbation_screen", "training"]
