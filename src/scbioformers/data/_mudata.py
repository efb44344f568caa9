"""Modalities of a MuData: which are read, which samples they have, and arguments that are given for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError, warn

P = ParamSpec("P")
R = TypeVar("R")


def with_modality(text: str, modality: str | None) -> str:
    """A message about an AnnData, for the user of a MuData of which it is a modality. None: of the MuData itself.

    Examples
    --------
    >>> with_modality("Did not find adata.uns['grn']. Run `bf.tl.grn(adata)` first.", "rna")
    "Did not find mdata['rna'].uns['grn']. Run `bf.tl.grn(mdata, modality='rna')` first."
    """
    owner = "mdata" if modality is None else f"mdata[{modality!r}]"
    text = re.sub(r"\badata\.", f"{owner}.", text)
    added = "" if modality is None else f", modality={modality!r}"
    text = re.sub(r"bf\.tl\.(impute|counterfactual)\(adata", r"bf.tl.\1(mdata", text)  # they predict all modalities
    return re.sub(r"\(adata([^`]*)\)", rf"(mdata\1{added})", text)


def names_modality(function: Callable[P, R]) -> Callable[P, R]:
    """A function of an AnnData or a MuData whose errors say what is missing in the modality, and what to call."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (MissingKeyError, DataError) as error:
            data, name = args[0] if args else kwargs.get("adata"), kwargs.get("modality")
            names = list(data.mod) if isinstance(data, MuData) else []
            name = names[0] if name is None and len(names) == 1 else name
            if not isinstance(name, str) or name not in names:
                raise
            raise type(error)(with_modality(str(error), name)) from error

    return call


def choose_modalities(mdata: MuData, given: Sequence[str] | None = None) -> list[str]:
    """Names of the modalities to read: those that are given, or all, in their order.

    Raises
    ------
    ConfigError
        If a name is given twice, none is given, or a name has a colon.
    MissingKeyError
        If there is no such modality.
    DataError
        If the modalities share features and not samples.
    """
    if mdata.axis != 0:
        raise DataError(
            f"The modalities of this MuData share features (axis={mdata.axis}), expected shared samples. Make it with "
            "`MuData({...})`, whose axis is 0."
        )
    names = list(mdata.mod) if given is None else list(given)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"`modalities` must be different names, at least one of {list(mdata.mod)}, found {names}.")
    if unknown := [name for name in names if name not in mdata.mod]:
        raise MissingKeyError(f"The MuData has no modality {unknown[0]!r}. It has {list(mdata.mod)}.")
    if wrong := [name for name in names if ":" in name or not name]:
        raise ConfigError(
            f"A modality needs a name without ':', found {wrong[0]!r}. Make a MuData with another name, "
            f"`MuData({{'name': mdata[{wrong[0]!r}], ...}})`."
        )
    return names


def open_modality(data: AnnData | MuData, modality: str | None) -> AnnData:
    """One modality of a MuData, or the AnnData that is passed instead. None means the only modality.

    Raises
    ------
    ConfigError
        If there are several modalities and none is named, or one is named and the data are an AnnData.
    MissingKeyError
        If there is no such modality.
    """
    if not isinstance(data, MuData):
        if modality is not None:
            raise ConfigError(f"`modality` names a part of a MuData, found {modality!r} and an AnnData. Leave it out.")
        return data
    names = list(data.mod)
    if modality is None and len(names) != 1:
        first = f", such as `modality={names[0]!r}`" if names else ""
        raise ConfigError(f"The MuData has the modalities {names}. Pass one of them as `modality=`{first}.")
    (name,) = choose_modalities(data, None if modality is None else [modality])
    part: Any = data.mod[name]
    return part


def modality_rows(mdata: MuData, name: str) -> NDArray[np.int64]:
    """(n_obs,) row of each sample in a modality, -1 if the modality does not have it.

    Raises
    ------
    DataError
        If names of samples occur more than once in the modality.
    """
    names = pd.Index(mdata[name].obs_names)
    if not names.is_unique:
        raise DataError(
            f"Names of samples occur more than once in the modality {name!r}, such as "
            f"{str(names[names.duplicated()][0])!r}. Call `mdata[{name!r}].obs_names_make_unique()`, then make the "
            "MuData again, so that samples of several modalities have the same name."
        )
    return np.asarray(names.get_indexer(pd.Index(mdata.obs_names)), np.int64)


def warn_of_samples(rows: Mapping[str, NDArray[np.int64]], mdata: MuData) -> None:
    """Warn if no sample is measured in two modalities, and of samples that are measured in none."""
    measured = np.stack([each >= 0 for each in rows.values()])
    if len(rows) > 1 and not (measured.sum(axis=0) > 1).any():
        examples = {name: str(mdata[name].obs_names[0]) for name in rows}
        warn(
            f"No sample is measured in more than one of the modalities {list(rows)}: their names differ, such as "
            f"{examples}. One modality cannot be predicted from another. If these are the same samples, give them the "
            "same `obs_names` and make the MuData again."
        )
    if n := int((~measured.any(axis=0)).sum()):
        warn(
            f"{n} of {measured.shape[1]} samples are measured in none of the modalities {list(rows)}. They are not "
            "used in training, and read as samples of which nothing is known."
        )


def refuse_dicts(**arguments: Any) -> None:
    """Check that arguments of a call on an AnnData are not those of modalities.

    Raises
    ------
    ConfigError
        If ``modalities`` is given, or an argument is a dict.
    """
    for name, value in arguments.items():
        if name in ("modalities", "modality") and value is not None:
            raise ConfigError(f"`{name}` is for a MuData, found {value!r} with an AnnData. Leave it out.")
        if isinstance(value, Mapping):
            raise ConfigError(
                f"`{name}` is a dict of modalities, found with an AnnData. Pass the MuData, or the value of this "
                "modality."
            )


def of_modality(argument: str, value: Any, names: Sequence[str], default: Any = None) -> dict[str, Any]:
    """The value of an argument for each modality, from a dict by modality. A single value is that of one modality.

    Raises
    ------
    ConfigError
        If a dict has other modalities, or a single value is given for several ones.

    Examples
    --------
    >>> of_modality("layer", {"rna": "counts"}, ["rna", "prot"])
    {'rna': 'counts', 'prot': None}
    """
    if isinstance(value, Mapping):
        if unknown := [key for key in value if key not in names]:
            raise ConfigError(f"`{argument}` has the modality {unknown[0]!r}; the modalities are {list(names)}.")
        return {name: value.get(name, default) for name in names}
    if value is default or (isinstance(value, str) and value == default):
        return dict.fromkeys(names, default)
    if len(names) == 1:
        return {names[0]: value}
    raise ConfigError(
        f"`{argument}` must say what it means for each of the modalities {list(names)}: pass a dict such as "
        f"`{argument}={{{names[0]!r}: ...}}`."
    )
