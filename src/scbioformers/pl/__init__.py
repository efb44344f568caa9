"""Plotting: figures of the results that the functions of ``bf.tl`` have stored."""

from scbioformers.pl._annotation import annotation
from scbioformers.pl._counterfactual import counterfactual
from scbioformers.pl._gene_programs import gene_programs
from scbioformers.pl._grn_heatmap import attention_heatmap
from scbioformers.pl._grn_network import grn_network
from scbioformers.pl._imputation import calibration, imputation
from scbioformers.pl._perturbation import perturbation, perturbation_screen
from scbioformers.pl._training import training

__all__ = [
    "annotation",
    "attention_heatmap",
    "calibration",
    "counterfactual",
    "gene_programs",
    "grn_network",
    "imputation",
    "perturbation",
    "perturbation_screen",
    "training",
]
