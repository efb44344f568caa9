"""Gene regulatory networks: weights and counts in ``varp``, edges and parameters in ``uns[key]``.

With ``groupby`` the names in ``varp`` end with a dot and the name of the condition. The dot prevents confusion with
names such as ``grn_count`` if a condition is called "count".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import Category, MissingKeyError, find_category
from scbioformers.data import gene_names
from scbioformers.results._slots import (
    get_slot,
    params_from_json,
    params_to_json,
    write_result,
)

_HINT = "Run `bf.tl.grn(adata)` first."


@dataclass(frozen=True)
class ConditionGRN:
    """The gene regulatory network of one condition, over all genes of the data."""

    weight: sp.csr_matrix
    """float32 (n_vars, n_vars), targets x regulators. Pairs without a weight are not stored."""
    count: sp.csr_matrix
    """int32 (n_vars, n_vars), number of cells from which each weight was computed."""
    attention: NDArray[np.float32] | None
    """(n_vars,) attention that each regulator receives, NaN for other genes. None for methods other than attention."""


@dataclass(frozen=True)
class WeightTable:
    """The weights of one condition, for genes that have at least one weight."""

    weight: NDArray[np.float64]
    """(G, R), targets x regulators, NaN for pairs without a weight."""
    genes: list[str]
    """(G,) names of the targets: all genes that have a weight."""
    regulators: list[str]
    """(R,) names of the regulators."""
    attention: NDArray[np.float64] | None = None
    """(R,) mean attention that each regulator receives in a cell. None for methods other than attention."""


def write_grn(
    adata: Any, key: str, networks: Mapping[str, ConditionGRN], edges: pd.DataFrame, params: dict[str, Any]
) -> None:
    """Write the network of each condition, and its difference from the network of ``params["reference"]``.

    An earlier result with the same key is removed with all its conditions.
    """
    varp: dict[str, sp.csr_matrix] = {}
    var: dict[str, NDArray[np.float32]] = {}
    reference = params["reference"]
    for condition, network in networks.items():
        ending = _ending(params["groupby"], condition)
        varp[f"{key}{ending}"] = network.weight
        varp[f"{key}_count{ending}"] = network.count
        if network.attention is not None:
            var[f"{key}_attention{ending}"] = network.attention
        if reference is not None and condition != reference:
            varp[f"{key}_difference{ending}"] = _difference(network.weight, networks[reference].weight)
    entry = {"edges": edges, "params": params_to_json(params)}
    write_result(adata, key, entry, {"varp": varp, "var": var})


def grn_slots(key: str, groupby: str | None, conditions: Sequence[str]) -> dict[str, list[str]]:
    """Keys of all slots that the networks may have."""
    endings = [_ending(groupby, name) for name in conditions]
    names = {"varp": ("", "_count", "_difference"), "var": ("_attention",)}
    return {slot: [f"{key}{name}{ending}" for ending in endings for name in names[slot]] for slot in names}


def read_grn_params(adata: Any, key: str) -> dict[str, Any]:
    """Parameters of the networks: ``conditions``, ``groupby``, ``reference``, ``method``, ``directed``, ….

    Raises
    ------
    MissingKeyError
        If there are no networks.
    """
    stored = params_from_json(str(get_slot(adata, "uns", key, hint=_HINT)["params"]))
    return {"directed": True} | stored  # networks of earlier versions are directed


def find_condition(params: Mapping[str, Any], condition: Category, argument: str = "condition") -> str:
    """Name of a condition that has a network. Text, numbers and bools are compared by value.

    Raises
    ------
    MissingKeyError
        If there is no network for the condition.
    """
    place = "the conditions of this network"
    return find_category(condition, params["conditions"], argument=argument, place=place, error=MissingKeyError)


def read_grn_edges(adata: Any, key: str) -> pd.DataFrame:
    """Table of the strongest edges of all conditions."""
    return pd.DataFrame(get_slot(adata, "uns", key, hint=_HINT)["edges"])


def read_grn_weights(adata: Any, key: str, condition: str | None, *, difference: bool = False) -> WeightTable:
    """Weights of one condition, or with ``difference`` their difference from the reference condition."""
    params = read_grn_params(adata, key)
    name = f"{key}{'_difference' if difference else ''}{_ending(params['groupby'], condition)}"
    stored = sp.coo_matrix(get_slot(adata, "varp", name, hint=_HINT))
    names = gene_names(adata)
    # a dense matrix is made only for the genes with weights, usually a small part of all genes
    genes, regulators = np.unique(np.concatenate([stored.row, stored.col])), np.unique(stored.col)
    weight = np.full((len(genes), len(regulators)), np.nan)
    weight[np.searchsorted(genes, stored.row), np.searchsorted(regulators, stored.col)] = stored.data
    return WeightTable(weight, names[genes].tolist(), names[regulators].tolist())


def read_mutual_pairs(adata: Any, key: str, condition: str) -> tuple[pd.DataFrame, int]:
    """Strongest pairs of genes with a weight in both directions, and the number of pairs with a weight in one only.

    The table has the columns of :func:`read_grn_edges` and at most ``params["top_k"]`` rows. Weight and count of a pair
    are the smaller ones of its two directions. Equal weights are in the order of ``adata.var``.
    """
    params = read_grn_params(adata, key)
    ending = _ending(params["groupby"], condition)
    weights, counts = (get_slot(adata, "varp", f"{key}{name}{ending}", hint=_HINT) for name in ("", "_count"))
    pairs, smaller = _smaller_of_both_directions(weights)
    strongest = np.argsort(-smaller, kind="stable")[: params["top_k"]]
    pairs_with_count, count = _smaller_of_both_directions(counts)
    first, second = np.divmod(pairs[strongest], weights.shape[0])
    names = gene_names(adata)
    table = pd.DataFrame(
        {
            "source": names[first],
            "target": names[second],
            "weight": smaller[strongest].astype(np.float64),
            "rank": np.arange(1, strongest.size + 1),
            "support": np.nan,
            "count": count[np.searchsorted(pairs_with_count, pairs[strongest])].astype(np.int64),
            "condition": condition,
        }
    )
    return table, weights.nnz - 2 * pairs.size


def _smaller_of_both_directions(stored: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Pairs of genes that are stored in both directions, and the smaller one of their two values.

    A pair is ``first * n_vars + second``, where ``first`` is the position of the gene that comes first. Pairs ascend.
    """
    matrix = sp.coo_matrix(stored)
    pair = np.minimum(matrix.row, matrix.col).astype(np.int64) * matrix.shape[0] + np.maximum(matrix.row, matrix.col)
    order = np.argsort(pair, kind="stable")
    pair, values = pair[order], matrix.data[order]
    both = np.flatnonzero(pair[1:] == pair[:-1])  # the two directions of a pair are neighbours after sorting
    return pair[both], np.minimum(values[both], values[both + 1])


