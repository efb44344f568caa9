"""Slots: how results and parameters are stored in an AnnData so that they survive h5ad and zarr."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import ConfigError, DataError, MissingKeyError

logger = logging.getLogger(__name__)

Data = TypeVar("Data")

# "/" parts groups of h5ad and zarr, "\" is read as "/" by zarr, HDF5 knows no NUL; "%" is our own mark
_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f]")
# files of zarr (".zattrs", "zarr.json"), "." and "..", what zarr ("__") and anndata ("_index") reserve
_RESERVED = re.compile(r"\.|__|zarr\.json$|_index$")
_EMPTY = "%"


def escape(name: str) -> str:
    """Make any name usable as a key or column in h5ad and zarr; plain names stay as they are.

    Unsafe characters become ``%`` and two hexadecimal digits. :func:`unescape` is the exact inverse.

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
    """Return the name that :func:`escape` made `key` from."""
    return "" if key == _EMPTY else re.sub("%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), key)


def params_to_json(params: Any) -> str:
    """Write parameters as one JSON string that keeps tuples, None, integer keys, NaN and infinities.

    Parameters
    ----------
    params
        Nested dicts, lists, tuples, strings, numbers (also of numpy), bools and None.

    Raises
    ------
    ConfigError
        If there is a value of another type.

    Examples
    --------
    >>> params_from_json(params_to_json({"steps": (1, None), 3: "x"}))
    {'steps': (1, None), 3: 'x'}
    """
    return json.dumps(_pack(params), allow_nan=False)


def params_from_json(text: str) -> Any:
    """Read back what :func:`params_to_json` wrote; raises :class:`DataError` if `text` is not JSON."""
    try:
        return _unpack(json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError(f"Stored parameters are not valid JSON: {error}.") from error


def actual(adata: Data) -> Data:
    """Return `adata` itself; a view becomes an object of its own first (in place, without a warning).

    Raises
    ------
    DataError
        If `adata` is a view of a backed AnnData, or a view of a MuData.
    """
    if not getattr(adata, "is_view", False):
        return adata
    if not isinstance(adata, AnnData):
        raise DataError("This is a view of a MuData, which cannot take results. Call `.copy()` on it first.")
    if adata.isbacked:
        raise DataError("This is a view of a backed AnnData, which cannot take results. Call `.to_memory()` first.")
    adata._init_as_actual(adata.copy())  # as scanpy does; anndata has no public way that does not warn
    return adata


def target(adata: Data, copy: bool) -> Data:
    """Return the object that a verb writes to: a copy (in memory, if `adata` is backed) or `adata` itself."""
    if not copy:
        return actual(adata)
    backed: Any = adata
    copied: Data = backed.to_memory() if getattr(adata, "isbacked", False) else backed.copy()
    return copied


def set_layer(adata: Any, key: str, value: Any) -> str:
    """Set ``adata.layers[key]``; see :func:`set_uns` for keys and what is returned."""
    return _set(adata, "layers", key, value)


def set_obs(adata: Any, key: str, value: Any) -> str:
    """Set the column ``adata.obs[key]``; see :func:`set_uns` for keys and what is returned."""
    return _set(adata, "obs", key, value)


def set_var(adata: Any, key: str, value: Any) -> str:
    """Set the column ``adata.var[key]``; see :func:`set_uns` for keys and what is returned."""
    return _set(adata, "var", key, value)


def set_obsm(adata: Any, key: str, value: Any) -> str:
    """Set ``adata.obsm[key]``; see :func:`set_uns` for keys and what is returned."""
    return _set(adata, "obsm", key, value)


def set_varm(adata: Any, key: str, value: Any) -> str:
    """Set ``adata.varm[key]``; see :func:`set_uns` for keys and what is returned."""
    return _set(adata, "varm", key, value)


def set_varp(adata: Any, key: str, value: Any) -> str:
    """Set ``adata.varp[key]``; see :func:`set_uns` for keys and what is returned."""
    return _set(adata, "varp", key, value)


def set_uns(adata: Any, key: str, value: Any) -> str:
    """Set ``adata.uns[key]``.

    Every ``set_`` function takes the plain key and escapes it, and with it the keys of nested dicts and the columns of
    data frames in `value`. What was there is overwritten and logged. A view becomes an object of its own.

    Returns
    -------
    str
        The key as it was written.

    Raises
    ------
    ConfigError
        If a nested dict has keys that are not strings: h5ad and zarr would not keep them.
    """
    return _set(adata, "uns", key, value)


def get_slot(adata: Any, slot: str, key: str, *, hint: str = "") -> Any:
    """Read ``adata.<slot>[key]`` by the plain key; names inside dicts and data frames come back plain.

    Parameters
    ----------
    adata
        AnnData or MuData.
    slot
        "uns", "obsm", "layers", ...
    key
        The plain key, as it was given to the ``set_`` function.
    hint
        The next call, e.g. "Run `bf.tl.fit(adata)` first.", added to the message of the error.

    Raises
    ------
    MissingKeyError
        If the key is not there; the message lists the keys that are.
    DataError
        If `adata` has no such slot, thus is no AnnData.
    """
    if not hasattr(adata, slot):
        raise DataError(f"Expected an AnnData, found {type(adata).__name__}.")
    mapping = getattr(adata, slot)
    if escape(key) not in mapping:
        there = [
            unescape(str(name)) for name in mapping if name is not None
        ]  # None: X among the layers of anndata 0.13
        raise MissingKeyError(f"Did not find adata.{slot}[{key!r}]. {hint}{' ' if hint else ''}There: {there}.")
    return _rename(mapping[escape(key)], unescape)


def get_column(adata: Any, key: str) -> pd.Series[Any]:
    """The column ``adata.var[key]``: by the name as the user wrote it, else by the name that we gave it.

    Raises
    ------
    MissingKeyError
        If it is not there.
    """
    column: pd.Series[Any] = adata.var[key] if key in adata.var else get_slot(adata, "var", key)
    return column


def drop_slot(adata: Any, slot: str, key: str) -> None:
    """Remove ``adata.<slot>[key]`` by the plain key, if it is there."""
    mapping = getattr(actual(adata), slot)
    if escape(key) in mapping:
        del mapping[escape(key)]


def _set(adata: Any, slot: str, key: str, value: Any) -> str:
    mapping, escaped = getattr(actual(adata), slot), escape(key)
    if escaped in mapping:
        logger.info("Overwriting adata.%s[%r].", slot, escaped)
    mapping[escaped] = _rename(value, escape)
    return escaped


def _rename(value: Any, rename: Any) -> Any:
    """Apply `rename` to the keys of dicts and the columns of data frames, at any depth; leave the input alone."""
    if isinstance(value, pd.DataFrame):
        return value.rename(columns=lambda name: rename(str(name)))
    if not isinstance(value, Mapping):
        return value
    wrong = [key for key in value if not isinstance(key, str)]
    if wrong:
        raise ConfigError(f"Keys of stored dicts must be strings, found {wrong[:3]}. Store them by `params_to_json`.")
    return {rename(key): _rename(item, rename) for key, item in value.items()}


def _percent(character: str) -> str:
    return f"%{ord(character):02X}"


def _pack(value: Any) -> Any:
    """Plain JSON for anything that `params_to_json` takes; what JSON lacks becomes a dict with one tag."""
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
        f"Parameters are dicts, lists, tuples, strings, numbers, bools or None, found {type(value).__name__}."
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
