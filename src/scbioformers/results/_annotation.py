"""Labels of cells: two columns of ``obs``, all probabilities in ``obsm``, colours, and evidence in ``uns``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import ConfigError, MissingKeyError, category_text
from scbioformers.results._slots import (
    check_key_added,
    escape,
    get_slot,
    params_from_json,
    params_to_json,
    write_result,
)

UNKNOWN = "unknown"  # label of cells that are unlike all labelled ones
UNKNOWN_COLOUR = "#b3b3b3"


def annotation_key(label_key: str, key: str | None) -> str:
    """Key of the result: the given one, or the default."""
    return f"bioformer_{label_key}" if key is None else key


def check_annotation_key(adata: Any, key: str, label_key: str) -> None:
    """Check that the results may be stored under this key, see :func:`check_key_added`."""
    if label_key in (key, _probability(key)):
        raise ConfigError(
            f"The result would overwrite adata.obs[{label_key!r}], the given labels. Pass another name as `key_added=`."
        )
    check_key_added(adata, key, {"obs": [key, _probability(key)], "obsm": [_probabilities(key)]})


def write_annotation(
    adata: Any,
    key: str,
    codes: NDArray[np.int64],
    categories: Sequence[str],
    probability: NDArray[np.float32],
    *,
    probabilities: NDArray[np.float32] | None,
    colours: Mapping[str, str],
    params: dict[str, Any],
    evidence: Mapping[str, Any],
) -> None:
    """Write the label of each cell (N,), -1 for "unknown", and its probability (N,).

    ``probabilities`` (N, K) are those of all categories, None if they are not to be stored. ``colours`` are empty if
    they are not known.
    """
    unknown = bool((codes < 0).any())
    shown = [*categories, *[UNKNOWN] * unknown]
    labels = pd.Categorical.from_codes(np.where(codes < 0, len(categories), codes), categories=pd.Index(shown))
    slots: dict[str, dict[str, Any]] = {"obs": {key: labels, _probability(key): probability}}
    if probabilities is not None:
        table = pd.DataFrame(probabilities, index=adata.obs_names, columns=list(categories))
        slots["obsm"] = {_probabilities(key): table}
    if colours:
        slots["uns"] = {f"{key}_colors": np.array([colours.get(name, UNKNOWN_COLOUR) for name in shown], dtype=str)}
    entry = {"params": params_to_json(params), "evidence": params_to_json(dict(evidence))}
    write_result(adata, key, entry, slots)


def write_number(adata: Any, key: str, values: NDArray[np.float32], params: dict[str, Any]) -> None:
    """Write a predicted number of each cell (N,)."""
    write_result(adata, key, {"params": params_to_json(params)}, {"obs": {key: values}})


def read_annotation(adata: Any, label_key: str, key: str | None = None) -> pd.DataFrame:
    """Table (N, 2 + K): ``label``, ``probability`` and, where they are stored, the probabilities of K categories.

    Raises
    ------
    MissingKeyError
        If there is no such result.
    """
    key = annotation_key(label_key, key)
    hint = _hint(label_key)
    columns = {
        "label": get_slot(adata, "obs", key, hint=hint),
        "probability": get_slot(adata, "obs", _probability(key), hint=hint),
    }
    table = pd.DataFrame(columns, index=adata.obs_names)
    if escape(_probabilities(key)) in adata.obsm:
        table = pd.concat([table, get_slot(adata, "obsm", _probabilities(key))], axis=1)
    return table


def read_annotation_evidence(adata: Any, label_key: str, key: str | None = None) -> dict[str, Any]:
    """The evidence, as plain JSON types.

    Raises
    ------
    MissingKeyError
        If there is no such result, or if it has no evidence: those of another verb are stored under this key.
    """
    key = annotation_key(label_key, key)
    stored = get_slot(adata, "uns", key, hint=_hint(label_key))
    try:
        found = dict(params_from_json(str(stored["evidence"])))
        return found if {"confusion", "rows", "columns"} <= set(found) else _refuse(key, label_key)
    except (KeyError, TypeError, ValueError):
        return _refuse(key, label_key)


def read_label_colours(adata: Any, label_key: str) -> dict[str, str]:
    """Colour of each category of ``adata.obs[label_key]`` in scanpy's ``uns``, empty if there are none that fit."""
    column, colours = adata.obs.get(label_key), adata.uns.get(f"{label_key}_colors")
    if colours is None or not isinstance(getattr(column, "dtype", None), pd.CategoricalDtype):
        return {}
    names = [category_text(name) for name in column.cat.categories]
    return dict(zip(names, map(str, colours), strict=True)) if len(names) == len(colours) else {}


def _refuse(key: str, label_key: str) -> dict[str, Any]:
    raise MissingKeyError(f"adata.uns[{key!r}] holds no labels with evidence. {_hint(label_key)}")


def _hint(label_key: str) -> str:
    return f"Run `bf.tl.annotate(adata, {label_key!r})` first."


def _probability(key: str) -> str:
    return f"{key}_probability"


def _probabilities(key: str) -> str:
    return f"{key}_probabilities"
