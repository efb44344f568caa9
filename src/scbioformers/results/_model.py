"""A model in the slots of an AnnData: written by ``fit``, found again by every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import ConfigError, MissingKeyError, ModelFormatError
from scbioformers.model import BioFormer
from scbioformers.results._slots import get_slot, params_from_json, params_to_json, set_uns

MAX_BYTES_IN_UNS = 32 * 2**20
ModelLike: TypeAlias = BioFormer | AnnData | str | Path


def store_model(
    adata: Any, key: str, model: BioFormer, params: dict[str, Any], history: pd.DataFrame, save_dir: str | Path | None
) -> None:
    """Write ``uns[key]``: params, history and the model's bytes, or the directory that holds it."""
    value: dict[str, Any] = {"params": params_to_json(params), "history": history, "model_hash": model.hash}
    if save_dir is None:
        value["model"] = np.frombuffer(model.to_bytes(), dtype=np.uint8).copy()
    else:
        value["model_dir"] = str(model.save(save_dir))
    set_uns(adata, key, value)


def check_size(n_bytes: int, save_dir: str | Path | None) -> None:
    """Refuse, before any work, a model that is too large to travel inside ``uns``.

    Raises
    ------
    ConfigError
        If it is and no directory was named.
    """
    if save_dir is None and n_bytes > MAX_BYTES_IN_UNS:
        raise ConfigError(
            f"This model takes {n_bytes / 2**20:.0f} MB, more than the {MAX_BYTES_IN_UNS / 2**20:.0f} MB that are "
            "stored inside adata.uns. Pass `save_dir=` to fit, and the model is written there."
        )


def find_model(adata: Any, model: ModelLike | None, key: str = "bioformer") -> BioFormer:
    """The model named by ``model``: an object, a directory, or an AnnData that holds one; by default ``adata`` itself.

    Raises
    ------
    MissingKeyError
        If there is none.
    ModelFormatError
        If what is stored is damaged or not the model that was fitted.
    """
    if isinstance(model, BioFormer):
        return model
    if isinstance(model, str | Path):
        return BioFormer.load(model)
    hint = (
        "Run `bf.tl.fit(adata)` first, or pass `model=` (a model, a directory, or the AnnData it was fitted on; "
        "`ad.concat` drops `uns`)."
    )
    if model is not None and not isinstance(model, AnnData):
        raise ConfigError(f"`model` is a BioFormer, an AnnData or a directory, got {type(model).__name__}.")
    stored = get_slot(adata if model is None else model, "uns", key, hint=hint)
    if "model" in stored:
        return BioFormer.from_bytes(np.asarray(stored["model"], dtype=np.uint8).tobytes())
    if "model_dir" not in stored:
        raise MissingKeyError(f"adata.uns[{key!r}] holds no model. {hint}")
    found = BioFormer.load(str(stored["model_dir"]))
    if found.hash != str(stored["model_hash"]):
        raise ModelFormatError(f"{stored['model_dir']} holds another model than the one fitted here; pass `model=`.")
    return found


def find_fit(adata: Any, key: str = "bioformer") -> tuple[dict[str, Any], pd.DataFrame]:
    """Parameters and history of the fit stored in ``uns[key]``."""
    stored = get_slot(adata, "uns", key, hint="Run `bf.tl.fit(adata)` first.")
    return dict(params_from_json(str(stored["params"]))), pd.DataFrame(stored["history"])
