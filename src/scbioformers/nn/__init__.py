"""The transformer network. Its inputs and outputs are tensors."""

from scbioformers.nn._architectures import make_network
from scbioformers.nn._batch import N_SMALL_COUNTS, Batch, join_batches, join_modalities
from scbioformers.nn._computing import computes, use_threads
from scbioformers.nn._decoder import Decoder
from scbioformers.nn._device import choose_device
from scbioformers.nn._encoder import Encoder
from scbioformers.nn._growing import GrowingPrefix
from scbioformers.nn._init import InitialValues, initialise, random_generator
from scbioformers.nn._losses import BY_MODALITY, OBJECTIVES, count_losses, mean_of_modalities
from scbioformers.nn._phenotypes import Phenotype
from scbioformers.nn._sizes import Sizes, join_sizes
from scbioformers.nn._transformer import Output, Transformer

__all__ = [
    "BY_MODALITY",
    "N_SMALL_COUNTS",
    "OBJECTIVES",
    "Batch",
    "Decoder",
    "Encoder",
    "GrowingPrefix",
    "InitialValues",
    "Output",
    "Phenotype",
    "Sizes",
    "Transformer",
    "choose_device",
    "computes",
    "count_losses",
    "initialise",
    "join_batches",
    "join_modalities",
    "join_sizes",
    "make_network",
    "mean_of_modalities",
    "random_generator",
    "use_threads",
]
