"""Training of models with Lightning."""

from scbioformers.training._data import BatchDataset
from scbioformers.training._fit import Fitted, find_validation, fit_model
from scbioformers.training._isolation import train_steps
from scbioformers.training._module import TrainingModule

__all__ = [
    "BatchDataset",
    "Fitted",
    "TrainingModule",
    "find_validation",
    "fit_model",
    "train_steps",
]
