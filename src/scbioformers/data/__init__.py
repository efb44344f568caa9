"""Reading data in blocks, checking it, and writing results back to the right slots."""

from scbioformers.data._align import DEFAULT_MASK, gene_mask, match_molecules
from scbioformers.data._check import (
    COUNTS_FROM_RAW,
    find_cautions,
    find_count_problems,
    find_problems,
    require_counts,
    require_valid,
)
from scbioformers.data._fields import ObsField, field_codes
from scbioformers.data._inspect import Inspection, inspect
from scbioformers.data._slots import (
    actual,
    drop_slot,
    escape,
    get_slot,
    params_from_json,
    params_to_json,
    set_layer,
    set_obs,
    set_obsm,
    set_uns,
    set_var,
    set_varm,
    set_varp,
    target,
    unescape,
)
from scbioformers.data._source import Block, Source, concatenate, get_matrix, to_csr
from scbioformers.data._statistics import Statistics, scan

__all__ = [
    "COUNTS_FROM_RAW",
    "DEFAULT_MASK",
    "Block",
    "Inspection",
    "ObsField",
    "Source",
    "Statistics",
    "actual",
    "concatenate",
    "drop_slot",
    "escape",
    "field_codes",
    "find_cautions",
    "find_count_problems",
    "find_problems",
    "gene_mask",
    "get_matrix",
    "get_slot",
    "inspect",
    "match_molecules",
    "params_from_json",
    "params_to_json",
    "require_counts",
    "require_valid",
    "scan",
    "set_layer",
    "set_obs",
    "set_obsm",
    "set_uns",
    "set_var",
    "set_varm",
    "set_varp",
    "target",
    "to_csr",
    "unescape",
]
