"""Code that the parts of the perturbation benchmark share: data, transformers, measured effects and our head."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import scbioformers as bf
from scbioformers.core import log1p_rows, uniform
from scbioformers.data import AnnDataSource
from scbioformers.results import open_query
from scbioformers.tasks.perturbation import (
    Correlations,
    Design,
    Effects,
    PerturbationHead,
    TokenPredictor,
    choose_probes,
    fit_head,
    measure_correlations,
    measure_effects,
    pair_chances,
    read_design,
    target_features,
)

SETS = ("papalexi_eccite", "schraivogel_tapseq")
# enhancers to their genes, old to new gene symbols
TARGETS = {
    "papalexi_eccite": {"MARCH8": "MARCHF8"},
    "schraivogel_tapseq": {
        **{f"{gene}-{letter}": gene for gene in ("MYC", "GATA1", "ZFPM2") for letter in "ABCD"},
        **{f"HS2-{letter}": "HBE1" for letter in "ABCD"},
    },
}
_HALVES = 0x4A1F  # stream of the random numbers that split the cells into halves


@dataclass(frozen=True, eq=False)
class Problem:
    """A data set: cells, measured effects of all perturbations, and models fitted to the control cells."""

    name: str
    """Name of the data set."""
    genes: list[str]
    """The M genes."""
    task: bf.Perturbation
    """Where the labels are."""
    targets: list[tuple[str, ...]]
    """The perturbed genes of each of the P perturbations."""
    rows: list[sp.csr_matrix]
    """Blocks of log1p profiles, cells x genes."""
    design: Design
    """Perturbation and stratum of each cell."""
    effects: Effects
    """Measured effects of the P perturbations."""
    halves: tuple[Effects, Effects]
    """The effects measured in each of two random halves of the cells."""
    own: np.ndarray
    """Bool (P, M), the genes that each perturbation targets."""
    features: np.ndarray
    """(P, F), features of the perturbed genes."""
    tokens: dict[str, TokenPredictor | None]
    """For each variant of our model, the transformer with its perturbation token; None without the transformer."""
    chances: np.ndarray
    """(P, cells), probability that a control cell is paired with cells of a perturbation."""
    mean_depth: float
    """Depth of the log1p profiles."""
    fit_seconds: float
    """Seconds of the fit of the default model."""


def read(path: Path, folder: Path) -> tuple[AnnData, bf.Perturbation]:
    """Read cells and task of a data set, or of a file in GEARS format."""
    table = folder / "gene_ontology" / "human_symbol2go.tsv.gz"
    features = None
    if table.exists():
        features = bf.datasets.gene_features(pd.read_csv(table, sep="\t"), gene="symbol", term="go_id", n_features=200)
    if path.stem not in SETS:
        adata = bf.datasets.read_gears(path)
        return adata, bf.Perturbation(key="perturbation", control="control", features=features)
    adata = sc.read_h5ad(path)
    return adata, bf.Perturbation("perturbation", "non-targeting", targets=TARGETS[path.stem], features=features)


def prepare(name: str, adata: AnnData, task: bf.Perturbation, methods: Sequence[str], quick: int | None) -> Problem:
    """Fit the transformers to the control cells, and measure all effects."""
    batch = "batch" if "batch" in adata.obs else None
    genes = [str(name) for name in adata.var_names]
    features = pd.DataFrame({"none": []}) if task.features is None else task.features
    if unknown := set(_named(adata, task)) - set(features.index) - set(genes):
        # targets that are not measured and have no features must be predicted too
        rows = pd.DataFrame(0.0, index=sorted(unknown), columns=features.columns)
        task = replace(task, features=pd.concat([features, rows]) if len(features) else rows)
    design = read_design(adata, task, batch, genes)
    source = AnnDataSource(adata)
    controls = adata[design.controls].copy()
    names_and_features = target_features(
        sorted({*genes, *(name for each in design.perturbations for name in each)}), task.features
    )
    probes = choose_probes(design.controls)
    tokens: dict[str, TokenPredictor | None] = {"ours_no_network": None}
    mean_depth, seconds = 0.0, 0.0
    for method, (steps, attention) in {
        "ours": (quick, True), "ours_zero_steps": (0, True), "ours_no_attention": (quick, False)
    }.items():  # fmt: skip
        if method != "ours" and method not in methods:
            continue
        start = time.perf_counter()
        train = bf.TrainConfig(max_steps=steps)
        config = replace(bf.ModelConfig.preset("small"), attention=attention)
        bf.tl.fit(controls, train=train, config=config, batch_key=batch)
        model = bf.get.model(controls)
        cells = open_query(controls, model, layer=None, key="bioformer").source.rows(
            np.searchsorted(design.controls, probes)
        )
        tokens[method] = TokenPredictor(model, cells, *names_and_features, task.kind)
        mean_depth = float(model.binnings["rna"].mean_depth or 1.0)
        seconds = time.perf_counter() - start if method == "ours" else seconds
    rows = [log1p_rows(block.counts, block.depth, mean_depth) for block in source.blocks()]
    single = np.array([len(each) == 1 for each in design.perturbations])
    measure = partial(measure_effects, rows, strata=design.strata, n_groups=single.size, pool=single)
    first = uniform(_HALVES, np.arange(adata.n_obs)) < 0.5
    halves = tuple(measure(groups=np.where(half, design.groups, -1)) for half in (first, ~first))
    targets = list(design.perturbations)
    features_of = np.zeros((len(targets), 1))
    if task.features is not None:
        features_of = np.array([task.features.reindex(list(each)).fillna(0).to_numpy().sum(axis=0) for each in targets])
    own = np.array([[gene in each for gene in genes] for each in targets])
    effects = measure(groups=design.groups)
    return Problem(name, genes, task, targets, rows, design, effects, (halves[0], halves[1]), own, features_of,
                   tokens, pair_chances(design, probes), mean_depth, seconds)  # fmt: skip


def _named(adata: AnnData, task: bf.Perturbation) -> list[str]:
    labels = adata.obs[task.key].astype(str).unique()
    texts = [
        dict(task.targets or {}).get(label, label) for label in labels if label not in (*task.ignore, task.control)
    ]
    return [part for text in texts for part in text.split("+")]


def take(effects: Effects, rows: np.ndarray) -> Effects:
    """Return the effects of some perturbations. The values of the control cells are unchanged."""
    parts = {name: getattr(effects, name)[rows] for name in ("mean", "se", "n_cells", "interval_se", "control_se")}
    return replace(effects, **parts)


@lru_cache(maxsize=2)
def correlations_in(problem: Problem, train: tuple[int, ...]) -> Correlations:
    """Measure correlations in the control cells and in the cells of the training perturbations only."""
    at = np.full(len(problem.targets) + 1, -1)
    at[[0, *(1 + i for i in train)]] = np.arange(len(train) + 1)
    groups = np.where(problem.design.groups >= 0, at[problem.design.groups], -1)
    return measure_correlations(
        problem.rows, groups, problem.design.strata, [problem.targets[i] for i in train], problem.genes
    )


def fit_ours(problem: Problem, train: np.ndarray, method: str) -> PerturbationHead:
    """Fit the head to the training perturbations only."""
    known = [problem.targets[i] for i in train]
    correlations = correlations_in(problem, tuple(train.tolist()))

    def network(rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        return predict_by_network(problem, train[rows], method, names)

    return fit_head(problem.genes, known, take(problem.effects, train), correlations, problem.task, problem.mean_depth,
                    None if problem.tokens[method] is None else network)  # fmt: skip


def predict_by_network(problem: Problem, train: np.ndarray, method: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Predict changes with the transformer. Its token is trained on the training perturbations of single targets."""
    token_model = problem.tokens[method]
    if token_model is None:
        return {}
    rows = np.array([i for i in train if len(problem.targets[i]) == 1], dtype=int)
    known = [problem.targets[i][0] for i in rows]
    token = token_model.train(known, problem.effects.mean[rows], problem.effects.se[rows], problem.chances[rows], 0)
    return token_model.predict(names, token)
