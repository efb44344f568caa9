"""Predictions for genes that were not measured, and the evidence behind imputed values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import DataError, Scale
from scbioformers.results import ModelLike, open_query, read_evidence
from scbioformers.tasks import N_FOLDS, check_request, folds, impute_blocks


def imputed(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    output: Scale = "counts",
    model: ModelLike | None = None,
    layer: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress_bar: bool = False,
    key: str = "bioformer",
) -> AnnData:
    """Predict genes that the data did not measure but the model knows (paper, section 3.2).

    Parameters
    ----------
    adata
        Cells on the scale of those that the model was fitted on; at least half of the model's genes must be there.
    genes
        What to predict; by default the model's genes that are not in ``adata``. Genes that were measured may be named
        too: they are then predicted from the others.
    output
        ``"counts"`` at the depth of the cell, ``"log1p"`` of the counts at the mean depth of the training cells, or
        ``"bins"``.
    model
        A model, its directory, or the AnnData that it was fitted on; by default the model in ``adata.uns[key]``.
    layer
        Layer to read; by default the layer that the model was fitted on if it is there, else ``X``.
    batch_size
        Cells read at once, at most.
    device
        Where to compute, ``"cpu"``, ``"cuda"``, ….
    progress_bar
        Show a progress bar.
    key
        Where the model is in ``uns``.

    Returns
    -------
    A new AnnData with the cells and ``obs`` of ``adata``: ``X`` float32 (N, n_genes), in the unit of ``output``.

    Raises
    ------
    MissingKeyError
        If there is no model, or a column that the model needs is not there.
    ConfigError
        If ``output``, ``batch_size`` or the device is not to be had.
    DataError
        If the model does not know a gene, no gene is left to predict, or the data does not fit the model.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.get.imputed(adata, genes=list(adata.var_names[:2])).shape
    (60, 2)
    """
    check_request(output, (), batch_size, device)
    query = open_query(adata, model, layer=layer, key=key)
    requested = np.flatnonzero(~query.measured) if genes is None else query.positions(genes, measured=False)
    if not requested.size:
        raise DataError("The data measures every gene of the model: name `genes=`, or denoise with `bf.tl.impute`.")
    names = np.array(query.model.vocabulary.feature_names())[requested]
    x = np.empty((adata.n_obs, requested.size), np.float32)
    blocks = impute_blocks(
        query.model,
        query.source,
        folds(len(query.columns), N_FOLDS, requested),
        scale=output,
        batch_size=batch_size,
        device=device,
        progress_bar=progress_bar,
    )
    for start, values in blocks:
        x[start : start + len(values["mean"])] = values["mean"][:, requested]
    return AnnData(x, obs=adata.obs.copy(), var=pd.DataFrame(index=names))


def imputation_evidence(adata: AnnData, *, key: str = "imputed") -> dict[str, Any]:
    """How well :func:`scbioformers.tl.impute` predicted the measured values from the others.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.impute` without a mask.
    key
        Name of the imputed layer.

    Returns
    -------
    ``"bins"``: a data frame, measured bin x predicted bin, mean predicted probability; ``"calibration"``: a data frame
    of predicted and observed shares of expressed genes and their number; ``"nll_bits"``: float, mean negative
    log-likelihood of a measured value, in bits. On the cells that the model was fitted on they are optimistic.

    Raises
    ------
    MissingKeyError
        If nothing was imputed, or only masked positions were.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.impute(adata, progress_bar=False)
    >>> list(bf.get.imputation_evidence(adata))
    ['bins', 'calibration', 'nll_bits']
    """
    evidence = read_evidence(adata, key)
    joint, count = evidence["joint"], evidence["count"]
    filled = np.maximum(count, 1)
    return {
        "bins": pd.DataFrame(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-12)).assign(n=joint.sum(axis=1)),
        "calibration": pd.DataFrame(
            {
                "predicted": evidence["predicted"] / filled,
                "observed": evidence["observed"] / filled,
                "n": count.astype(int),
            }
        )[count > 0],
        "nll_bits": float(evidence["nll_bits"][0]),
    }
