"""Labels that a model predicts by itself, because it was fitted with this column among its phenotypes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData

from scbioformers.data import field_codes
from scbioformers.results import ModalitiesQuery, Query, read_label_colours, target, write_annotation, write_number
from scbioformers.tasks import predict_phenotype
from scbioformers.tasks.annotation import collect_evidence
from scbioformers.training import find_validation

logger = logging.getLogger(__name__)


def annotate_phenotype(
    adata: AnnData | MuData,
    name: str,
    query: Query | ModalitiesQuery,
    key_added: str,
    *,
    probabilities: bool,
    progress_bar: bool,
    copy: bool,
) -> AnnData | MuData | None:
    """Write the predictions of a phenotype, and how they agree with the values of the cells.

    Cells of the training data are not compared, because the model has seen their values. Of the data of the fit, these
    are all but its validation cells.
    """
    field = next(each for each in query.model.phenotypes if each.name == name)
    predicted = predict_phenotype(query.model, query.source, name, progress_bar=progress_bar)
    truth = field_codes([field], adata)[:, 0]
    validation = find_validation(query.model, query.source)
    compared = ~np.isnan(truth) & (validation if validation.any() else np.ones_like(validation))
    adata = target(adata, copy)
    params: dict[str, Any] = {"model_hash": query.model.hash, "label_key": name, "layer": query.layer}
    params |= {"learned": False, "by": "the model, with this phenotype masked"}
    if field.knots:
        numbers = predicted @ np.array(field.knots, np.float64)
        true = np.interp(truth[compared], np.arange(len(field.knots)), field.knots)
        error = float(np.abs(numbers[compared] - true).mean()) if compared.any() else None
        of_mean = float(np.abs(true - true.mean()).mean()) if compared.any() else None
        scores = {"n_cells": int(compared.sum()), "mean_absolute_error": error, "of_the_mean": of_mean}
        write_number(adata, key_added, numbers.astype(np.float32), params | scores)
        errors = [None if x is None else f"{x:.3g}" for x in (error, of_mean)]
        logger.info(
            "adata.obs[%r]: predicted numbers. Mean absolute error in %d cells: %s (of the mean %s).",
            key_added, compared.sum(), *errors,
        )  # fmt: skip
        return adata if copy else None
    codes, probability = predicted.argmax(axis=1), predicted.max(axis=1)
    rows = np.flatnonzero(compared)
    evidence = collect_evidence(
        truth[rows].astype(np.int64),
        codes[rows],
        probability[rows].astype(np.float64),
        field.categories,
        field.categories,
    )
    write_annotation(
        adata,
        key_added,
        codes,
        field.categories,
        probability,
        probabilities=predicted if probabilities else None,
        colours=read_label_colours(adata, name),
        params=params,
        evidence={"source": "phenotype", **evidence},
    )
    logger.info(
        "adata.obs[%r]: predicted by the model with %r masked. Accuracy in %d cells: %.3f.",
        key_added, name, len(rows), evidence["accuracy"],
    )  # fmt: skip
    return adata if copy else None
