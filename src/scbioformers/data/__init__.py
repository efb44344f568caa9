"""Reading of AnnData in blocks of rows: sources, inspection, checks, gene alignment, and obs fields."""

from scbioformers.data._align import (
    DEFAULT_MASK,
    absent_features,
    find_genes,
    found_depth,
    gene_mask,
    hash_genes,
    match_features,
    match_genes,
    matching_column,
)
from scbioformers.data._block import Block, concatenate
from scbioformers.data._check import (
    call,
    filter_call,
    find_cautions,
    find_count_problems,
    find_problems,
    fit_call,
    require_counts,
    require_valid,
    split_call,
)
from scbioformers.data._chosen import ChosenCells
from scbioformers.data._counts import SLOTS, CountsSlot, own_layers, seem_counts
from scbioformers.data._data_sets import ModalitySets, open_data_sets
from scbioformers.data._depth import TOTALS, DepthRule, choose_depth_rule
from scbioformers.data._external import ExternalTokens
from scbioformers.data._feature_map import FeatureMap, NameMap, check_feature_map
from scbioformers.data._fields import ObsField, in_modality, obs_column, obs_numbers
from scbioformers.data._gene_names import GeneNames, best_measured, gene_names
from scbioformers.data._hidden import HiddenSource, hide, read_mask
from scbioformers.data._inspect import Inspection, inspect
from scbioformers.data._joined import (
    JoinedSource,
    describe_data_sets,
    join_data_sets,
    join_modalities,
    samples_of_sources,
    with_chosen_features,
)
from scbioformers.data._labels import Labels
from scbioformers.data._matrix import get_matrix, layer_key, reads_disk
from scbioformers.data._modalities import FEATURE_TYPES, default_binning, modality_of
from scbioformers.data._mudata import (
    choose_modalities,
    modality_rows,
    names_modality,
    of_modality,
    open_modality,
    refuse_dicts,
    warn_of_samples,
    with_modality,
)
from scbioformers.data._phenotypes import (
    check_phenotype,
    check_phenotype_values,
    field_codes,
    positions,
    register_phenotype,
)
from scbioformers.data._query_scale import require_scale
from scbioformers.data._rows import CollectionReader, RowData, RowReader, is_collection
from scbioformers.data._samples import ModalitiesSource, unmeasured
from scbioformers.data._shared_cells import SharedCells
from scbioformers.data._source import AnnDataSource, BlockSource, MemorySource
from scbioformers.data._source_phenotypes import phenotype_codes, register_phenotypes, warn_of_sources
from scbioformers.data._statistics import Statistics, scan
from scbioformers.data._survey import Survey, SurveyTally, survey
from scbioformers.data._variable_features import choose_features

__all__ = [
    "DEFAULT_MASK",
    "FEATURE_TYPES",
    "SLOTS",
    "TOTALS",
    "AnnDataSource",
    "Block",
    "BlockSource",
    "ChosenCells",
    "CollectionReader",
    "CountsSlot",
    "DepthRule",
    "ExternalTokens",
    "FeatureMap",
    "GeneNames",
    "HiddenSource",
    "Inspection",
    "JoinedSource",
    "Labels",
    "MemorySource",
    "ModalitiesSource",
    "ModalitySets",
    "NameMap",
    "ObsField",
    "RowData",
    "RowReader",
    "SharedCells",
    "Statistics",
    "Survey",
    "SurveyTally",
    "absent_features",
    "best_measured",
    "call",
    "check_feature_map",
    "check_phenotype",
    "check_phenotype_values",
    "choose_depth_rule",
    "choose_features",
    "choose_modalities",
    "concatenate",
    "default_binning",
    "describe_data_sets",
    "field_codes",
    "filter_call",
    "find_cautions",
    "find_count_problems",
    "find_genes",
    "find_problems",
    "fit_call",
    "found_depth",
    "gene_mask",
    "gene_names",
    "get_matrix",
    "hash_genes",
    "hide",
    "in_modality",
    "inspect",
    "is_collection",
    "join_data_sets",
    "join_modalities",
    "layer_key",
    "match_features",
    "match_genes",
    "matching_column",
    "modality_of",
    "modality_rows",
    "names_modality",
    "obs_column",
    "obs_numbers",
    "of_modality",
    "open_data_sets",
    "open_modality",
    "own_layers",
    "phenotype_codes",
    "positions",
    "read_mask",
    "reads_disk",
    "refuse_dicts",
    "register_phenotype",
    "register_phenotypes",
    "require_counts",
    "require_scale",
    "require_valid",
    "samples_of_sources",
    "scan",
    "seem_counts",
    "split_call",
    "survey",
    "unmeasured",
    "warn_of_samples",
    "warn_of_sources",
    "with_chosen_features",
    "with_modality",
]
