"""Training of models with Lightning."""

from scbioformers.training._checkpoint import check_checkpoint_dir
from scbioformers.training._data import BatchDataset
from scbioformers.training._extend import extended_field
from scbioformers.training._fit import DRAWN_FROM, Fitted, find_validation, fit_model
from scbioformers.training._isolation import train_steps
from scbioformers.training._module import TrainingModule
from scbioformers.training._processes import in_one_process

__all__ = [
    "DRAWN_FROM",
    "BatchDataset",
    "Fitted",
    "TrainingModule",
    "check_checkpoint_dir",
    "extended_field",
    "find_validation",
    "fit_model",
    "in_one_process",
    "train_steps",
]
