"""Imputed values: ``layers[key]`` and related layers, or a zarr store, with evidence in ``uns[key]``."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, MissingKeyError
from scbioformers.results._slots import (
    check_key_added,
    escape,
    get_slot,
    params_from_json,
    params_to_json,
    write_result,
)

logger = logging.getLogger(__name__)

_CHUNK_CELLS = 1024


def imputed_layers(key: str, std: bool, quantiles: Sequence[float]) -> dict[str, str]:
    """Names of the layers for ``"mean"``, ``"std"`` and each quantile."""
    names = {"mean": key} | ({"std": f"{key}_std"} if std else {})
    return names | {str(q): f"{key}_q{100 * q:g}" for q in quantiles}


class Layer:
    """A layer (N, n_vars) that is filled in blocks of cells.

    It is dense if at least half of the genes are imputed. Otherwise it is sparse, because most values of the other
    genes are 0.
    """

    def __init__(self, shape: tuple[int, int], n_imputed: int) -> None:
        self._shape = shape
        self._dense = np.zeros(shape, np.float32) if 2 * n_imputed >= shape[1] else None
        self._parts: list[sp.csr_matrix] = []

    def add(self, start: int, rows: sp.csr_matrix) -> None:
        """Add the next rows."""
        if self._dense is None:
            self._parts.append(rows)
        else:
            self._dense[start : start + rows.shape[0]] = rows.toarray()

    def matrix(self) -> NDArray[np.float32] | sp.csr_matrix:
        """The whole layer."""
        return sp.vstack(self._parts, format="csr", dtype=np.float32) if self._dense is None else self._dense


class StoreLayer:
    """An array of a zarr store (N, K) that is filled in blocks of cells. ``columns`` (K,) are those of the data."""

    def __init__(self, array: Any, columns: NDArray[np.int64]) -> None:
        self._array, self._columns = array, columns

    def add(self, start: int, rows: sp.csr_matrix) -> None:
        """Write the next rows."""
        self._array[start : start + rows.shape[0]] = rows[:, self._columns].toarray()


def check_imputed_key(adata: Any, key: str, layers: Collection[str], layer: str | None) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    slots = {"layers": layers, "var": [key], "obs": [_low_depth(key)]}
    check_key_added(adata, key, slots, layer=layer)


def write_imputed(
    adata: Any,
    key: str,
    layers: Mapping[str, Layer],
    *,
    imputed: NDArray[np.bool_],
    low_depth: NDArray[np.bool_],
    params: dict[str, Any],
    evidence: dict[str, NDArray[np.float64]],
) -> None:
    """Write layers (N, n_vars), which genes are imputed (n_vars,), which cells have too few counts (N,), and evidence.

    The evidence is how well masked measured values were predicted.
    """
    slots: dict[str, dict[str, Any]] = {
        "layers": {name: layer.matrix() for name, layer in layers.items()},
        "var": {key: imputed},
        "obs": {_low_depth(key): low_depth} if low_depth.any() else {},
    }
    write_result(adata, key, {"params": params_to_json(params), "evidence": evidence}, slots)


def _low_depth(key: str) -> str:
    return f"{key}_low_depth"


def create_store(path: Path, adata: AnnData, columns: NDArray[np.int64], names: Sequence[str]) -> dict[str, StoreLayer]:
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
        created[name] = StoreLayer(array, columns)
    return created


def read_evidence(adata: Any, key: str) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """The evidence, which are sums over all predictions of masked values, and the parameters of the result.

    Raises
    ------
    MissingKeyError
        If there are no imputed values.
    """
    hint = "Run `bf.tl.impute(adata)` first."
    stored = get_slot(adata, "uns", key, hint=hint)
    if "evidence" not in stored:
        raise MissingKeyError(f"adata.uns[{key!r}] holds no evidence. {hint}")
    evidence = {name: np.asarray(values, np.float64) for name, values in stored["evidence"].items()}
    return evidence, dict(params_from_json(str(stored["params"])))
