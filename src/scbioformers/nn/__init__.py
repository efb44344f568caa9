"""The transformer: tensors in, tensors out."""

from scbioformers.nn._config import ModelConfig
from scbioformers.nn._device import require_device
from scbioformers.nn._init import Start, initialise
from scbioformers.nn._losses import OBJECTIVES
from scbioformers.nn._transformer import Network, Output, Sizes

__all__ = ["OBJECTIVES", "ModelConfig", "Network", "Output", "Sizes", "Start", "initialise", "require_device"]
