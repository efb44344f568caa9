"""Imputed values: ``layers[key]`` and related layers, or a zarr store, with evidence in ``uns[key]``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import MissingKeyError
from scbioformers.results._slots import check_key_added, get_slot, params_from_json, params_to_json, write_result
from scbioformers.results._store import Result


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
    """A layer of a store (N, K) that is filled in blocks of cells."""

    def __init__(self, result: Result, name: str, block_cells: int) -> None:
        self._result = result
        self._array = result.array("layers", name, len(result.columns), block_cells)

    def add(self, start: int, rows: sp.csr_matrix) -> None:
        """Write the next rows."""
        self._result.write(self._array, start, rows[:, self._result.columns].toarray())

    def matrix(self) -> Any:
        """The zarr array."""
        return self._array


def new_layer(result: Result, name: str, n_imputed: int, block_cells: int) -> Layer | StoreLayer:
    """An empty layer, in memory or in the store of the result."""
    return Layer(result.data.shape, n_imputed) if result.group is None else StoreLayer(result, name, block_cells)


def layer_bytes(shape: tuple[int, int], n_imputed: int) -> float:
    """Size of a layer in memory, without the values of genes that are not imputed if it is sparse."""
    return 4.0 * shape[0] * shape[1] if 2 * n_imputed >= shape[1] else 8.0 * shape[0] * n_imputed


def check_imputed_key(adata: Any, key: str, layers: Collection[str], layer: str | None) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    slots = {"layers": layers, "var": [key], "obs": [_low_depth(key)], "obsp": [_references(key)]}
    check_key_added(adata, key, slots, layer=layer)


def write_imputed(
    adata: Any,
    key: str,
    layers: Mapping[str, Layer | StoreLayer],
    *,
    imputed: NDArray[np.bool_],
    low_depth: NDArray[np.bool_],
    params: dict[str, Any],
    evidence: dict[str, NDArray[np.float64]],
    references: sp.csr_matrix | None = None,
) -> None:
    """Write layers (N, n_vars), which genes are imputed (n_vars,), which cells have too few counts (N,), and evidence.

    The evidence is how well masked measured values were predicted. ``references`` (N, N) are the weights of the cells
    that each cell has read most.
    """
    slots: dict[str, dict[str, Any]] = {
        "layers": {name: layer.matrix() for name, layer in layers.items()},
        "var": {key: imputed},
        "obs": {_low_depth(key): low_depth} if low_depth.any() else {},
        "obsp": {} if references is None else {_references(key): references},
    }
    write_result(adata, key, {"params": params_to_json(params), "evidence": evidence}, slots)


def write_modalities(mdata: Any, key: str, tables: Mapping[str, pd.DataFrame], params: dict[str, Any]) -> None:
    """Write the predictions of all samples of a MuData, each a table (N, M) by its key in ``obsm``."""
    write_result(mdata, key, {"params": params_to_json(params)}, {"obsm": tables})


def _low_depth(key: str) -> str:
    return f"{key}_low_depth"


def _references(key: str) -> str:
    return f"{key}_references"


def read_references(adata: Any, key: str) -> sp.csr_matrix:
    """(N, N) weights of the cells that each cell has read most.

    Raises
    ------
    MissingKeyError
        If there are no imputed values, or if they were imputed without ``memory="query"``.
    """
    get_slot(adata, "uns", key, hint="Run `bf.tl.impute(adata, model=model, memory='query')` first.")
    hint = "Each cell was imputed by itself. Run `bf.tl.impute(adata, model=model, memory='query')`."
    return sp.csr_matrix(get_slot(adata, "obsp", _references(key), hint=hint))


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
