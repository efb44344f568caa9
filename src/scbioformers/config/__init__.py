"""Settings as frozen dataclasses, free of torch: binning, masking, model, training, perturbation."""

from scbioformers.config._bin_levels import bin_levels, count_range
from scbioformers.config._binning import Binning, bin_rows
from scbioformers.config._masking import Masking
from scbioformers.config._model import ModelConfig
from scbioformers.config._perturbation import Perturbation
from scbioformers.config._reading import Reading, ValueScale
from scbioformers.config._train import TrainConfig

__all__ = [
    "Binning",
    "Masking",
    "ModelConfig",
    "Perturbation",
    "Reading",
    "TrainConfig",
    "ValueScale",
    "bin_levels",
    "bin_rows",
    "count_range",
]
