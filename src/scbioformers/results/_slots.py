"""Functions to write and read slots of an AnnData, so that they can be saved as h5ad and zarr without loss."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData

from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.data import SLOTS, own_layers, seem_counts, with_modality
from scbioformers.results._target import actual

logger = logging.getLogger(__name__)

# "/" separates groups in h5ad and zarr, zarr converts "\" to "/", HDF5 does not allow NUL, "%" is the escape character
_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f]")
# zarr metadata files (".zattrs", "zarr.json"), "." and "..", names reserved by zarr ("__") and anndata ("_index")
_RESERVED = re.compile(r"\.|__|zarr\.json$|_index$")
_EMPTY = "%"


def escape(name: str) -> str:
    """Make any name usable as a key or column in h5ad and zarr. Names without special characters do not change.

    Unsafe characters are replaced by ``%`` and two hexadecimal digits. :func:`unescape` is the exact inverse.

    Examples
    --------
    >>> escape("CD4+/CD25 T Reg"), escape("CD14+ Monocyte"), escape("")
    ('CD4+%2FCD25 T Reg', 'CD14+ Monocyte', '%')
    >>> unescape("CD4+%2FCD25 T Reg")
    'CD4+/CD25 T Reg'
    """
    if not name:
        return _EMPTY
    escaped = _UNSAFE.sub(lambda found: _percent(found[0]), name)
    return _percent(name[0]) + escaped[1:] if _RESERVED.match(name) else escaped


def unescape(key: str) -> str:
    """Inverse of :func:`escape`."""
    return "" if key == _EMPTY else re.sub("%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), key)


def params_to_json(params: Any) -> str:
    """Convert parameters to one JSON string that preserves tuples, None, integer keys, NaN and infinity.

    Parameters
    ----------
    params
        Nested dicts, lists, tuples, strings, numbers (also numpy numbers), bools and None.

    Raises
    ------
    ConfigError
        If a value has another type.

    Examples
    --------
    >>> params_from_json(params_to_json({"steps": (1, None), 3: "x"}))
    {'steps': (1, None), 3: 'x'}
    """
    return json.dumps(_pack(params), allow_nan=False)


def params_from_json(text: str) -> Any:
    """Inverse of :func:`params_to_json`. Raises :class:`DataError` if `text` is not JSON."""
    try:
        return _unpack(json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError(f"Stored parameters are not valid JSON: {error}.") from error


def check_key_added(
    adata: Any,
    key: str,
    slots: Mapping[str, Collection[str]] | None = None,
    *,
    layer: str | None = None,
    inputs: Collection[str] = (),
    new_model: bool = False,
) -> None:
    """Check, before any work, that a result may be stored under these keys.

    Parameters
    ----------
    adata
        The object to write to.
    key
        Key of the result in ``uns``.
    slots
        Keys of the result in the other slots, such as ``{"layers": ["imputed"]}``.
    layer
        The layer that is read to compute the result.
    inputs
        Keys in ``uns`` of the results that are read to compute it.
    new_model
        Whether the result is itself a fitted model, which may replace another one.

    Raises
    ------
    ConfigError
        If the result would overwrite a fitted model, a layer or column that a model was fitted with, what it is
        computed from, a layer with raw counts, or a part of a result with another key.
    """
    models = dict(_models(adata))
    if escape(key) in models and not new_model:
        raise ConfigError(
            f"adata.uns[{key!r}] holds a fitted model, which the result would overwrite. Pass another name as "
            "`key_added=`."
        )
    if key in inputs:
        raise ConfigError(
            f"The result is computed from adata.uns[{key!r}] and would overwrite it. Pass another name as `key_added=`."
        )
    owners = _owners(adata, other_than=key)
    used: dict[str, set[str | None]] = {"layers": {layer}, "var": set(), "obs": set()}
    for params in models.values():
        used["layers"].add(params.get("layer"))
        used["var"].add(params.get("mask_var"))
        used["obs"] |= {params.get("batch_key"), *(params.get("phenotype_keys") or ())}
    for slot, names in (slots or {}).items():
        for name in names:
            if name in used.get(slot, ()):
                what = "a model was fitted with, or which is read now"
            elif slot == "layers" and _holds_counts(adata, name):
                what = "seems to hold raw counts"
            elif (owner := owners.get(f"{slot}/{escape(name)}")) is not None:
                what = f"belongs to the result with the key {owner!r}"
            else:
                continue
            raise ConfigError(
                f"The result would overwrite adata.{slot}[{name!r}], which {what}. Pass another name as `key_added=`."
            )


def write_result(
    adata: Any,
    key: str,
    entry: Mapping[str, Any],
    slots: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    new_model: bool = False,
) -> None:
    """Write a result: its entry in ``uns[key]``, and what it has in other slots. All verbs write through this function.

    The entry lists these slots. So everything that an earlier result with the same key has stored is removed, for
    instance a layer with standard deviations that the new result does not have.

    Parameters
    ----------
    adata
        The object to write to.
    key
        Key of the result in ``uns``.
    entry
        What to store there.
    slots
        Values to store in other slots, such as ``{"layers": {"imputed": values}}``.
    new_model
        Whether the result is a fitted model.

    Raises
    ------
    ConfigError
        As in :func:`check_key_added`.
    """
    slots = slots or {}
    check_key_added(adata, key, slots, new_model=new_model)
    names = [f"{slot}/{escape(name)}" for slot, values in slots.items() for name in values]
    earlier = adata.uns.get(escape(key))
    if isinstance(earlier, Mapping):
        for stale in set(map(str, earlier.get(SLOTS, ()))) - set(names):
            slot, _, escaped = stale.partition("/")
            if escaped in getattr(adata, slot):
                logger.info("Removing adata.%s[%r], which belongs to an earlier result.", slot, escaped)
                del getattr(actual(adata), slot)[escaped]
    for slot, values in slots.items():
        for name, value in values.items():
            set_slot(adata, slot, name, value)
    set_slot(adata, "uns", key, {**entry, SLOTS: np.array(names, dtype=str)} if names else entry)


def set_slot(adata: Any, slot: str, key: str, value: Any) -> str:
    """Set ``adata.<slot>[key]``, the inverse of :func:`get_slot`.

    The key, the keys of nested dicts and the columns of data frames in `value` are escaped. An existing value is
    overwritten, which is logged. A view is converted to an actual AnnData.

    Returns
    -------
    str
        The escaped key.

    Raises
    ------
    ConfigError
        If a nested dict has keys that are not strings, because h5ad and zarr do not preserve them.
    """
    mapping, escaped = getattr(actual(adata), slot), escape(key)
    if escaped in mapping:
        logger.info("Overwriting adata.%s[%r].", slot, escaped)
    mapping[escaped] = rename_keys(value)
    return escaped


def get_slot(adata: Any, slot: str, key: str, *, hint: str = "") -> Any:
    """Return ``adata.<slot>[key]`` for a plain key. Names inside dicts and data frames are unescaped too.

    Parameters
    ----------
    adata
        AnnData or MuData.
    slot
        "uns", "obsm", "layers", ...
    key
        The plain key, as it was passed to :func:`set_slot`.
    hint
        The next call, e.g. "Run `bf.tl.fit(adata)` first.", which is added to the error message.

    Raises
    ------
    MissingKeyError
        If there is no such key. The message lists the existing keys.
    DataError
        If `adata` has no such slot and is therefore not an AnnData.
    """
    if not hasattr(adata, slot):
        raise DataError(f"Expected an AnnData, found {type(adata).__name__}.")
    mapping = getattr(adata, slot)
    if escape(key) not in mapping:
        # anndata 0.13 lists X among the layers as None
        keys = [unescape(str(name)) for name in mapping if name is not None]
        own = [name for name, part in getattr(adata, "mod", {}).items() if escape(key) in getattr(part, slot)]
        if own:
            hint = f"mdata[{own[0]!r}] has it: pass `mdata[{own[0]!r}]` instead of the MuData."
        message = f"Did not find adata.{slot}[{key!r}]. {hint}{' ' if hint else ''}Available: {keys}."
        raise MissingKeyError(with_modality(message, None) if isinstance(adata, MuData) else message)
    return _rename(mapping[escape(key)], unescape)


def get_column(adata: Any, key: str) -> pd.Series[Any]:
    """Return the column ``adata.var[key]``, or the column of a result that was stored with this key.

    Raises
    ------
    MissingKeyError
        If there is no such column.
    """
    column: pd.Series[Any] = adata.var[key] if key in adata.var else get_slot(adata, "var", key)
    return column


def rename_keys(value: Any) -> Any:
    """A copy of `value` with escaped keys of dicts and columns of data frames, at any depth."""
    return _rename(value, escape)


def _models(adata: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and parameters of each fitted model in ``uns``."""
    for key, entry in adata.uns.items():
        if isinstance(entry, Mapping) and "model_hash" in entry and {"model", "model_dir"} & set(entry):
            yield str(key), dict(params_from_json(str(entry["params"]))) if "params" in entry else {}


