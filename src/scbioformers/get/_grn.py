"""Gene regulatory networks, read back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scbioformers.core import ConfigError, MissingKeyError
from scbioformers.data import get_slot, params_from_json

_HINT = "Run `bf.tl.grn(adata)` first."


def grn(adata: AnnData, *, condition: str | None = None, key: str = "grn") -> pd.DataFrame:
    """The strongest edges that :func:`scbioformers.tl.grn` found, as decoupler takes them.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.grn`; after the genes were subset, edges of those that are left, ranked anew.
    condition
        One of the conditions; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    Columns source (the regulator), target, weight, rank (from 1 in each condition), support (share of the members of
    the ensemble that hold the edge), count (cells behind it) and condition.

    Raises
    ------
    MissingKeyError
        If there is no network, or not of this condition.

    Examples
    --------
    See :func:`scbioformers.tl.grn`.
    """
    stored = get_slot(adata, "uns", key, hint=_HINT)
    edges = pd.DataFrame(stored["edges"])
    if condition is not None:
        _require(condition, _params(adata, key))
        edges = edges[edges["condition"] == condition]
    there = {str(name) for name in adata.var_names}
    edges = edges[edges["source"].isin(there) & edges["target"].isin(there)].reset_index(drop=True)
    edges["rank"] = edges.groupby("condition", observed=True)["rank"].rank(method="first").astype(np.int64)
    return edges


def grn_matrix(
    adata: AnnData, *, condition: str | None = None, difference: bool = False, key: str = "grn"
) -> pd.DataFrame:
    """Weights of all pairs that :func:`scbioformers.tl.grn` found.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.grn`.
    condition
        One of the conditions; needed if there are several.
    difference
        The difference from the reference instead.
    key
        The name given as ``key_added``.

    Returns
    -------
    float32, targets x regulators; NaN for pairs that were never seen, and for a gene with itself. Genes that are
    neither are left out.

    Raises
    ------
    MissingKeyError
        If there is no network, not of this condition, or no difference.
    ConfigError
        If there are several conditions and none was named.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], progress_bar=False)
    >>> bf.get.grn_matrix(adata).shape
    (40, 2)
    """
    params = _params(adata, key)
    ending = ""
    if params["groupby"] is not None:
        if condition is None:
            raise ConfigError(f"There are networks of several conditions; pass `condition=`: {params['conditions']}.")
        ending = f".{condition}"
    if condition is not None:
        _require(condition, params)
    if difference and (params["reference"] is None or condition == params["reference"]):
        raise MissingKeyError("There is no such difference. Run `bf.tl.grn(adata, groupby=…, reference=…)`.")
    name = f"{key}_difference{ending}" if difference else f"{key}{ending}"
    weight = sp.coo_matrix(get_slot(adata, "varp", name, hint=_HINT))
    full = np.full(weight.shape, np.nan, np.float32)
    full[weight.row, weight.col] = weight.data
    seen, genes = np.isfinite(full), adata.var_names
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return pd.DataFrame(full[np.ix_(rows, columns)], genes[rows], genes[columns])


def _params(adata: AnnData, key: str) -> dict[str, Any]:
    return dict(params_from_json(str(get_slot(adata, "uns", key, hint=_HINT)["params"])))


def _require(condition: str, params: dict[str, Any]) -> None:
    if condition not in params["conditions"]:
        raise MissingKeyError(f"There is no network of {condition!r}. There: {params['conditions']}. {_HINT}")
