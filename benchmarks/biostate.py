"""Compare models of RNA and proteins together (:func:`scbioformers.tl.fit` of a MuData) with other methods.

Run ``python -m benchmarks.biostate --data DIR``. cite_cbmc is reported. cite_malt is a development set: choices were
made on it.

Parts: ``joint`` (embeddings of both modalities, and of each alone, are scored with labels; those of cite_malt come
from gates on four proteins that are not in the input), ``predict`` (the proteins of the test samples from their RNA
alone, and the RNA from the proteins, by methods that were fitted to 80 % of the samples), ``missing`` (cite_malt, where
20 % of the samples lack proteins and 10 % lack RNA: is this seen in the embedding?) and ``cost`` (CPU time of a fit of
both modalities over that of the RNA alone, at the same number of steps). totalVI needs counts, so it is run on
cite_malt alone. WNN and totalVI are left out, which is printed, if muon or scvi-tools is not installed.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

import scbioformers as bf
from benchmarks._biostate_methods import (
    EMBEDDINGS,
    OURS,
    PREDICTORS,
    Predicted,
    correlations,
    depth_of,
    embed_pca,
    fit_both,
    fit_ours,
    joint_pca,
    predict_ours,
    values_of,
)
from benchmarks._biostate_samples import Samples, Values, as_mudata, leave_out, read_samples, split
from benchmarks._common import (
    choice,
    installed,
    make_parser,
    markdown_table,
    mean_and_range,
    run_jobs,
    warm_up,
)
from scbioformers.core import leiden

SETS = ("cite_cbmc", "cite_malt")
RAW_PROTEINS = ("cite_malt",)  # sets whose proteins are counts
PARTS = ("joint", "predict", "missing", "cost")
N_SCORED_GENES = 200
COST_STEPS = 300
SCORES = {
    "avg_bio": "AvgBIO", "nmi": "NMI", "ari": "ARI", "asw": "ASW", "knn_f1": "kNN F1", "linear_f1": "linear F1",
    "protein": "proteins, Pearson", "protein_coverage": "in 80 % intervals", "rna": "genes, Pearson",
    "rna_coverage": "genes in 80 % intervals", "silhouette": "silhouette of what is missing",
    "time_ratio": "time, both / RNA", "peak_gb": "peak memory, GB", "fit_seconds": "CPU seconds of the fit",
}  # fmt: skip


def score_joint(samples: Samples, method: str, seed: int) -> dict[str, float | None]:
    """Scores of an embedding, by the samples that have a label."""
    if method == "wnn":
        return score_wnn(samples, seed)
    labelled = samples.labels != ""
    embedding = EMBEDDINGS[method](samples, seed)
    return bf.metrics.embedding_scores(embedding[labelled], samples.labels[labelled], seed=seed).to_dict()


def score_predicted(samples: Samples, method: str, seed: int) -> dict[str, float]:
    """Mean correlation over the proteins, without isotype controls, and over highly variable genes; of test samples."""
    training, test = split(samples, seed)
    if method in OURS:
        fitted = fit_both(training, seed, **OURS[method])
        predict = partial(predict_ours, fitted=fitted)
    else:
        predict = PREDICTORS[method]
    top = sc.pp.highly_variable_genes(training.rna, flavor="seurat_v3", n_top_genes=N_SCORED_GENES, inplace=False)
    scored = {"protein": ~samples.controls, "rna": top["highly_variable"].to_numpy()[training.genes]}
    scores = {}
    for name, wanted in (("protein", "prot"), ("rna", "rna")):
        predicted = predict(training, test, wanted, seed)
        if predicted is None:
            continue
        true = values_of(test, wanted, depth_of(training))[:, scored[name]]
        scores[name] = float(correlations(predicted["mean"][:, scored[name]], true).mean())
        if "0.1" in predicted:
            scores[f"{name}_coverage"] = coverage(predicted, true, scored[name])
    return scores


def coverage(predicted: Predicted, true: Values, columns: np.ndarray) -> float:
    """Share of the true values between the predicted quantiles 0.1 and 0.9."""
    low, high = (predicted[name][:, columns] for name in ("0.1", "0.9"))
    return float(((low <= true) & (true <= high)).mean())


def score_missing(samples: Samples, method: str, seed: int) -> dict[str, float]:
    """Silhouette of what is left of a sample (0: not seen), and kNN F1 of the labels, in the embedding of all."""
    pattern = leave_out(samples, seed)
    has = {"rna": pattern != "proteins", "prot": pattern != "RNA"}
    if method in OURS:
        mdata = as_mudata({name: getattr(samples, name)[rows] for name, rows in has.items()})
        bf.tl.embed(fit_ours(mdata, seed, **OURS[method]))
        embedding = pd.DataFrame(mdata.obsm["X_bioformer"], index=mdata.obs_names).loc[samples.rna.obs_names].to_numpy()
    else:
        values = {"rna": samples.profiles().toarray(), "prot": samples.proteins()}
        for name, rows in has.items():
            values[name] = np.where(rows[:, None], values[name], 0.0)
        embedding = joint_pca(values["rna"], values["prot"], seed)
    labelled = samples.labels != ""
    scores = bf.metrics.embedding_scores(embedding[labelled], samples.labels[labelled], seed=seed)
    return {"silhouette": float(silhouette_score(embedding, pattern)), "knn_f1": scores.knn_f1}


def score_cost(samples: Samples, method: str, seed: int) -> dict[str, float]:
    """CPU time of the fits in a new process, and its peak memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_cost, samples, seed).result()


