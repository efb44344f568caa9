"""Compare cell embeddings (Table 1 of the paper) with raw genes, PCA, scVI and variants of our model.

Run ``python -m benchmarks.embedding --data DIR``. DIR contains the data sets with counts and ``obs["cell_type"]``, for
example ``pbmc3k.h5ad``. The RNA of ``cite_cbmc.h5mu`` is a development set: it was seen when defaults were chosen. All
methods read the same counts of 2,000 highly variable genes. No method reads the labels. The seed sets the model and the
scores (Leiden, k-means, folds). Therefore untrained methods have a range, too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

import scbioformers as bf
from benchmarks._common import (
    fit_scvi,
    make_parser,
    markdown_table,
    mean_and_range,
    read_counts,
    run_jobs,
    select_genes,
    warm_up,
)

# Data sets, and their batch column. It is passed to scVI and to our model.
SETS: dict[str, str | None] = {"pbmc3k": None, "paul15": None, "sc_mixology": "batch", "kang_ifnb": "donor"}
SEEN = {"cite_cbmc": None}  # its RNA was used to choose defaults
LABELS = "cell_type"
SCORES = {
    "avg_bio": "AvgBIO",
    "nmi": "NMI",
    "ari": "ARI",
    "asw": "ASW",
    "nmi_res1": "NMI, res. 1",
    "ari_res1": "ARI, res. 1",
    "kmeans_nmi": "NMI, k-means",
    "kmeans_ari": "ARI, k-means",
    "knn_f1": "kNN F1",
    "linear_f1": "linear F1",
    "ilisi": "iLISI",
    "kbet": "kBET",
}


@dataclass(frozen=True)
class Embedding:
    """An embedding, with the seconds of the fit and of the embedding."""

    X: NDArray[np.floating] | sparse.csr_matrix
    fit_seconds: float | None = None
    embed_seconds: float | None = None


def selected_counts(adata: AnnData) -> sparse.csr_matrix:
    """Return the counts of the highly variable genes."""
    return sparse.csr_matrix(adata[:, adata.var["highly_variable"]].X)


def embed_raw(adata: AnnData, batch_key: str | None, seed: int) -> Embedding:
    """Use the log-normalised genes without a reduction."""
    return Embedding(bf.metrics.log1p_normalize(selected_counts(adata)))


def embed_pca(adata: AnnData, n_components: int, seed: int) -> Embedding:
    """Compute principal components of the log-normalised genes."""
    return Embedding(bf.metrics.pca_log1p(selected_counts(adata), n_components, seed))


def embed_pca_binned(adata: AnnData, batch_key: str | None, seed: int) -> Embedding:
    """Compute principal components of the value bins."""
    binned = adata.copy()
    bf.pp.bin_value(binned)
    return Embedding(bf.metrics.pca_binned(binned[:, binned.var["highly_variable"]].layers["bin_value"], 50, seed))


def embed_scvi(adata: AnnData, batch_key: str | None, seed: int) -> Embedding:
    """Fit scVI and return its latent space."""
    start = time.perf_counter()
    model = fit_scvi(adata, seed, batch_key)
    fitted = time.perf_counter()
    X = model.get_latent_representation()
    return Embedding(X, fitted - start, time.perf_counter() - fitted)


def embed_ours(adata: AnnData, batch_key: str | None, seed: int, train: bf.TrainConfig, **changes: Any) -> Embedding:
    """Fit our model with its default configuration and the given changes."""
    config = dataclasses.replace(bf.ModelConfig.preset("small"), **changes)
    adata = adata.copy()
    warm_up()
    start = time.perf_counter()
    bf.tl.fit(adata, batch_key=batch_key, config=config, train=train, rng=seed)
    fitted = time.perf_counter()
    bf.tl.embed(adata)
    return Embedding(adata.obsm["X_bioformer"], fitted - start, time.perf_counter() - fitted)


def _ours(max_steps: int | None = None, **changes: Any) -> Callable[..., Embedding]:
    def embed(adata: AnnData, batch_key: str | None, seed: int) -> Embedding:
        train = bf.TrainConfig(max_steps=max_steps)
        return embed_ours(adata, batch_key, seed, train, **changes)

    return embed


METHODS: dict[str, Callable[[AnnData, str | None, int], Embedding]] = {
    "raw_hvg": embed_raw,
    "pca50": lambda adata, batch_key, seed: embed_pca(adata, 50, seed),
    "pca_own_width": lambda adata, batch_key, seed: embed_pca(adata, bf.ModelConfig.small().n_components, seed),
    "pca_binned": embed_pca_binned,
    "scvi": embed_scvi,
    "ours": _ours(),
    "ours_zero_steps": _ours(max_steps=0),
    "ours_no_attention": _ours(attention=False),
    "ours_random_init": _ours(svd_init=False),
}
PCAS = ("pca50", "pca_own_width")


@lru_cache(maxsize=1)
def load(folder: Path, name: str) -> AnnData:
    """Read the counts of a data set. Only the last one is kept in memory."""
    if name not in SEEN:
        return read_counts(folder / f"{name}.h5ad")
    adata = mudata.read_h5mu(folder / f"{name}.h5mu")["rna"].copy()
    select_genes(adata)
    return adata


def run(folder: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """Embed and score with one method and one seed."""
    adata, batch_key = load(folder, name), (SETS | SEEN)[name]
    embedding = METHODS[method](adata, batch_key, seed)
    start = time.perf_counter()
    batch = None if batch_key is None else adata.obs[batch_key]
    scores = bf.metrics.embedding_scores(embedding.X, adata.obs[LABELS], batch=batch, seed=seed)
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "n_cells": adata.n_obs,
        "n_genes": int(adata.var["highly_variable"].sum()),
        "n_dimensions": int(embedding.X.shape[1]),
        "scores": scores.to_dict(),
        "fit_seconds": embedding.fit_seconds,
        "embed_seconds": embedding.embed_seconds,
        "score_seconds": time.perf_counter() - start,
    }


def score_table(results: pd.DataFrame) -> str:
    """Table with mean and range over the seeds, a row for each method."""
    rows = []
    for method, runs in results.groupby("method", sort=False):
        seconds = [mean_and_range(runs[key].dropna(), 1) for key in ("fit_seconds", "embed_seconds")]
        rows.append([str(method), *(mean_and_range(runs[score].dropna()) for score in SCORES), *seconds])
    return markdown_table(["method", *SCORES.values(), "fit, seconds", "embed, seconds"], rows)


def verdict_table(results: pd.DataFrame) -> str:
    """Table of the differences, and whether the lowest score of ours is above the highest score of the other method."""
    rows = []
    for name, of_set in results.groupby("set", sort=False):
        runs = dict(tuple(of_set.groupby("method", sort=False)))
        if "ours" not in runs:
            continue
        pcas = [method for method in PCAS if method in runs]
        for other in ["better PCA", "scvi", "ours_zero_steps", "ours_no_attention", "ours_random_init"]:
            cells = []
            for score in ("avg_bio", "linear_f1"):
                method = max(pcas, key=lambda pca: runs[pca][score].mean()) if other == "better PCA" and pcas else other
                if method in runs:
                    ours, theirs = runs["ours"][score], runs[method][score]
                    outside = "yes" if ours.min() > theirs.max() else "no"
                    cells += [f"{ours.mean() - theirs.mean():+.3f}", outside]
            if cells:
                rows.append([str(name), other, *cells])
    beyond = "outside the range of seeds"
    return markdown_table(["data set", "ours minus", "AvgBIO", beyond, "linear F1", beyond], rows)


def main() -> None:
    """Run the methods that have no stored result, then print the tables."""
    parser = make_parser(__doc__, list(SETS | SEEN), list(METHODS))
    parser.add_argument("--workers", type=int, default=2, help="number of processes; 1 runs all jobs in this process")
    arguments = parser.parse_args()
    results = run_jobs(
        arguments,
        "embedding",
        (
            (f"{name}-{seed}", f"{name}-{method}-{seed}", partial(run, arguments.data, name, method, seed))
            for name in arguments.sets
            for seed in range(arguments.seeds)
            for method in arguments.methods
        ),
    )
    table = pd.DataFrame([result | result["scores"] for result in results])
    for name, of_set in table.groupby("set", sort=False):
        print(f"\n### {name!s} ({of_set['n_cells'].iloc[0]} cells, {of_set['n_genes'].iloc[0]} genes)\n")
        print(score_table(of_set))
    if "ours" in arguments.methods:
        print(f"\n### Ours compared with the other methods\n\n{verdict_table(table)}")


if __name__ == "__main__":
    main()
