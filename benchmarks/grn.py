"""Compare gene regulatory networks (Fig. 2 of the paper) with correlations, GENIE3 and expression only.

Run ``python -m benchmarks.grn --data DIR``. DIR contains ``beeline_mdc/``, ``beeline_hhep/``, ``pbmc3k.h5ad`` with
``collectri_human.tsv.gz`` and ``human_tfs.txt``, and ``papalexi_eccite.h5ad``. All methods read the same cells and
genes. No method reads the true edges. As in BEELINE, the ranked pairs are the regulators of a truth x the genes that
it contains. If every pair was measured (knock-outs, simulation), they are the regulators x all genes. Methods without
a seed run once. The first run of each method is compared with random networks of the same degrees.

Defaults are chosen on the development sets, so these are not reported. They run only if ``--sets`` names them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scbioformers as bf
from benchmarks._common import make_parser, markdown_table, mean_and_range, run_once, write_json
from benchmarks._grn_enrichment import report
from benchmarks._grn_figures import draw
from benchmarks._grn_fits import N_MEMBERS, fit
from benchmarks._grn_truth import DEVELOPMENT, READERS, Problem, mark_factors

TOP_K = (10, 20)  # number of top targets in the enrichment, fixed before the evaluation
N_BEST = 4  # number of regulators named in the table of the enrichment
N_NULL = 100  # number of random networks
N_TREES = 50  # trees for each gene
EDGE_METHODS = ("embedding", "knockout", "attention")  # methods of bf.tl.grn, the default first
N_ENSEMBLES = 2  # number of ensembles, which share no member
SCORES = {"auprc_ratio": "AUPRC ratio", "epr": "EPR", "sign_accuracy": "correct signs", "null_ratio": "AUPRC / null",
          "null_p": "p"}  # fmt: skip
RATIOS = ("auprc_ratio", "epr")  # scores that can be averaged over truths

Method = Callable[[Problem, int], np.ndarray]


def genie3(problem: Problem, seed: int) -> np.ndarray:
    """Run GENIE3 on the genes that are ranked."""
    targets = None
    if problem.universe == "truth":
        named = {name for edges in problem.truths.values() for end in ("source", "target") for name in edges[end]}
        targets = problem.adata.var_names.get_indexer(sorted(named))
    return bf.metrics.genie3_edges(problem.expression, problem.columns, targets=targets, n_trees=N_TREES, seed=seed,
                                   n_jobs=os.cpu_count() or 1, progress_bar=True)  # fmt: skip


def expression(problem: Problem, seed: int, of: str) -> np.ndarray:
    """Rank edges by mean expression only."""
    return bf.metrics.expression_edges(problem.expression, problem.columns, of=of)


def infer(problem: Problem, model: bf.BioFormer, method: str) -> np.ndarray:
    """Return the weights of all regulators (columns) on all genes (rows), averaged over the networks of the model."""
    adata = problem.adata.copy()
    bf.tl.grn(adata, method=method, regulators=problem.regulators, model=model, progress_bar=False)
    found = bf.get.grn_matrix(adata).reindex(index=adata.var_names, columns=problem.regulators)
    # the scores rank by |weight|; attention below the average is no edge, and `tl.grn` ranks it last
    return found.to_numpy(dtype=float).clip(min=0 if method == "attention" else None)


def ours(
    problem: Problem, seed: int, method: str, svd_init: bool = True, max_steps: int | None = None, n_models: int = 1
) -> np.ndarray:
    """Infer a network with our model."""
    return infer(problem, fit(problem, seed, svd_init, max_steps, n_models), method)


def marked(problem: Problem, seed: int, method: str) -> np.ndarray:
    """Infer a network with our model, which is told which genes are transcription factors (``external_key``)."""
    return infer(problem, fit(problem, seed, True, None, 1, "factor"), method)


def ensemble(
    problem: Problem, seed: int, method: str, svd_init: bool = False, max_steps: int | None = None
) -> np.ndarray:
    """Infer a network from an ensemble.

    The embeddings of the members are initialised at random. The default is to initialise them from the SVD of the
    data. Then the members would agree even without training.
    """
    return ours(problem, seed, method, svd_init, max_steps, N_MEMBERS)


METHODS: dict[str, Method] = {
    "pearson": lambda problem, seed: bf.metrics.pearson_edges(problem.expression, problem.columns),
    "spearman": lambda problem, seed: bf.metrics.spearman_edges(problem.expression, problem.columns),
    "genie3": genie3,
    "expression": partial(expression, of="product"),
    "expression_target": partial(expression, of="target"),
    "expression_regulator": partial(expression, of="regulator"),
    **{f"ours_{method}": partial(ours, method=method) for method in EDGE_METHODS},
    **{f"ours_marked_{method}": partial(marked, method=method) for method in EDGE_METHODS},
    **{f"ours_zero_steps_{method}": partial(ours, method=method, max_steps=0) for method in EDGE_METHODS},
    **{f"random_start_{method}": partial(ours, method=method, svd_init=False) for method in EDGE_METHODS},
    **{f"untrained_{method}": partial(ours, method=method, svd_init=False, max_steps=0) for method in EDGE_METHODS},
    **{f"ensemble_{method}": partial(ensemble, method=method) for method in EDGE_METHODS},
    "ensemble_default_start_embedding": partial(ensemble, method="embedding", svd_init=True),
    **{f"ensemble_untrained_{method}": partial(ensemble, method=method, max_steps=0) for method in EDGE_METHODS},
}
UNSEEDED = {"pearson", "spearman", "expression", "expression_target", "expression_regulator"}


def run(problem: Problem, method: str, seed: int) -> dict[str, Any]:
    """Infer a network and compare it with every truth."""
    weights = METHODS[method](problem, seed)
    names = {"genes": problem.adata.var_names, "regulators": problem.regulators}
    top = [f"{problem.regulators[j]}>{problem.adata.var_names[i]}" for i, j in top_edges(problem, weights, 1000)]
    scores, enriched = {}, {}
    for truth, edges in problem.truths.items():
        nulls = bf.metrics.degree_preserving_null(edges, n=N_NULL) if seed == 0 else ()  # they take most of the time
        found, *null_scores = [
            bf.metrics.grn_scores(weights, each, universe=problem.universe, **names) for each in (edges, *nulls)
        ]
        scores[truth] = found.to_dict()
        if null := [each.auprc for each in null_scores]:
            comparison = bf.metrics.compare_with_null(found.auprc, null)
            scores[truth] |= {"null_ratio": comparison.ratio, "null_p": comparison.p}
        table = bf.metrics.edge_enrichment(weights, edges, k=TOP_K, **names)
        enriched[truth] = table.to_dict("records")
    return {"set": problem.name, "method": method, "seed": seed, "n_cells": problem.adata.n_obs,
            "n_genes": problem.adata.n_vars, "scores": _plain(scores), "enrichment": enriched,
            "top": top}  # fmt: skip


def top_edges(problem: Problem, weights: np.ndarray, k: int) -> list[tuple[int, int]]:
    """Return row and column of the edges with the largest absolute weights."""
    size = np.nan_to_num(np.abs(weights))
    size[problem.columns, np.arange(len(problem.columns))] = 0
    order = np.argsort(-size.ravel(), kind="stable")[:k]
    return [(int(at // size.shape[1]), int(at % size.shape[1])) for at in order if size.ravel()[at] > 0]


def _plain(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Replace NaN by None, because JSON has no NaN."""
    return {truth: {name: None if np.isnan(value) else value for name, value in found.items()}
            for truth, found in scores.items()}  # fmt: skip


