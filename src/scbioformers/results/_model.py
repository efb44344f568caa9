"""Storage of a model in an AnnData. ``bf.tl.fit`` writes it and the other functions read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.config import TrainConfig
from scbioformers.core import ConfigError, MissingKeyError, ModelFormatError, StorageError
from scbioformers.model import BioFormer, Head, check_directory
from scbioformers.results._slots import get_slot, params_from_json, params_to_json, write_result
from scbioformers.training import in_one_process

MAX_BYTES_IN_UNS = 32 * 2**20
HEADS = "heads"  # key of the heads that were added after the fit
ModelLike: TypeAlias = BioFormer | AnnData | MuData | str | Path


def store_model(
    adata: Any,
    key: str,
    model: BioFormer,
    params: dict[str, Any],
    history: pd.DataFrame,
    save_dir: str | Path | None,
    train: TrainConfig,
) -> None:
    """Write parameters, history and model to ``uns[key]``. With ``save_dir``, write the model to that directory.

    If several processes have trained, as in ``train``, one of them writes the directory.

    Raises
    ------
    StorageError
        If the directory cannot be written. The model is then in ``uns[key]``, so that the fit is not lost.
    """
    value: dict[str, Any] = {"params": params_to_json(params), "history": history, "model_hash": model.hash}
    failure = None
    if save_dir is not None:
        try:
            value["model_dir"] = str(in_one_process(train, lambda: model.save(save_dir)))
        except StorageError as error:
            failure = error
    if "model_dir" not in value:
        value["model"] = np.frombuffer(model.to_bytes(), dtype=np.uint8).copy()
    write_result(adata, key, value, new_model=True)
    if failure is not None:
        named = "" if key == "bioformer" else f", key={key!r}"
        raise StorageError(
            f"{failure} The fitted model is in adata.uns[{key!r}]: `bf.get.model(adata{named}).save(directory)`."
        ) from failure


def check_storage(n_bytes: int, save_dir: str | Path | None) -> None:
    """Check, before training, that the model can be stored: in ``uns``, or in the directory ``save_dir``.

    Raises
    ------
    ConfigError
        If the model is too large for ``uns`` and ``save_dir`` is None.
    ModelFormatError, StorageError
        If it cannot be written to ``save_dir``.
    """
    if save_dir is not None:
        check_directory(Path(save_dir), n_bytes)
    elif n_bytes > MAX_BYTES_IN_UNS:
        raise ConfigError(
            f"This model takes {n_bytes / 2**20:.0f} MB, more than the {MAX_BYTES_IN_UNS / 2**20:.0f} MB that are "
            "allowed in adata.uns. Pass `save_dir=` to `bf.tl.fit` to write the model to a directory."
        )


def find_model(adata: Any, model: ModelLike | None, key: str = "bioformer") -> BioFormer:
    """Return the model. ``model`` is a model, a directory, or an AnnData with a model; by default it is ``adata``.

    It has the heads that were added to it in the AnnData, besides its own.

    Raises
    ------
    ConfigError
        If ``model`` has another type.
    MissingKeyError
        If there is no model.
    ModelFormatError
        If the stored model is damaged or not the model that was fitted.
    """
    if isinstance(model, BioFormer):
        return model
    if isinstance(model, str | Path):
        return BioFormer.load(model)
    hint = (
        "Run `bf.tl.fit(adata)` first, or pass `model=` (a model, a directory, or the AnnData or MuData it was fitted "
        "on; `ad.concat` drops `uns`)."
    )
    if model is not None and not isinstance(model, AnnData | MuData):
        raise ConfigError(f"`model` must be a BioFormer, an AnnData or a directory, found {type(model).__name__}.")
    stored = get_slot(adata if model is None else model, "uns", key, hint=hint)
    heads = read_heads(stored, key)
    if "model" in stored:
        found = BioFormer.from_bytes(np.asarray(stored["model"], dtype=np.uint8).tobytes())
        return replace(found, heads=found.heads | heads)
    if "model_dir" not in stored:
        raise MissingKeyError(f"adata.uns[{key!r}] holds no model. {hint}")
    found = BioFormer.load(str(stored["model_dir"]))
    if found.hash != str(stored["model_hash"]):
        raise ModelFormatError(
            f"{stored['model_dir']} does not hold the model fitted here. Pass the right model as `model=`."
        )
    return replace(found, heads=found.heads | heads)


def read_heads(stored: Mapping[str, Any], key: str) -> dict[str, Head]:
    """The heads in the entry ``uns[key]`` of a model, by name.

    Raises
    ------
    ModelFormatError
        If one is damaged.
    """
    heads = {}
    for name, value in stored.get(HEADS, {}).items():
        try:
            arrays = {array: np.ascontiguousarray(values, np.float32) for array, values in value["arrays"].items()}
            heads[str(name)] = Head(dict(json.loads(str(value["config"]))), arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(
                f"The head {name!r} in adata.uns[{key!r}]['heads'] is damaged: {error!r}. Remove the added heads with "
                f"`del adata.uns[{key!r}]['heads']`, then run the function again that has made it."
            ) from error
    return heads


def find_fit(adata: Any, key: str = "bioformer") -> tuple[dict[str, Any], pd.DataFrame]:
    """Parameters and history of the fit stored in ``uns[key]``."""
    stored = get_slot(adata, "uns", key, hint="Run `bf.tl.fit(adata)` first.")
    if lacking := [name for name in ("params", "history") if name not in stored]:
        raise MissingKeyError(
            f"adata.uns[{key!r}] has no {' and no '.join(lacking)}: the model was not fitted to these data, but passed "
            "as `model=`. Read the data that it was fitted to, or `bf.get.model(adata).provenance`."
        )
    return dict(params_from_json(str(stored["params"]))), pd.DataFrame(stored["history"])
