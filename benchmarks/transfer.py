"""Compare what a pre-trained model adds: fits to n cells, queries without a fit, other panels, another species.

Run ``python -m benchmarks.transfer --data DIR``. DIR contains ``blood_pool/``, ``pbmc3k.h5ad``, ``kang_ifnb.h5ad``,
``onek1k_panel.h5ad`` and ``paul15.h5ad``. A tenth of the pool is kept from all methods. In all parts but ``query`` the
methods have the same genes, chosen on the pool, and the same masked entries of the same held-out cells.

Parts: ``tune`` (pbmc3k with n training cells, whose value bins all methods have: from scratch, pre-trained without a
fit, fine-tuned, each with and without attention; softmax regression and scVI with and without the pool), ``counts``
(the same with 500 cells; a model of the pool has the bins of the pool, and the score is of counts), ``query`` (a model
of the pool with the default settings embeds the query without a fit), ``panel`` (as ``tune``, with onek1k_panel, which
has a few of the genes, as one more data set of the pool) and ``species`` (as ``counts``, with paul15, a mouse, for
the model of human blood).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scbioformers as bf
from benchmarks._common import (
    choice,
    make_parser,
    markdown_table,
    mean_and_range,
    run_jobs,
    warm_up,
)
from benchmarks._transfer_methods import Run, Transfer, read_data, read_set
from benchmarks.embedding import selected_counts

POOL = ("hao_pbmc", "kotliarov_pbmc", "malt_lymphoma", "pisces_pbmc")
PANEL = "onek1k_panel"
SIZES: dict[str, tuple[int | None, ...]] = {
    "tune": (100, 500, 1000, None),
    "counts": (500,),
    "query": (None,),
    "panel": (500, None),
    "species": (200, None),
}
QUERIES = {"query": ("pbmc3k", "kang_ifnb"), "species": ("paul15",)}  # of the other parts: pbmc3k
VARIANTS = {"": True, "_no_attention": False}
OURS = tuple(f"{kind}{end}" for kind in ("scratch", "pretrained", "tuned") for end in VARIANTS)
METHODS = (*OURS, "logistic", "logistic_pool", "scvi", "scvi_pool")
QUERY_METHODS = ("pretrained", "pretrained_no_attention", "pca_pool", "pca_query", "scvi")
SCORES = {
    "bits": 3,
    "avg_bio": 3,
    "linear_f1": 3,
    "knn_f1": 3,
    "pool_bits": 3,
    "fit_seconds": 0,
    "embed_seconds": 1,
    "megabytes": 1,
    "time_to_scratch": 2,
}


@lru_cache(maxsize=1)
def load(data: Path, part: str, query: str, n_cells: int | None, seed: int) -> Transfer:
    """Data and fitted models of one part, query, size and seed. Only the last is kept in memory."""
    pool, adata = read_data(data, POOL, query)
    panel = {PANEL: read_set(data, PANEL)} if part == "panel" else {}
    return Transfer(pool, adata, n_cells, seed, panel, own_binning=part in ("counts", "species"))


def run(data: Path, part: str, query: str, n_cells: int | None, method: str, seed: int) -> dict[str, Any]:
    """Score one method."""
    transfer = load(data, part, query, n_cells, seed)
    found: dict[str, Any] = {"part": part, "set": query, "n_cells": n_cells, "method": method, "seed": seed}
    if part == "query":
        return found | score_query(data, transfer, method)
    found["n_genes"] = len(transfer.genes)
    if method in OURS:
        return found | score_ours(transfer, method)
    if method.startswith("logistic"):
        return found | {"bits": transfer.softmax_regression(with_pool=method.endswith("pool"))}
    bits, latent = transfer.scvi(with_pool=method.endswith("pool"))
    return found | {"bits": bits} | embedding_scores(transfer, latent)


@lru_cache(maxsize=2)
def model_of_pool(data: Path, seed: int, attention: bool) -> tuple[bf.BioFormer, float, float]:
    """The model of the pool with the default settings, its size on disk in megabytes, and the seconds of its fit."""
    transfer = load(data, "query", QUERIES["query"][0], None, seed)
    warm_up()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        model = bf.tl.pretrain(transfer.given, save_dir=saved, config=bf.ModelConfig(attention=attention), rng=seed)
        size = sum(path.stat().st_size for path in saved.iterdir())
    return model, size / 1e6, time.perf_counter() - start


def score_query(data: Path, transfer: Transfer, method: str) -> dict[str, Any]:
    """Scores of an embedding of the query: by a model of the pool, components of the pool or the query, or scVI."""
    if method not in OURS:
        return {"n_genes": len(transfer.genes)} | embedding_scores(transfer, embed(transfer, method))
    model, megabytes, seconds = model_of_pool(data, transfer.seed, method == "pretrained")
    start = time.perf_counter()
    embedding = transfer.embed(model)
    found = {"n_genes": len(model.vocabulary), "megabytes": megabytes, "fit_seconds": seconds}
    return found | {"embed_seconds": time.perf_counter() - start} | embedding_scores(transfer, embedding)


def score_ours(transfer: Transfer, method: str) -> dict[str, Any]:
    """Bits, embedding, bits of the pool, seconds, and the time to the loss of a fit from scratch."""
    kind, _, rest = method.partition("_")
    runs: dict[str, Any] = {"scratch": transfer.scratch, "pretrained": transfer.pretrained, "tuned": transfer.tuned}
    fitted: Run = runs[kind](attention=not rest)
    found = {"bits": transfer.bits(fitted.model), "fit_seconds": fitted.seconds}
    if kind != "scratch":
        found["pool_bits"] = transfer.bits_of_pool(fitted.model)
    if kind == "tuned" and not transfer.own_binning:  # losses in different bins cannot be compared
        found["time_to_scratch"] = time_to_loss(fitted, transfer.scratch(attention=not rest))
    return found | embedding_scores(transfer, transfer.embed(fitted.model))


def time_to_loss(fitted: Run, reference: Run) -> float | None:
    """Steps to the lowest validation loss of the reference, relative to the steps of the reference. None if missed."""
    best = reference.history.sort_values("val_loss", kind="stable").iloc[0]  # NaN where there was no validation is last
    reached = fitted.history[fitted.history["val_loss"] <= best["val_loss"]]
    return float(reached["step"].iloc[0] / best["step"]) if len(reached) else None


def embed(transfer: Transfer, method: str) -> Any:
    """Embedding of the query by components of the pool or of the query, or by scVI."""
    if method == "scvi":
        return transfer.scvi(with_pool=False)[1]
    counts = selected_counts(transfer.query)
    n_components = bf.ModelConfig.small().n_components
    if method == "pca_query":
        return bf.metrics.pca_log1p(counts, n_components, transfer.seed)
    return pool_components(transfer, n_components)


def pool_components(transfer: Transfer, n_components: int) -> np.ndarray:
    """Principal components of the log-normalised pool, on which the query is projected."""
    from sklearn.decomposition import PCA

    pool = np.concatenate([_profiles(adata[:, transfer.genes]) for adata in transfer.given.values()])
    pca = PCA(n_components, random_state=transfer.seed).fit(pool)
    return np.asarray(pca.transform(_profiles(transfer.query[:, transfer.genes])))


def _profiles(adata: AnnData) -> np.ndarray:
    return np.asarray(bf.metrics.log1p_normalize(adata.X).todense())


def embedding_scores(transfer: Transfer, X: np.ndarray) -> dict[str, Any]:
    """Scores of an embedding of all cells of the query."""
    scores = bf.metrics.embedding_scores(X, transfer.query.obs["cell_type"], seed=transfer.seed)
    return {name: getattr(scores, name) for name in ("avg_bio", "linear_f1", "knn_f1")}


def jobs(
    data: Path, parts: list[str], sets: list[str], methods: list[str], n_seeds: int
) -> Iterator[tuple[str, str, Any]]:
    """Group, name and function of each result. Results of a group share cells and models."""
    for part in parts:
        known = QUERY_METHODS if part == "query" else ("pretrained", "tuned") if part == "panel" else METHODS
        for query in (each for each in QUERIES.get(part, ("pbmc3k",)) if each in sets):
            for n_cells in SIZES[part]:
                for seed in range(n_seeds):
                    for method in (each for each in known if each in methods):
                        name = f"{part}-{query}-{n_cells or 'all'}-{method}-{seed}"
                        once = partial(run, data, part, query, n_cells, method, seed)
                        yield f"{part} {seed}", name, once


def show(results: pd.DataFrame) -> Iterator[str]:
    """Yield one table for each part, data set and number of cells."""
    for (part, name), of_set in results.groupby(["part", "set"], sort=False):
        for _, rows in of_set.groupby("n_cells", sort=False, dropna=False):
            given = rows["n_cells"].iloc[0]
            cells = "all" if pd.isna(given) else str(int(given))
            scores = [score for score in SCORES if score in rows and rows[score].notna().any()]
            lines = [
                [str(method), *(mean_and_range(runs[score].dropna(), SCORES[score]) for score in scores)]
                for method, runs in rows.groupby("method", sort=False)
            ]
            genes = " and ".join(str(n) for n in rows["n_genes"].unique())
            yield f"### {part!s}: {name!s}, {cells} training cells, {genes} genes"
            yield markdown_table(["method", *(score.replace("_", " ") for score in scores)], lines)


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    everything = list(dict.fromkeys((*METHODS, *QUERY_METHODS)))
    parser = make_parser(__doc__ or "", ["pbmc3k", "kang_ifnb", "paul15"], everything)
    parser.add_argument("--parts", type=choice(list(SIZES)), default=list(SIZES), help=f"some of {','.join(SIZES)}")
    parser.add_argument("--workers", type=int, default=2, help="number of processes; 1 runs all jobs in this process")
    arguments = parser.parse_args()
    chosen = arguments.parts, arguments.sets, arguments.methods, arguments.seeds
    results = run_jobs(arguments, "transfer", jobs(arguments.data, *chosen))
    print("\n\n".join(["", *show(pd.DataFrame(results))]))


if __name__ == "__main__":
    main()
