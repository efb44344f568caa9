"""Profiles under another phenotype: ``layers[key]``, effects in ``varm``, and evidence in ``uns[key]``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import MissingKeyError
from scbioformers.results._query import Query
from scbioformers.results._slots import (
    check_key_added,
    get_slot,
    params_from_json,
    params_to_json,
    write_result,
)


def check_counterfactual_key(adata: Any, key: str, layer: str | None) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    check_key_added(adata, key, {"layers": [key], "varm": [_effect(key), _error(key), _profile(key)]}, layer=layer)


def group_table(query: Query, values: NDArray[np.float64], groups: NDArray[np.str_]) -> pd.DataFrame:
    """Table (n_vars, K) from values (K, M) of the features of the model in K groups, NaN for other genes."""
    found = np.full((query.data.n_vars, len(groups)), np.nan)
    found[query.columns[query.measured]] = values.T[query.measured]
    return pd.DataFrame(found, index=query.data.var_names, columns=pd.Index(groups))


def write_counterfactual(
    adata: Any,
    key: str,
    profiles: NDArray[np.float32],
    effect: pd.DataFrame,
    error: pd.DataFrame,
    mean: pd.DataFrame,
    *,
    params: dict[str, Any],
    evidence: pd.DataFrame | None = None,
) -> None:
    """Write profiles (N, n_vars), effects, their standard errors and mean profiles (n_vars, K), and evidence."""
    tables = {_effect(key): effect, _error(key): error, _profile(key): mean}
    entry: dict[str, Any] = {"params": params_to_json(params)}
    if evidence is not None:
        entry["evidence"] = evidence
    write_result(adata, key, entry, {"layers": {key: profiles}, "varm": tables})


def read_counterfactual(adata: Any, key: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Effects, their standard errors and mean profiles, each (n_vars, K)."""
    hint = 'Run `bf.tl.counterfactual(adata, {"condition": "stim"})` first.'
    effect, error, mean = (get_slot(adata, "varm", slot(key), hint=hint) for slot in (_effect, _error, _profile))
    return effect, error, mean


def read_counterfactual_params(adata: Any, key: str) -> dict[str, Any]:
    """The parameters of the result."""
    stored = get_slot(adata, "uns", key, hint='Run `bf.tl.counterfactual(adata, {"condition": "stim"})` first.')
    return dict(params_from_json(str(stored["params"])))


def read_counterfactual_evidence(adata: Any, key: str) -> pd.DataFrame:
    """The evidence.

    Raises
    ------
    MissingKeyError
        If there is no such result, or if it was computed without evidence.
    """
    params, stored = read_counterfactual_params(adata, key), adata.uns[key]
    if "evidence" not in stored:
        call = f"bf.tl.counterfactual(adata, {params['phenotype']!r}, groupby={params['groupby']!r}, evidence=True)"
        raise MissingKeyError(f"adata.uns[{key!r}] holds no evidence. Run `{call}`.")
    return pd.DataFrame(stored["evidence"])


def _effect(key: str) -> str:
    return f"{key}_effect"


def _error(key: str) -> str:
    return f"{key}_effect_se"


def _profile(key: str) -> str:
    return f"{key}_profile"
