"""Preprocessing: check the data before a fit, and bin it."""

from scbioformers.pp._binning import bin_segment, bin_value
from scbioformers.pp._check import CheckReport, check

__all__ = [
    "CheckReport",
    "bin_segment",
    "bin_value",
    "check",
]
