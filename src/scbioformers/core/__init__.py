"""Functions of arrays: errors, random numbers, vocabulary, binning kernels, masking kernels, decoding, splits."""

from scbioformers.core._arguments import Category, check_arguments, check_fields, not_anndata
from scbioformers.core._bin_kernels import (
    as_float,
    bin_normalized,
    bin_segment_dense,
    bin_segment_rows,
    bin_value_rows,
    check_integer,
    check_positive,
)
from scbioformers.core._categories import category_text, find_category, match_category, short_list
from scbioformers.core._components import Profiles, measured_mean, principal_components
from scbioformers.core._decoding import SCALES, Scale, deviation, expected, posterior_mean, quantile
from scbioformers.core._depth import N_DEPTHS, DepthModel, DepthModels, Draw, LowRankProfile, MaskedRows
from scbioformers.core._drivers import ColumnRanks, out_strength
from scbioformers.core._edges import Consensus, average_product_correction, cosine_similarity, rank_pairs
from scbioformers.core._errors import (
    BioformersError,
    BioformersWarning,
    ConfigError,
    DataError,
    MissingDependencyError,
    MissingKeyError,
    ModelFormatError,
    OutOfMemoryError,
    ProcessLostError,
    ReadError,
    StorageError,
    TrainingDiverged,
)
from scbioformers.core._leiden import leiden
from scbioformers.core._masking import choose_masked, mask_sizes
from scbioformers.core._memory import free_memory
from scbioformers.core._names import GeneIndex, Names, as_names, describe_unknown, near_names, plain_ensembl
from scbioformers.core._normalize import log1p_rows
from scbioformers.core._progress import tqdm
from scbioformers.core._quantile_bins import QuantileBins
from scbioformers.core._random import hash_pairs, hash_uniform, seed_from, uniform
from scbioformers.core._schedule import default_epochs
from scbioformers.core._shapes import check_shapes
from scbioformers.core._splits import split_targets, validation_rows
from scbioformers.core._vocabulary import SPECIALS, Match, Vocabulary, match
from scbioformers.core._warnings import warn

__all__ = [
    "N_DEPTHS",
    "SCALES",
    "SPECIALS",
    "BioformersError",
    "BioformersWarning",
    "Category",
    "ColumnRanks",
    "ConfigError",
    "Consensus",
    "DataError",
    "DepthModel",
    "DepthModels",
    "Draw",
    "GeneIndex",
    "LowRankProfile",
    "MaskedRows",
    "Match",
    "MissingDependencyError",
    "MissingKeyError",
    "ModelFormatError",
    "Names",
    "OutOfMemoryError",
    "ProcessLostError",
    "Profiles",
    "QuantileBins",
    "ReadError",
    "Scale",
    "StorageError",
    "TrainingDiverged",
    "Vocabulary",
    "as_float",
    "as_names",
    "average_product_correction",
    "bin_normalized",
    "bin_segment_dense",
    "bin_segment_rows",
    "bin_value_rows",
    "category_text",
    "check_arguments",
    "check_fields",
    "check_integer",
    "check_positive",
    "check_shapes",
    "choose_masked",
    "cosine_similarity",
    "default_epochs",
    "describe_unknown",
    "deviation",
    "expected",
    "find_category",
    "free_memory",
    "hash_pairs",
    "hash_uniform",
    "leiden",
    "log1p_rows",
    "mask_sizes",
    "match",
    "match_category",
    "measured_mean",
    "near_names",
    "not_anndata",
    "out_strength",
    "plain_ensembl",
    "posterior_mean",
    "principal_components",
    "quantile",
    "rank_pairs",
    "seed_from",
    "short_list",
    "split_targets",
    "tqdm",
    "uniform",
    "validation_rows",
    "warn",
]
