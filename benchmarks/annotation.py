"""Compare labels of cells (:func:`scbioformers.tl.annotate`) with other methods on the same cells.

Run ``python -m benchmarks.annotation --data DIR``. All methods have the same labelled cells and the same genes, chosen
on the cells of the fit. No method sees the labels of the test cells.

Parts: ``within`` (20 % of the cells of each label are given, at least 5; the model is fitted to all cells), ``across``
(pbmc3k labels kang_ifnb and the reverse, by the map in this file; the model is fitted to the reference alone, and as
``ours_both`` to both sets), ``donors`` (half of the donors of onek1k_panel label the other half) and ``unknown`` (as
``within``, but one label is removed from the cells of the fit and from the given labels; its cells are to be found
among the test cells). celltypist and scANVI are left out, which is printed, if they are not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

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
from benchmarks.embedding import load
from scbioformers.model import embed_cells
from scbioformers.results import open_query
from scbioformers.tasks.annotation import AnnotationHead, head_name

LABELS = "given"
SETS = ("pbmc3k", "kang_ifnb", "paul15", "cite_cbmc")  # choices were made on cite_cbmc
ACROSS = {"pbmc3k": "kang_ifnb", "kang_ifnb": "pbmc3k"}
# the names that both sets have in common; cells of other types are left out
SAME = {
    "Naive CD4 T": "CD4 T", "Memory CD4 T": "CD4 T", "CD4 T cells": "CD4 T",
    "CD8 T": "CD8 T", "CD8 T cells": "CD8 T",
    "CD14+ Mono": "CD14+ Mono", "CD14+ Monocytes": "CD14+ Mono",
    "FCGR3A+ Mono": "FCGR3A+ Mono", "FCGR3A+ Monocytes": "FCGR3A+ Mono",
    "B": "B", "B cells": "B",
}  # fmt: skip
REMOVED = {"pbmc3k": ("NK", "CD8 T", "Platelet"), "kang_ifnb": ("B cells", "CD8 T cells")}
SCORES = {"macro_f1": 3, "accuracy": 3, "calibration_error": 3, "auroc": 3, "found": 2, "lost": 3}
PARTS = ("within", "across", "donors", "unknown")


@dataclass(frozen=True, eq=False)
class Problem:
    """Cells with their true labels (N,), and what is given."""

    adata: AnnData
    truth: NDArray[np.str_]
    given: NDArray[np.bool_]
    """Cells whose label is given."""
    fitted: NDArray[np.bool_]
    """Cells that models without labels are fitted to."""

    @property
    def test(self) -> NDArray[np.bool_]:
        """Cells to label."""
        return ~self.given

    def labels(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """The given labels, and the code of each given cell."""
        return np.unique(self.truth[self.given], return_inverse=True)

    def profiles(self) -> sparse.csr_matrix:
        """log1p profiles of the selected genes."""
        return sparse.csr_matrix(bf.metrics.log1p_normalize(self.adata[:, self.adata.var["highly_variable"]].X))

    def components(self, seed: int) -> NDArray[np.floating]:
        """50 components of the profiles, of the cells of the fit."""
        profiles = self.profiles().toarray()
        return PCA(50, svd_solver="randomized", random_state=seed).fit(profiles[self.fitted]).transform(profiles)


@dataclass(frozen=True, eq=False)
class Found:
    """Probabilities (N, K) of the labels of all cells, and a score that is high for cells of no label."""

    probabilities: NDArray[np.floating]
    unlike: NDArray[np.floating]
    threshold: float | None = None


def draw_given(truth: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """20 % of the cells of each label, at least 5."""
    generator, given = np.random.default_rng(seed), np.zeros(len(truth), dtype=bool)
    for name in np.unique(truth):
        rows = generator.permutation(np.flatnonzero(truth == name))
        given[rows[: max(5, round(0.2 * len(rows)))]] = True
    return given


def read_problem(data: Path, part: str, name: str, removed: str | None, seed: int) -> Problem:
    """The cells of one part and set. The genes are chosen on the cells of the fit."""
    if part == "across":
        read = {each: load(data, each).copy() for each in (name, ACROSS[name])}
        adata = ad.concat(read, label="set", join="inner", index_unique="-")
        adata = adata[adata.obs["cell_type"].isin(SAME)].copy()
        truth = adata.obs["cell_type"].map(SAME).to_numpy(str)
        given = (adata.obs["set"] == name).to_numpy()
        fitted = given
    elif part == "donors":
        adata = sc.read_h5ad(data / f"{name}.h5ad")
        truth = adata.obs["cell_type"].to_numpy(str)
        donors = np.random.default_rng(seed).permutation(adata.obs["donor"].unique())
        given = adata.obs["donor"].isin(donors[: len(donors) // 2]).to_numpy()
        fitted = given
    else:
        adata = load(data, name).copy()
        truth = adata.obs["cell_type"].to_numpy(str)
        fitted = truth != removed
        given = draw_given(truth, seed) & fitted
    chosen = adata[fitted].copy()
    select_genes(chosen)
    adata.var["highly_variable"] = chosen.var["highly_variable"].to_numpy()
    return Problem(adata, truth, given, fitted)


def label_ours(
    problem: Problem, seed: int, max_steps: int | None = None, attention: bool = True, both: bool = False
) -> Found:
    """Fit our model to the cells of the fit, learn the given labels, and label all cells.

    With ``both`` it is fitted to the cells to label, too, as scANVI is. The data set is the batch.
    """
    warm_up()
    config, train = bf.ModelConfig(attention=attention), bf.TrainConfig(max_steps=max_steps)
    fitted = problem.fitted | both
    reference = problem.adata[fitted].copy()
    bf.tl.fit(reference, config=config, train=train, batch_key="set" if both else None, rng=seed)
    values = pd.Series(problem.truth, index=problem.adata.obs_names).where(problem.given)
    reference.obs[LABELS] = values[fitted].to_numpy()
    bf.tl.annotate(reference, LABELS, rng=seed)
    query = open_query(problem.adata, reference)
    head = AnnotationHead.from_head(query.model.heads[head_name(LABELS)], LABELS, query.model.hash)
    return Found(*head.predict(embed_cells(query.model, query.source, use=head.use)), head.threshold)


def _from_classifier(classifier: Any, X: Any, problem: Problem) -> Found:
    probabilities = classifier.fit(X[problem.given], problem.labels()[1]).predict_proba(X)
    return Found(probabilities, 1 - probabilities.max(axis=1))


def label_majority(problem: Problem, seed: int) -> Found:
    """The share of each label among the given cells."""
    shares = np.bincount(problem.labels()[1]) / problem.given.sum()
    return Found(np.tile(shares, (problem.adata.n_obs, 1)), np.zeros(problem.adata.n_obs))


def label_scanvi(problem: Problem, seed: int) -> Found:
    """scANVI, from a scVI model of the cells of the fit and of the test cells without their labels."""
    import scvi

    adata = problem.adata.copy()
    names, _ = problem.labels()
    adata.obs[LABELS] = np.where(problem.given, problem.truth, "unknown")
    model = scvi.model.SCANVI.from_scvi_model(
        fit_scvi(adata, seed), "unknown", labels_key=LABELS, adata=adata[:, adata.var["highly_variable"]].copy()
    )
    model.train(max_epochs=20, n_samples_per_label=100, accelerator="cpu", enable_progress_bar=False)
    probabilities = model.predict(soft=True)[list(names)].to_numpy()
    return Found(probabilities, 1 - probabilities.max(axis=1))


def label_celltypist(problem: Problem, seed: int) -> Found:
    """A celltypist model that is trained on the given cells.

    By stochastic gradient descent: celltypist 1.7 passes its other solver an option that scikit-learn 1.8 removed. The
    strength of its penalty is the best of 0.01, 0.1, 1, 3 and 10 on cite_cbmc.
    """
    import celltypist

    adata = AnnData(bf.metrics.log1p_normalize(problem.adata.X, target_sum=1e4), problem.adata.obs, problem.adata.var)
    training = adata[problem.given, adata.var["highly_variable"]].copy()
    options = {"use_SGD": True, "alpha": 0.1, "random_state": seed, "check_expression": False}
    model = celltypist.train(training, labels=problem.truth[problem.given], **options)
    table = celltypist.annotate(adata, model=model).probability_matrix[list(problem.labels()[0])].to_numpy()
    return Found(table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12), 1 - table.max(axis=1))


METHODS: dict[str, Callable[[Problem, int], Found]] = {
    "ours": label_ours,
    "ours_untrained": partial(label_ours, max_steps=0),
    "ours_no_attention": partial(label_ours, attention=False),
    "ours_both": partial(label_ours, both=True),
    "knn_pca": lambda problem, seed: _from_classifier(KNeighborsClassifier(15), problem.components(seed), problem),
    "logistic_pca": lambda problem, seed: _from_classifier(
        LogisticRegression(max_iter=1000), problem.components(seed), problem
    ),
    "logistic_hvg": lambda problem, seed: _from_classifier(
        LogisticRegression(max_iter=1000), problem.profiles(), problem
    ),
    "majority": label_majority,
    "scanvi": label_scanvi,
    "celltypist": label_celltypist,
}
NEEDS = {"scanvi": "scvi", "celltypist": "celltypist"}


def run(data: Path, part: str, name: str, removed: str | None, method: str, seed: int) -> dict[str, Any]:
    """Score one method on the test cells."""
    problem = read_problem(data, part, name, removed, seed)
    names, _ = problem.labels()
    found = METHODS[method](problem, seed)
    known, test = np.isin(problem.truth, names), problem.test
    rows = known & test
    codes = np.searchsorted(names, problem.truth[rows])
    predicted = found.probabilities[rows].argmax(axis=1)
    scores: dict[str, Any] = {
        "macro_f1": f1_score(codes, predicted, average="macro"),
        "accuracy": accuracy_score(codes, predicted),
        "calibration_error": bf.metrics.top_label_calibration_error(found.probabilities[rows], codes),
    }
    if removed is not None:
        scores["auroc"] = roc_auc_score(~known[test], found.unlike[test])
    if found.threshold is not None:
        called = found.unlike > found.threshold
        scores["lost"] = called[rows].mean()
        if removed is not None:
            scores["found"] = called[~known].mean()
    scores = {score: float(value) for score, value in scores.items()}
    return {"part": part, "set": name, "removed": removed, "method": method, "seed": seed, **scores}


def jobs(data: Path, parts: list[str], sets: list[str], methods: list[str], n_seeds: int) -> Iterator[tuple[str, Any]]:
    """Name and function of each result."""
    cases: list[tuple[str, str, str | None]] = []
    for part in parts:
        if part == "donors":
            cases.append((part, "onek1k_panel", None))
        elif part == "unknown":
            cases += [(part, name, label) for name in sets for label in REMOVED.get(name, ())]
        else:
            cases += [(part, name, None) for name in sets if part == "within" or name in ACROSS]
    for part, name, removed in cases:
        for method in (each for each in methods if part == "across" or each != "ours_both"):
            for seed in range(n_seeds):
                text = f"{part}-{name}-{(removed or 'all').replace(' ', '_')}-{method}-{seed}"
                yield text, partial(run, data, part, name, removed, method, seed)


def show(results: pd.DataFrame) -> Iterator[str]:
    """Yield one table for each part, set and removed label."""
    for (part, name, removed), rows in results.groupby(["part", "set", "removed"], sort=False, dropna=False):
        scores = [score for score in SCORES if score in rows and rows[score].notna().any()]
        lines = [
            [str(method), *(mean_and_range(runs[score].dropna(), SCORES[score]) for score in scores)]
            for method, runs in rows.groupby("method", sort=False)
        ]
        yield f"### {part}: {name}" + ("" if pd.isna(removed) else f", without {removed}")
        yield markdown_table(["method", *(score.replace("_", " ") for score in scores)], lines)


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    parser = make_parser(__doc__ or "", SETS, list(METHODS))
    parser.add_argument("--parts", type=choice(PARTS), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with one thread")
    arguments = parser.parse_args()
    methods = installed(arguments.methods, NEEDS)
    found = jobs(arguments.data, arguments.parts, arguments.sets, methods, arguments.seeds)
    results = run_jobs(arguments, "annotation", ((name, name, once) for name, once in found))
    print("\n\n".join(["", *show(pd.DataFrame(results))]))


if __name__ == "__main__":
    main()
