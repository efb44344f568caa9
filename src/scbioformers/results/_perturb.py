"""Predicted responses: effects in ``varm``, profiles in ``layers[key]``, names and evidence in ``uns``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import MissingKeyError
from scbioformers.data import GeneNames
from scbioformers.results._gene_names import result_genes
from scbioformers.results._slots import check_key_added, get_slot, params_from_json, params_to_json, write_result

DEFAULT_KEY = "perturbed"
DEFAULT_ENTRY = "perturb"
_HINT = "Run `bf.tl.perturb(adata, 'all')` first."


@dataclass(frozen=True)
class Perturbed:
    """Effects of K perturbations in log1p units. G of the genes of the data are modelled."""

    names: list[str]
    """(K,) names of the perturbations."""
    own_genes: list[list[str]]
    """(K,) genes that each perturbation hits."""
    seen: NDArray[np.bool_]
    """(K,), whether the training data have cells with exactly this perturbation."""
    effect: NDArray[np.float64]
    """(n_vars, K), effects, NaN for genes that are not modelled."""
    se: NDArray[np.float64]
    """(n_vars, K), standard errors of the effects."""
    genes: list[str]
    """(G,) names of the modelled genes."""
    cross_validated: Mapping[str, NDArray[np.float64]]
    """(G,) effect of each seen perturbation, predicted without its own cells."""
    observed: Mapping[str, NDArray[np.float64]]
    """(G,) measured effect of each perturbation that has cells in the data."""
    groups: Mapping[str, NDArray[np.float64]]
    """(G, K), effects relative to the control cells of each group, by the name of the group."""


def write_perturb(
    adata: Any,
    key: str,
    result: Perturbed,
    *,
    evidence: Mapping[str, Any],
    params: dict[str, Any],
    profiles: NDArray[np.float32] | None,
) -> None:
    """Write effects and, if given, the profiles (N, n_vars) of one perturbation.

    Names are values and not keys, so none of them is escaped.
    """
    effects = f"{_entry(key)}_effect"
    stored: dict[str, Any] = {
        "names": _texts(result.names),
        "own_genes": params_to_json(result.own_genes),
        "seen": np.asarray(result.seen, dtype=bool),
        "genes": _texts(result.genes),
        "evidence": params_to_json(dict(evidence)),
        "params": params_to_json(params | {"effects": effects}),
    }
    parts = {"cross_validated": result.cross_validated, "observed": result.observed, "group": result.groups}
    for part, values in parts.items():
        if values:
            stored |= {f"{part}_names": _texts(list(values)), f"{part}_effects": np.stack(list(values.values()))}
    layers = {} if profiles is None else {_layer(key): profiles}
    write_result(
        adata, _entry(key), stored, {"layers": layers, "varm": {effects: result.effect, f"{effects}_se": result.se}}
    )


def check_perturb_key(adata: Any, key: str, layer: str | None) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    check_key_added(adata, _entry(key), {"layers": [_layer(key)]}, layer=layer)


def read_perturb(adata: Any, key: str) -> Perturbed:
    """The result that was stored last with this key.

    Raises
    ------
    MissingKeyError
        If there are no effects, or another version of the package stored them.
    """
    stored = get_slot(adata, "uns", _entry(key), hint=_HINT)
    if lacking := {"names", "own_genes", "seen", "genes", "params"} - set(stored):
        raise MissingKeyError(
            f"adata.uns[{_entry(key)!r}] lacks {sorted(lacking)}; another version may have written it. "
            "Run `bf.tl.perturb(adata, 'all')` again."
        )
    name = str(params_from_json(str(stored["params"]))["effects"])
    effect, se = (np.asarray(get_slot(adata, "varm", slot, hint=_HINT)) for slot in (name, f"{name}_se"))

    def part(name: str) -> dict[str, NDArray[np.float64]]:
        names = [str(each) for each in stored.get(f"{name}_names", ())]
        return dict(zip(names, np.asarray(stored.get(f"{name}_effects", ())), strict=True))

    return Perturbed(
        names=[str(perturbation) for perturbation in stored["names"]],
        own_genes=params_from_json(str(stored["own_genes"])),
        seen=np.asarray(stored["seen"], dtype=bool),
        effect=effect,
        se=se,
        genes=[str(gene) for gene in stored["genes"]],
        cross_validated=part("cross_validated"),
        observed=part("observed"),
        groups=part("group"),
    )


def perturb_genes(adata: Any, key: str, gene_symbols: str | None = None) -> GeneNames:
    """Names of the genes for the result of this key, see :func:`result_genes`."""
    return result_genes(adata, _entry(key), gene_symbols)


def read_perturb_names(adata: Any, key: str) -> list[str]:
    """Names of the perturbations that were stored last with this key."""
    return [str(name) for name in get_slot(adata, "uns", _entry(key), hint=_HINT)["names"]]


def read_perturb_evidence(adata: Any, key: str) -> dict[str, Any]:
    """Scores of the cross-validation over targets, as stored in the model."""
    return dict(params_from_json(str(get_slot(adata, "uns", _entry(key), hint=_HINT)["evidence"])))


def read_perturbed_profiles(adata: Any, key: str) -> NDArray[np.float32]:
    """(N, n_vars) predicted log1p profiles of the control cells, NaN for other cells."""
    hint = "Run bf.tl.perturb for one perturbation."
    return np.asarray(get_slot(adata, "layers", _layer(key), hint=hint))


def _entry(key: str) -> str:
    return DEFAULT_ENTRY if key == DEFAULT_KEY else key


def _layer(key: str) -> str:
    # the entry of the default result is named as no other key: both names mean the same result
    return DEFAULT_KEY if key == DEFAULT_ENTRY else key


def _texts(names: Sequence[str]) -> NDArray[Any]:
    return np.array(list(names), dtype=object).astype(str)
