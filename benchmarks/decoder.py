"""Compare the decoder with the encoder, and the cells that it generates with held-out cells and other generators.

Run ``python -m benchmarks.decoder --data DIR``. DIR contains the data sets with counts and ``obs["cell_type"]``, for
example ``pbmc3k.h5ad``. pbmc68k, which comes with the package, is a development set.

Parts: ``masked`` (bits of the same masked values of test cells), ``embed`` (embeddings of all cells, scored with
labels), ``networks`` (of simulated cells, AUPRC over chance) and ``generate``: as many cells as there are test cells,
of the same depths, are compared with these. Beside the decoder stand independent negative binomials of each gene,
draws from the prior of scVI (if it is installed), and training cells, which are real: what they score is what perfect
cells would score.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

import scbioformers as bf
from benchmarks._common import (
    choice,
    fit_scvi,
    installed,
    make_parser,
    markdown_table,
    mean_and_range,
    run_jobs,
    select_genes,
    warm_up,
)
from benchmarks._grn_truth import simulate
from benchmarks._masked_methods import METHODS as MASKED_METHODS
from benchmarks._masked_methods import Prediction, Problem, predict_ours
from benchmarks._masking import EvenMasking
from benchmarks.grn import infer
from benchmarks.masked import score as score_masked

Array = NDArray[np.float64]

SETS = ("pbmc3k", "paul15", "pbmc68k", "simulated")
NETWORKS = ("embedding", "attention", "knockout")
PARTS = ("masked", "embed", "networks", "generate")
DECODER = bf.ModelConfig.decoder()
OURS = {  # configuration, and the number of steps if it is not the default
    "encoder": (bf.ModelConfig.small(), None),
    "decoder": (DECODER, None),
    "decoder_no_attention": (replace(DECODER, attention=False), None),
    "decoder_untrained": (DECODER, 0),
}
BASELINES = ("constant_0", "histogram", "low_rank")
LABELS = {"pbmc68k": "bulk_labels"}
SCORES = {
    "nll_bits": "bits", "natural_nll_bits": "bits, natural odds", "auroc": "zero or not, AUROC",
    "natural_zero_calibration": "calibration error", "avg_bio": "AvgBIO", "knn_f1": "kNN F1",
    "linear_f1": "linear F1", "embedding": "embedding", "attention": "attention", "knockout": "knock-outs",
    "variance": "log variance, RMSE", "zeros": "zeros, mean error",
    "correlations": "correlations, Pearson r", "linear": "AUROC, linear", "forest": "AUROC, forest",
    "distance": "distance to training cells, ratio", "fit_seconds": "seconds of the fit",
    "generate_seconds": "seconds of 1,000 cells",
}  # fmt: skip


def load(data: Path, name: str) -> AnnData:
    """Read the counts of a data set."""
    return bf.datasets.pbmc68k() if name == "pbmc68k" else sc.read_h5ad(data / f"{name}.h5ad")


def fit(adata: AnnData, method: str, seed: int) -> tuple[AnnData, float]:
    """Fit one of our models. Returns the seconds too."""
    warm_up()
    config, steps = OURS[method]
    train = bf.TrainConfig() if steps is None else bf.TrainConfig(max_steps=steps)
    start = time.perf_counter()
    fitted = bf.tl.fit(adata, config=config, train=train, rng=seed, copy=True)
    return fitted, time.perf_counter() - start


def score_bits(problem: Problem, method: str) -> dict[str, Any]:
    """Scores of the masked values of the test cells, with the mask of the training and with natural odds."""
    masks, cutoff = (problem.mask_test(), problem.mask_test(EvenMasking())), problem.binning.cutoff
    if method in BASELINES:
        return score_masked(MASKED_METHODS[method](problem), *masks, cutoff)
    fitted, seconds = fit(problem.train, method, problem.seed)
    model = bf.get.model(fitted)
    found = [predict_ours(model, problem.test_cells, mask, natural=i > 0) for i, mask in enumerate(masks)]
    predicted = Prediction(found[0], found[1], seconds)
    return score_masked(predicted, *masks, cutoff) | {"fit_seconds": seconds}


def score_embedding(adata: AnnData, name: str, method: str, seed: int) -> dict[str, Any]:
    """Scores of the embedding of all cells with labels."""
    select_genes(adata)
    fitted, seconds = fit(adata, method, seed)
    bf.tl.embed(fitted)
    labels = adata.obs[LABELS.get(name, "cell_type")].astype(str).to_numpy()
    scores = bf.metrics.embedding_scores(fitted.obsm["X_bioformer"], labels, seed=seed)
    return {**scores.to_dict(), "fit_seconds": seconds}


def score_networks(method: str, seed: int) -> dict[str, Any]:
    """AUPRC over chance of the networks of one model, in the simulation of the benchmark of networks."""
    problem = simulate()
    names = {"genes": problem.adata.var_names, "regulators": problem.regulators}
    if method == "pearson":
        ranked = dict.fromkeys(NETWORKS, bf.metrics.pearson_edges(problem.expression, problem.columns))
    else:
        model = bf.get.model(fit(problem.adata, method, seed)[0])
        ranked = {kind: infer(problem, model, kind) for kind in NETWORKS}
    edges = problem.truths["network"]
    return {
        kind: bf.metrics.grn_scores(weights, edges, universe=problem.universe, **names).auprc_ratio
        for kind, weights in ranked.items()
    }


# --- generators: (problem) -> counts of the modelled genes (n, M), of the depths of the test cells --------------------


def generate_ours(problem: Problem) -> tuple[Array, float | None]:
    """Cells drawn from a decoder."""
    fitted, _ = fit(problem.train, "decoder", problem.seed)
    start = time.perf_counter()
    drawn = bf.tl.generate(fitted, problem.test.n_obs, depth=problem.test_cells.depth, rng=problem.seed)
    return drawn.X.toarray().astype(np.float64), time.perf_counter() - start


def generate_scvi(problem: Problem) -> tuple[Array, float | None]:
    """Draws from the prior of scVI, each with the sum over the modelled genes of a test cell."""
    import torch

    model = fit_scvi(problem.train, problem.seed)
    module, n = model.module.eval(), problem.test.n_obs
    library = np.log(np.maximum(problem.test_cells.counts.sum(axis=1), 1)).astype(np.float32)
    random = torch.Generator().manual_seed(problem.seed)
    with torch.no_grad():
        z = torch.randn(n, module.n_latent, generator=random)
        batch = torch.zeros(n, 1)
        rate = module.decoder("gene", z, torch.from_numpy(np.asarray(library).reshape(n, 1)), batch)[2]
        dispersion = module.px_r.exp().numpy().astype(np.float64)
    return draw_counts(rate.numpy().astype(np.float64), dispersion, problem.seed), None


def generate_independent(problem: Problem) -> tuple[Array, float | None]:
    """Each gene by itself: a negative binomial with its share of the depth and its dispersion in training cells."""
    cells = problem.train_cells
    share = cells.counts.sum(axis=0).A1 / cells.depth.sum()
    expected = cells.depth[:, None] * share
    excess = np.square(cells.counts.toarray() - expected).sum(axis=0) - expected.sum(axis=0)
    dispersion = np.square(expected).sum(axis=0) / np.maximum(excess, 1e-9)
    return draw_counts(problem.test_cells.depth[:, None] * share, np.clip(dispersion, 1e-2, 1e4), problem.seed), None


def generate_training(problem: Problem) -> tuple[Array, float | None]:
    """Training cells, each the nearest in depth to a test cell. No cell is taken twice."""
    cells, free = problem.train_cells, np.ones(problem.train.n_obs, bool)
    chosen = []
    for depth in problem.test_cells.depth:
        chosen.append(int(np.argmin(np.where(free, np.abs(cells.depth - depth), np.inf))))
        free[chosen[-1]] = False
    return cells.counts[chosen].toarray().astype(np.float64), None


def draw_counts(rate: Array, dispersion: Array, seed: int) -> Array:
    """Counts of a negative binomial."""
    random = np.random.default_rng(seed)
    return random.poisson(random.gamma(np.broadcast_to(dispersion, rate.shape), rate / dispersion)).astype(np.float64)


GENERATORS: dict[str, Callable[[Problem], tuple[Array, float | None]]] = {
    "decoder": generate_ours,
    "scvi": generate_scvi,
    "independent": generate_independent,
    "training_cells": generate_training,
}


def score_generated(problem: Problem, method: str) -> dict[str, Any]:
    """Compare generated cells with the test cells, which have the same depths."""
    drawn, seconds = GENERATORS[method](problem)
    found = compare(drawn, problem.test_cells.counts.toarray().astype(np.float64), problem)
    if method == "training_cells":
        del found["distance"]  # they are what it is measured to
    return found if seconds is None else found | {"generate_seconds": seconds / len(drawn) * 1000}


def compare(drawn: Array, real: Array, problem: Problem) -> dict[str, float]:
    """All scores of generated counts (n, M), given as many real ones."""
    seen = (real > 0).sum(axis=0) >= 5
    mean_depth = problem.train_cells.depth.mean()
    size = (problem.test_cells.depth / mean_depth)[:, None]
    levels = [np.log1p(x / size) for x in (drawn, real)]
    frequent = np.argsort(-real.mean(axis=0), kind="stable")[:200]
    upper = np.triu_indices(len(frequent), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = [np.nan_to_num(np.corrcoef(x[:, frequent].T)[upper]) for x in levels]
    variances = [np.log(x[:, seen].var(axis=0) + 1e-3) for x in (drawn, real)]
    training = problem.train_cells
    known = np.log1p(training.counts.toarray() / (training.depth / mean_depth)[:, None])
    pca = PCA(min(30, *known.shape), random_state=0).fit(known)
    nearest = NearestNeighbors(n_neighbors=1).fit(pca.transform(known))
    distances = [np.median(nearest.kneighbors(pca.transform(x))[0]) for x in levels]
    scores, is_real = np.concatenate([pca.transform(x) for x in levels]), np.repeat([0, 1], len(real))
    depths = np.concatenate([np.column_stack([x.sum(axis=1), (x > 0).sum(axis=1)]) for x in (drawn, real)])
    features = np.column_stack([scores, np.log1p(depths)])
    return {
        "variance": float(np.sqrt(np.mean((variances[0] - variances[1]) ** 2))),
        "zeros": float(np.abs((drawn == 0).mean(axis=0) - (real == 0).mean(axis=0)).mean()),
        "correlations": float(np.corrcoef(*r)[0, 1]),
        "linear": auroc(
            LogisticRegression(C=0.1, max_iter=1000), (features - features.mean(0)) / features.std(0), is_real
        ),
        "forest": auroc(RandomForestClassifier(300, min_samples_leaf=2, random_state=0), features, is_real),
        "distance": float(distances[0] / distances[1]),
    }


def auroc(classifier: Any, features: Array, is_real: NDArray[np.int64]) -> float:
    """AUROC of a classifier that tells real from generated cells, cross-validated. 0.5 if it cannot."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    found = cross_val_predict(classifier, features, is_real, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_real, found))


