"""Compare what models with ``phenotype_keys`` predict with other methods on the same cells.

Run ``python -m benchmarks.phenotype --data DIR``. kang_ifnb, onek1k_panel, beeline_mdc and cite_cbmc are reported. The
simulations, beeline_mesc and pbmc68k are development sets: choices were made on them.

Parts: ``own`` (the condition of 20 % of the cells, which the model has not seen and whose condition is masked),
``other`` (the effect of the condition on a cell type of which no cell with this condition is in the fit), ``probe``
(what an embedding holds of a column that is given as a phenotype, as the batch, or not at all), ``age`` (the age of
donors who are not in the fit: 24 of 40 donors for training, 8 for validation, 8 for test), ``time`` (the mean profile
at a time that is not in the fit) and ``bulk`` (sums of a few cells of one type among the centroids of the types).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import scbioformers as bf
from benchmarks._common import choice, make_parser, markdown_table, mean_and_range, run_jobs, warm_up
from benchmarks._phenotype_data import OURS, fit_ours, mean_depth, profiles, read
from benchmarks._phenotype_effects import BETWEEN_TYPES, score_bulk, score_other, score_time

SETS = ("simulated", "kang_ifnb", "onek1k_panel", "beeline_mesc", "beeline_mdc", "pbmc68k", "cite_cbmc")
SCORES = {
    "balanced_accuracy": "balanced accuracy", "pearson": "Pearson", "rmse": "RMSE", "size": "size",
    "sign": "right sign",
    "probe": "accuracy of the column", "type_f1": "linear F1 of the type", "years": "error, years",
    "calibrated_years": "error after calibration, years", "mean_distance": "mean distance",
    "over_interpolation": "RMSE over interpolation", "right": "right", "right_1": "1 cell", "right_2": "2 cells",
    "right_5": "5 cells", "right_10": "10 cells", "right_20": "20 cells", "right_50": "50 cells",
}  # fmt: skip
COLUMNS = {"kang_ifnb": ("condition", "donor"), "simulated": ("condition", "batch")}
N_COMPONENTS = 50


def classifier() -> Any:
    """Logistic regression on standardised columns."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def score_own(data: Path, name: str, method: str, seed: int) -> dict[str, float]:
    """Balanced accuracy of the condition in 20 % of the cells."""
    adata = read(data, name, seed, n_conditions=2)
    training = np.random.default_rng(seed).random(adata.n_obs) < 0.8
    fitted, test = adata[training].copy(), adata[~training].copy()
    truth = test.obs["condition"].astype(str)
    if method in OURS:
        fit_ours(fitted, seed, **OURS[method], phenotype_keys="condition")
        test.obs = test.obs.drop(columns="condition")
        bf.tl.annotate(test, "condition", model=fitted)
        predicted = test.obs["bioformer_condition"].astype(str)
    elif method == "constant":
        predicted = np.full(len(truth), fitted.obs["condition"].mode()[0])
    else:
        depth, labels = mean_depth(fitted), fitted.obs["condition"].astype(str)
        values = [profiles(each, depth) for each in (fitted, test)]
        if method == "logistic_pca":
            pca = PCA(N_COMPONENTS, svd_solver="randomized", random_state=seed).fit(values[0])
            values = [pca.transform(each) for each in values]
        predicted = classifier().fit(values[0], labels).predict(values[1])
    return {"balanced_accuracy": float(balanced_accuracy_score(truth, predicted))}


def score_probe(data: Path, name: str, method: str, seed: int) -> dict[str, float]:
    """How well an embedding tells a column and the cell type, by logistic regression in 5 folds.

    ``method`` is the column and its role. ``masked`` is that of a phenotype which is not known when cells are embedded.
    """
    adata = read(data, name, seed, n_conditions=2, n_batches=2)
    column, role = method.split(":")
    if role == "pca":
        embedding = bf.metrics.pca(profiles(adata, mean_depth(adata)), N_COMPONENTS, seed)
    else:
        keys = {"phenotype": "phenotype_keys", "masked": "phenotype_keys", "batch": "batch_key"}
        fit_ours(adata, seed, **({keys[role]: column} if role in keys else {}))
        bf.tl.embed(adata, phenotype={column: None} if role == "masked" else None)
        embedding = adata.obsm["X_bioformer"]
    truth = adata.obs[column].astype(str).to_numpy()
    predicted = cross_val_predict(classifier(), embedding, truth, cv=5)
    scores = bf.metrics.embedding_scores(embedding, adata.obs["cell_type"].to_numpy(str), seed=seed)
    return {"probe": float(balanced_accuracy_score(truth, predicted)), "type_f1": scores.linear_f1}


