"""Fitting, on Lightning."""

from scbioformers.training._callbacks import TrainingDiverged
from scbioformers.training._config import TrainConfig
from scbioformers.training._fit import Fitted, fit_model

__all__ = ["Fitted", "TrainConfig", "TrainingDiverged", "fit_model"]
