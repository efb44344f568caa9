"""Preprocessing: check the data before a fit, and bin it."""

from scbioformers.pp._binning import bin_quantile, bin_segment, bin_value
from scbioformers.pp._check import CheckReport, check
from scbioformers.pp._costs import Cost
from scbioformers.pp._model_report import ModelReport

__all__ = [
    "CheckReport",
    "Cost",
    "ModelReport",
    "bin_quantile",
    "bin_segment",
    "bin_value",
    "check",
]
