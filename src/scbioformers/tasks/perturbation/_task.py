"""From measured responses to a head that predicts others, and what is requested of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError, log1p_rows, tqdm
from scbioformers.data import BlockSource
from scbioformers.model import BioFormer
from scbioformers.tasks.perturbation._correlations import measure_correlations
from scbioformers.tasks.perturbation._design import Design
from scbioformers.tasks.perturbation._effects import measure_effects
from scbioformers.tasks.perturbation._fit import fit_head, target_features
from scbioformers.tasks.perturbation._folds import n_trainings
from scbioformers.tasks.perturbation._head import PerturbationHead
from scbioformers.tasks.perturbation._labels import Targets, parse_label
from scbioformers.tasks.perturbation._token import TokenPredictor

HEAD = "perturbation"  # its name among those of a model
N_PROBES = 64  # control cells in which the network is requested


def fit_perturbation(
    model: BioFormer, source: BlockSource, design: Design, *, seed: int = 0, progress_bar: bool = True
) -> BioFormer:
    """The model with a head and an external token fitted to the effects in ``source``; all else saw controls only."""
    task, dose = design.task, design.dose
    depth = model.tokenizer.binning.mean_depth or 1.0

    def rows() -> Iterator[sp.csr_matrix]:
        for block in source.blocks():
            yield log1p_rows(block.counts, block.depth, depth)

    effects = measure_effects(rows(), design.groups, design.strata, len(design.perturbations))
    if dose is not None:
        # effects for each unit of dose
        mean = np.array([dose[design.groups == i + 1].mean() for i in range(len(design.perturbations))])
        effects = replace(effects, mean=effects.mean / mean[:, None], se=effects.se / mean[:, None])
    genes = model.vocabulary.feature_names()
    single = np.array([i for i, each in enumerate(design.perturbations) if len(each) == 1])
    targets = {i: design.perturbations[i][0] for i in single}
    described = target_features(list(dict.fromkeys([*genes, *targets.values()])), task.features)
    probes = choose_probes(design.controls)
    predictor = TokenPredictor(model, source.rows(probes), *described, task.kind)
    chances = pair_chances(design, probes)

    correlations = measure_correlations(rows(), design.groups, design.strata, design.perturbations, genes)
    with tqdm(total=n_trainings(single.size) + 1, desc="Responses, left out in turn", disable=not progress_bar) as bar:

        def train(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            bar.update()
            names = [targets[i] for i in rows]
            return predictor.train(names, effects.mean[rows], effects.se[rows], chances[rows], seed)

        def answer(rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
            return predictor.predict(names, train(rows))

        head = fit_head(genes, design.perturbations, effects, correlations, task, float(depth), answer)
        token = train(single)
    told = {name: getattr(task, name) for name in ("key", "control", "kind", "dose", "celltype_key")}
    told |= {"ignore": list(task.ignore), "batch_key": design.batch_key}
    head = replace(head, labels=design.labels, task=told, token=token)
    return replace(model, heads=model.heads | {HEAD: head.to_head()})


def choose_probes(controls: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of some control cells, evenly spread.

    Raises
    ------
    DataError
        If there is none.
    """
    if not controls.size:
        raise DataError("There is no control cell to start from.")
    return controls[np.linspace(0, controls.size - 1, min(N_PROBES, controls.size)).astype(np.int64)]


def pair_chances(design: Design, probes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P, probes), how often each control cell is paired with cells of a perturbation: as its stratum is perturbed."""
    strata, n = design.strata, int(design.strata.max()) + 1
    there = np.maximum(np.bincount(strata[probes], minlength=n), 1)
    found = np.zeros((len(design.perturbations), probes.size))
    for i in range(len(found)):
        cells = np.bincount(strata[design.groups == i + 1], minlength=n)
        # of a stratum without a probe the others speak
        share = (cells / there)[strata[probes]]
        found[i] = share / share.sum() if share.sum() > 0 else 1 / probes.size
    return found


def require_head(model: BioFormer) -> PerturbationHead:
    """The part that predicts responses.

    Raises
    ------
    MissingKeyError
        If the model was fitted without such a task.
    """
    if HEAD not in model.heads:
        raise MissingKeyError(
            "The model was fitted without perturbations. Run `bf.tl.fit(adata, task=bf.Perturbation(key=…, "
            "control=…))` first."
        )
    return PerturbationHead.from_head(tuple(model.vocabulary.feature_names()), model.heads[HEAD])


def requested_targets(head: PerturbationHead, perturbations: str | Sequence[str]) -> dict[str, Targets]:
    """Targets by label; ``"all"`` are all measured genes and all targets of the training data.

    Raises
    ------
    ConfigError
        If nothing is requested.
    DataError
        If a label cannot be parsed or names what is not known.
    """
    if isinstance(perturbations, str) and perturbations == "all":
        seen = [name for each in head.perturbations for name in each]
        return {name: (name,) for name in dict.fromkeys([*head.genes, *seen])}
    names = [perturbations] if isinstance(perturbations, str) else [str(name) for name in perturbations]
    if not names:
        raise ConfigError("`perturbations` is empty: name a gene, a combination such as 'STAT1+IRF1', or 'all'.")
    found = {name: parse_label(name, "", head.labels) for name in names}
    if empty := [name for name, targets in found.items() if not targets]:
        raise DataError(f"{empty[:5]} name no perturbed gene.")
    head.resolve(list(found.values()))
    return found
