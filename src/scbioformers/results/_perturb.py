"""Predicted responses: effects in ``varm``, profiles in ``layers[key]``, names and evidence in ``uns``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.results._slots import get_slot, params_from_json, params_to_json, set_layer, set_uns, set_varm

DEFAULT_KEY = "perturbed"
_HINT = "Run `bf.tl.perturb(adata, …)` first."


@dataclass(frozen=True)
class GroupEffects:
    """Effects that start from the control cells of each group."""

    genes: Sequence[str]
    """(G,) the genes of the effects."""
    effects: Mapping[str, NDArray[np.float64]]
    """(G, K) by group."""


@dataclass(frozen=True)
class Perturbed:
    """Effects of K perturbations as they are read back."""

    names: list[str]
    """(K,)."""
    effect: NDArray[np.float64]
    """(n_vars, K), in log1p units, NaN for genes that are not modelled."""
    se: NDArray[np.float64]
    """(n_vars, K), standard errors."""


def write_perturb(
    adata: Any,
    key: str,
    names: Sequence[str],
    effect: NDArray[np.float64],
    se: NDArray[np.float64],
    *,
    evidence: Mapping[str, Any],
    params: dict[str, Any],
    groups: GroupEffects | None,
    profiles: NDArray[np.float32] | None,
) -> None:
    """Write effects (n_vars, K) with their standard errors and, for one perturbation, profiles (N, n_vars)."""
    effects = f"{_entry(key)}_effect"
    set_varm(adata, effects, effect)
    set_varm(adata, f"{effects}_se", se)
    stored: dict[str, Any] = {
        "names": np.array(list(names), dtype=object).astype(str),
        "evidence": params_to_json(dict(evidence)),
        "params": params_to_json(params | {"effects": effects}),
    }
    if groups is not None:
        stored["groups"] = dict(groups.effects)
        stored["group_genes"] = np.array(list(groups.genes), dtype=object).astype(str)
    if profiles is not None:
        set_layer(adata, key, profiles)
    set_uns(adata, _entry(key), stored)


def read_perturb(adata: Any, key: str) -> Perturbed:
    """Names and effects of the perturbations that were predicted last under this name.

    Raises
    ------
    MissingKeyError
        If there are none.
    """
    stored = get_slot(adata, "uns", _entry(key), hint=_HINT)
    name = str(params_from_json(str(stored["params"]))["effects"])
    effect, se = (np.asarray(get_slot(adata, "varm", each, hint=_HINT)) for each in (name, f"{name}_se"))
    return Perturbed([str(each) for each in stored["names"]], effect, se)


def read_perturb_names(adata: Any, key: str) -> list[str]:
    """Names of the perturbations that were predicted last under this name."""
    return [str(name) for name in get_slot(adata, "uns", _entry(key), hint=_HINT)["names"]]


def read_perturb_evidence(adata: Any, key: str) -> dict[str, Any]:
    """Scores of the cross-validation over targets, as the model holds them."""
    return dict(params_from_json(str(get_slot(adata, "uns", _entry(key), hint=_HINT)["evidence"])))


def read_perturbed_profiles(adata: Any, key: str) -> NDArray[np.float32]:
    """(N, n_vars) predicted log1p profiles of the control cells, NaN elsewhere."""
    hint = "Run `bf.tl.perturb(adata, …)` for one perturbation."
    return np.asarray(get_slot(adata, "layers", key, hint=hint))


def _entry(key: str) -> str:
    return "perturb" if key == DEFAULT_KEY else key