def score_age(data: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """Mean absolute error of the age of donors. Seeds have other test donors."""
    adata = read(data, name)
    ages = adata.obs.groupby("donor", observed=True)["age"].first()
    order = np.random.default_rng(0).permutation(len(ages))
    parts = np.array_split(ages.index.to_numpy()[order], 5)
    test, validation = parts[seed % 5], parts[(seed + 1) % 5]
    training = ages.index[~ages.index.isin([*test, *validation])]
    known = adata[adata.obs["donor"].isin(training)].copy()
    predicted = PREDICT_AGE[method](adata, known, ages[training], seed)
    error = (predicted[test] - ages[test]).abs()
    line = (
        np.polyfit(predicted[validation], ages[validation], 1)
        if predicted.nunique() > 1
        else [0.0, ages[training].mean()]
    )
    calibrated = (np.polyval(line, predicted[test]) - ages[test]).abs()
    return {
        "years": float(error.mean()),
        "calibrated_years": float(calibrated.mean()),
        "errors": error.tolist(),
        "calibrated_errors": calibrated.tolist(),
    }


def age_of_mean(adata: AnnData, known: AnnData, ages: pd.Series[float], seed: int) -> pd.Series[float]:
    """The mean of the training donors."""
    return pd.Series(ages.mean(), index=adata.obs["donor"].cat.categories)


def age_by_ours(
    adata: AnnData, known: AnnData, ages: pd.Series[float], seed: int, decades: bool = False, **options: Any
) -> pd.Series[float]:
    """Mean over the cells of each donor of the age that our model predicts, as a number or in classes of ten years."""
    column = "age"
    if decades:
        column = "decade"
        known.obs["decade"] = (known.obs["age"] // 10 * 10).astype(int).astype(str)
    fit_ours(known, seed, **options, phenotype_keys=column)
    query = adata.copy()
    query.obs = query.obs[["donor"]]
    bf.tl.annotate(query, column, model=known, probabilities=decades)
    if decades:
        table = query.obsm["bioformer_decade_probabilities"]
        of_donors = known.obs.groupby("donor", observed=True)[["age", "decade"]].first()
        middle = of_donors.groupby("decade")["age"].mean()
        query.obs["bioformer_age"] = table.to_numpy() @ middle[list(table.columns)].to_numpy()
    return query.obs.groupby("donor", observed=True)["bioformer_age"].mean()


def age_by_ridge(adata: AnnData, known: AnnData, ages: pd.Series[float], seed: int) -> pd.Series[float]:
    """Ridge regression on components of pseudo-bulk profiles."""
    sums = {
        donor: np.asarray(adata[rows].X.sum(axis=0)).ravel()
        for donor, rows in adata.obs.groupby("donor", observed=True).indices.items()
    }
    bulk = pd.DataFrame(sums).T
    bulk = np.log1p(bulk.div(bulk.sum(axis=1), axis=0) * 1e4)
    pca = PCA(10, random_state=seed).fit(bulk.loc[ages.index])
    scores = pd.DataFrame(pca.transform(bulk), index=bulk.index)
    scores = scores / scores.loc[ages.index].to_numpy().std()
    ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(scores.loc[ages.index], ages)
    return pd.Series(ridge.predict(scores), index=bulk.index)


def age_by_ridge_of_cells(adata: AnnData, known: AnnData, ages: pd.Series[float], seed: int) -> pd.Series[float]:
    """Mean over the cells of each donor of a ridge regression on components of cells."""
    depth = mean_depth(known)
    pca = PCA(N_COMPONENTS, svd_solver="randomized", random_state=seed).fit(profiles(known, depth))
    ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(pca.transform(profiles(known, depth)), known.obs["age"])
    predicted = pd.Series(ridge.predict(pca.transform(profiles(adata, depth))), index=adata.obs_names)
    return predicted.groupby(adata.obs["donor"], observed=True).mean()


PREDICT_AGE: dict[str, Callable[..., pd.Series[float]]] = {
    "ours": age_by_ours,
    "ours_decades": partial(age_by_ours, decades=True),
    "ours_no_attention": partial(age_by_ours, attention=False),
    "ours_untrained": partial(age_by_ours, max_steps=0),
    "training_mean": age_of_mean,
    "ridge_pseudo_bulk": age_by_ridge,
    "ridge_cells": age_by_ridge_of_cells,
}
ROLES = ("phenotype", "masked", "batch", "neither", "pca")
# part: its sets, its methods, and the function that scores one of them
PARTS: dict[str, tuple[tuple[str, ...], list[str], Callable[..., dict[str, Any]]]] = {
    "own": (("simulated", "kang_ifnb"), [*OURS, "logistic_pca", "logistic_genes", "constant"], score_own),
    "other": (
        ("simulated", "kang_ifnb"),
        [*OURS, *BETWEEN_TYPES, "half_of_the_cells"],
        score_other,
    ),
    "time": (
        ("simulated", "beeline_mesc", "beeline_mdc"),
        [*OURS, "ours_added", "interpolation", "time_before", "time_after", "training_mean"],
        score_time,
    ),
    "bulk": (("pbmc68k", "cite_cbmc"), [*OURS, "pca"], score_bulk),
    "probe": (
        ("simulated", "kang_ifnb"),
        [f"{column}:{role}" for column in ("condition", "donor", "batch") for role in ROLES],
        score_probe,
    ),
    "age": (("onek1k_panel",), list(PREDICT_AGE), score_age),
}
ALL_METHODS = list(dict.fromkeys(method for _, methods, _ in PARTS.values() for method in methods))


def run(data: Path, part: str, name: str, method: str, seed: int) -> dict[str, Any]:
    """Score one method with one seed."""
    if method in OURS:
        warm_up()
    start = time.process_time()
    scores = PARTS[part][2](data, name, method, seed)
    found = {"part": part, "set": name, "method": method, "seed": seed}
    return found | {"cpu_seconds": time.process_time() - start, **scores}


def jobs(arguments: Any) -> Iterator[tuple[str, Any]]:
    """Name and function of each result."""
    for seed in range(arguments.seeds):
        for part in arguments.parts:
            sets, methods, _ = PARTS[part]
            for name in (name for name in sets if name in arguments.sets):
                for method in (method for method in methods if method in arguments.methods):
                    if part == "probe" and method.split(":")[0] not in COLUMNS[name]:
                        continue
                    job = f"{part}-{name}-{method.replace(':', '-')}-{seed}"
                    yield job, partial(run, arguments.data, part, name, method, seed)


def show(results: pd.DataFrame) -> Iterator[str]:
    """Yield one folded table for each part and set."""
    for (part, name), rows in results.groupby(["part", "set"], sort=False):
        scores = [score for score in SCORES if score in rows and rows[score].notna().any()]
        lines = [
            [str(method), *(mean_and_range(runs[score].dropna()) for score in scores)]
            for method, runs in rows.groupby("method", sort=False)
        ]
        table = markdown_table(["method", *(SCORES[score] for score in scores)], lines)
        yield f"<details>\n<summary>Phenotypes, {part}: {name}</summary>\n\n{table}\n\n</details>"
    of_types = results[results["part"].eq("other")]
    for name, rows in of_types.groupby("set", sort=False):
        types = list(rows["by_type"].iloc[0])
        lines = [
            [str(m), *(mean_and_range(each[kind]["pearson"] for each in runs["by_type"]) for kind in types)]
            for m, runs in rows.groupby("method", sort=False)
        ]
        table = markdown_table(["method", *types], lines)
        yield f"<details>\n<summary>Pearson of the effect on each type: {name!s}</summary>\n\n{table}\n\n</details>"


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    parser = make_parser(__doc__ or "", SETS, ALL_METHODS)
    parser.add_argument("--parts", type=choice(list(PARTS)), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with one thread")
    arguments = parser.parse_args()
    results = run_jobs(arguments, "phenotype", ((name, name, once) for name, once in jobs(arguments)))
    print("\n\n".join(["", *show(pd.DataFrame(results))]))


if __name__ == "__main__":
    main()
