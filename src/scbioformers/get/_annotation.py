"""Read labels, their probabilities, and the evidence for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import check_arguments
from scbioformers.results import UNKNOWN, read_annotation, read_annotation_evidence


def annotation(adata: AnnData | MuData, label_key: str, *, key: str | None = None) -> pd.DataFrame:
    """Labels of the cells, their probabilities and, if they are stored, the probabilities of all labels.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.annotate`.
    label_key
        The column of labels: the value of ``label_key`` in :func:`scbioformers.tl.annotate`.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.annotate`. By default
        ``f"bioformer_{label_key}"``.

    Returns
    -------
    DataFrame
        One row per cell, with the columns ``label`` (categorical) and ``probability``. After
        ``bf.tl.annotate(..., probabilities=True)`` also one column per label, with its name as in the reference.
        Names in ``adata.obsm`` are escaped where they have a "/", which h5ad and zarr do not allow.

    Raises
    ------
    MissingKeyError
        If no labels are stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.annotate(adata, "cell_type", probabilities=True)
    >>> list(bf.get.annotation(adata, "cell_type"))
    ['label', 'probability', 'type_1', 'type_2', 'type_3', 'type_4', 'type_5']
    """
    check_arguments(annotation, locals())
    return read_annotation(adata, label_key, key)


def annotation_evidence(adata: AnnData | MuData, label_key: str, *, key: str | None = None) -> dict[str, Any]:
    """How well the labels agree with given labels, and whether their probabilities are right.

    If the labels were learned in these cells, or come from a model that learned them elsewhere, the evidence is that of
    the cross-validation over the labelled cells: the label of each cell is predicted by a head that was fitted to the
    other cells. If a model has labelled cells that have labels of their own, these are compared instead.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.annotate`.
    label_key
        The column of labels: the value of ``label_key`` in :func:`scbioformers.tl.annotate`.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.annotate`. By default
        ``f"bioformer_{label_key}"``.

    Returns
    -------
    dict
        - ``"source"``: which cells the scores are of. ``"cross-validation"``: the labelled cells of ``adata``, in five
          folds. ``"query"``: the cells of ``adata`` whose own labels were not used to learn. ``"reference"``: the cells
          from which the model learned the labels, in five folds, because ``adata`` has no labels to compare with, or
          none that the model knows.
        - ``"accuracy"``, ``"macro_f1"``: float, share of right labels, and mean of the F1 scores of the labels. A cell
          that is labelled "unknown" counts as wrong.
        - ``"calibration_error"``: float, mean difference between the probability of a label and the share of right
          labels, over bins of the probability. NaN if all cells are "unknown".
        - ``"confusion"``: DataFrame, number of cells by given (rows) and predicted label (columns).
        - ``"labels"``: DataFrame, one row per given label. ``n`` is the number of cells. ``precision`` is NaN if the
          label was never predicted.
        - ``"calibration"``: DataFrame. Each row is a bin of the probability: its mean (``predicted``), the share of
          right labels (``observed``) and the number of cells (``n``).
        - ``"batches"``: DataFrame, the scores for each batch of the model. It has no rows if the model has no batch.

    Raises
    ------
    MissingKeyError
        If no labels are stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.annotate(adata, "cell_type")
    >>> bf.get.annotation_evidence(adata, "cell_type")["confusion"].shape
    (5, 5)
    """
    check_arguments(annotation_evidence, locals())
    found = read_annotation_evidence(adata, label_key, key)
    counts = np.array(found["confusion"], np.int64).reshape(len(found["rows"]), -1)
    columns = [*found["columns"], UNKNOWN]
    confusion = pd.DataFrame(
        counts, index=pd.Index(found["rows"], name="given"), columns=pd.Index(columns, name="label")
    )
    hits = np.array([confusion.at[name, name] if name in columns else 0 for name in found["rows"]], dtype=float)
    called = np.array([confusion[name].sum() if name in columns else 0 for name in found["rows"]], dtype=float)
    given = confusion.sum(axis=1)
    labels = pd.DataFrame(
        {
            "n": given,
            "precision": np.divide(hits, called, out=np.full(len(hits), np.nan), where=called > 0),
            "recall": hits / given,
            "f1": 2 * hits / (given + called),
        }
    )
    if not confusion[UNKNOWN].any():
        confusion = confusion.drop(columns=UNKNOWN)
    scores = ["n", "accuracy", "macro_f1", "calibration_error"]
    batches = pd.DataFrame.from_dict(found["batches"], orient="index", columns=scores)
    return {
        "source": str(found["source"]),
        "accuracy": float(found["accuracy"]),
        "macro_f1": float(found["macro_f1"]),
        "calibration_error": np.nan if found["calibration_error"] is None else float(found["calibration_error"]),
        "confusion": confusion,
        "labels": labels,
        "calibration": pd.DataFrame({name: found[name] for name in ("predicted", "observed")} | {"n": found["count"]}),
        "batches": batches.astype({name: float for name in scores[1:]}),
    }
