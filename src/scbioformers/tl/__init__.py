"""Tools: fit a model, and apply it to cells."""

from scbioformers.tl._annotate import annotate
from scbioformers.tl._counterfactual import counterfactual
from scbioformers.tl._embed import embed
from scbioformers.tl._fit import fit
from scbioformers.tl._gene_programs import gene_programs
from scbioformers.tl._generate import generate
from scbioformers.tl._grn import grn
from scbioformers.tl._impute import impute
from scbioformers.tl._perturb import perturb
from scbioformers.tl._pretrain import pretrain
from scbioformers.tl._regulators import program_enrichment, regulators

__all__ = [
    "annotate",
    "counterfactual",
    "embed",
    "fit",
    "gene_programs",
    "generate",
    "grn",
    "impute",
    "perturb",
    "pretrain",
    "program_enrichment",
    "regulators",
]
