"""``bf.tl.impute`` of a MuData: each modality is predicted from the others, or denoised by all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, Scale
from scbioformers.results import (
    Layer,
    ModalitiesQuery,
    check_imputed_key,
    check_key_added,
    imputed_layers,
    target,
    write_imputed,
    write_modalities,
)
from scbioformers.tasks import (
    BLOCK_CELLS,
    Evidence,
    ImputeMethod,
    check_method,
    choose_evidence_cells,
    denoise_modality,
    masked_evidence,
    modality_scale,
    predict_modality,
)
from scbioformers.tl._impute_cells import ImputedCells
from scbioformers.training import find_validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked for of each modality: see the arguments of :func:`scbioformers.tl.impute`."""

    method: ImputeMethod
    output: Scale
    std: bool
    quantiles: tuple[float, ...]
    batch_size: int
    progress_bar: bool


def refuse_arguments(mdata: MuData, **given: Any) -> None:
    """Check that no argument is given that is for one AnnData."""
    for name, value in given.items():
        if value is not None:
            first = next(iter(mdata.mod))
            raise ConfigError(
                f"`{name}` is for an AnnData. In a MuData, all of a modality is predicted from the others, or denoised "
                f"with `method='denoise'`. Leave out `{name}`, or fit and impute one modality, such as "
                f"`mdata[{first!r}]`."
            )


def impute_modalities(
    mdata: MuData,
    query: ModalitiesQuery,
    modalities: Sequence[str] | None,
    request: Request,
    key_added: str,
    copy: bool,
) -> MuData | None:
    """Predict or denoise modalities and store the values in the MuData and in each modality."""
    model = query.model
    if len(model.modalities) < 2:
        raise ConfigError(
            f"The model reads one modality, {model.modalities[0]!r}, which cannot be predicted from another. Call "
            f"`bf.tl.impute(mdata[{model.modalities[0]!r}], model=mdata)`, or fit a model to several modalities."
        )
    names = query.choose_predicted(modalities)
    if request.method == "denoise":
        for name in names:
            check_method(model.of(name), "denoise", request.output)
    slots = {name: imputed_layers(f"{key_added}_{name}", request.std, request.quantiles) for name in names}
    layers = imputed_layers(key_added, request.std, request.quantiles)
    check_key_added(mdata, key_added, {"obsm": [key for each in slots.values() for key in each.values()]})
    for name in names:
        if name in query.queries:
            check_imputed_key(mdata[name], key_added, layers.values(), query.queries[name].layer)
    result = target(mdata, copy)
    tables: dict[str, pd.DataFrame] = {}
    known = find_validation(model, query.source)
    for name in names:
        impute = _denoise if request.method == "denoise" else _predict
        values, evidence, params = impute(query, name, known, request)
        own = query.queries.get(name)
        features = model.of(name).vocabulary.feature_names() if own is None else own.stored_names
        for each, key in slots[name].items():
            tables[key] = pd.DataFrame(values[each], index=mdata.obs_names, columns=features)
        if own is not None:
            _write_modality(result[name], query, name, values, layers, evidence, params, key_added)
    params = {"model_hash": model.hash, "method": request.method, "output": request.output, "modalities": names}
    write_modalities(result, key_added, tables, params)
    return result if copy else None


def _predict(
    query: ModalitiesQuery, name: str, known: NDArray[np.bool_], request: Request
) -> tuple[dict[str, NDArray[np.float32]], Evidence, dict[str, Any]]:
    """Predictions for all samples (N, M), how well measured values were predicted, and the parameters of the result."""
    state = query.model.of(name)
    measured = {other: rows >= 0 for other, rows in query.rows.items()}
    from_others = np.any([rows for other, rows in measured.items() if other != name], axis=0)
    if n := int((~from_others).sum()):
        logger.warning("%d of %d samples have no modality but %r. Their predictions are NaN.", n, len(known), name)
    scale = modality_scale(state, request.output)
    cells = choose_evidence_cells(measured[name] & from_others, known, len(state.vocabulary))
    evidence = Evidence.empty(state, cells=np.isin(np.arange(len(known)), cells))
    values = predict_modality(
        query.model,
        query.source,
        name,
        scale=scale,
        std=request.std,
        quantiles=request.quantiles,
        evidence=evidence,
        batch_size=request.batch_size,
        progress_bar=request.progress_bar,
    )
    return values, evidence, _params(query, name, "held_out", scale, cells, known)


def _denoise(
    query: ModalitiesQuery, name: str, known: NDArray[np.bool_], request: Request
) -> tuple[dict[str, NDArray[np.float32]], Evidence, dict[str, Any]]:
    """Denoised values of all samples (N, M), how well masked values were predicted, and the parameters."""
    measured = query.rows[name] >= 0
    if n := int((~measured).sum()):
        logger.warning("%d of %d samples lack %r. Their values are NaN.", n, len(known), name)
    if not measured.any():
        raise DataError(
            f"No sample has the modality {name!r}, so there is nothing to denoise. Leave out `method`: it is then "
            "predicted from the others."
        )
    cells = choose_evidence_cells(measured, known, len(query.model.of(name).vocabulary))
    options: dict[str, Any] = {"batch_size": request.batch_size}
    values = denoise_modality(
        query.model, query.source, name, scale=request.output, progress_bar=request.progress_bar, **options
    )
    evidence = masked_evidence(query.model, query.source, name, cells, **options)
    return {"mean": values}, evidence, _params(query, name, "denoise", request.output, cells, known)


def _params(
    query: ModalitiesQuery, name: str, method: str, scale: str, cells: NDArray[np.int64], known: NDArray[np.bool_]
) -> dict[str, Any]:
    """Parameters of the result of a modality. ``cells`` are those of the evidence, ``known`` the validation cells."""
    params: dict[str, Any] = {"model_hash": query.model.hash, "method": method, "output": scale, "masked": False}
    params |= {"n_evidence_cells": len(cells), "n_validation_cells": int(known[cells].sum())}
    return params | {"layer": query.queries[name].layer if name in query.queries else None}


def _write_modality(
    adata: Any,
    query: ModalitiesQuery,
    name: str,
    values: dict[str, NDArray[np.float32]],
    layers: dict[str, str],
    evidence: Evidence,
    params: dict[str, Any],
    key_added: str,
) -> None:
    """Write the predictions of the samples that a modality has, in its own order, beside features not modelled."""
    own, rows = query.queries[name], query.rows[name]
    measured = np.flatnonzero(own.measured)
    cells = ImputedCells(own, own.columns[measured], None)
    samples = np.empty(own.data.n_obs, np.int64)
    samples[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    written = {layer: Layer(own.data.shape, measured.size) for layer in layers.values()}
    for block in own.source.blocks(BLOCK_CELLS):
        others = cells.own(block, params["output"])
        at = samples[block.start : block.start + len(block.depth)]
        for each, layer in layers.items():
            predicted = values[each][at][:, measured]
            written[layer].add(block.start, cells.assemble(predicted, 0 * others if each == "std" else others))
    write_imputed(
        adata,
        key_added,
        written,
        imputed=np.isin(np.arange(own.data.n_vars), cells.imputed),
        low_depth=np.zeros(own.data.n_obs, bool),
        params=params,
        evidence=evidence.to_dict(),
    )
