"""Tables of ``benchmarks.masked``: mean and range over the seeds, and comparison with the goals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from benchmarks._common import markdown_table, mean_and_range

SCORES = {
    "nll_bits": "NLL, bits",
    "auroc": "AUROC",
    "sensitivity": "Sensitivity",
    "hel": "HEL",
    "hel_gene_mean": "HEL, mean over genes",
    "npv50": "NPV-50",
    "zero_specificity": "specificity of zeros",
    "bin_mae": "bin MAE",
    "macro_f1": "macro-F1",
    "coverage": "coverage of 80 % intervals",
}
NATURAL = {
    "natural_nll_bits": "NLL, bits",
    "natural_zero_calibration": "calibration error, zero or not",
    "natural_top_calibration": "calibration error, top bin",
    "natural_coverage": "coverage of 80 % intervals",
}
ABLATIONS = ("ours_zero_steps", "ours_no_attention", "ours_random_init")
NLL_GOAL, CALIBRATION_GOAL, COVERAGE, COVERAGE_GOAL = 0.97, 0.02, 0.8, 0.03
LINEAR = "linear_regression"
TABLE_2, TABLE_3 = ["sensitivity", "hel", "npv50"], [f"predicted_for_one_{bin}" for bin in ("one", "zero", "more")]
# Table 2 of the paper (PBMC 4k + 8k): sensitivity, HEL and NPV-50, by m, p and whether counts are normalised
PAPER = {
    (0.1, 0.5, False): (0.466, 0.642, 0.725),
    (0.1, 0.5, True): (0.464, 0.543, 0.708),
    (0.05, 0.5, False): (0.452, 0.616, 0.712),
    (0.025, 0.5, False): (0.450, 0.571, 0.710),
    (0.1, 0.75, False): (0.623, 0.355, 0.720),
    (0.1, 0.25, False): (0.195, 0.630, 0.599),
}
PAPER_LINEAR = (0.161, 0.554, 0.464)
# Table 3 of the paper: share of positions with true bin 1 that are predicted as 1, as 0, and as more than 1. The paper
# fitted its linear regression without a mask.
PAPER_ONE = {(0.1, 0.5): (0.598, 0.380, 0.022), (0.1, 0.25): (0.254, 0.703, 0.043)}
PAPER_ONE_LINEAR = (0.161, 0.798, 0.041)


def _values(runs: pd.DataFrame, name: str) -> pd.Series:
    """Return the values of a column that are not missing. The column itself may be missing."""
    return pd.to_numeric(runs[name]).dropna() if name in runs else pd.Series(dtype=float)


def _score_table(results: pd.DataFrame, columns: dict[str, str], digits: int = 3, seconds: bool = True) -> str:
    """Table with a row for each method that has at least one of the scores."""
    rows = []
    for method, runs in results.groupby("method", sort=False):
        values = [_values(runs, name) for name in columns]
        if any(len(each) for each in values):
            time = [mean_and_range(_values(runs, "fit_seconds"), 1)] if seconds else []
            rows.append([str(method), *(mean_and_range(each, digits) for each in values), *time])
    return markdown_table(["method", *columns.values(), *(["fit, seconds"] if seconds else [])], rows)


def show_table(results: pd.DataFrame) -> Iterator[str]:
    """Tables of each data set with both masks, then the goals."""
    for name, of_set in results.groupby("set", sort=False):
        size = of_set.iloc[0]
        yield f"### {name}: {size['n_train']} training cells, {size['n_test']} test cells, {size['n_genes']} genes"
        yield _score_table(of_set, SCORES)
        yield f"{name}, natural odds of zeros (15 % of all positions masked):"
        yield _score_table(of_set, NATURAL, seconds=False)
    if (results["method"] == "ours").any():
        yield "### Goals"
        yield _goal_table(results)
        if results["method"].isin(ABLATIONS).any():
            yield "Our model minus its variants without one part:"
            yield _ablation_table(results)


def _goal_table(results: pd.DataFrame) -> str:
    header = ["data set", "NLL of ours, bits", "best baseline", "its NLL, bits", "difference of ours (goal −3 %)",
              *(f"{SCORES[name]}, ours − linear regression" for name in TABLE_2),
              "calibration error: zero or not, top bin (goal ≤ 0.02)",
              "coverage of 80 % intervals: default mask, natural odds (goal 0.80 ± 0.03)"]  # fmt: skip
    rows = []
    for name, of_set in results.groupby("set", sort=False):
        columns = [column for column in (*SCORES, *NATURAL) if column in of_set]
        means = {method: runs[columns].mean(numeric_only=True) for method, runs in of_set.groupby("method")}
        if "ours" not in means:
            continue
        ours, linear = means["ours"], means.get(LINEAR)
        others = {method: each["nll_bits"] for method, each in means.items() if not str(method).startswith("ours")}
        row = [str(name), f"{ours['nll_bits']:.3f}"]
        if others:
            best = min(others, key=lambda method: others[method])
            ratio = ours["nll_bits"] / others[best]
            row += [str(best), f"{others[best]:.3f}", f"{100 * (ratio - 1):+.1f} % {_met(ratio <= NLL_GOAL)}"]
        else:
            row += ["–"] * 3
        for score in TABLE_2:
            row.append(
                "–" if linear is None else f"{ours[score] - linear[score]:+.3f} {_met(ours[score] > linear[score])}"
            )
        errors = [ours["natural_zero_calibration"], ours["natural_top_calibration"]]
        row.append(", ".join(f"{error:.3f} {_met(error <= CALIBRATION_GOAL)}" for error in errors))
        covered = [ours["coverage"], ours["natural_coverage"]]
        row.append(", ".join(f"{x:.3f} {_met(abs(x - COVERAGE) <= COVERAGE_GOAL)}" for x in covered))
        rows.append(row)
    return markdown_table(header, rows)


def _met(reached: bool) -> str:
    return "✓" if reached else "✗"


def _ablation_table(results: pd.DataFrame) -> str:
    rows = []
    for name, of_set in results.groupby("set", sort=False):
        runs = {method: _values(each, "nll_bits") for method, each in of_set.groupby("method")}
        for other in (each for each in ABLATIONS if each in runs and "ours" in runs):
            difference = f"{runs['ours'].mean() - runs[other].mean():+.4f}"
            beyond = "yes" if runs["ours"].max() < runs[other].min() else "no"
            rows.append([str(name), other, difference, beyond if len(runs["ours"]) > 1 else "one seed"])
    return markdown_table(["data set", "ours minus", "NLL, bits", "outside the range of seeds"], rows)


def _triple(values: Iterable[float | None]) -> str:
    return " / ".join("–" if pd.isna(value) else f"{value:.3f}" for value in values)


def show_paper(results: pd.DataFrame) -> Iterator[str]:
    """Tables 2 and 3 of the paper with its masks, next to the numbers of the paper, which are for other data."""
    rows, ones = [], []
    for _, of_mask in results.groupby("setting", sort=False):
        mask, realised = of_mask.iloc[0]["mask"], of_mask.iloc[0]["realised"]
        m, p, normalised = mask["ratio"], mask["nonzero_share"], mask["normalize"]
        name = [f"m={m}, p={p}", "normalised" if normalised else "raw"]
        row = [*name, _triple(realised[key] for key in ("masked_share", "nonzero_share", "hidden_share_of_expressed"))]
        runs = {run["method"]: run for _, run in of_mask.iterrows()}
        for method in ("ours", LINEAR):
            run = runs.get(method)
            row += ["–", "–"] if run is None else [_triple(run[TABLE_2]), _triple([run["nll_bits"]])]
            if run is not None and (m, p) in PAPER_ONE:
                paper = PAPER_ONE_LINEAR if method == LINEAR else PAPER_ONE[m, p]
                ones.append([*name, method, _triple(run[TABLE_3]), _triple(paper)])
        rows.append([*row, _triple(PAPER.get((m, p, normalised), [None]))])
    yield "### Masks of the paper (numbers of the paper are for PBMC 4k + 8k)"
    yield "Sensitivity / HEL / NPV-50 (Table 2):"
    header = ["mask", "bins", "share masked / expressed share of the masked / masked share of the expressed", "ours",
              "NLL of ours, bits", LINEAR, "NLL, bits", "BioFormers, paper"]  # fmt: skip
    yield markdown_table(header, rows)
    yield f"Linear regression in the paper: {_triple(PAPER_LINEAR)}."
    yield "Positions with true bin 1: share predicted as 1 / as 0 / as more than 1 (Table 3):"
    yield markdown_table(["mask", "bins", "method", "this benchmark", "paper"], ones)


def show_curve(results: pd.DataFrame) -> Iterator[str]:
    """Table with a row for each number of training cells."""
    names = {name: SCORES[name] for name in ("nll_bits", "sensitivity", "hel", "npv50")}
    for fixed, runs in results.groupby("fixed", sort=False):
        yield f"### Learning curve with a fixed number of {fixed}"
        rows = [
            [
                str(run["n_cells"]),
                str(run["steps"]),
                *(_triple([run[name]]) for name in names),
                f"{run['fit_seconds']:.1f}",
            ]
            for _, run in runs.iterrows()
        ]
        yield markdown_table(["training cells", "steps", *names.values(), "fit, seconds"], rows)


def show_mcv(results: pd.DataFrame) -> Iterator[str]:
    """Table of the loss, and of the gain over the gene mean, in nats per cell."""
    yield "### Molecular cross-validation (Poisson loss of the held-out half of the counts)"
    for name, of_set in results.groupby("set", sort=False):
        loss = of_set["poisson_loss"] * of_set["n_genes"]
        baseline = loss[of_set["method"] == "gene_mean"].set_axis(of_set["seed"][of_set["method"] == "gene_mean"])
        columns = {"loss": "loss, nats per cell", "gain": "gain over the gene mean"}
        yield f"{name}, {of_set['n_genes'].iloc[0]} genes:"
        yield _score_table(of_set.assign(loss=loss, gain=of_set["seed"].map(baseline) - loss), columns, digits=2)


def show_absent(results: pd.DataFrame) -> Iterator[str]:
    """Table of the correlations of genes that the test cells lack."""
    yield "### Genes that were not measured (Pearson correlation over test cells, log1p counts)"
    for name, of_set in results.groupby("set", sort=False):
        yield f"{name}, {of_set['n_genes'].iloc[0]} of {of_set['n_removed'].iloc[0]} removed genes scored:"
        columns = {"pearson": "mean over genes", "pearson_median": "median"}
        yield _score_table(of_set, columns, seconds=False)
