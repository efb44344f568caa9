"""A fitted model: its state, inference, and storage."""

from scbioformers.model._bioformer import BioFormer
from scbioformers.model._head import Head
from scbioformers.model._inference import (
    READ_CHUNK,
    USES,
    EmbeddedBlock,
    Use,
    embed_blocks,
    embed_cells,
    make_batches,
    on_device,
    predict_masked,
    predict_with_rates,
    run_network,
)
from scbioformers.model._parts import Modality, modality_sizes, network_bytes, network_sizes
from scbioformers.model._scores import score_cells, score_quantiles
from scbioformers.model._storage import MAX_HEADER, Tensors, check_directory, read_tensors, seal, unseal, write_synced

__all__ = [
    "MAX_HEADER",
    "READ_CHUNK",
    "USES",
    "BioFormer",
    "EmbeddedBlock",
    "Head",
    "Modality",
    "Tensors",
    "Use",
    "check_directory",
    "embed_blocks",
    "embed_cells",
    "make_batches",
    "modality_sizes",
    "network_bytes",
    "network_sizes",
    "on_device",
    "predict_masked",
    "predict_with_rates",
    "read_tensors",
    "run_network",
    "score_cells",
    "score_quantiles",
    "seal",
    "unseal",
    "write_synced",
]
