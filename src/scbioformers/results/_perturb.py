"""Predicted responses: effects in ``varm``, profiles in ``layers[key]``, names and evidence in ``uns``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.results._slots import check_key_added, get_slot, params_from_json, params_to_json, write_result

DEFAULT_KEY = "perturbed"
_HINT = "Run `bf.tl.perturb(adata, …)` first."


@dataclass(frozen=True)
class GroupEffects:
    """Effects relative to the control cells of each group."""

    genes: Sequence[str]
    """(G,) names of the genes."""
    effects: Mapping[str, NDArray[np.float64]]
    """Effects (G, K) of each group, in log1p units."""


@dataclass(frozen=True)
class Perturbed:
    """Stored effects of K perturbations."""

    names: list[str]
    """(K,) names of the perturbations."""
    effect: NDArray[np.float64]
    """(n_vars, K), effects in log1p units, NaN for genes that are not modelled."""
    se: NDArray[np.float64]
    """(n_vars, K), standard errors of the effects."""


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
    """Write effects (n_vars, K), their standard errors and, if given, the profiles (N, n_vars) of one perturbation."""
    effects = f"{_entry(key)}_effect"
    stored: dict[str, Any] = {
        "names": np.array(list(names), dtype=object).astype(str),
        "evidence": params_to_json(dict(evidence)),
        "params": params_to_json(params | {"effects": effects}),
    }
    if groups is not None:
        stored["groups"] = dict(groups.effects)
        stored["group_genes"] = np.array(list(groups.genes), dtype=object).astype(str)
    layers = {} if profiles is None else {key: profiles}
    write_result(adata, _entry(key), stored, {"layers": layers, "varm": {effects: effect, f"{effects}_se": se}})


def check_perturb_key(adata: Any, key: str, layer: str | None) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    check_key_added(adata, _entry(key), {"layers": [key]}, layer=layer)


def read_perturb(adata: Any, key: str) -> Perturbed:
    """Names and effects of the perturbations that were stored last with this key.

    Raises
    ------
    MissingKeyError
        If there are no effects.
    """
    stored = get_slot(adata, "uns", _entry(key), hint=_HINT)
    name = str(params_from_json(str(stored["params"]))["effects"])
    effect, se = (np.asarray(get_slot(adata, "varm", slot, hint=_HINT)) for slot in (name, f"{name}_se"))
    return Perturbed([str(perturbation) for perturbation in stored["names"]], effect, se)


def read_perturb_names(adata: Any, key: str) -> list[str]:
    """Names of the perturbations that were stored last with this key."""
    return [str(name) for name in get_slot(adata, "uns", _entry(key), hint=_HINT)["names"]]


def read_perturb_evidence(adata: Any, key: str) -> dict[str, Any]:
    """Scores of the cross-validation over targets, as stored in the model."""
    return dict(params_from_json(str(get_slot(adata, "uns", _entry(key), hint=_HINT)["evidence"])))


def read_perturbed_profiles(adata: Any, key: str) -> NDArray[np.float32]:
    """(N, n_vars) predicted log1p profiles of the control cells, NaN for other cells."""
    hint = "Run `bf.tl.perturb(adata, …)` for one perturbation."
    return np.asarray(get_slot(adata, "layers", key, hint=hint))


def _entry(key: str) -> str:
    return "perturb" if key == DEFAULT_KEY else key
