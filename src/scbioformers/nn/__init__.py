"""The transformer: tensors in, tensors out."""

from scbioformers.nn._batch import FEW_COUNTS, Batch
from scbioformers.nn._device import require_device
from scbioformers.nn._init import Start, initialise
from scbioformers.nn._losses import OBJECTIVES
from scbioformers.nn._transformer import Network, Output, Sizes

__all__ = [
    "FEW_COUNTS",
    "OBJECTIVES",
    "Batch",
    "Network",
    "Output",
    "Sizes",
    "Start",
    "initialise",
    "require_device",
]
