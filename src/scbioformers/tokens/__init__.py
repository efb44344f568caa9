"""Conversion of blocks of counts to token batches, and the order in which training uses the cells."""

from scbioformers.tokens._decoder import DecoderTokenizer
from scbioformers.tokens._joint import JointTokenizer
from scbioformers.tokens._sampler import Buffer, Sampler
from scbioformers.tokens._tokenizer import Tokenizer

__all__ = [
    "Buffer",
    "DecoderTokenizer",
    "JointTokenizer",
    "Sampler",
    "Tokenizer",
]
