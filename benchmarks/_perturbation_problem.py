"""What the parts of the benchmark of perturbations share: the data, the networks, the effects, and our head."""

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
from scbioformers.core import uniform
from scbioformers.data import AnnDataSource
from scbioformers.results import open_query
from scbioformers.tasks.perturbation import (
    Correlations,
    Design,
    Effects,
    PerturbationHead,
    PerturbationToken,
    choose_probes,
    fit_head,
    log1p_rows,
    measure_correlations,
    measure_effects,
    pair_chances,
    read_design,
    target_features,
)

SETS = ("papalexi_eccite", "schraivogel_tapseq")
# enhancers to their genes, old symbols to new ones
TARGETS = {
    "papalexi_eccite": {"MARCH8": "MARCHF8"},
    "schraivogel_tapseq": {
        **{f"{gene}-{letter}": gene for gene in ("MYC", "GATA1", "ZFPM2") for letter in "ABCD"},
        **{f"HS2-{letter}": "HBE1" for letter in "ABCD"},
    },
}
_HALVES = 0x4A1F


@dataclass(frozen=True, eq=False)
class Problem:
    """Effects of all perturbations, the cells that they were measured in, and what the control cells alone tell."""

    name: str
    genes: list[str]
    task: bf.Perturbation
    targets: list[tuple[str, ...]]
    rows: list[sp.csr_matrix]
    design: Design
    effects: Effects
    halves: tuple[Effects, Effects]
    own: np.ndarray
    features: np.ndarray
    pairings: dict[str, PerturbationToken | None]
    chances: np.ndarray
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


def prepare(name: str, adata: AnnData, task: bf.Perturbation, methods: Sequence[str], quick: int | None) -> Problem:
    """Fit the networks to control cells, and measure all effects."""
    batch = "batch" if "batch" in adata.obs else None
    genes = [str(name) for name in adata.var_names]
    features = pd.DataFrame({"none": []}) if task.features is None else task.features
    if unknown := set(_named(adata, task)) - set(features.index) - set(genes):
        # not measured, and nothing is known of them: they must be predicted too
        rows = pd.DataFrame(0.0, index=sorted(unknown), columns=features.columns)
        task = replace(task, features=pd.concat([features, rows]) if len(features) else rows)
    design = read_design(adata, task, batch, genes)
    source = AnnDataSource(adata)
    controls = adata[design.controls].copy()
    described = target_features(
        sorted({*genes, *(name for each in design.perturbations for name in each)}), task.features
    )
    probes = choose_probes(design.controls)
    pairings: dict[str, PerturbationToken | None] = {"ours_no_network": None}
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
        cells = open_query(controls, model, layer=None, key="bioformer").source.rows(
            np.searchsorted(design.controls, probes)
        )
        pairings[method] = PerturbationToken(model, cells, *described, task.kind)
        mean_depth = float(model.binnings["rna"].mean_depth or 1.0)
        seconds = time.perf_counter() - start if method == "ours" else seconds
    rows = [log1p_rows(block.counts, block.depth, mean_depth) for block in source.blocks()]
    measure = partial(measure_effects, rows, strata=design.strata, n_groups=len(design.perturbations))
    first = uniform(_HALVES, np.arange(adata.n_obs)) < 0.5
    halves = tuple(measure(groups=np.where(half, design.groups, -1)) for half in (first, ~first))
    targets = list(design.perturbations)
    features_of = np.zeros((len(targets), 1))
    if task.features is not None:
        features_of = np.array([task.features.reindex(list(each)).fillna(0).to_numpy().sum(axis=0) for each in targets])
    own = np.array([[gene in each for gene in genes] for each in targets])
    effects = measure(groups=design.groups)
    return Problem(name, genes, task, targets, rows, design, effects, (halves[0], halves[1]), own, features_of,
                   pairings, pair_chances(design, probes), mean_depth, seconds)  # fmt: skip


def _named(adata: AnnData, task: bf.Perturbation) -> list[str]:
    labels = adata.obs[task.key].astype(str).unique()
    texts = [
        dict(task.targets or {}).get(label, label) for label in labels if label not in (*task.ignore, task.control)
    ]
    return [part for text in texts for part in text.split("+")]


def take(effects: Effects, rows: np.ndarray) -> Effects:
    """Effects of some perturbations; what they say of the controls stays."""
    return replace(effects, mean=effects.mean[rows], se=effects.se[rows], n_cells=effects.n_cells[rows])


@lru_cache(maxsize=2)
def correlations_in(problem: Problem, train: tuple[int, ...]) -> Correlations:
    """Measure correlations in the cells of the control and of the training perturbations, no others."""
    at = np.full(len(problem.targets) + 1, -1)
    at[[0, *(1 + i for i in train)]] = np.arange(len(train) + 1)
    groups = np.where(problem.design.groups >= 0, at[problem.design.groups], -1)
    return measure_correlations(
        problem.rows, groups, problem.design.strata, [problem.targets[i] for i in train], problem.genes
    )


def fit_ours(problem: Problem, train: np.ndarray, method: str) -> PerturbationHead:
    """Fit the head to the training perturbations alone."""
    known = [problem.targets[i] for i in train]
    correlations, pairing = correlations_in(problem, tuple(train.tolist())), problem.pairings[method]
    network = None if pairing is None else lambda rows, names: answer(problem, train[rows], method, names)
    return fit_head(problem.genes, known, take(problem.effects, train), correlations, problem.task, problem.mean_depth,
                    network)  # fmt: skip


def answer(problem: Problem, train: np.ndarray, method: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Answers of the network, its token trained on the training perturbations of one target alone."""
    pairing = problem.pairings[method]
    if pairing is None:
        return {}
    rows = np.array([i for i in train if len(problem.targets[i]) == 1], dtype=int)
    known = [problem.targets[i][0] for i in rows]
    token = pairing.train(known, problem.effects.mean[rows], problem.effects.se[rows], problem.chances[rows])
    return pairing.answers(names, token)
