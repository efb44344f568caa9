"""A transformer for single-cell and multi-omic data that a scanpy user runs on their own AnnData.

``import scbioformers as bf``, then ``bf.pp`` (look at the data), ``bf.tl`` (fit, embed), ``bf.get`` (read results
back), ``bf.pl`` (figures), ``bf.datasets``, ``bf.metrics`` and
``bf.settings``. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scbioformers import datasets, get, metrics, pl, pp, settings, tl
    from scbioformers.config import Binning, Masking, ModelConfig, Perturbation, TrainConfig
    from scbioformers.model import BioFormer

_NAMESPACES = ("datasets", "get", "metrics", "pl", "pp", "settings", "tl")
_CLASSES = {
    "Binning": "config",
    "BioFormer": "model",
    "Masking": "config",
    "ModelConfig": "config",
    "Perturbation": "config",
    "TrainConfig": "config",
}
__all__ = [
    "Binning",
    "BioFormer",
    "Masking",
    "ModelConfig",
    "Perturbation",
    "TrainConfig",
    "datasets",
    "get",
    "metrics",
    "pl",
    "pp",
    "settings",
    "tl",
]


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"scbioformers.{name}")
    if name in _CLASSES:
        return getattr(import_module(f"scbioformers.{_CLASSES[name]}"), name)
    raise AttributeError(f"module 'scbioformers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
