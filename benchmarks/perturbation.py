"""Responses to perturbations never seen (the paper's Table 5, and stricter scores), against baselines.

``python -m benchmarks.perturbation --data DIR``: DIR holds ``papalexi_eccite.h5ad`` and ``schraivogel_tapseq.h5ad``,
and ``gene_ontology/human_symbol2go.tsv.gz`` if there are features. ``--data FILE`` runs on a file in the format of
GEARS. Targets, not labels, are split into 5 folds, with 5 split seeds. The network is fitted once, to control cells
alone; what is chosen in a fold (weights of the pieces, shrinkage) has seen that fold's training targets alone.
Intervals are paired bootstraps over targets, after averaging over split seeds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

import scbioformers as bf
from benchmarks._common import make_parser, markdown_table, run_once, write_json
from scbioformers.core import split_targets, uniform
from scbioformers.data import Source
from scbioformers.perturbation import Effects, PerturbationHead, fit_head, log1p_rows, measure_effects
from scbioformers.perturbing import choose_probes, network_answers, read_design
from scbioformers.stored import open_query

SETS = ("papalexi_eccite", "schraivogel_tapseq")
# targets with signal in papalexi by what is known of them; elsewhere those whose split halves agree (r above .5)
SIGNAL = {"papalexi_eccite": ("STAT1", "JAK2", "IFNGR1", "IFNGR2", "IRF1", "SMAD4")}
# enhancers to their genes, old symbols to new ones
TARGETS = {
    "papalexi_eccite": {"MARCH8": "MARCHF8"},
    "schraivogel_tapseq": {
        **{f"{gene}-{letter}": gene for gene in ("MYC", "GATA1", "ZFPM2") for letter in "ABCD"},
        **{f"HS2-{letter}": "HBE1" for letter in "ABCD"},
    },
}
OURS = ("ours", "ours_no_network", "ours_zero_steps", "ours_no_attention")
BASELINES = ("no_change", "training_mean", "target_falls", "linear", "knn_go", "ridge_go", "mlp_go")
METHODS = (*OURS, *BASELINES)
SCORES = ("delta_off", "centroid", "systema", "pearson", "delta", "pearson_de", "delta_de", "delta_de_off", "rmse")
N_FOLDS = 5
_HALVES = 0x4A1F


@dataclass(frozen=True, eq=False)
class Problem:
    """Effects of all perturbations, and what the control cells alone tell."""

    name: str
    genes: list[str]
    task: bf.Perturbation
    targets: list[tuple[str, ...]]
    effects: Effects
    halves: tuple[Effects, Effects]
    own: np.ndarray
    features: np.ndarray
    answers: dict[str, dict[str, np.ndarray]]
    mean_depth: float
    fit_seconds: float


def read(path: Path, folder: Path) -> tuple[AnnData, bf.Perturbation]:
    """Cells and task of a set, or of a file in the format of GEARS."""
    table = folder / "gene_ontology" / "human_symbol2go.tsv.gz"
    features = None
    if table.exists():
        features = bf.datasets.gene_features(pd.read_csv(table, sep="\t"), gene="symbol", term="go_id", n_features=200)
    if path.stem not in SETS:
        adata = bf.datasets.read_gears(path)
        return adata, bf.Perturbation(key="perturbation", control="control", features=features)
    adata = sc.read_h5ad(path)
    return adata, bf.Perturbation("perturbation", "non-targeting", targets=TARGETS[path.stem], features=features)


def prepare(path: Path, folder: Path, methods: list[str], quick: int | None) -> Problem:
    """Fit the networks to control cells, and measure all effects."""
    adata, task = read(path, folder)
    batch = "batch" if "batch" in adata.obs else None
    genes = [str(name) for name in adata.var_names]
    if task.features is not None and (unknown := set(_named(adata, task)) - set(task.features.index) - set(genes)):
        rows = pd.DataFrame(0.0, index=sorted(unknown), columns=task.features.columns)
        task = replace(task, features=pd.concat([task.features, rows]))
    design = read_design(adata, task, batch, genes)
    source = Source(adata)
    controls = adata[design.controls].copy()
    singles = sorted({name for each in design.perturbations for name in each})
    answers: dict[str, dict[str, np.ndarray]] = {"ours_no_network": {}}
    mean_depth, seconds = 0.0, 0.0
    for method, (steps, attention) in {
        "ours": (quick, True), "ours_zero_steps": (0, True), "ours_no_attention": (quick, False)
    }.items():  # fmt: skip
        if method != "ours" and method not in methods:
            continue
        start = time.perf_counter()
        train = bf.TrainConfig(max_steps=steps, progress_bar=False)
        config = replace(bf.ModelConfig.preset("small"), attention=attention)
        bf.tl.fit(controls, train=train, config=config, batch_key=batch)
        model = bf.get.model(controls)
        probes = choose_probes(open_query(controls, model, None)[0], np.arange(controls.n_obs))
        answers[method] = network_answers(model, probes, singles, task.kind)
        mean_depth = float(model.binnings["rna"].mean_depth or 1.0)
        seconds = time.perf_counter() - start if method == "ours" else seconds
    rows = [log1p_rows(block.counts, block.depth, mean_depth) for block in source.blocks()]
    measure = partial(measure_effects, rows, strata=design.strata, n_groups=len(design.perturbations))
    first = uniform(_HALVES, np.arange(adata.n_obs)) < 0.5
    halves = tuple(measure(groups=np.where(half, design.groups, -1)) for half in (first, ~first))
    targets = list(design.perturbations)
    features = np.zeros((len(targets), 1))
    if task.features is not None:
        features = np.array([task.features.reindex(list(each)).fillna(0).to_numpy().sum(axis=0) for each in targets])
    own = np.array([[gene in each for gene in genes] for each in targets])
    effects = measure(groups=design.groups)
    return Problem(path.stem, genes, task, targets, effects, (halves[0], halves[1]), own, features, answers,
                   mean_depth, seconds)  # fmt: skip


def _named(adata: AnnData, task: bf.Perturbation) -> list[str]:
    labels = adata.obs[task.key].astype(str).unique()
    texts = [
        dict(task.targets or {}).get(label, label) for label in labels if label not in (*task.ignore, task.control)
    ]
    return [part for text in texts for part in text.split("+")]


def take(effects: Effects, rows: np.ndarray) -> Effects:
    """Effects of some perturbations; what they say of the controls stays."""
    return replace(effects, mean=effects.mean[rows], se=effects.se[rows], n_cells=effects.n_cells[rows])


def fit_ours(problem: Problem, train: np.ndarray, method: str) -> PerturbationHead:
    """Fit the head to the training perturbations alone."""
    answers = problem.answers[method]
    return fit_head(problem.genes, [problem.targets[i] for i in train], take(problem.effects, train), problem.task,
                    problem.mean_depth, lambda names: {n: answers[n] for n in names if n in answers})  # fmt: skip


def predict(problem: Problem, method: str, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Changes predicted for the test perturbations, and what there is to tell of the fit."""
    known, own, features = problem.effects.mean[train], problem.own, problem.features
    if method in OURS:
        head = fit_ours(problem, train, method)
        wanted = [problem.targets[i] for i in test]
        found = head.predict(wanted, problem.answers[method], unseen=True)[0]
        return found, {"strength": head.strength, "weights": head.weights.tolist()}
    if method == "no_change":
        return bf.metrics.no_change(known, len(test)), {}
    if method == "training_mean":
        return bf.metrics.training_mean(known, len(test)), {}
    if method == "target_falls":
        return bf.metrics.target_falls(own[test]), {}
    if method == "linear":
        return bf.metrics.linear_bilinear(known, own[train], own[test]), {}
    by_name = {
        "knn_go": bf.metrics.knn_features,
        "ridge_go": bf.metrics.ridge_features,
        "mlp_go": bf.metrics.mlp_features,
    }
    return by_name[method](known, features[train], features[test]), {}