METHODS: dict[str, list[str]] = {
    "masked": [*OURS, *BASELINES],
    "embed": ["encoder", "decoder"],
    "networks": ["encoder", "decoder", "pearson"],
    "generate": [*GENERATORS],
}


def run(data: Path, part: str, name: str, method: str, seed: int) -> dict[str, Any]:
    """Score one method with one seed."""
    found: dict[str, Any] = {"part": part, "set": name, "method": method, "seed": seed}
    if part == "networks":
        return found | score_networks(method, seed)
    adata = load(data, name)
    found["n_cells"] = adata.n_obs
    if part == "embed":
        return found | score_embedding(adata, name, method, seed)
    problem = Problem.make(adata, seed)
    return found | (score_bits if part == "masked" else score_generated)(problem, method)


def jobs(data: Path, parts: list[str], sets: list[str], methods: list[str], n_seeds: int) -> Iterator[tuple[str, Any]]:
    """Name and function of each result."""
    for seed in range(n_seeds):
        for part in parts:
            for name in sets:
                if (part == "networks") != (name == "simulated"):
                    continue
                for method in (method for method in methods if method in METHODS[part]):
                    yield f"{part}-{name}-{method}-{seed}", partial(run, data, part, name, method, seed)


def show(results: pd.DataFrame) -> Iterator[str]:
    """Yield one folded table for each part and set."""
    for (part, name), rows in results.groupby(["part", "set"], sort=False):
        scores = [score for score in SCORES if score in rows and rows[score].notna().any()]
        lines = [
            [str(method), *(mean_and_range(runs[score].dropna(), 0 if "second" in score else 3) for score in scores)]
            for method, runs in rows.groupby("method", sort=False)
        ]
        table = markdown_table(["method", *(SCORES[score] for score in scores)], lines)
        yield f"<details>\n<summary>Decoder, {part}: {name}</summary>\n\n{table}\n\n</details>"


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    parser = make_parser(__doc__ or "", SETS, list(dict.fromkeys([*OURS, *BASELINES, *GENERATORS, "pearson"])))
    parser.add_argument("--parts", type=choice(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with one thread")
    arguments = parser.parse_args()
    methods = installed(arguments.methods, {"scvi": "scvi"})
    found = jobs(arguments.data, arguments.parts, arguments.sets, methods, arguments.seeds)
    results = run_jobs(arguments, "decoder", ((name, name, once) for name, once in found))
    print("\n\n".join(["", *show(pd.DataFrame(results))]))


if __name__ == "__main__":
    main()
