"""Compare predicted responses to held-out perturbations (Table 5 of the paper, and stricter scores) with baselines.

Run ``python -m benchmarks.perturbation --data DIR``. DIR contains ``papalexi_eccite.h5ad`` and
``schraivogel_tapseq.h5ad``, and optionally the features in ``gene_ontology/human_symbol2go.tsv.gz``. ``--data FILE``
runs on a file in GEARS format.

Targets, not labels, are split into 5 folds, with 5 split seeds. The transformer is fitted once, to the control cells
only. In each fold, the external token, the weights of the components and the shrinkage are fitted to the training
targets of this fold only. Intervals are 95 % intervals of a paired bootstrap over targets, after averaging over split
seeds.

``--parts`` selects these scores (``scores``), simulated data with known edges and combinations (``simulated``),
``coverage`` of intervals with few control cells, and ``speed``. Only the scores need ``--data``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scbioformers as bf
from benchmarks import _perturbation_coverage, _perturbation_simulated, _perturbation_speed
from benchmarks._common import choice, make_parser, markdown_table, run_once, write_json
from benchmarks._perturbation_pairs import score_pairs, show_pairs
from benchmarks._perturbation_problem import SETS, Problem, fit_ours, predict_by_network, prepare, read
from scbioformers.core import split_targets

# Targets with signal: for papalexi_eccite known ones, for other data those whose split halves correlate above 0.5.
SIGNAL = {"papalexi_eccite": ("STAT1", "JAK2", "IFNGR1", "IFNGR2", "IRF1", "SMAD4")}
OURS = ("ours", "ours_no_network", "ours_zero_steps", "ours_no_attention")
ALONE = "network_alone"  # the prediction of the transformer without the head
BASELINES = ("no_change", "training_mean", "target_falls", "linear", "knn_go", "ridge_go", "mlp_go")
METHODS = (*OURS, ALONE, *BASELINES)
SCORES = ("delta_off", "centroid", "systema", "pearson", "delta", "pearson_de", "delta_de", "delta_de_off", "rmse")
MODULES = {"simulated": _perturbation_simulated, "coverage": _perturbation_coverage, "speed": _perturbation_speed}
PARTS = ("scores", *MODULES)
N_FOLDS = 5


def predict(problem: Problem, method: str, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the predicted changes for the test perturbations, and the strength and weights of the fit."""
    known, own, features = problem.effects.mean[train], problem.own, problem.features
    if method in OURS:
        head = fit_ours(problem, train, method)
        wanted = [problem.targets[i] for i in test]
        by_network = predict_by_network(problem, train, method, [name for each in wanted for name in each])
        found = head.predict(wanted, by_network, unseen=True)[0]
        return found, {"strength": head.strength, "weights": head.weights.tolist()}
    if method == ALONE:
        by_network = predict_by_network(problem, train, "ours", [name for i in test for name in problem.targets[i]])
        zero = np.zeros(len(problem.genes))
        return np.array([sum((by_network.get(name, zero) for name in problem.targets[i]), zero) for i in test]), {}
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
    """Run all folds of one split. Every method predicts every target once."""
    folds = split_targets(problem.targets, N_FOLDS, seed)
    z = problem.effects.mean / problem.effects.se
    rows, predicted, fits = [], {}, []
    for fold in range(N_FOLDS):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero((folds != fold) & (folds >= 0))
        for method in methods:
            found, extra = predict(problem, method, train, test)
            fits += [{"method": method, "fold": fold, **extra}] if extra else []
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
    return {"rows": rows, "folds": fits, "similarity": _similarity(problem, predicted)}


def _signal(problem: Problem) -> np.ndarray:
    """Return which targets have signal: the known ones, or those whose split halves correlate."""
    named = SIGNAL.get(problem.name)
    labels = ["+".join(each) for each in problem.targets]
    if named is not None:
        return np.isin(labels, named)
    return np.asarray(bf.metrics.split_half(problem.halves[0].mean, problem.halves[1].mean, own=problem.own) > 0.5)


