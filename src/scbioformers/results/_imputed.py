"""Imputed values: ``layers[key]`` and related layers, or a zarr store, with evidence in ``uns[key]``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import zarr
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, MissingKeyError
from scbioformers.results._slots import escape, get_slot, params_to_json, write_result

logger = logging.getLogger(__name__)

_CHUNK_CELLS = 1024


def imputed_layers(key: str, std: bool, quantiles: Sequence[float]) -> dict[str, str]:
    """Names of the layers for ``"mean"``, ``"std"`` and each quantile."""
    names = {"mean": key} | ({"std": f"{key}_std"} if std else {})
    return names | {str(q): f"{key}_q{100 * q:g}" for q in quantiles}


def write_imputed(
    adata: Any,
    key: str,
    layers: dict[str, NDArray[np.float32]],
    params: dict[str, Any],
    evidence: dict[str, NDArray[np.float64]] | None,
) -> None:
    """Write layers (N, n_vars), parameters, and the evidence: how well masked measured values were predicted."""
    stored: dict[str, Any] = {"params": params_to_json(params)}
    write_result(adata, key, stored | ({} if evidence is None else {"evidence": evidence}), {"layers": layers})


def create_store(path: Path, adata: AnnData, columns: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Create an AnnData in a zarr store and return its layers, which are empty.

    It has the names of all cells and of the genes in ``columns``, and one layer for each of ``names``.

    Raises
    ------
    ConfigError
        If the path exists and is not a zarr store.
    """
    if path.exists():
        if not any((path / name).exists() for name in (".zgroup", "zarr.json")):
            raise ConfigError(f"{path} exists and is no zarr store, so it is not overwritten. Pass another `out`.")
        logger.info("Overwriting %s.", path)
    frame = AnnData(obs=adata.obs[[]], var=adata.var.iloc[columns][[]])
    # format and shards are set because anndata 0.12 warns about its defaults; zarr warns about consolidated metadata
    group: Any = zarr.open_group(str(path), mode="w", zarr_format=3)
    ad.io.write_elem(group, "/", frame, dataset_kwargs={"shards": None})
    created = {}
    for name in names:
        chunks = (min(_CHUNK_CELLS, max(adata.n_obs, 1)), frame.n_vars)
        array = group["layers"].create_array(escape(name), shape=frame.shape, dtype="float32", chunks=chunks)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        created[name] = array
    return created


def read_evidence(adata: Any, key: str) -> dict[str, NDArray[np.float64]]:
    """The evidence: sums over all predictions of masked values, by name.

    Raises
    ------
    MissingKeyError
        If there are no imputed values, or no evidence was stored.
    """
    hint = "Run `bf.tl.impute(adata)` first, without `mask`."
    stored = get_slot(adata, "uns", key, hint=hint)
    if "evidence" not in stored:
        raise MissingKeyError(f"adata.uns[{key!r}] holds no evidence. {hint}")
    return {name: np.asarray(values, np.float64) for name, values in stored["evidence"].items()}
