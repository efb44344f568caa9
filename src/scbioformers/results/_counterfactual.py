"""Profiles under another phenotype: ``layers[key]``, effects in ``varm``, and evidence in ``uns[key]``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import MissingKeyError
from scbioformers.results._slots import (
    check_key_added,
    escape,
    get_slot,
    params_from_json,
    params_to_json,
    unescape,
    write_result,
)


def check_counterfactual_key(adata: Any, key: str, layer: str | None) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    check_key_added(adata, key, {"layers": [key], "varm": [_effect(key), _error(key)]}, layer=layer)


def write_counterfactual(
    adata: Any,
    key: str,
    profiles: NDArray[np.float32],
    effect: pd.DataFrame,
    error: pd.DataFrame,
    *,
    params: dict[str, Any],
    evidence: pd.DataFrame | None,
) -> None:
    """Write profiles (N, n_vars), effects and their standard errors (n_vars, K) of K groups, and evidence."""
    tables = {_effect(key): effect.rename(columns=escape), _error(key): error.rename(columns=escape)}
    entry: dict[str, Any] = {"params": params_to_json(params)}
    if evidence is not None:
        entry["evidence"] = evidence
    write_result(adata, key, entry, {"layers": {key: profiles}, "varm": tables})


def read_counterfactual(adata: Any, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects and their standard errors, each (n_vars, K)."""
    hint = 'Run `bf.tl.counterfactual(adata, {"condition": "stim"})` first.'
    effect, error = (get_slot(adata, "varm", slot(key), hint=hint) for slot in (_effect, _error))
    return effect.rename(columns=unescape), error.rename(columns=unescape)


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
