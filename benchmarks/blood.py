"""Compare the blood model of the package with fits to the data, on blood that it has not seen.

Run ``python -m benchmarks.blood --data DIR``. pbmc3k, kang_ifnb and onek1k_panel are in no fit of the blood model.

Embeddings: ``zero_shot`` (:func:`scbioformers.models.blood`, no fit), ``fine_tuned`` (a fit that starts from it),
``scratch`` (a fit of the data alone), PCA and scVI of the 2,000 most variable genes.

Masked values without a fit, of 500 random cells: the model ``alone``, and with similar cells of these 500
(``query_memory``, that is ``bf.tl.impute(memory="query")``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

import scbioformers as bf
from benchmarks._common import (
    fit_scvi,
    installed,
    make_parser,
    markdown_table,
    mean_and_range,
    run_jobs,
    select_genes,
    warm_up,
)

SETS = ("pbmc3k", "kang_ifnb", "onek1k_panel")
METHODS = ("zero_shot", "fine_tuned", "scratch", "pca", "scvi")
MEMORIES: dict[str, Literal["query"] | None] = {"alone": None, "query_memory": "query"}
TABLES = {  # title, and the columns with their digits
    "embed": ("Blood model", {"avg_bio": ("AvgBIO", 3), "linear_f1": ("linear F1", 3), "knn_f1": ("kNN F1", 3),
                              "cpu_seconds": ("CPU seconds", 0)}),
    "impute": ("Blood model, masked values", {"nll_bits": ("bits", 3), "cpu_seconds": ("CPU seconds", 0)}),
}  # fmt: skip
N_IMPUTED = 500


def read(data: Path, name: str) -> AnnData:
    """Read a data set, with symbols as names."""
    adata = sc.read_h5ad(data / f"{name}.h5ad")
    if "gene_symbols" in adata.var:
        adata.var_names = adata.var["gene_symbols"].astype(str)
    adata.var_names_make_unique()
    select_genes(adata)
    return adata


def embed(adata: AnnData, method: str, seed: int) -> np.ndarray:
    """Embedding of all cells."""
    if method == "pca":
        counts = adata[:, adata.var["highly_variable"]].X
        depth = np.asarray(adata.X.sum(axis=1)).ravel()
        return bf.metrics.pca(bf.metrics.log1p_normalize(counts, depth=depth), bf.ModelConfig().n_components, seed)
    if method == "scvi":
        return np.asarray(fit_scvi(adata, seed).get_latent_representation())
    if method == "zero_shot":
        bf.tl.embed(adata, model=bf.models.blood())
    else:
        bf.tl.fit(adata, model=bf.models.blood() if method == "fine_tuned" else None, rng=seed)
        bf.tl.embed(adata)
    return np.asarray(adata.obsm["X_bioformer"])


def impute(adata: AnnData, method: str, seed: int) -> float:
    """Bits of a masked value of some cells."""
    rows = np.random.default_rng(seed).choice(adata.n_obs, N_IMPUTED, replace=False)
    cells = adata[np.sort(rows)].copy()
    bf.tl.impute(cells, model=bf.models.blood(), method="held_out", memory=MEMORIES[method])
    return float(bf.get.imputation_evidence(cells)["nll_bits"])


def run(data: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """Score one method with one seed."""
    warm_up()
    adata = read(data, name)
    start = time.process_time()
    found: dict[str, Any] = {"set": name, "method": method, "seed": seed}
    if method in MEMORIES:
        bits = impute(adata, method, seed)
        return found | {"nll_bits": bits, "cpu_seconds": time.process_time() - start}
    embedding = embed(adata, method, seed)
    seconds = time.process_time() - start
    scores = bf.metrics.embedding_scores(embedding, adata.obs["cell_type"].to_numpy(str), seed=seed)
    found |= {score: getattr(scores, score) for score in ("avg_bio", "linear_f1", "knn_f1")}
    return found | {"cpu_seconds": seconds}


def jobs(data: Path, sets: list[str], methods: list[str], n_seeds: int) -> Iterator[tuple[str, Any]]:
    """Name and function of each result. An embedding without a fit has one seed."""
    for seed in range(n_seeds):
        for name in sets:
            for method in methods:
                if seed == 0 or method not in ("zero_shot", "pca"):
                    yield f"{name}-{method}-{seed}", partial(run, data, name, method, seed)


def show(results: pd.DataFrame) -> Iterator[str]:
    """Yield a table of the embeddings and one of the masked values for each data set."""
    results["part"] = np.where(results["method"].isin(list(MEMORIES)), "impute", "embed")
    for (part, name), rows in results.groupby(["part", "set"], sort=False):
        title, columns = TABLES[str(part)]
        lines = [
            [str(method), *(mean_and_range(runs[score], digits) for score, (_, digits) in columns.items())]
            for method, runs in rows.groupby("method", sort=False)
        ]
        table = markdown_table(["method", *(label for label, _ in columns.values())], lines)
        yield f"<details>\n<summary>{title}: {name!s}</summary>\n\n{table}\n\n</details>"


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    parser = make_parser(__doc__ or "", SETS, [*METHODS, *MEMORIES])
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with one thread")
    arguments = parser.parse_args()
    methods = installed(arguments.methods, {"scvi": "scvi"})
    found = jobs(arguments.data, arguments.sets, methods, arguments.seeds)
    results = run_jobs(arguments, "blood", ((name, name, once) for name, once in found))
    print("\n\n".join(["", *show(pd.DataFrame(results))]))


if __name__ == "__main__":
    main()
