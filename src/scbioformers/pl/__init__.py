"""Figures."""

from scbioformers.pl._imputation import calibration, imputation
from scbioformers.pl._training import training

__all__ = ["calibration", "imputation", "training"]
