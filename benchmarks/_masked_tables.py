"""Tables of ``benchmarks.masked``: mean and range over the seeds, and what the goals say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from benchmarks._common import markdown_table, mean_and_range

SCORES = {
    "nll_bits": "NLL, bits",
    "auroc": "AUROC",
    "sensitivity": "Sensitivity",
    "hel": "HEL",
    "hel_gene_mean": "HEL, gene mean",
    "npv50": "NPV-50",
    "zero_specificity": "zero spec.",
    "bin_mae": "bin MAE",
    "macro_f1": "macro-F1",
    "coverage": "80 % cover",
}
NATURAL = {
    "natural_nll_bits": "NLL, bits",
    "natural_zero_calibration": "calibration 0/≠0",
    "natural_top_calibration": "calibration top bin",
    "natural_coverage": "80 % cover",
}
ABLATIONS = ("ours_zero_steps", "ours_no_attention", "ours_random_init")
NLL_GOAL, CALIBRATION_GOAL, COVERAGE, COVERAGE_GOAL = 0.97, 0.02, 0.8, 0.03
LINEAR = "linear_regression"
TABLE_2, TABLE_3 = ["sensitivity", "hel", "npv50"], [f"predicted_for_one_{bin}" for bin in ("one", "zero", "more")]
# Sensitivity, HEL and NPV-50 in the paper's Table 2 on PBMC 4k + 8k, by m, p and whether bins are normalised
PAPER = {
    (0.1, 0.5, False): (0.466, 0.642, 0.725),
    (0.1, 0.5, True): (0.464, 0.543, 0.708),
    (0.05, 0.5, False): (0.452, 0.616, 0.712),
    (0.025, 0.5, False): (0.450, 0.571, 0.710),
    (0.1, 0.75, False): (0.623, 0.355, 0.720),
    (0.1, 0.25, False): (0.195, 0.630, 0.599),
}
PAPER_LINEAR = (0.161, 0.554, 0.464)
# Table 3: what is predicted for a true bin of 1: 1, 0 and more; its linear regression was fitted to no mask
PAPER_ONE = {(0.1, 0.5): (0.598, 0.380, 0.022), (0.1, 0.25): (0.254, 0.703, 0.043)}
PAPER_ONE_LINEAR = (0.161, 0.798, 0.041)


def _values(runs: pd.DataFrame, name: str) -> pd.Series:
    """Known values of a column, which may be missing altogether."""
    return pd.to_numeric(runs[name]).dropna() if name in runs else pd.Series(dtype=float)


def _score_table(results: pd.DataFrame, columns: dict[str, str], digits: int = 3, seconds: bool = True) -> str:
    """A row per method that has any of the scores."""
    rows = []
    for method, runs in results.groupby("method", sort=False):
        values = [_values(runs, name) for name in columns]
        if any(len(each) for each in values):
            time = [mean_and_range(_values(runs, "fit_seconds"), 1)] if seconds else []
            rows.append([str(method), *(mean_and_range(each, digits) for each in values), *time])
    return markdown_table(["method", *columns.values(), *(["fit s"] if seconds else [])], rows)


def show_table(results: pd.DataFrame) -> Iterator[str]:
    """Both masks of each set, then the goals."""
    for name, of_set in results.groupby("set", sort=False):
        size = of_set.iloc[0]
        yield f"### {name}: {size['n_train']} training cells, {size['n_test']} test cells, {size['n_genes']} genes"
        yield _score_table(of_set, SCORES)
        yield f"{name} at natural odds (15 % of all positions masked):"
        yield _score_table(of_set, NATURAL, seconds=False)
    if (results["method"] == "ours").any():
        yield "### Goals"
        yield _goal_table(results)
        if results["method"].isin(ABLATIONS).any():
            yield "Ours minus our model without its parts:"
            yield _ablation_table(results)


def _goal_table(results: pd.DataFrame) -> str:
    header = ["set", "NLL, ours", "best baseline", "its NLL", "ours / best − 1 (goal −3 %)",
              *(f"{SCORES[name]} − linear regression" for name in TABLE_2),
              "calibration 0/≠0, top (goal ≤ .02)", "80 % cover, natural (goal ± .03)"]  # fmt: skip
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
    return markdown_table(["set", "ours minus", "NLL, bits", "beyond range"], rows)


def _triple(values: Iterable[float | None]) -> str:
    return " / ".join("–" if pd.isna(value) else f"{value:.3f}".replace("0.", ".", 1) for value in values)


def show_paper(results: pd.DataFrame) -> Iterator[str]:
    """Table 2 under each mask, and Table 3, beside the paper's figures, which are of other data."""
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
    yield "### The paper's masks (its figures are of PBMC 4k + 8k)"
    yield "Sensitivity / HEL / NPV-50 (Table 2):"
    header = ["mask", "bins", "masked / of them expressed / of the expressed masked", "ours", "NLL, bits", LINEAR,
              "NLL, bits", "paper's BioFormers"]  # fmt: skip
    yield markdown_table(header, rows)
    yield f"The paper's linear regression: {_triple(PAPER_LINEAR)}."
    yield "Predicted 1 / 0 / more for a true bin of 1 (Table 3):"
    yield markdown_table(["mask", "bins", "method", "here", "paper"], ones)


def show_curve(results: pd.DataFrame) -> Iterator[str]:
    """A row for each number of cells."""
    names = {name: SCORES[name] for name in ("nll_bits", "sensitivity", "hel", "npv50")}
    for fixed, runs in results.groupby("fixed", sort=False):
        yield f"### Learning curve at fixed {fixed}"
        rows = [
            [
                str(run["n_cells"]),
                str(run["steps"]),
                *(_triple([run[name]]) for name in names),
                f"{run['fit_seconds']:.1f}",
            ]
            for _, run in runs.iterrows()
        ]
        yield markdown_table(["training cells", "steps", *names.values(), "fit s"], rows)


def show_mcv(results: pd.DataFrame) -> Iterator[str]:
    """Loss, and the gain over the plainest expectation in nats per cell."""
    yield "### Molecular cross-validation (Poisson loss of the held-out half of the counts)"
    for name, of_set in results.groupby("set", sort=False):
        loss = of_set["poisson_loss"] * of_set["n_genes"]
        plain = loss[of_set["method"] == "gene_mean"].set_axis(of_set["seed"][of_set["method"] == "gene_mean"])
        columns = {"loss": "loss, nats per cell", "gain": "gain over the gene mean"}
        yield f"{name}, {of_set['n_genes'].iloc[0]} genes:"
        yield _score_table(of_set.assign(loss=loss, gain=of_set["seed"].map(plain) - loss), columns, digits=2)


def show_absent(results: pd.DataFrame) -> Iterator[str]:
    """Correlation of genes that the test cells do not have."""
    yield "### Genes that were not measured (Pearson correlation across test cells, of log1p)"
    for name, of_set in results.groupby("set", sort=False):
        yield f"{name}, {of_set['n_genes'].iloc[0]} genes scored of {of_set['n_removed'].iloc[0]} removed:"
        columns = {"pearson": "mean over genes", "pearson_median": "median"}
        yield _score_table(of_set, columns, seconds=False)