def measure_cost(samples: Samples, seed: int) -> dict[str, float]:
    """CPU seconds (user and system), because other processes change the wall time."""
    parts = {"rna": samples.rna, "prot": samples.prot}
    seconds = {}
    for names in (("rna",), ("rna", "prot")):
        fit_ours(as_mudata({name: parts[name][:500] for name in names}), seed, max_steps=3)  # compiles
        mdata = as_mudata({name: parts[name] for name in names})
        start = time.process_time()
        fit_ours(mdata, seed, max_steps=COST_STEPS)
        seconds[len(names)] = time.process_time() - start
    bf.tl.embed(mdata)
    bf.tl.impute(mdata, modalities=["prot"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"time_ratio": seconds[2] / seconds[1], "fit_seconds": seconds[2], "peak_gb": peak}


def score_wnn(samples: Samples, seed: int) -> dict[str, float]:
    """NMI and ARI of clusters of weighted nearest neighbours, at the resolution with the best NMI."""
    import muon

    parts = {"rna": AnnData(embed_pca(samples, seed)), "prot": AnnData(samples.proteins())}
    for part in parts.values():
        sc.pp.neighbors(part, use_rep="X", random_state=seed)
    mdata = as_mudata(parts)
    muon.pp.neighbors(mdata, random_state=seed)
    labelled = samples.labels != ""
    graph, truth = mdata.obsp["connectivities"], samples.labels[labelled]
    clusters = [leiden(graph, resolution, seed)[labelled] for resolution in np.arange(1, 11) / 5]
    best = max(clusters, key=lambda codes: normalized_mutual_info_score(truth, codes))
    return {"nmi": normalized_mutual_info_score(truth, best), "ari": adjusted_rand_score(truth, best)}


# part: its methods, and the function that scores one of them
METHODS: dict[str, tuple[list[str], Any]] = {
    "joint": ([*EMBEDDINGS, "wnn"], score_joint),
    "predict": ([*OURS, *PREDICTORS], score_predicted),
    "missing": ([*OURS, "pca_zeros"], score_missing),
    "cost": (["ours"], score_cost),
}
ALL_METHODS = list(dict.fromkeys(method for methods, _ in METHODS.values() for method in methods))


def run(data: Path, part: str, name: str, method: str, seed: int) -> dict[str, Any]:
    """Score one method with one seed."""
    if method in OURS:
        warm_up()
    samples = read_samples(data, name, gated=part in ("joint", "missing"))
    start = time.process_time()
    scores = METHODS[part][1](samples, method, seed)
    found = {"part": part, "set": name, "method": method, "seed": seed, "n_samples": len(samples.labels)}
    return found | {"cpu_seconds": time.process_time() - start, **scores}


def jobs(data: Path, parts: list[str], sets: list[str], methods: list[str], n_seeds: int) -> Iterator[tuple[str, Any]]:
    """Name and function of each result."""
    of_part = {"missing": ("cite_malt",), "cost": ("cite_cbmc",)}
    for seed in range(n_seeds):
        for part in parts:
            for name in (name for name in sets if name in of_part.get(part, SETS)):
                for method in (method for method in methods if method in METHODS[part][0]):
                    if method == "totalvi" and name not in RAW_PROTEINS:
                        continue
                    yield f"{part}-{name}-{method}-{seed}", partial(run, data, part, name, method, seed)


def show(results: pd.DataFrame) -> Iterator[str]:
    """Yield one folded table for each part and set."""
    for (part, name), rows in results.groupby(["part", "set"], sort=False):
        scores = [score for score in SCORES if score in rows and rows[score].notna().any()]
        lines = [
            [str(method), *(mean_and_range(runs[score].dropna()) for score in scores)]
            for method, runs in rows.groupby("method", sort=False)
        ]
        table = markdown_table(["method", *(SCORES[score] for score in scores)], lines)
        yield f"<details>\n<summary>Biostates, {part}: {name}</summary>\n\n{table}\n\n</details>"


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    parser = make_parser(__doc__ or "", SETS, ALL_METHODS)
    parser.add_argument("--parts", type=choice(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with one thread")
    arguments = parser.parse_args()
    methods = installed(arguments.methods, {"wnn": "muon", "totalvi": "scvi"})
    found = jobs(arguments.data, arguments.parts, arguments.sets, methods, arguments.seeds)
    results = run_jobs(arguments, "biostate", ((name, name, once) for name, once in found))
    print("\n\n".join(["", *show(pd.DataFrame(results))]))


if __name__ == "__main__":
    main()
