"""Embeddings of cells: ``obsm[key]``, ``uns[key]`` and, if there are empty cells, ``obs["bioformer_empty"]``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.results._slots import params_to_json, set_slot, write_result

EMPTY = "bioformer_empty"


def write_embedding(adata: Any, key: str, embedding: Any, params: dict[str, Any], empty: NDArray[np.bool_]) -> None:
    """Write an embedding (N, K), its parameters, and which cells (N,) have no counts in the features of the model.

    The embedding is an array, or a zarr array if ``adata`` stands for a store.
    """
    write_result(adata, key, {"params": params_to_json(params)}, {"obsm": {key: embedding}})
    if empty.any() or EMPTY in adata.obs:
        set_slot(adata, "obs", EMPTY, empty)
