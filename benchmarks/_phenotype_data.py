"""Cells with phenotypes for :mod:`benchmarks.phenotype`: what is read and simulated, and simple profiles of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray

import scbioformers as bf
from benchmarks._common import select_genes

Values = NDArray[np.floating]
Rows = NDArray[np.bool_]
TIMES = {"beeline_mdc": 4.0, "beeline_mesc": 24.0}  # hours that are held out
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_no_attention": {"attention": False},
    "ours_untrained": {"max_steps": 0},
}


def read(data: Path, name: str, seed: int = 0, **simulated: Any) -> AnnData:
    """Read a data set, or simulate one. All genes of kang_ifnb, onek1k_panel and the simulations are modelled."""
    if name == "simulated":
        return bf.datasets.simulate(2500, 400, n_types=5, expected=True, rng=300 + seed, **simulated)
    if name == "pbmc68k":
        adata = bf.datasets.pbmc68k()
        adata.obs["cell_type"] = adata.obs["bulk_labels"]
    elif name == "cite_cbmc":
        import mudata

        adata = mudata.read_h5mu(data / "cite_cbmc.h5mu")["rna"].copy()
    else:
        adata = sc.read_h5ad(data / f"{name}.h5ad")
    select_genes(adata)
    return adata


def read_times(data: Path, name: str) -> AnnData:
    """A time course on a log scale, with the number of hours in ``obs["time"]``."""
    adata = sc.read_h5ad(data / name / "expression.h5ad")
    hours = adata.obs["timepoint"] if "timepoint" in adata.obs else adata.obs_names.to_series()
    adata.obs["time"] = hours.astype(str).str.extract(r"(\d+)h", expand=False).astype(float).to_numpy()
    return adata


def fit_ours(adata: AnnData, seed: int, max_steps: int | None = None, attention: bool = True, **options: Any) -> None:
    """Fit our model with its defaults."""
    config, train = bf.ModelConfig(attention=attention), bf.TrainConfig(max_steps=max_steps)
    bf.tl.fit(adata, config=config, train=train, rng=seed, **options)


def dense(X: Any) -> Values:
    """A matrix as a float64 array."""
    return np.asarray(X.toarray() if hasattr(X, "toarray") else X, np.float64)


def shares(adata: AnnData, layer: str | None = None) -> Values:
    """(N, M), values divided by the depth of the cell."""
    values = dense(adata.X if layer is None else adata.layers[layer])
    return values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)


def mean_depth(adata: AnnData) -> float:
    """Mean depth of the cells."""
    return float(np.asarray(adata.X.sum(axis=1)).mean())


def profiles(adata: AnnData, depth: float) -> Values:
    """(N, M), log1p of the counts at this depth."""
    return np.log1p(shares(adata) * depth)