def read_grns(adata: Any, key: str) -> Iterator[tuple[str, WeightTable]]:
    """Name and weights of each condition. For the attention method, also the attention that regulators receive."""
    params = read_grn_params(adata, key)
    names = pd.Index(gene_names(adata))
    for condition in params["conditions"]:
        table = read_grn_weights(adata, key, condition)
        if params["method"] == "attention":
            column = get_slot(adata, "var", f"{key}_attention{_ending(params['groupby'], condition)}", hint=_HINT)
            attention = column.to_numpy(np.float64)[names.get_indexer(pd.Index(table.regulators))]
            table = replace(table, attention=attention)
        yield condition, table


def _ending(groupby: str | None, condition: str | None) -> str:
    return "" if groupby is None else f".{condition}"


def _difference(weight: sp.csr_matrix, reference: sp.csr_matrix) -> sp.csr_matrix:
    """Weight minus the weight in the reference, for pairs that have a weight in both."""
    stored = [sp.csr_matrix((np.ones_like(x.data), x.indices, x.indptr), shape=x.shape) for x in (weight, reference)]
    both = stored[0].multiply(stored[1]).tocoo()
    values = np.asarray(weight[both.row, both.col] - reference[both.row, both.col]).ravel()
    return sp.csr_matrix((values, (both.row, both.col)), shape=weight.shape)
