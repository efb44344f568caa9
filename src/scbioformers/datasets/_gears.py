"""Files in the format of GEARS (Adamson, Norman, Dixit as ``perturb_processed.h5ad``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scbioformers.core import DataError, MissingKeyError

CONTROL = "ctrl"


def read_gears(path: str | Path, *, max_counts: float = 1e6) -> AnnData:
    """Read a file in the format of GEARS, and put it in ours.

    Its conventions: ``obs["condition"]`` is ``"ctrl"``, ``"STAT1+ctrl"`` or ``"A+B"``; gene symbols are in
    ``var["gene_name"]``; ``X`` is log1p of counts normalised in each cell; the top changed genes that are not mere
    dropout are in ``uns["non_dropout_gene_idx"]``, by ``cell type_condition_dose``.

    Parameters
    ----------
    path
        An h5ad file.
    max_counts
        A cell with more counts than this is taken for wrongly recovered.

    Returns
    -------
    AnnData with

    `.X` : float32
        Counts: those of ``layers["counts"]`` if there are any; else recovered from the log values, as multiples of the
        smallest of each cell (an approximation in cells without any gene of one count).
    `.obs["perturbation"]` : categorical
        ``"control"``, a gene, or genes joined by ``+``.
    `.var_names`
        Gene symbols.
    `.uns["top_de"]` : dict
        For each perturbation, the symbols of its top changed genes, where the file has them.

    Raises
    ------
    MissingKeyError
        If the file lacks ``obs["condition"]``.
    DataError
        If counts cannot be recovered, or there is no control.

    Examples
    --------
    >>> read_gears("perturb_processed.h5ad")  # doctest: +SKIP
    """
    adata = ad.read_h5ad(path)
    if "condition" not in adata.obs:
        raise MissingKeyError(f"{path} has no obs['condition']. There: {[str(key) for key in adata.obs]}.")
    condition = adata.obs["condition"].astype(str)
    labels = condition.map({name: _label(name) for name in condition.unique()})
    if not (labels == "control").any():
        raise DataError(f"{path} has no cell of the condition {CONTROL!r}.")
    named = adata.var.get("gene_name", adata.var_names)
    symbols = np.asarray(named).astype(str)
    ids = np.array([str(name) for name in adata.var_names], dtype=object)
    top = _top_genes(adata, ids, symbols)
    counts = adata.layers["counts"] if "counts" in adata.layers else _recover(adata.X, max_counts)
    found = AnnData(counts.astype(np.float32), obs=adata.obs.copy(), var=adata.var.copy())
    found.obs["perturbation"] = pd.Categorical(labels)
    found.var_names = pd.Index(symbols)
    found.var_names_make_unique()
    found.uns["top_de"] = top
    return found


def _label(condition: str) -> str:
    genes = [part for part in condition.split("+") if part != CONTROL]
    return "+".join(genes) if genes else "control"


def _top_genes(adata: AnnData, ids: np.ndarray, symbols: np.ndarray) -> dict[str, np.ndarray]:
    """Symbols by our label; from the indices without dropout, else from the ranking of all genes (20 of each)."""
    by_id = dict(zip(ids, symbols, strict=True))
    found: dict[str, np.ndarray] = {}
    for key, values in dict(adata.uns.get("rank_genes_groups_cov_all", {})).items():
        found[_label(_condition(str(key)))] = np.array([by_id.get(str(v), str(v)) for v in list(values)[:20]])
    for key, values in dict(adata.uns.get("non_dropout_gene_idx", {})).items():
        found[_label(_condition(str(key)))] = symbols[np.asarray(values, dtype=np.int64)[:20]].astype(str)
    return found


def _condition(key: str) -> str:
    """The condition in ``cell type_condition_dose``, as in ``"K562_STAT1+ctrl_1+1"``."""
    parts = re.sub(r"_\d+(\+\d+)*$", "", key).rsplit("_", 1)
    return parts[-1]


def _recover(matrix: Any, max_counts: float) -> Any:
    """Counts from log1p of normalised counts."""
    rows = sparse.csr_matrix(matrix).astype(np.float64)
    rows.eliminate_zeros()
    if rows.nnz and rows.data.min() < 0:
        raise DataError("X has negative values, expected log1p of normalised counts.")
    values, sizes = np.expm1(rows.data), np.diff(rows.indptr)
    filled = np.flatnonzero(sizes)
    smallest = np.ones(rows.shape[0])
    smallest[filled] = np.minimum.reduceat(values, rows.indptr[filled]) if filled.size else 1.0
    rows.data = np.rint(values / np.repeat(smallest, sizes))
    total = np.asarray(rows.sum(axis=1)).ravel()
    if (total > max_counts).any():
        raise DataError(f"{int((total > max_counts).sum())} cells come to more than {max_counts:g} counts: no log1p?")
    return rows
