"""A model in the slots of an AnnData: written by ``fit``, found again by every verb."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError, ModelFormatError, near_names
from scbioformers.data import (
    Source,
    field_codes,
    get_slot,
    inspect,
    match_molecules,
    params_from_json,
    params_to_json,
    require_counts,
    require_valid,
    set_uns,
)
from scbioformers.model import BioFormer

logger = logging.getLogger(__name__)

_NETWORK_HINT = "Run `bf.tl.grn(adata)` first."
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


def fitted_layer(adata: Any, model: BioFormer, layer: str | None) -> str | None:
    """The layer to read: the one asked for, else the one that the model was fitted on if it is there, else ``X``."""
    fitted_on = model.provenance.get("layer")
    if layer is None and isinstance(fitted_on, str) and isinstance(adata, AnnData) and fitted_on in adata.layers:
        return fitted_on
    return layer


def open_query(adata: AnnData, model: BioFormer, layer: str | None) -> tuple[Source, NDArray[np.int64]]:
    """The cells of ``adata`` as the model reads them, and the column of each of its molecules (-1: not measured).

    Raises
    ------
    MissingKeyError
        If a column that the model needs is not there.
    DataError
        If the data is on another scale than the model's, or fewer than half of its genes are there.
    """
    found = inspect(adata, layer)
    no_gene = np.zeros(adata.n_vars, dtype=bool)  # a gene may well be zero in a query: nothing to warn of
    if model.counts:
        allow = bool(model.provenance.get("allow_non_integer"))
        require_counts(adata, layer, allow_non_integer=allow, modelled=no_gene, inspection=found)
    else:
        require_valid(adata, layer, modelled=no_gene, inspection=found)
    columns = match_molecules(model.vocabulary.molecules(), adata.var_names).columns
    return Source(adata, layer=layer, molecules=columns, fields=field_codes(model.fields, adata)), columns


def molecule_indices(
    model: BioFormer, genes: Sequence[str], *, measured: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Positions of genes among the model's molecules.

    Raises
    ------
    DataError
        If no gene is named, one is unknown to the model (near names are suggested), or not among the ``measured``.
    """
    names = model.vocabulary.molecules()
    at = {name: i for i, name in enumerate(names)}
    genes = [genes] if isinstance(genes, str) else list(genes)
    if not genes:
        raise DataError("`genes` is empty: name at least one, or pass None.")
    if unknown := [gene for gene in genes if gene not in at]:
        near = near_names(unknown[0], names)
        hint = f" Near names: {near}." if near else ""
        raise DataError(f"The model does not know {unknown[:5]}; it models {len(names)} genes.{hint}")
    found = np.array([at[gene] for gene in genes], dtype=np.int64)
    if measured is not None and not measured[found].all():
        absent = [gene for gene, there in zip(genes, measured[found], strict=True) if not there]
        raise DataError(
            f"{absent[:5]} are not among the genes of the data; `bf.get.imputed(adata, genes=…)` predicts them."
        )
    return found


def find_fit(adata: Any, key: str = "bioformer") -> tuple[dict[str, Any], pd.DataFrame]:
    """Parameters and history of the fit stored in ``uns[key]``."""
    stored = get_slot(adata, "uns", key, hint="Run `bf.tl.fit(adata)` first.")
    return dict(params_from_json(str(stored["params"]))), pd.DataFrame(stored["history"])


@dataclass(frozen=True)
class StoredNetwork:
    """The weights of one condition that ``bf.tl.grn`` has written."""

    weight: NDArray[np.float64]
    """(G, R), NaN where a pair was never seen."""
    genes: list[str]
    """Targets, all genes that were asked about."""
    regulators: list[str]
    attention: NDArray[np.float64] | None = None
    """(R,), attention that each regulator receives in a cell; None for networks by another method."""


def network_params(adata: Any, key: str) -> dict[str, Any]:
    """Parameters of the networks in ``uns[key]``.

    Raises
    ------
    MissingKeyError
        If there are none.
    """
    return dict(params_from_json(str(get_slot(adata, "uns", key, hint=_NETWORK_HINT)["params"])))


def read_network(adata: Any, name: str) -> StoredNetwork:
    """The network in ``varp[name]``."""
    stored = sp.coo_matrix(get_slot(adata, "varp", name, hint=_NETWORK_HINT))
    names = np.array([str(name) for name in adata.var_names], dtype=object)
    # few of all genes are modelled: dense among these alone
    genes, regulators = np.unique(np.concatenate([stored.row, stored.col])), np.unique(stored.col)
    weight = np.full((len(genes), len(regulators)), np.nan)
    weight[np.searchsorted(genes, stored.row), np.searchsorted(regulators, stored.col)] = stored.data
    return StoredNetwork(weight, names[genes].tolist(), names[regulators].tolist())


def find_networks(adata: Any, key: str) -> Iterator[tuple[str, StoredNetwork]]:
    """Each network of ``uns[key]`` by its condition."""
    params = network_params(adata, key)
    names = np.array([str(name) for name in adata.var_names], dtype=object)
    for condition in params["conditions"]:
        ending = "" if params["groupby"] is None else f".{condition}"
        network = read_network(adata, f"{key}{ending}")
        if params["method"] == "attention":
            paid = pd.Series(get_slot(adata, "var", f"{key}_attention{ending}", hint=_NETWORK_HINT).to_numpy(), names)
            network = replace(network, attention=paid[network.regulators].to_numpy(np.float64))
        yield condition, network
