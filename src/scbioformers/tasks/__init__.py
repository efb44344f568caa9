"""Computations of the functions in ``bf.tl`` and ``bf.get``, with a model and a source of cells as input."""

from scbioformers.tasks._gene_programs import (
    Programs,
    Use,
    agreement,
    check_use,
    find_programs,
    score_cells,
    similarity,
)
from scbioformers.tasks._grn import ConsensusGRN, EdgeScorer, Method, draw_conditions, edge_table, infer_grn
from scbioformers.tasks._imputation import (
    N_FOLDS,
    Evidence,
    Plan,
    check_request,
    folds,
    impute_blocks,
    positions,
    posterior_blocks,
)
from scbioformers.tasks._regulators import count_known_targets, rank_drivers, rank_set_regulators

__all__ = [
    "N_FOLDS",
    "ConsensusGRN",
    "EdgeScorer",
    "Evidence",
    "Method",
    "Plan",
    "Programs",
    "Use",
    "agreement",
    "check_request",
    "check_use",
    "count_known_targets",
    "draw_conditions",
    "edge_table",
    "find_programs",
    "folds",
    "impute_blocks",
    "infer_grn",
    "positions",
    "posterior_blocks",
    "rank_drivers",
    "rank_set_regulators",
    "score_cells",
    "similarity",
]
