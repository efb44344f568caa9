"""Blocks of counts to token batches, and the order in which training reads them."""

from scbioformers.tokens._batch import FEW_COUNTS, Batch
from scbioformers.tokens._masking import Masking
from scbioformers.tokens._sampler import Buffer, Sampler
from scbioformers.tokens._tokenizer import Tokenizer

__all__ = ["FEW_COUNTS", "Batch", "Buffer", "Masking", "Sampler", "Tokenizer"]
