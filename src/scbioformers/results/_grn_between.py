"""Networks between two modalities of a MuData: all in ``uns[key]``, because ``varp`` has no pairs of two modalities.

They are read as an AnnData of the features of both, without cells, whose slots are those of other networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import ConfigError, MissingKeyError
from scbioformers.data import SLOTS, open_modality
from scbioformers.results._grn import ConditionGRN, read_grn_params, write_grn
from scbioformers.results._query_parts import ModalityPair
from scbioformers.results._slots import get_slot, set_slot, unescape, write_result


def write_grn_between(
    mdata: MuData,
    key: str,
    features: Sequence[str],
    networks: Mapping[str, ConditionGRN],
    edges: pd.DataFrame,
    params: dict[str, Any],
) -> None:
    """Write the networks of all conditions. ``features`` are the qualified names of their rows and columns.

    An earlier result with the same key is overwritten. ``params["modalities"]`` are the two modalities.
    """
    whole = _without_cells(features)
    write_grn(whole, key, networks, edges, params)
    (stored,) = whole.uns.values()
    entry = {name: value for name, value in stored.items() if name != SLOTS}
    columns = {str(name): whole.var[name].to_numpy() for name in whole.var}
    slots = {"varp": dict(whole.varp), "var": columns} if columns else {"varp": dict(whole.varp)}
    plain = {slot: {unescape(name): value for name, value in values.items()} for slot, values in slots.items()}
    write_result(mdata, key, {**entry, "features": np.array(features, dtype=str), **plain})


def open_grn(data: AnnData | MuData, modality: ModalityPair | None, key: str) -> AnnData:
    """The data with the network that is meant: an AnnData, a modality of a MuData, or the features of two modalities.

    Raises
    ------
    ConfigError, MissingKeyError
        As in :func:`open_modality`, and if there is no network between the two modalities.
    """
    if modality is None or isinstance(modality, str) or not isinstance(data, MuData):
        if modality is None and isinstance(data, MuData) and len(data.mod) > 1:
            names = list(data.mod)
            raise ConfigError(
                f"The MuData has the modalities {names}. Pass one of them as `modality=`, such as "
                f"`modality={names[0]!r}`, or two for a network between them."
            )
        return open_modality(data, modality)  # type: ignore[arg-type]
    pair = tuple(modality)
    hint = f"Run `bf.tl.grn(mdata, modality={pair!r}, key_added={key!r})` first."
    stored = get_slot(data, "uns", key, hint=hint)
    if "features" not in stored:
        raise MissingKeyError(f"mdata.uns[{key!r}] holds no network between two modalities. {hint}")
    whole = _without_cells([str(name) for name in stored["features"]])
    set_slot(whole, "uns", key, {"edges": stored["edges"], "params": stored["params"]})
    found = tuple(read_grn_params(whole, key)["modalities"])
    if found != pair:
        raise MissingKeyError(f"mdata.uns[{key!r}] has the network of `modality={found!r}`, not of {pair!r}. {hint}")
    for name, matrix in stored["varp"].items():
        set_slot(whole, "varp", name, matrix)
    for name, column in stored.get("var", {}).items():
        set_slot(whole, "var", name, np.asarray(column))
    return whole


def _without_cells(features: Sequence[str]) -> AnnData:
    return AnnData(var=pd.DataFrame(index=pd.Index(list(features), dtype=str)))
