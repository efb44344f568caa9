"""Blocks of counts to token batches, and the order in which training reads them."""

from scbioformers.tokens._sampler import Buffer, Sampler
from scbioformers.tokens._tokenizer import Tokenizer

__all__ = [
    "Buffer",
    "Sampler",
    "Tokenizer",
]
