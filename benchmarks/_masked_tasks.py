"""Other imputation tasks: molecular cross-validation on thinned counts, and genes that were not measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import scbioformers as bf
from benchmarks._common import fit_scvi, select_genes
from benchmarks._masked_methods import OURS, SCVI_SAMPLES, Fitted, Problem, fit_ours
from scbioformers.core import uniform, validation_rows
from scbioformers.metrics import poisson_loss, thin_counts

Array = NDArray[np.float64]

KEPT_SHARE = 0.5  # share of the counts that methods read in molecular cross-validation
ABSENT_SHARE = 0.2  # share of the modelled genes that are removed from the test cells
MIN_EXPRESSING = 10  # a removed gene is scored if this many test cells express it
N_PCA = 50
NEIGHBOURS, PSEUDO_CELLS = (5, 10, 20, 40, 80, 160), (0.5, 2.0, 8.0)
RANKS, MEAN_SHARES = (2, 5, 10, 20, 40), (0.02, 0.1, 0.3)
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
# All other methods use the kept count of a gene to predict its held-out count. This one uses the other genes only.
FROM_OTHERS = "ours_from_others"
# The rate of scVI combined with the kept count, weighted by the dispersions of scVI, as in our posterior.
SCVI_POSTERIOR = "scvi_posterior"
_ABSENT_STREAM = 0xAB5E


def log_profiles(counts: csr_matrix, depth: Array, target: float) -> csr_matrix:
    """Return log1p of the counts, scaled to the depth ``target``."""
    return csr_matrix(bf.metrics.log1p_normalize(counts, depth=depth, target_sum=target))


# Molecular cross-validation. A smoother yields the expected kept counts of the modelled genes, for each setting.


def smooth_neighbours(counts: csr_matrix, depth: Array) -> Iterator[tuple[tuple[float, ...], Array]]:
    """Pool the counts of the nearest cells and of pseudo-cells with mean expression, at the depth of the cell."""
    n, size = counts.shape[0], float(depth.mean())
    scores = bf.metrics.pca(log_profiles(counts, depth, size), min(N_PCA, min(counts.shape) - 1))
    usable = [k for k in NEIGHBOURS if k <= n]
    nearest = NearestNeighbors(n_neighbors=max(usable) - 1).fit(scores).kneighbors(return_distance=False)
    mean = np.asarray(counts.sum(axis=0)).ravel() / depth.sum()
    for k in usable:
        neighbours = np.column_stack([np.arange(n), nearest[:, : k - 1]])
        pool = csr_matrix((np.ones(n * k), neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
        pooled, pooled_depth = (pool @ counts).toarray(), pool @ depth
        for pseudo in PSEUDO_CELLS:
            more = pseudo * size
            yield (k, pseudo), (pooled + more * mean) * (depth / (pooled_depth + more))[:, None]


def smooth_low_rank(counts: csr_matrix, depth: Array) -> Iterator[tuple[tuple[float, ...], Array]]:
    """Reconstruct the counts from leading principal components, and mix the result with the mean.

    PCA is fitted to log-normalised counts. The result is scaled so that the total of each gene is unchanged.
    """
    mean = np.asarray(counts.sum(axis=0)).ravel() / depth.sum()
    ranks = [rank for rank in RANKS if rank < min(counts.shape)]
    size = float(depth.mean())
    profiles = log_profiles(counts, depth, size)
    pca = PCA(max(ranks), svd_solver="arpack", random_state=0).fit(profiles)
    scores = pca.transform(profiles)
    for rank in ranks:
        level = np.expm1(np.maximum(scores[:, :rank] @ pca.components_[:rank] + pca.mean_, 0.0))
        total = depth @ level
        share = level * np.divide(mean * depth.sum(), total, out=np.zeros_like(total), where=total > 0)
        for weight in MEAN_SHARES:
            yield (rank, weight), ((1 - weight) * share + weight * mean) * depth[:, None]


Smoother = Callable[[csr_matrix, Array], Iterator[tuple[tuple[float, ...], Array]]]


def smooth(
    kept: csr_matrix, genes: NDArray[np.int64], seed: int, smoother: Smoother
) -> tuple[Array, tuple[float, ...]]:
    """Choose the setting by thinning the kept counts again, smooth all kept counts, and return rates and setting."""
    inner, inner_held = thin_counts(kept, KEPT_SHARE, seed + 1)
    losses = {
        setting: poisson_loss(rate * _ratio(), inner_held[:, genes])
        for setting, rate in smoother(inner[:, genes], _depth(inner))
    }
    chosen = min(losses, key=lambda setting: losses[setting])
    return next(rate for setting, rate in smoother(kept[:, genes], _depth(kept)) if setting == chosen), chosen


def _depth(counts: csr_matrix) -> Array:
    """Return the depth of each cell, at least 1."""
    return np.maximum(np.asarray(counts.sum(axis=1), np.float64).ravel(), 1.0)


def _ratio() -> float:
    """Return the expected ratio of held-out to kept counts."""
    return (1 - KEPT_SHARE) / KEPT_SHARE


@lru_cache(maxsize=1)
def _halves(path: Path, seed: int) -> tuple[AnnData, csr_matrix]:
    """Split the counts at random into two halves, and select genes on the first half.

    Returns the first half with all genes, and the second half with the selected genes.
    """
    adata = sc.read_h5ad(path)
    kept_counts, held = thin_counts(csr_matrix(adata.X), KEPT_SHARE, seed)
    kept = AnnData(kept_counts, obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
    select_genes(kept)
    return kept, held[:, np.flatnonzero(kept.var["highly_variable"])]


@lru_cache(maxsize=1)
def _fit_kept(path: Path, seed: int, variant: str) -> Fitted:
    return fit_ours(_halves(path, seed)[0], variant, seed)


@lru_cache(maxsize=1)
def _scvi_kept(path: Path, seed: int) -> tuple[Array, Array, float]:
    """Return rates and dispersions of scVI, fitted to the kept half, and the seconds of the fit."""
    start = time.perf_counter()
    model = fit_scvi(_halves(path, seed)[0], seed)
    seconds = time.perf_counter() - start
    rate = model.get_normalized_expression(library_size="latent", n_samples=SCVI_SAMPLES, return_numpy=True)
    return rate, np.exp(model.module.px_r.detach().numpy()).astype(np.float64), seconds


def _rates(path: Path, method: str, seed: int) -> tuple[Array, dict[str, Any]]:
    """Return the expected kept counts of the modelled genes, and seconds and setting of the fit."""
    kept = _halves(path, seed)[0]
    genes = np.flatnonzero(kept.var["highly_variable"])
    start = time.perf_counter()
    if method in OURS or method == FROM_OTHERS:
        fitted = _fit_kept(path, seed, "ours" if method == FROM_OTHERS else method)
        how = "held_out" if method == FROM_OTHERS else "denoise"
        imputed = bf.tl.impute(kept, model=fitted.model, method=how, output="counts", progress_bar=False, copy=True)
        rates = imputed.layers["imputed"]
        return (rates.toarray() if issparse(rates) else rates)[:, genes], {"fit_seconds": fitted.seconds}
    if method in ("scvi", SCVI_POSTERIOR):
        rate, dispersion, seconds = _scvi_kept(path, seed)
        if method == SCVI_POSTERIOR:  # posterior mean, with a gamma prior of that mean and shape
            rate = rate * (dispersion + kept.X[:, genes].toarray()) / (dispersion + rate)
        return rate, {"fit_seconds": seconds}
    if method == "gene_mean":
        counts, depth = kept.X[:, genes], _depth(kept.X)
        return np.outer(depth, np.asarray(counts.sum(axis=0)).ravel() / depth.sum()), {}
    rate, setting = smooth(kept.X, genes, seed, smooth_neighbours if method == "knn" else smooth_low_rank)
    return rate, {"setting": setting, "fit_seconds": time.perf_counter() - start}


def cross_validate(path: Path, method: str, seed: int) -> dict[str, Any]:
    """Fit to one random half of the counts of all cells, and score the expected counts of the other half."""
    held = _halves(path, seed)[1]
    rate, more = _rates(path, method, seed)
    return {"poisson_loss": poisson_loss(rate * _ratio(), held), "n_genes": held.shape[1], **more}


# Genes that the test cells lack


def without_genes(problem: Problem) -> tuple[AnnData, NDArray[np.int64], NDArray[np.int64]]:
    """Remove a fifth of the modelled genes from the test cells; return cells, kept columns and removed columns."""
    genes = problem.genes
    draws = uniform(problem.seed ^ _ABSENT_STREAM, np.arange(genes.size))
    removed = np.sort(genes[np.argsort(draws)[: round(ABSENT_SHARE * genes.size)]])
    left = np.setdiff1d(np.arange(problem.test.n_vars), removed)
    return problem.test[:, left].copy(), left, removed


def gene_correlations(predicted: Array, truth: Array) -> Array:
    """Return the Pearson correlation over cells for each gene (column), 0 for a constant prediction."""
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    norms = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    varies = (np.ptp(predicted, axis=0) > 0) & (norms > 0)
    return np.divide((a * b).sum(axis=0), norms, out=np.zeros_like(norms), where=varies)


def predict_neighbours(X: Array, Y: Array, queries: Array) -> Iterator[tuple[float, Array]]:
    """Yield, for each k, the mean of ``Y`` over the k nearest cells in ``X``."""
    usable = [k for k in NEIGHBOURS if k <= len(X)]
    nearest = NearestNeighbors(n_neighbors=max(usable)).fit(X).kneighbors(queries, return_distance=False)
    for k in usable:
        yield k, Y[nearest[:, :k]].mean(axis=1)


def predict_low_rank(X: Array, Y: Array, queries: Array) -> Iterator[tuple[float, Array]]:
    """Yield, for each penalty, the predictions of a ridge regression of ``Y`` on the component scores ``X``."""
    mean = Y.mean(axis=0)
    for penalty in PENALTIES:
        weights = np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[1]), X.T @ (Y - mean))
        yield penalty, mean + queries @ weights


def _predict_absent(problem: Problem, method: str) -> tuple[Array, dict[str, Any]]:
    """Predict the log1p counts of the removed genes in the test cells."""
    test, left, removed = without_genes(problem)
    if method in OURS:
        predicted = bf.get.imputed(test, model=problem.fitted(method).model, output="log1p")
        return predicted[:, problem.test.var_names[removed]].X.astype(np.float64), {}
    depth, size = _depth(problem.train.X), float(problem.binning.mean_depth or 1.0)
    Y = log_profiles(problem.train.X[:, removed], depth, size).toarray().astype(np.float64)
    if method == "gene_mean":
        return np.tile(Y.mean(axis=0), (test.n_obs, 1)), {}
    read = np.isin(left, problem.genes)  # modelled genes among the kept ones
    train_left = problem.train.X[:, left]
    profiles = log_profiles(train_left[:, read], _depth(train_left), size)
    queries = log_profiles(test.X[:, read], _depth(test.X), size)
    pca = PCA(min(N_PCA, min(profiles.shape) - 1), svd_solver="arpack", random_state=0).fit(profiles)
    X, Z = pca.transform(profiles), pca.transform(queries)
    predict = predict_neighbours if method == "knn" else predict_low_rank
    held_out = validation_rows(len(X), 0.15, problem.seed)
    fit = predict(X[~held_out], Y[~held_out], X[held_out])
    scores = {setting: gene_correlations(found, Y[held_out]).mean() for setting, found in fit}
    chosen = max(scores, key=lambda setting: scores[setting])
    return next(found for setting, found in predict(X, Y, Z) if setting == chosen), {"setting": chosen}


def score_absent(problem: Problem, method: str) -> dict[str, Any]:
    """Score the removed genes by correlation over test cells. Genes that few test cells express are left out."""
    predicted, more = _predict_absent(problem, method)
    *_, removed = without_genes(problem)
    size = float(problem.binning.mean_depth or 1.0)
    truth = log_profiles(problem.test.X[:, removed], _depth(problem.test.X), size).toarray().astype(np.float64)
    scored = (truth > 0).sum(axis=0) >= MIN_EXPRESSING
    correlations = gene_correlations(predicted[:, scored], truth[:, scored])
    return {
        "pearson": float(correlations.mean()),
        "pearson_median": float(np.median(correlations)),
        "n_genes": int(scored.sum()),
        "n_removed": removed.size,
        **more,
    }
