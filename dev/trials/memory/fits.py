"""Fit the models of experiment 90 and save them: ``python -m dev.trials.memory.fits --data DIR --models DIR``.

``SET-SEED-KIND`` are models that are fitted to a data set (``scratch``), to the three other sources of the blood pool
(``pretrained``), and then to the data set (``tuned``), with and without attention (``…_no_attention``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import scanpy as sc
from anndata import AnnData
from scipy.sparse import csr_matrix

import scbioformers as bf
from benchmarks._common import select_genes, warm_up
from benchmarks._masked_methods import Problem
from benchmarks._transfer_methods import Transfer, read_data
from scbioformers.metrics import thin_counts

SOURCES = ("hao_pbmc", "kotliarov_pbmc", "malt_lymphoma", "pisces_pbmc")
QUERIES = ("hao_pbmc", "malt_lymphoma")
ATTENTION = {"": True, "_no_attention": False}


def load_transfer(data: Path, query: str, seed: int) -> Transfer:
    """The query with all its training cells, and the other sources as the pool. Genes are chosen on the pool."""
    pool, adata = read_data(data, [name for name in SOURCES if name != query], query)
    return Transfer(pool, adata, None, seed)


def load_problem(data: Path, name: str, seed: int) -> Problem:
    """Training and test cells of a data set."""
    return Problem.make(bf.datasets.pbmc68k(), seed) if name == "pbmc68k" else load_transfer(data, name, seed).problem


def kept_half(data: Path, name: str, seed: int) -> tuple[AnnData, csr_matrix]:
    """A random half of the counts, with genes chosen on it, and the other half of these genes."""
    adata = bf.datasets.pbmc68k() if name == "pbmc68k" else sc.read_h5ad(data / "blood_pool" / f"{name}.h5ad")
    counts, held = thin_counts(csr_matrix(adata.X), 0.5, seed)
    kept = AnnData(counts, obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
    select_genes(kept)
    return kept, held[:, kept.var["highly_variable"].to_numpy()]


def fitted(folder: Path, fit: Callable[[], bf.BioFormer]) -> bf.BioFormer:
    """The saved model, or a new one, which is saved."""
    if not folder.exists():
        start = time.perf_counter()
        model = fit()
        model.save(folder)
        print(f"{folder.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return bf.BioFormer.load(folder)


def fit_to(adata: AnnData, seed: int, *, attention: bool = True) -> bf.BioFormer:
    """A model fitted to a data set alone."""
    adata = adata.copy()
    bf.tl.fit(adata, config=bf.ModelConfig(attention=attention), rng=seed)
    return bf.get.model(adata)


def fit_pool(data: Path, models: Path, query: str, seed: int, end: str = "") -> bf.BioFormer:
    """The model of the other sources."""
    transfer = load_transfer(data, query, seed)

    def pretrain() -> bf.BioFormer:
        with tempfile.TemporaryDirectory() as folder:
            return transfer._pretrain(Path(folder) / "model", ATTENTION[end])[0]

    return fitted(models / f"{query}-{seed}-pretrained{end}", pretrain)


def fit_query(data: Path, models: Path, query: str, seed: int) -> None:
    """The model of the other sources after a fit to the query, and a model of the query alone."""
    transfer, before, at = load_transfer(data, query, seed), fit_pool(data, models, query, seed), f"{query}-{seed}"
    fitted(models / f"{at}-tuned", lambda: transfer._fit(model=before)[0])
    fitted(models / f"{at}-scratch", lambda: fit_to(transfer.problem.train, seed))


def fit_self(data: Path, models: Path, name: str, seed: int, end: str) -> None:
    """A model of a data set alone."""
    problem = load_problem(data, name, seed)
    fitted(models / f"{name}-{seed}-scratch{end}", lambda: fit_to(problem.train, seed, attention=ATTENTION[end]))


def fit_kept(data: Path, models: Path, name: str, seed: int) -> None:
    """A model of one half of the counts."""
    fitted(models / f"{name}-{seed}-kept", lambda: fit_to(kept_half(data, name, seed)[0], seed))


def main() -> None:
    """Fit all models that are not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data, models = arguments.data, arguments.models
    warm_up()
    seeds = range(arguments.seeds)
    for seed in seeds:
        for query in QUERIES:
            fit_pool(data, models, query, seed)
    for seed in seeds:
        for query in QUERIES:
            fit_query(data, models, query, seed)
        fit_pool(data, models, QUERIES[0], seed, "_no_attention")
        for end in ATTENTION:
            fit_self(data, models, "pbmc68k", seed, end)
    for seed in seeds:
        fit_kept(data, models, "pbmc68k", seed)


if __name__ == "__main__":
    main()
