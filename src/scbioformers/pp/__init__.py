"""Preprocessing: check the data before a fit, and bin it."""

from scbioformers.pp._binning import bin_quantile, bin_segment, bin_value
from scbioformers.pp._check import CheckReport, check
from scbioformers.pp._costs import Cost
from scbioformers.pp._model_report import ModelReport
from scbioformers.pp._mudata_report import ModalityReport, MuDataReport
from scbioformers.pp._to_mudata import to_mudata

__all__ = [
    "CheckReport",
    "Cost",
    "ModalityReport",
    "ModelReport",
    "MuDataReport",
    "bin_quantile",
    "bin_segment",
    "bin_value",
    "check",
    "to_mudata",
]
