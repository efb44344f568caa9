"""Simulated knock-downs with known truth: signs of held-out direct effects, and non-additive combinations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scbioformers as bf
from benchmarks._common import markdown_table, mean_and_range
from benchmarks._perturbation_pairs import score_pairs, show_pairs
from benchmarks._perturbation_problem import Problem, correlations_in, fit_ours, predict_by_network, prepare

N_REGULATORS, N_HELD_OUT, N_PAIRS = 30, 5, 12
STEPS = 200  # default number of training steps
METHODS = ("ours", "ours_no_network", "coexpression_all", "coexpression", "training_mean")


def draw(seed: int) -> tuple[AnnData, list[str], list[str], list[str]]:
    """Simulate cells; return them with the training regulators, the held-out regulators, and pairs of training ones."""
    random = np.random.default_rng(1000 + seed)
    names = [f"TF{i + 1}" for i in random.permutation(N_REGULATORS)]
    held, known = sorted(names[:N_HELD_OUT]), names[N_HELD_OUT:]
    chosen = [random.choice(len(known), size=2, replace=False) for _ in range(3 * N_PAIRS)]
    pairs = list(dict.fromkeys("+".join(sorted(known[i] for i in pair)) for pair in chosen))[:N_PAIRS]
    cells = bf.datasets.simulate(8000, 100, n_regulators=N_REGULATORS, perturbations=[*known, *held, *pairs], rng=seed)
    return cells, known, held, pairs


def run(n_seeds: int, quick: int | None) -> dict[str, Any]:
    """Run all seeds. Each seed simulates a new gene regulatory network."""
    signs: list[dict[str, Any]] = []
    combinations: list[dict[str, Any]] = []
    for seed in range(n_seeds):
        cells, known, held, pairs = draw(seed)
        task = bf.Perturbation("perturbation", "control", celltype_key="cell_type")
        problem = prepare("simulated", cells, task, ["ours"], STEPS if quick is None else quick)
        at = {"+".join(each): i for i, each in enumerate(problem.targets)}
        singles = np.array([at[name] for name in known])
        signs += [row | {"seed": seed} for row in _signs(problem, cells.uns["grn_true"], singles, held)]
        rows = np.array([at[name] for name in pairs])
        for known_pairs in (0, len(pairs) // 2):
            train, test = np.concatenate([singles, rows[:known_pairs]]), rows[len(pairs) // 2 :]
            setting = {"seed": seed, "known_pairs": known_pairs}
            combinations += [row | setting for row in score_pairs(problem, train, singles, test)]
    return {"signs": signs, "combinations": combinations}


def _signs(problem: Problem, edges: pd.DataFrame, train: np.ndarray, held: list[str]) -> list[dict[str, Any]]:
    """Return, for each edge of a held-out regulator and each method, whether the predicted sign is correct.

    The knock-down of an activator decreases the expression of its targets.
    """
    targets, genes = [(name,) for name in held], {name: i for i, name in enumerate(problem.genes)}
    predicted = {}
    for method in ("ours", "ours_no_network"):
        by_network = predict_by_network(problem, train, method, held)
        predicted[method] = fit_ours(problem, train, method).predict(targets, by_network, unseen=True)[0]
    predicted["training_mean"] = bf.metrics.training_mean(problem.effects.mean[train], len(held))
    at = [genes[name] for name in held]
    # correlation in the control cells only, then in the control and training cells
    predicted["coexpression"] = -correlations_in(problem, ()).pooled()[at]
    predicted["coexpression_all"] = -correlations_in(problem, tuple(train.tolist())).pooled()[at]
    rows = []
    for source, target, weight in edges.itertuples(index=False):
        if source in held:
            for method, values in predicted.items():
                right = np.sign(values[held.index(source), genes[target]]) == -np.sign(weight)
                rows.append({"method": method, "edge": f"{source}-{target}", "right": bool(right)})
    return rows


def show(result: dict[str, Any]) -> Iterator[str]:
    """Yield the tables: share of correct signs, with mean and range over seeds, and scores of combinations."""
    table = pd.DataFrame(result["signs"])
    n_edges = len(table) // table["method"].nunique()
    yield f"### Simulated: share of correct signs for direct effects of held-out regulators ({n_edges} edges)"
    share = table.groupby(["method", "seed"])["right"].mean()
    total = table.groupby("method")["right"].mean()
    shown = [method for method in METHODS if method in total]
    yield markdown_table(["method", "all edges", "mean and range over seeds"],
                         [[m, f"{total[m]:.3f}", mean_and_range(share[m])] for m in shown])  # fmt: skip
    for known, part in pd.DataFrame(result["combinations"]).groupby("known_pairs"):
        yield from show_pairs("Simulated", part, f", {known} other pairs in the training data")
