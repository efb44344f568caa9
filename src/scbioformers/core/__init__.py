"""Arrays only: errors, binning, random numbers, vocabulary and splits."""

from scbioformers.core._bin_kernels import bin_normalized, bin_segment_dense, bin_segment_rows
from scbioformers.core._binning import Binning, bin_rows
from scbioformers.core._decoding import (
    SCALES,
    Scale,
    bin_levels,
    count_range,
    deviation,
    expected,
    posterior_mean,
    quantile,
)
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
)
from scbioformers.core._leiden import leiden
from scbioformers.core._names import describe_unknown, near_names
from scbioformers.core._progress import tqdm
from scbioformers.core._random import hash_uniform, seed_from, uniform
from scbioformers.core._schedule import default_epochs
from scbioformers.core._splits import split_combinations, split_groups, split_targets, validation_rows
from scbioformers.core._vocabulary import EXTERNAL, SPECIALS, Match, Vocabulary, match

__all__ = [
    "EXTERNAL",
    "SCALES",
    "SPECIALS",
    "Binning",
    "BioformersError",
    "BioformersWarning",
    "ColumnRanks",
    "ConfigError",
    "Consensus",
    "DataError",
    "Match",
    "MissingDependencyError",
    "MissingKeyError",
    "ModelFormatError",
    "Scale",
    "Vocabulary",
    "average_product_correction",
    "bin_levels",
    "bin_normalized",
    "bin_rows",
    "bin_segment_dense",
    "bin_segment_rows",
    "cosine_similarity",
    "count_range",
    "default_epochs",
    "describe_unknown",
    "deviation",
    "expected",
    "hash_uniform",
    "leiden",
    "match",
    "near_names",
    "out_strength",
    "posterior_mean",
    "quantile",
    "rank_pairs",
    "seed_from",
    "split_combinations",
    "split_groups",
    "split_targets",
    "tqdm",
    "uniform",
    "validation_rows",
]
