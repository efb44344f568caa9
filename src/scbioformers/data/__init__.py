"""Reading of AnnData in blocks of rows: sources, inspection, checks, gene alignment, and obs fields."""

from scbioformers.data._align import (
    DEFAULT_MASK,
    gene_mask,
    hash_genes,
    match_features,
    match_genes,
    matching_column,
)
from scbioformers.data._block import Block, concatenate
from scbioformers.data._check import (
    COUNTS_FROM_RAW,
    find_cautions,
    find_count_problems,
    find_problems,
    require_counts,
    require_valid,
)
from scbioformers.data._depth import TOTALS, DepthRule, choose_depth_rule
from scbioformers.data._fields import ObsField, field_codes
from scbioformers.data._gene_names import GeneNames, best_measured, gene_names
from scbioformers.data._inspect import Inspection, inspect, seem_counts
from scbioformers.data._matrix import get_matrix
from scbioformers.data._source import AnnDataSource, BlockSource, MemorySource
from scbioformers.data._statistics import Statistics, scan

__all__ = [
    "COUNTS_FROM_RAW",
    "DEFAULT_MASK",
    "TOTALS",
    "AnnDataSource",
    "Block",
    "BlockSource",
    "DepthRule",
    "GeneNames",
    "Inspection",
    "MemorySource",
    "ObsField",
    "Statistics",
    "best_measured",
    "choose_depth_rule",
    "concatenate",
    "field_codes",
    "find_cautions",
    "find_count_problems",
    "find_problems",
    "gene_mask",
    "gene_names",
    "get_matrix",
    "hash_genes",
    "inspect",
    "match_features",
    "match_genes",
    "matching_column",
    "require_counts",
    "require_valid",
    "scan",
    "seem_counts",
]
