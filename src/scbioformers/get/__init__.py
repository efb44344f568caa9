"""Get: read the results that the functions of ``bf.tl`` have stored in an AnnData."""

from scbioformers.get._annotation import annotation, annotation_evidence
from scbioformers.get._counterfactual import counterfactual, counterfactual_evidence
from scbioformers.get._gene_programs import gene_program_scores, gene_programs
from scbioformers.get._grn import grn, grn_matrix
from scbioformers.get._grn_graph import grn_graph
from scbioformers.get._imputed import imputation_evidence, imputed, reference_cells
from scbioformers.get._model import gene_embeddings, history, model, params
from scbioformers.get._perturb import perturb, perturb_evidence, perturbed_cells
from scbioformers.get._regulators import known_targets, program_enrichment, regulators, set_regulators

__all__ = [
    "annotation",
    "annotation_evidence",
    "counterfactual",
    "counterfactual_evidence",
    "gene_embeddings",
    "gene_program_scores",
    "gene_programs",
    "grn",
    "grn_graph",
    "grn_matrix",
    "history",
    "imputation_evidence",
    "imputed",
    "known_targets",
    "model",
    "params",
    "perturb",
    "perturb_evidence",
    "perturbed_cells",
    "program_enrichment",
    "reference_cells",
    "regulators",
    "set_regulators",
]
