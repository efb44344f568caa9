"""Heads that are added to a model after its fit: ``uns[key]["heads"]``, beside the model and never in its bytes.

So a head can be added to a model that lies in a directory, or that was passed as ``model=``, without a change of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData

from scbioformers.core import ConfigError
from scbioformers.model import BioFormer, Head
from scbioformers.results._model import HEADS, MAX_BYTES_IN_UNS, ModelLike, read_heads
from scbioformers.results._slots import escape, get_slot, rename_keys, write_result
from scbioformers.results._target import actual


def check_head_storage(adata: Any, key: str, model: BioFormer, given: ModelLike | None) -> None:
    """Check, before any work, that a head of ``model`` may be stored in ``adata.uns[key]``.

    Parameters
    ----------
    model
        The model that the head is for.
    given
        What was passed as ``model=``, None for the model in ``adata.uns[key]``.

    Raises
    ------
    ConfigError
        If ``adata.uns[key]`` holds another network, or if the given model is too large to be stored there.
    """
    if given is None:
        return
    found = _entry(adata, key)
    if "model_hash" in found and str(found["model_hash"]) != model.hash:
        raise ConfigError(
            f"adata.uns[{key!r}] holds another model (hash {str(found['model_hash'])[:12]}) than the one that is "
            f"passed as `model=` (hash {model.hash[:12]}). The labels are learned for the passed model and stored with "
            f"it: pass another name, such as `key={key + '_reference'!r}`."
        )
    if "model_hash" not in found and _directory(given, key) is None:
        size = len(replace(model, heads={}).to_bytes())
        if size > MAX_BYTES_IN_UNS:
            raise ConfigError(
                f"The model takes {size / 2**20:.0f} MB, more than the {MAX_BYTES_IN_UNS / 2**20:.0f} MB that are "
                "allowed in adata.uns. Save it, `model.save(directory)`, and pass `model=directory`."
            )


def store_head(adata: Any, key: str, model: BioFormer, given: ModelLike | None, name: str, head: Head) -> None:
    """Store a head in ``uns[key]``. If no model is there yet, the given one is stored as well, or its directory."""
    if "model_hash" not in _entry(adata, key):
        if given is None:
            raise ConfigError(f"adata.uns[{key!r}] holds no model, so no head can be added to it.")
        directory, entry = _directory(given, key), {"model_hash": model.hash}
        if directory is None:
            # all heads go where heads are added, so that none is stored twice
            stored = np.frombuffer(replace(model, heads={}).to_bytes(), dtype=np.uint8).copy()
            write_result(adata, key, {"model": stored, **entry}, new_model=True)
            for other, value in model.heads.items():
                _write(adata, key, other, value)
        else:
            write_result(adata, key, {"model_dir": directory, **entry}, new_model=True)
            if isinstance(given, AnnData | MuData):  # those in the directory itself are found there
                for other, value in added_heads(given, key, model).items():
                    _write(adata, key, other, value)
    _write(adata, key, name, head)


def _write(adata: Any, key: str, name: str, head: Head) -> None:
    uns = actual(adata).uns
    entry = uns[escape(key)]
    value = {"config": json.dumps(head.config), "arrays": dict(head.arrays)}
    uns[escape(key)] = {**entry, HEADS: {**entry.get(HEADS, {}), **rename_keys({name: value})}}


def _entry(adata: Any, key: str) -> Mapping[str, Any]:
    found = get_slot(adata, "uns", key) if escape(key) in adata.uns else {}
    return found if isinstance(found, Mapping) else {}


def _directory(given: ModelLike, key: str) -> str | None:
    """The directory in which the given model lies, None if it is in memory."""
    if isinstance(given, str | Path):
        return str(Path(given).resolve())
    stored = _entry(given, key) if isinstance(given, AnnData | MuData) else {}
    return str(stored["model_dir"]) if "model_dir" in stored else None


def added_heads(adata: Any, key: str, model: BioFormer) -> dict[str, Head]:
    """The heads that were added in ``adata.uns[key]`` to this network, without those of the model itself, by name."""
    found = _entry(adata, key)
    return read_heads(found, key) if str(found.get("model_hash")) == model.hash else {}
