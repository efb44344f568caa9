"""Computations of the functions in ``bf.tl`` and ``bf.get``, with a model and a source of cells as input."""

from scbioformers.tasks._counterfactual import Decoded, Effects, compare, decode_blocks, which_have
from scbioformers.tasks._cross_modal import denoise_modality, masked_evidence, modality_scale, predict_modality
from scbioformers.tasks._gene_programs import (
    Programs,
    Use,
    agreement,
    check_use,
    find_programs,
    score_cells,
    similarity,
)
from scbioformers.tasks._gene_signals import Features
from scbioformers.tasks._generation import (
    draw_conditions_of_cells,
    generate_counts,
    phenotype_values,
    require_decoder,
)
from scbioformers.tasks._grn import EdgeScorer, Method, draw_conditions, infer_grn
from scbioformers.tasks._grn_edges import ConsensusGRN, edge_table
from scbioformers.tasks._imputation import (
    BLOCK_CELLS,
    N_FOLDS,
    ImputedBlock,
    Plan,
    collect_evidence,
    find_evidence_cells,
    folds,
    impute_blocks,
    own_values,
    positions,
    posterior_blocks,
)
from scbioformers.tasks._imputation_evidence import Evidence, choose_evidence_cells
from scbioformers.tasks._imputation_request import (
    ImputeMethod,
    check_memory,
    check_method,
    check_request,
    choose_method,
)
from scbioformers.tasks._phenotypes import predict_phenotype
from scbioformers.tasks._query_memory import QueryMemory, fit_query_memory
from scbioformers.tasks._regulators import count_known_targets, rank_drivers, rank_set_regulators

__all__ = [
    "BLOCK_CELLS",
    "N_FOLDS",
    "ConsensusGRN",
    "Decoded",
    "EdgeScorer",
    "Effects",
    "Evidence",
    "Features",
    "ImputeMethod",
    "ImputedBlock",
    "Method",
    "Plan",
    "Programs",
    "QueryMemory",
    "Use",
    "agreement",
    "check_memory",
    "check_method",
    "check_request",
    "check_use",
    "choose_evidence_cells",
    "choose_method",
    "collect_evidence",
    "compare",
    "count_known_targets",
    "decode_blocks",
    "denoise_modality",
    "draw_conditions",
    "draw_conditions_of_cells",
    "edge_table",
    "find_evidence_cells",
    "find_programs",
    "fit_query_memory",
    "folds",
    "generate_counts",
    "impute_blocks",
    "infer_grn",
    "masked_evidence",
    "modality_scale",
    "own_values",
    "phenotype_values",
    "positions",
    "posterior_blocks",
    "predict_modality",
    "predict_phenotype",
    "rank_drivers",
    "rank_set_regulators",
    "require_decoder",
    "score_cells",
    "similarity",
    "which_have",
]
