"""A transformer for single-cell and multi-omic data in AnnData, for users of scanpy.

Import it as ``import scbioformers as bf``. The modules are ``bf.pp`` (check and inspect the data), ``bf.tl`` (fit and
use a model), ``bf.get`` (read results), ``bf.pl`` (plots), ``bf.models`` (models that come with the package),
``bf.datasets``, ``bf.metrics`` and ``bf.settings``.
Modules are imported when they are first used, so the import of the package is fast.
"""

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

from scbioformers import settings

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scbioformers import datasets, get, metrics, models, pl, pp, tl
    from scbioformers.config import Binning, Masking, ModelConfig, Perturbation, TrainConfig
    from scbioformers.data import RowReader
    from scbioformers.model import BioFormer

_NAMESPACES = ("datasets", "get", "metrics", "models", "pl", "pp", "tl")
_CLASSES = {
    "Binning": "config",
    "BioFormer": "model",
    "Masking": "config",
    "ModelConfig": "config",
    "Perturbation": "config",
    "RowReader": "data",
    "TrainConfig": "config",
}
__all__ = [
    "Binning",
    "BioFormer",
    "Masking",
    "ModelConfig",
    "Perturbation",
    "RowReader",
    "TrainConfig",
    "datasets",
    "get",
    "metrics",
    "models",
    "pl",
    "pp",
    "settings",
    "tl",
]


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        state = random.getstate()
        try:
            return import_module(f"scbioformers.{name}")
        finally:
            random.setstate(state)  # the first import of lightning draws from Python's global generator
    if name in _CLASSES:
        return getattr(import_module(f"scbioformers.{_CLASSES[name]}"), name)
    raise AttributeError(f"module 'scbioformers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
