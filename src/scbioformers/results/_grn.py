"""Gene regulatory networks: weights and counts in ``varp``, edges and parameters in ``uns[key]``.

With ``groupby`` the names in ``varp`` end in a dot and the condition: a dot, since "count" may be a condition too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.results._slots import (
    drop_slot,
    escape,
    get_slot,
    params_from_json,
    params_to_json,
    set_uns,
    set_var,
    set_varp,
)

_HINT = "Run `bf.tl.grn(adata)` first."


@dataclass(frozen=True)
class ConditionGRN:
    """The network of one condition, over the variables of the data."""

    weight: sp.csr_matrix
    """float32 (n_vars, n_vars), target x regulator; what is not stored was never seen."""
    count: sp.csr_matrix
    """int32 (n_vars, n_vars), cells behind each weight."""
    attention: NDArray[np.float32] | None
    """(n_vars,) attention that each regulator receives, NaN for other genes; None for networks by another method."""


@dataclass(frozen=True)
class WeightTable:
    """The weights of one condition among the genes that have any."""

    weight: NDArray[np.float64]
    """(G, R), NaN where a pair was never seen."""
    genes: list[str]
    """(G,) targets: all genes for which weights were computed."""
    regulators: list[str]
    """(R,)."""
    attention: NDArray[np.float64] | None = None
    """(R,) attention that each regulator receives in a cell; None for networks by another method."""


def write_grn(
    adata: Any, key: str, networks: Mapping[str, ConditionGRN], edges: pd.DataFrame, params: dict[str, Any]
) -> None:
    """Write the networks by condition, and the differences of all others from ``params["reference"]``.

    An earlier network of the same name is removed with all its conditions.
    """
    _drop(adata, key)
    reference = params["reference"]
    for condition, network in networks.items():
        ending = _ending(params, condition)
        set_varp(adata, f"{key}{ending}", network.weight)
        set_varp(adata, f"{key}_count{ending}", network.count)
        if network.attention is not None:
            set_var(adata, f"{key}_attention{ending}", network.attention)
        if reference is not None and condition != reference:
            difference = _difference(network.weight, networks[reference].weight)
            set_varp(adata, f"{key}_difference{ending}", difference)
    set_uns(adata, key, {"edges": edges, "params": params_to_json(params)})


def read_grn_params(adata: Any, key: str) -> dict[str, Any]:
    """Parameters of the networks: ``conditions``, ``groupby``, ``reference``, ``method``, ….

    Raises
    ------
    MissingKeyError
        If there are none.
    """
    return dict(params_from_json(str(get_slot(adata, "uns", key, hint=_HINT)["params"])))


def read_grn_edges(adata: Any, key: str) -> pd.DataFrame:
    """The strongest edges of all conditions, as they were stored."""
    return pd.DataFrame(get_slot(adata, "uns", key, hint=_HINT)["edges"])


def read_grn_weights(adata: Any, key: str, condition: str | None, *, difference: bool = False) -> WeightTable:
    """Weights of one condition, or their difference from the reference."""
    params = read_grn_params(adata, key)
    name = f"{key}{'_difference' if difference else ''}{_ending(params, condition)}"
    stored = sp.coo_matrix(get_slot(adata, "varp", name, hint=_HINT))
    names = np.array([str(name) for name in adata.var_names], dtype=object)
    # few of all genes are modelled: dense among these alone
    genes, regulators = np.unique(np.concatenate([stored.row, stored.col])), np.unique(stored.col)
    weight = np.full((len(genes), len(regulators)), np.nan)
    weight[np.searchsorted(genes, stored.row), np.searchsorted(regulators, stored.col)] = stored.data
    return WeightTable(weight, names[genes].tolist(), names[regulators].tolist())


def read_grns(adata: Any, key: str) -> Iterator[tuple[str, WeightTable]]:
    """The weights of each condition by its name, with the attention that regulators receive."""
    params = read_grn_params(adata, key)
    names = pd.Index([str(name) for name in adata.var_names])
    for condition in params["conditions"]:
        table = read_grn_weights(adata, key, condition)
        if params["method"] == "attention":
            column = get_slot(adata, "var", f"{key}_attention{_ending(params, condition)}", hint=_HINT)
            attention = column.to_numpy(np.float64)[names.get_indexer(pd.Index(table.regulators))]
            table = replace(table, attention=attention)
        yield condition, table


def _ending(params: Mapping[str, Any], condition: str | None) -> str:
    return "" if params["groupby"] is None else f".{condition}"


def _drop(adata: Any, key: str) -> None:
    """Remove what an earlier call stored by the same name: its conditions need not be those of this call."""
    stored = adata.uns.get(escape(key))
    if not isinstance(stored, Mapping) or not {"edges", "params"} <= set(stored):
        return
    params = read_grn_params(adata, key)
    for condition in params["conditions"]:
        ending = _ending(params, condition)
        for slot, name in (("varp", ""), ("varp", "_count"), ("varp", "_difference"), ("var", "_attention")):
            drop_slot(adata, slot, f"{key}{name}{ending}")
    drop_slot(adata, "uns", key)


def _difference(weight: sp.csr_matrix, reference: sp.csr_matrix) -> sp.csr_matrix:
    """Weight less the weight in the reference, of pairs that were seen in both."""
    seen = [sp.csr_matrix((np.ones_like(x.data), x.indices, x.indptr), shape=x.shape) for x in (weight, reference)]
    both = seen[0].multiply(seen[1]).tocoo()
    values = np.asarray(weight[both.row, both.col] - reference[both.row, both.col]).ravel()
    return sp.csr_matrix((values, (both.row, both.col)), shape=weight.shape)