def run_seed(problem: Problem, methods: list[str], seed: int) -> dict[str, Any]:
    """All folds of one split: every target predicted once by every method."""
    folds = split_targets(problem.targets, N_FOLDS, seed)
    z = problem.effects.mean / problem.effects.se
    rows, predicted, told = [], {}, []
    for fold in range(N_FOLDS):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero((folds != fold) & (folds >= 0))
        for method in methods:
            found, extra = predict(problem, method, train, test)
            told += [{"method": method, "fold": fold, **extra}] if extra else []
            predicted.setdefault(method, np.zeros(z.shape))[test] = found
            scores = bf.metrics.perturbation(
                found, problem.effects.mean[test], control=problem.effects.control_mean, own=problem.own[test],
                perturbed_mean=problem.effects.mean[train].mean(axis=0), ranking=z[test], others=problem.effects.mean,
                others_own=problem.own,
            )  # fmt: skip
            values = {name: list(value) for name, value in asdict(scores).items()}
            rows += [
                {"method": method, "target": "+".join(problem.targets[i])} | {n: float(v[k]) for n, v in values.items()}
                for k, i in enumerate(test)
            ]
    return {"rows": rows, "folds": told, "similarity": _similarity(problem, predicted)}


def _signal(problem: Problem) -> np.ndarray:
    """Targets with signal: those named, or whose split halves agree."""
    named = SIGNAL.get(problem.name)
    labels = ["+".join(each) for each in problem.targets]
    if named is not None:
        return np.isin(labels, named)
    return np.asarray(bf.metrics.split_half(problem.halves[0].mean, problem.halves[1].mean, own=problem.own) > 0.5)