def n_seeds(method: str, seeds: int) -> int:
    """Return the number of runs of a method: 1 for deterministic methods, 2 for ensembles, else ``seeds``."""
    return 1 if method in UNSEEDED else N_ENSEMBLES if method.startswith("ensemble") else seeds


def score_table(results: list[dict[str, Any]]) -> str:
    """Table with mean and range over the seeds, a row for each truth and method."""
    rows = []
    for truth in results[0]["scores"]:
        for method in dict.fromkeys(result["method"] for result in results):
            found = [result["scores"][truth] for result in results if result["method"] == method]
            rows.append([truth, method, *(mean_and_range(each.get(name) for each in found) for name in SCORES)])
    if len(results[0]["scores"]) > 1:  # several truths for one data set
        for method in dict.fromkeys(result["method"] for result in results):
            of_runs = [result["scores"].values() for result in results if result["method"] == method]
            ratios = [[float(np.mean([each[name] for each in truths])) for truths in of_runs] for name in RATIOS]
            rows.append(["mean", method, *map(mean_and_range, ratios), *["–"] * (len(SCORES) - len(RATIOS))])
    return markdown_table(["truth", "method", *SCORES.values()], rows)


def stability_table(results: list[dict[str, Any]]) -> str:
    """Table of the overlap of the top 1,000 edges between seeds."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        tops = [set(result["top"]) for result in results if result["method"] == method]
        pairs = [len(a & b) / len(a | b) for i, a in enumerate(tops) for b in tops[:i]]
        if pairs:
            rows.append([method, mean_and_range(pairs)])
    return markdown_table(["method", "Jaccard index of the top 1,000 edges"], rows) if rows else ""


def enrichment_table(results: list[dict[str, Any]]) -> str:
    """Table of regulators with known targets enriched among their top targets (adjusted p < 0.05), first seed."""
    rows = []
    for result in results:
        for truth, tests in result["enrichment"].items():
            if result["seed"] == 0:
                table = pd.DataFrame(tests)
                for k, of_k in table.groupby("k"):
                    below = int((of_k["p_adjusted"] < 0.05).sum())
                    best = of_k.sort_values("p", kind="stable").head(N_BEST).itertuples()
                    rows.append([truth, result["method"], str(k), f"{below} of {len(of_k)}",
                                 ", ".join(f"{e.regulator} ({e.hits}, {e.p_adjusted:.2g})" for e in best)])  # fmt: skip
    return markdown_table(["truth", "method", "k", "enriched regulators", "best (hits, adjusted p)"], rows)


def arguments_of(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line. The sets are the reported ones by default."""
    parser = make_parser(__doc__, list(READERS), list(METHODS))
    parser.set_defaults(
        seeds=5,
        sets=[name for name in READERS if name not in DEVELOPMENT],
        methods=[name for name in METHODS if not name.startswith("ours_marked")],  # experiment 85
    )
    parser.add_argument("--figures", type=Path, help="only draw the figures of the documentation into this folder")
    parser.add_argument("--enrichment", action="store_true", help="only compare pbmc3k with gene sets and known edges")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the methods that have no stored result, then print the tables."""
    arguments = arguments_of(argv)
    if arguments.enrichment:
        report(arguments.data, arguments.out / "grn" / "models", overwrite=arguments.overwrite)
        return
    if arguments.figures:
        draw(arguments.data, arguments.figures)
        return
    folder: Path = arguments.out / "grn"
    everything = []
    for name in arguments.sets:
        problem = READERS[name](arguments.data)
        if any(method.startswith("ours_marked") for method in arguments.methods):
            mark_factors(problem, arguments.data)
        results = []
        for method in arguments.methods:
            for seed in range(n_seeds(method, arguments.seeds)):
                path = folder / f"{name}-{method}-{seed}.json"
                once = partial(run, problem, method, seed)
                results.append(run_once(path, once, overwrite=arguments.overwrite))
        everything += results
        shown = f"{name} (development" if name in DEVELOPMENT else f"{name} (reported"
        print(f"\n### {shown}, {problem.adata.n_obs} cells, {problem.adata.n_vars} genes, {len(problem.regulators)} "
              f"regulators; ranked pairs: genes of the {problem.universe})\n\n{score_table(results)}")  # fmt: skip
        print(f"\n{stability_table(results)}\n\n{enrichment_table(results)}", flush=True)
    write_json(arguments.out / "grn.json", everything)


if __name__ == "__main__":
    main()