def _similarity(problem: Problem, predicted: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean similarity between targets with signal, observed (corrected for noise) and predicted."""
    keep = _signal(problem)
    halves = [half.mean[keep] for half in problem.halves]
    found = {"observed": _off_diagonal(bf.metrics.similarity_between(*halves, own=problem.own[keep]))}
    for method, values in predicted.items():
        found[method] = _off_diagonal(bf.metrics.similarity_between(values[keep], own=problem.own[keep]))
    return found


def _off_diagonal(matrix: np.ndarray) -> float:
    return float(np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)])) if np.isfinite(matrix).any() else float("nan")


def run_set(path: Path, folder: Path, methods: list[str], n_seeds: int, quick: int | None) -> dict[str, Any]:
    """Run all split seeds on one data set."""
    problem = prepare(path.stem, *read(path, folder), methods, quick)
    results = [run_seed(problem, methods, seed) for seed in range(n_seeds)]
    rows = [row | {"seed": seed} for seed, result in enumerate(results) for row in result["rows"]]
    tested = {row["target"] for row in rows}  # without combinations whose targets are in different folds
    ceiling = bf.metrics.split_half(problem.halves[0].mean, problem.halves[1].mean, own=problem.own)
    return {
        "rows": rows,
        "folds": [fit | {"seed": seed} for seed, result in enumerate(results) for fit in result["folds"]],
        "similarity": [result["similarity"] for result in results],
        "ceiling": {"+".join(each): float(value) for each, value in zip(problem.targets, ceiling, strict=True)},
        "signal": [
            "+".join(each)
            for each, flag in zip(problem.targets, _signal(problem), strict=True)
            if flag and "+".join(each) in tested
        ],
        "pairs": _pairs(problem),
        "fit_seconds": problem.fit_seconds,
        "n_cells": problem.effects.n_cells.tolist(),
    }


def _pairs(problem: Problem) -> list[dict[str, Any]]:
    """Score the combinations of targets that were also perturbed alone. All combinations are held out."""
    alone = [i for i, each in enumerate(problem.targets) if len(each) == 1]
    names = {problem.targets[i][0] for i in alone}
    test = [i for i, each in enumerate(problem.targets) if len(each) > 1 and names.issuperset(each)]
    if not test:
        return []
    return [row | {"seed": 0} for row in score_pairs(problem, np.array(alone), np.array(alone), np.array(test))]


def show(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Yield the tables: all scores, differences, similarity, and scores of each target."""
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
    yield "Ours minus the others, with 95 % intervals (paired bootstrap over targets):"
    lines = []
    for method in methods[1:]:
        cells = []
        for chosen in (list(means.loc[method].index), signal):
            for score in ("delta_off", "centroid"):
                ours, theirs = (means.loc[m].loc[chosen, score].to_numpy() for m in ("ours", method))
                mean, low, high = bf.metrics.paired_bootstrap(ours, theirs)
                cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append([method, *cells])
    names = ("delta_off", "centroid")
    yield markdown_table(["method", *names, *(f"{score}, targets with signal" for score in names)], lines)
    similar = pd.DataFrame(result["similarity"]).mean()
    yield markdown_table(["mean similarity between targets with signal", *similar.index],
                         [["cosine", *(f"{value:.2f}" for value in similar)]])  # fmt: skip
    yield from _by_target(result, table, means)
    if result.get("pairs"):
        yield from show_pairs(name, pd.DataFrame(result["pairs"]))


def _by_target(result: dict[str, Any], table: pd.DataFrame, means: pd.DataFrame) -> Iterator[str]:
    shown = [m for m in ("ours", "training_mean", "linear", "ridge_go") if m in set(table["method"])]
    lines = []
    spread = table.pivot_table(index=["target", "seed"], columns="method", values="delta_off")
    for target in means.loc["ours"].index:
        gap = (spread["ours"] - spread["training_mean"]).loc[target] if "training_mean" in spread else [np.nan]
        row = [f"{means.loc[(m, target), 'delta_off']:.2f}" for m in shown]
        lines.append([target, f"{result['ceiling'][target]:.2f}", *row, f"{np.min(gap):+.2f} to {np.max(gap):+.2f}"])
    header = ["target, delta_off", "split halves", *shown, "ours − training_mean, range over split seeds"]
    yield markdown_table(header, lines)


def run_scores(arguments: Any) -> dict[str, Any]:
    """Compute the scores of all data sets, or of one file."""
    data: Path = arguments.data
    paths = [data] if data.is_file() else [data / f"{name}.h5ad" for name in arguments.sets]
    folder = arguments.features or (data.parent if data.is_file() else data)
    results = {}
    for path in paths:
        run = partial(run_set, path, folder, arguments.methods, arguments.seeds, arguments.quick)
        stored = arguments.out / "perturbation" / f"{path.stem}.json"
        results[path.stem] = run_once(stored, run, overwrite=arguments.overwrite)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts that have no stored result, then print the tables."""
    parser = make_parser(__doc__, list(SETS), list(METHODS), needs_data=False)
    parser.set_defaults(seeds=5)
    parser.add_argument("--parts", type=choice(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--features", type=Path, help="folder with gene_ontology/ (default: folder of the data)")
    parser.add_argument("--quick", type=int, help="number of training steps of the transformer, for a short test run")
    arguments = parser.parse_args(argv)
    if "scores" in arguments.parts and arguments.data is None:
        parser.error("--data is required for --parts scores")
    results: dict[str, Any] = {}
    if "scores" in arguments.parts:
        results |= run_scores(arguments)
        for name, result in json.loads(json.dumps(results)).items():
            print("\n\n".join(["", *show(name, result)]))
    for part, module in MODULES.items():
        if part in arguments.parts:
            run = partial(module.run, arguments.seeds, arguments.quick)
            path = arguments.out / "perturbation" / f"{part}.json"
            results[part] = run_once(path, run, overwrite=arguments.overwrite)
            print("\n\n".join(["", *module.show(results[part])]))
    write_json(arguments.out / "perturbation.json", results)


if __name__ == "__main__":
    main()
