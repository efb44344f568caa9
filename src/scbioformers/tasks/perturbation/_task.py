"""The perturbation task: fit of the head to the data, and choice of the targets to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, GeneIndex, MissingKeyError, as_names, category_text, log1p_rows, tqdm
from scbioformers.data import BlockSource
from scbioformers.model import BioFormer
from scbioformers.tasks.perturbation import _token
from scbioformers.tasks.perturbation._correlations import measure_correlations
from scbioformers.tasks.perturbation._design import Design
from scbioformers.tasks.perturbation._effects import Effects, measure_effects
from scbioformers.tasks.perturbation._fit import fit_head, target_features
from scbioformers.tasks.perturbation._folds import N_GROUPS, n_trainings
from scbioformers.tasks.perturbation._head import PerturbationHead
from scbioformers.tasks.perturbation._labels import Targets, likely_task, require_known
from scbioformers.tasks.perturbation._token import TokenPredictor

HEAD = "perturbation"  # key of the head in BioFormer.heads
N_PROBES = 64  # control cells in which the network predicts effects


def fit_perturbation(
    model: BioFormer, source: BlockSource, design: Design, *, seed: int = 0, progress_bar: bool = True
) -> BioFormer:
    """Return the model with a head and an external token that are fitted to the effects in ``source``.

    The rest of the model was fitted to control cells only and is not changed.
    """
    task, dose = design.task, design.dose
    depth = model.first_tokenizer.binning.mean_depth or 1.0

    def rows() -> Iterator[sp.csr_matrix]:
        for block in source.blocks():
            yield log1p_rows(block.counts, block.depth, depth)

    genes = model.vocabulary.feature_names()
    single = np.array([i for i, each in enumerate(design.perturbations) if len(each) == 1])
    # without combinations, so that nothing of their cells is in what predicts them from single targets
    pool = np.isin(np.arange(len(design.perturbations)), single)
    effects = measure_effects(rows(), design.groups, design.strata, pool.size, pool)
    if dose is not None:
        effects = _per_dose(effects, np.array([dose[design.groups == i + 1].mean() for i in range(pool.size)]))
    targets = {i: design.perturbations[i][0] for i in single}
    described = target_features(list(dict.fromkeys([*genes, *targets.values()])), task.features)
    probes = choose_probes(design.controls)
    predictor = TokenPredictor(model, source.rows(probes), *described, task.kind)
    chances = pair_chances(design, probes)

    correlations = measure_correlations(rows(), design.groups, design.strata, design.perturbations, genes)
    runs = (n_trainings(single.size) + 1) * _token.STEPS + min(
        single.size, N_GROUPS
    ) * single.size  # steps and predictions
    with tqdm(total=runs, desc="Cross-validating", disable=not (progress_bar and predictor.can_predict)) as bar:

        def train(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            names = [targets[i] for i in rows]
            return predictor.train(names, effects.mean[rows], effects.se[rows], chances[rows], seed, bar)

        def train_and_predict(rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
            return predictor.predict(names, train(rows), bar=bar)

        head = fit_head(genes, design.perturbations, effects, correlations, task, float(depth), train_and_predict)
        token = train(single)
    params = {name: getattr(task, name) for name in ("key", "kind", "dose", "celltype_key")}
    ignore = [category_text(label) for label in task.ignore]
    params |= {"control": category_text(task.control), "ignore": ignore, "batch_key": design.batch_key}
    head = replace(head, labels=design.labels, task=params, token=token)
    return replace(model, heads=model.heads | {HEAD: head.to_head()})


def _per_dose(effects: Effects, dose: NDArray[np.float64]) -> Effects:
    """Effects per unit of dose. ``dose`` (P,) is the mean dose of the cells of each perturbation."""
    parts = {name: getattr(effects, name) for name in ("mean", "se", "interval_se", "control_se")}
    return replace(effects, **{name: part / dose[:, None] for name, part in parts.items() if part is not None})


def choose_probes(controls: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose at most ``N_PROBES`` control cells, evenly spaced in the order of the data.

    Raises
    ------
    DataError
        If there is no control cell.
    """
    if not controls.size:
        raise DataError("There is no control cell to start from. Check the `control` label of the task.")
    return controls[np.linspace(0, controls.size - 1, min(N_PROBES, controls.size)).astype(np.int64)]


def pair_chances(design: Design, probes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P, probes), probability with which each control cell is paired with cells of a perturbation.

    It is proportional to the number of perturbed cells in the stratum of the control cell.
    """
    strata, n = design.strata, int(design.strata.max()) + 1
    n_probes = np.maximum(np.bincount(strata[probes], minlength=n), 1)
    found = np.zeros((len(design.perturbations), probes.size))
    for i in range(len(found)):
        cells = np.bincount(strata[design.groups == i + 1], minlength=n)
        # strata without a chosen control cell are left out
        share = (cells / n_probes)[strata[probes]]
        found[i] = share / share.sum() if share.sum() > 0 else 1 / probes.size
    return found


def require_head(model: BioFormer, adata: AnnData | None = None) -> PerturbationHead:
    """The head of a model that predicts responses to perturbations.

    The error names a column of ``adata.obs`` with perturbations, if there is one.

    Raises
    ------
    MissingKeyError
        If the model was fitted without a perturbation task.
    """
    if HEAD not in model.heads:
        columns = {} if adata is None else _text_columns(adata)
        task = likely_task(columns, [*model.vocabulary.feature_names(), *([] if adata is None else adata.var_names)])
        advice = (
            "Fit a model to cells with perturbations, with the column of their labels and the label of the control "
            "cells as `task` (see bf.Perturbation)."
            if task is None
            else f"Run `bf.tl.fit(adata, task={task})` first."
        )
        raise MissingKeyError(f"The model was fitted without perturbations. {advice}")
    return PerturbationHead.from_head(tuple(model.vocabulary.feature_names()), model.heads[HEAD])


def _text_columns(adata: AnnData) -> dict[str, list[str]]:
    """The distinct labels of each column of text or categories."""
    found = {}
    for name in map(str, adata.obs.columns.unique()):
        values = adata.obs[name]
        if values.ndim == 1 and values.dtype.kind == "O":
            found[name] = [str(label) for label in values.dropna().unique()]
    return found


def requested_targets(
    head: PerturbationHead, perturbations: Any, names: Sequence[str], index: GeneIndex
) -> dict[str, Targets]:
    """Targets of each requested label. ``"all"`` means all genes of the model and all targets of the training data.

    Parameters
    ----------
    head
        The fitted head.
    perturbations
        Labels, or one label.
    names
        (M,), names of the genes of the model in the data.
    index
        Positions of the genes of the model, by their names in the data and in the model.

    Raises
    ------
    ConfigError
        If there is no label, or something else than labels.
    DataError
        If a label cannot be parsed, or if a target is unknown.
    """
    if isinstance(perturbations, str) and perturbations == "all":
        seen = {name: (name,) for each in head.perturbations for name in each if name not in head.genes}
        genes: dict[str, Targets] = {name: (gene,) for name, gene in zip(names, head.genes, strict=True)}
        return genes | seen
    labels, known = as_names(perturbations, "perturbations"), set(head.names)
    found = {label: head.targets_of(label, index) for label in labels}
    if empty := [label for label, targets in found.items() if not targets]:
        raise DataError(f"{empty[:5]} name no perturbed gene. Pass genes, or combinations such as 'STAT1+IRF1'.")
    require_known((name for each in found.values() for name in each), known.union(names, index.names), "Perturbations")
    return found
