"""The network of an architecture."""

from __future__ import annotations

from scbioformers.config import ModelConfig
from scbioformers.nn._decoder import Decoder
from scbioformers.nn._encoder import Encoder
from scbioformers.nn._sizes import Sizes
from scbioformers.nn._transformer import Transformer


def make_network(config: ModelConfig, sizes: Sizes) -> Transformer:
    """The encoder or the decoder. Its weights are those of torch, see :func:`scbioformers.nn.initialise`."""
    return Decoder(config, sizes) if config.architecture == "decoder" else Encoder(config, sizes)