def _owners(adata: Any, *, other_than: str) -> dict[str, str]:
    """The key of the result to which each slot belongs. With separators in names, two results could share a slot."""
    entries = {unescape(str(key)): entry for key, entry in adata.uns.items() if isinstance(entry, Mapping)}
    return {
        str(name): key for key, entry in entries.items() if key != other_than for name in np.ravel(entry.get(SLOTS, ()))
    }


def _holds_counts(adata: Any, name: str) -> bool:
    """Whether a layer seems to hold raw counts of the user. A layer that a verb has written is none."""
    if escape(name) in own_layers(adata) or escape(name) not in adata.layers:
        return False
    return seem_counts(adata.layers[escape(name)])


def _rename(value: Any, rename: Any) -> Any:
    """Apply `rename` to keys of dicts and columns of data frames at any depth. The input is not changed."""
    if isinstance(value, pd.DataFrame):
        return value.rename(columns=lambda name: rename(str(name)))
    if not isinstance(value, Mapping):
        return value
    wrong = [key for key in value if not isinstance(key, str)]
    if wrong:
        raise ConfigError(f"Keys of stored dicts must be strings, found {wrong[:3]}. Use `params_to_json` for them.")
    return {rename(key): _rename(item, rename) for key, item in value.items()}


def _percent(character: str) -> str:
    return f"%{ord(character):02X}"


def _pack(value: Any) -> Any:
    """Convert to plain JSON types. Types that JSON lacks become a dict with one key, which is the tag of the type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": repr(value)}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _pack(item) for key, item in value.items()}
        return {"__dict__": [[_pack(key), _pack(item)] for key, item in value.items()]}
    raise ConfigError(
        f"Parameters must be dicts, lists, tuples, strings, numbers, bools or None, found {type(value).__name__}."
    )


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"__float__": text}:
            return float(text)
        case {"__tuple__": items}:
            return tuple(_unpack(item) for item in items)
        case {"__dict__": pairs}:
            return {_unpack(key): _unpack(item) for key, item in pairs}
    return {key: _unpack(item) for key, item in value.items()}
