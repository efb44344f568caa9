"""The labels that ``bf.tl.annotate`` uses: those of the cells, or those of a head."""

from __future__ import annotations

import logging

import numpy as np
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import DataError, MissingKeyError, short_list, warn
from scbioformers.data import Labels, in_modality
from scbioformers.results import ModalitiesQuery, Query, added_heads, annotation_key
from scbioformers.tasks.annotation import AnnotationHead, head_name

logger = logging.getLogger(__name__)

FEW_CELLS = 5  # a label with fewer cells is named in a warning: one of its cells in each fold needs five


def choose_labels(
    adata: AnnData | MuData, label_key: str, query: Query | ModalitiesQuery, key: str
) -> tuple[AnnotationHead | None, Labels]:
    """The head to use, None if it is to be learned, and the given labels of the cells."""
    name, model = head_name(label_key), query.model
    if query.model_given and name in model.heads:
        return AnnotationHead.from_head(model.heads[name], label_key, model.hash), _truth(adata, label_key)
    if label_key in adata.obs:
        labels = Labels.read(adata, label_key)
        if labels.categories:
            return None, labels
    heads = model.heads if not query.model_given else added_heads(adata, key, model)
    if name in heads:
        return AnnotationHead.from_head(heads[name], label_key, model.hash), Labels.none(adata.n_obs)
    known = [each.removeprefix(head_name("")) for each in model.heads if each.startswith(head_name(""))]
    hint = f" It has one for {short_list(known)}." if known else ""
    if label_key in adata.obs:
        raise DataError(
            f"No cell has a label in adata.obs[{label_key!r}], and the model has no head for it.{hint} Set the labels "
            "of some cells, or pass as `model=` the AnnData in which they were learned."
        )
    raise MissingKeyError(
        f"Did not find adata.obs[{label_key!r}], and the model has no head for it.{hint}"
        f"{in_modality(adata, label_key)} Pass the name of a column "
        "with labels, or as `model=` the AnnData in which they were learned. Available: "
        f"{short_list([str(column) for column in adata.obs])}."
    )


def _truth(adata: AnnData | MuData, label_key: str) -> Labels:
    """The labels in a query, with which predictions are compared. A column of another kind is not used."""
    if label_key not in adata.obs:
        return Labels.none(adata.n_obs)
    try:
        return Labels.read(adata, label_key)
    except DataError as error:
        logger.warning("The predictions are not compared with adata.obs[%r]: %s", label_key, error)
        return Labels.none(adata.n_obs)


def check_labels(labels: Labels, rows: NDArray[np.int64], label_key: str) -> None:
    """Raise an error if there is nothing to learn, and warn of labels of few cells. ``rows`` are the usable cells."""
    counts = np.bincount(labels.codes[rows], minlength=len(labels.categories))
    if (counts > 0).sum() < 2:
        only = [name for name, n in zip(labels.categories, counts, strict=True) if n]
        raise DataError(
            f"adata.obs[{label_key!r}] has {len(only)} different label{'s' * (len(only) != 1)} {only} in {len(rows):,} "
            "cells with counts, expected at least two. Label cells of other kinds, or pass another column."
        )
    if few := [f"{name} ({n})" for name, n in zip(labels.categories, counts, strict=True) if n < FEW_CELLS]:
        warn(
            f"{len(few)} of {len(counts)} labels in adata.obs[{label_key!r}] have fewer than {FEW_CELLS} cells with "
            f"counts: {short_list(few)}. They are learned, but hardly known. Label more cells, or join them with "
            "others."
        )


def warn_of_unknown(codes: NDArray[np.int64], label_key: str, key_added: str, probabilities: bool) -> None:
    """Warn if most cells of a query are "unknown". ``codes`` are those of the cells with counts, -1 for "unknown"."""
    n_unknown = int((codes < 0).sum())
    if 2 * n_unknown <= len(codes):
        return
    key = "" if key_added == annotation_key(label_key, None) else f", key={key_added!r}"
    again = "" if probabilities else "call `bf.tl.annotate` again with `probabilities=True`, and then "
    warn(
        f"{n_unknown:,} of the {len(codes):,} cells with counts are 'unknown'. So the data differ from the labelled "
        "cells as a whole, for instance by technique or tissue, and 'unknown' says little about a single cell. For the "
        f"most probable label of each cell, {again}call `bf.get.annotation(adata, {label_key!r}{key}).iloc[:, 2:]"
        ".idxmax(axis=1)`. Check these labels with marker genes."
    )