def _similarity(problem: Problem, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean similarity between targets with signal, observed (corrected for noise) and predicted."""
    keep = _signal(problem)
    halves = [half.mean[keep] for half in problem.halves]
    found = {"observed": _off_diagonal(bf.metrics.similarity_between(*halves, own=problem.own[keep]))}
    for method, values in predicted.items():
        found[method] = _off_diagonal(bf.metrics.similarity_between(values[keep], own=problem.own[keep]))
    return found


def _off_diagonal(matrix: np.ndarray) -> float:
    return float(np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)])) if np.isfinite(matrix).any() else float("nan")


def run_set(path: Path, folder: Path, methods: list[str], n_seeds: int, quick: int | None) -> dict[str, Any]:
    """One data set."""
    problem = prepare(path, folder, methods, quick)
    results = [run_seed(problem, methods, seed) for seed in range(n_seeds)]
    rows = [row | {"seed": seed} for seed, result in enumerate(results) for row in result["rows"]]
    ceiling = bf.metrics.split_half(problem.halves[0].mean, problem.halves[1].mean, own=problem.own)
    return {
        "rows": rows,
        "folds": [told | {"seed": seed} for seed, result in enumerate(results) for told in result["folds"]],
        "similarity": [result["similarity"] for result in results],
        "ceiling": {"+".join(each): float(value) for each, value in zip(problem.targets, ceiling, strict=True)},
        "signal": ["+".join(each) for each, flag in zip(problem.targets, _signal(problem), strict=True) if flag],
        "fit_seconds": problem.fit_seconds,
        "n_cells": problem.effects.n_cells.tolist(),
    }


def show(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Tables: all scores, the differences, the similarity, and target by target."""
    table = pd.DataFrame(result["rows"])
    means = table.groupby(["method", "target"], sort=False)[list(SCORES)].mean()
    methods = list(dict.fromkeys(table["method"]))
    signal = result["signal"]
    yield f"### {name} ({len(means.loc[methods[0]])} targets, {len(signal)} with signal)"
    lines = [[m, *(f"{means.loc[m][s].mean():.3f}" for s in SCORES)] for m in methods]
    ceiling = f"{np.mean(list(result['ceiling'].values())):.3f}"
    lines.append(["split halves", ceiling, *["–"] * (len(SCORES) - 1)])
    yield markdown_table(["method", *SCORES], lines)
    if "ours" not in methods:
        return
    yield "Ours minus the others, with 95 % intervals of a paired bootstrap over targets:"
    lines = []
    for method in methods[1:]:
        cells = []
        for chosen in (list(means.loc[method].index), signal):
            for score in ("delta_off", "centroid"):
                ours, theirs = (means.loc[m].loc[chosen, score].to_numpy() for m in ("ours", method))
                mean, low, high = bf.metrics.paired_bootstrap(ours, theirs)
                cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append([method, *cells])
    yield markdown_table(["method", "Δ", "centroid", "Δ, signal", "centroid, signal"], lines)
    similar = pd.DataFrame(result["similarity"]).mean()
    yield markdown_table(["similarity between targets with signal", *similar.index],
                         [["cosine", *(f"{value:.2f}" for value in similar)]])  # fmt: skip
    yield from _by_target(result, table, means)


def _by_target(result: dict[str, Any], table: pd.DataFrame, means: pd.DataFrame) -> Iterator[str]:
    shown = [m for m in ("ours", "training_mean", "linear", "ridge_go") if m in set(table["method"])]
    lines = []
    spread = table.pivot_table(index=["target", "seed"], columns="method", values="delta_off")
    for target in means.loc["ours"].index:
        gap = (spread["ours"] - spread["training_mean"]).loc[target] if "training_mean" in spread else [np.nan]
        row = [f"{means.loc[(m, target), 'delta_off']:.2f}" for m in shown]
        lines.append([target, f"{result['ceiling'][target]:.2f}", *row, f"{np.min(gap):+.2f} to {np.max(gap):+.2f}"])
    yield markdown_table(["target, Δ", "halves", *shown, "ours − mean over split seeds"], lines)


def main() -> None:
    """Run what has no result yet, then print the tables."""
    parser = make_parser(__doc__, list(SETS), list(METHODS))
    parser.set_defaults(seeds=5)
    parser.add_argument("--features", type=Path, help="folder of gene_ontology/, by default that of the data")
    parser.add_argument("--quick", type=int, help="training steps of the network, for a try")
    arguments = parser.parse_args()
    data: Path = arguments.data
    paths = [data] if data.is_file() else [data / f"{name}.h5ad" for name in arguments.sets]
    folder = arguments.features or (data.parent if data.is_file() else data)
    results = {}
    for path in paths:
        run = partial(run_set, path, folder, arguments.methods, arguments.seeds, arguments.quick)
        stored = arguments.out / "perturbation" / f"{path.stem}.json"
        results[path.stem] = run_once(stored, run, overwrite=arguments.overwrite)
    write_json(arguments.out / "perturbation.json", results)
    for name, result in json.loads(json.dumps(results)).items():
        print("\n\n".join(["", *show(name, result)]))


if __name__ == "__main__":
    main()
