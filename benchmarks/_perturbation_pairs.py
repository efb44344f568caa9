"""Predict held-out combinations of measured targets, and compare with the sum of the measured single effects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

import scbioformers as bf
from benchmarks._common import markdown_table
from benchmarks._perturbation_problem import Problem, fit_ours

METHODS = ("ours", "ours_no_network", "additive", "training_mean", "no_change")


def score_pairs(problem: Problem, train: np.ndarray, singles: np.ndarray, test: np.ndarray) -> list[dict[str, Any]]:
    """Score held-out pairs. The single effects of both targets of a pair are in the training data."""
    effects, pairs = problem.effects.mean, [problem.targets[i] for i in test]
    at = {problem.targets[i][0]: i for i in singles}
    predicted = {method: fit_ours(problem, train, method).predict(pairs)[0] for method in ("ours", "ours_no_network")}
    sums = [bf.metrics.additive(effects[None, [at[name] for name in pair]]) for pair in pairs]
    predicted["additive"] = np.concatenate(sums)
    predicted["training_mean"] = bf.metrics.training_mean(effects[train], len(test))
    predicted["no_change"] = np.zeros_like(predicted["additive"])
    rows = []
    for method, values in predicted.items():
        for pair, found, i in zip(pairs, values, test, strict=True):
            free = ~problem.own[i]
            difference = found[free] - effects[i, free]
            r = np.corrcoef(found[free], effects[i, free])[0, 1] if found[free].std() > 0 else 0.0
            rows.append({"method": method, "pair": "+".join(pair), "pearson": float(r),
                         "rmse": float(np.sqrt(np.mean(difference**2)))})  # fmt: skip
    return rows


def show_pairs(name: str, pairs: pd.DataFrame, note: str = "") -> Iterator[str]:
    """Yield a table with means over the pairs of all seeds, and with differences from the additive baseline."""
    wide = pairs.pivot_table(index=["seed", "pair"], columns="method", values=["pearson", "rmse"])
    yield f"### {name}: {len(wide)} held-out combinations{note}"
    lines = []
    for method in METHODS:
        cells = []
        for score in ("pearson", "rmse"):
            mean, low, high = bf.metrics.paired_bootstrap(wide[(score, method)], wide[(score, "additive")])
            cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" if method != "additive" else "–")
        lines.append([method, *(f"{wide[(score, method)].mean():.3f}" for score in ("pearson", "rmse")), *cells])
    differences = (f"{score} minus additive (95 % interval)" for score in ("pearson", "rmse"))
    yield markdown_table(["method", "pearson", "rmse", *differences], lines)
