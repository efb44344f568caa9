"""Reader for files in the format of GEARS (data sets Adamson, Norman and Dixit, ``perturb_processed.h5ad``)."""

from __future__ import annotations

import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from scbioformers.core import DataError, MissingKeyError, check_arguments
from scbioformers.datasets._recovery import recover_counts

CONTROL = "ctrl"


def read_gears(path: str | Path, *, max_counts: float = 1e6) -> AnnData:
    """Read a file in the format of GEARS and convert it to the format of scbioformers.

    In the format of GEARS, ``obs["condition"]`` has values such as ``"ctrl"``, ``"STAT1+ctrl"`` and ``"A+B"``. Gene
    symbols are in ``var["gene_name"]``. ``X`` is log1p of counts that were normalised in each cell. The top changed
    genes, without dropout genes, are in ``uns["non_dropout_gene_idx"]``, with keys ``cell type_condition_dose``.

    Parameters
    ----------
    path
        Path of an h5ad file.
    max_counts
        Highest plausible number of recovered counts of a cell. A higher number raises an error.

    Returns
    -------
    AnnData with

    `.X` : float32
        Counts. They are those of ``layers["counts"]`` if it exists. Otherwise they are recovered from the log values,
        as multiples of the smallest value of each cell. This is an approximation in cells without a gene of one count.
    `.obs["perturbation"]` : categorical
        ``"control"``, a gene, or genes joined by ``+``.
    `.var_names`
        Gene symbols.
    `.uns["top_de"]` : dict
        Symbols of the top changed genes of each perturbation, as far as the file has them.

    Raises
    ------
    MissingKeyError
        If the file lacks ``obs["condition"]``.
    DataError
        If counts cannot be recovered, or there is no control cell.

    Examples
    --------
    >>> read_gears("perturb_processed.h5ad")  # doctest: +SKIP
    """
    check_arguments(read_gears, locals())
    adata = ad.read_h5ad(path)
    if "condition" not in adata.obs:
        raise MissingKeyError(f"{path} has no obs['condition'], only {[str(key) for key in adata.obs]}.")
    condition = adata.obs["condition"].astype(str)
    labels = condition.map({name: _label(name) for name in condition.unique()})
    if not (labels == "control").any():
        raise DataError(f"{path} has no cell with the condition {CONTROL!r}.")
    symbols = np.asarray(adata.var.get("gene_name", adata.var_names)).astype(str)
    ids = np.array([str(name) for name in adata.var_names], dtype=object)
    top = _top_genes(adata, ids, symbols)
    counts = adata.layers["counts"] if "counts" in adata.layers else recover_counts(adata.X, max_counts)
    converted = AnnData(counts.astype(np.float32), obs=adata.obs.copy(), var=adata.var.copy())
    converted.obs["perturbation"] = pd.Categorical(labels)
    converted.var_names = pd.Index(symbols)
    converted.var_names_make_unique()
    converted.uns["top_de"] = top
    return converted


def _label(condition: str) -> str:
    genes = [part for part in condition.split("+") if part != CONTROL]
    return "+".join(genes) if genes else "control"


def _top_genes(adata: AnnData, ids: np.ndarray, symbols: np.ndarray) -> dict[str, np.ndarray]:
    """Return the symbols of 20 top genes by label, without dropout genes if the file has these indices."""
    by_id = dict(zip(ids, symbols, strict=True))
    top: dict[str, np.ndarray] = {}
    for key, values in dict(adata.uns.get("rank_genes_groups_cov_all", {})).items():
        top[_label(_condition(str(key)))] = np.array([by_id.get(str(v), str(v)) for v in list(values)[:20]])
    for key, values in dict(adata.uns.get("non_dropout_gene_idx", {})).items():
        top[_label(_condition(str(key)))] = symbols[np.asarray(values, dtype=np.int64)[:20]].astype(str)
    return top


def _condition(key: str) -> str:
    """Return the condition of a key ``cell type_condition_dose``, such as ``"K562_STAT1+ctrl_1+1"``."""
    parts = re.sub(r"_\d+(\+\d+)*$", "", key).rsplit("_", 1)
    return parts[-1]
