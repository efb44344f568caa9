"""From measured effects to a head, with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.metrics import linear_bilinear, perturbation, target_falls
from scbioformers.perturbation._combinations import fit_combination
from scbioformers.perturbation._components import COMPONENTS, Array, Knowledge, unit_rows
from scbioformers.perturbation._config import Perturbation
from scbioformers.perturbation._correlations import Correlations
from scbioformers.perturbation._effects import Effects
from scbioformers.perturbation._folds import fold_of
from scbioformers.perturbation._head import MAX_LOADINGS, PerturbationHead
from scbioformers.perturbation._labels import Targets, require_singles
from scbioformers.perturbation._stack import choose_strength, fit_weights, out_of_fold

_REMAINING = {"knockout": 0.3, "activation": 3.0, "drug": 1.0}  # where no perturbed gene is measured
_PRIOR_TARGETS = 5.0
Network = Callable[[Sequence[str]], dict[str, NDArray[Any]]]


def fit_head(
    genes: Sequence[str],
    perturbations: Sequence[Targets],
    effects: Effects,
    correlations: Correlations,
    task: Perturbation,
    mean_depth: float,
    network: Network | None = None,
) -> PerturbationHead:
    """Fit the head to the effects of P perturbations, and cross-validate it over targets.

    Parameters
    ----------
    genes
        The M molecules.
    perturbations
        The P targets or combinations, in the order of the effects.
    effects
        Of the perturbations.
    correlations
        In the cells of the control and of these perturbations, no others.
    task
        Its features and kind are used.
    mean_depth
        Depth at which log1p was taken.
    network
        The network's answer for some single targets, from control cells alone.

    Raises
    ------
    DataError
        If there are fewer than two single targets: nothing can be learned for others.
    """
    single = require_singles(perturbations)
    names = list(dict.fromkeys([*genes, *(n for each in perturbations for n in each)]))
    coexpression = np.zeros(effects.mean.shape, np.float32)
    coexpression[single] = correlations.of_targets()
    sd = effects.control_sd.astype(np.float32)
    head = PerturbationHead(
        genes=tuple(genes),
        names=(),
        perturbations=tuple(perturbations),
        labels={},
        kind=task.kind,
        effects=effects.mean.astype(np.float32),
        se=effects.se.astype(np.float32),
        features=np.zeros((0, 0), np.float32),
        loadings=_loadings(correlations.pooled()).astype(np.float32),
        coexpression=coexpression,
        control_mean=effects.control_mean.astype(np.float32),
        control_sd=sd,
        network=np.zeros(effects.mean.shape, np.float32),
        weights=np.eye(len(COMPONENTS), dtype=np.float32)[0],
        residual_sd=sd,
        remaining=_REMAINING[task.kind],
        strength=1.0,
        combination=(1.0, 0.0),
        correlation_error=correlations.noise,
        mean_depth=mean_depth,
    )
    head = replace(head, **_features(names, task.features))
    if network is not None:
        answers = network([perturbations[i][0] for i in single])
        found = head.network.copy()
        for i in single:
            found[i] = answers.get(perturbations[i][0], found[i])
        head = replace(head, network=found)
    return _validated(head, single, correlations)


def _validated(head: PerturbationHead, single: list[int], correlations: Correlations) -> PerturbationHead:
    """Weights, strength, error and evidence from the single targets; then the rule for combinations."""
    training = head.stack.training
    effects, se = head.effects[single].astype(np.float64), head.se[single].astype(np.float64)
    full, mean = out_of_fold(training, effects, se, correlations)
    strength = choose_strength(full, mean, training, effects, se)
    shrunk = mean + strength * (full - mean)
    own = training.own_mask()
    residual = np.where(own, 0, shrunk - effects)
    # genes that hardly vary in control cells must not blow up what all genes share
    scale = np.maximum(head.control_sd.astype(np.float64), max(0.2 * float(head.control_sd.mean()), 1e-6))
    pooled = (residual / scale) ** 2
    n = len(single)
    spread = np.sqrt((pooled.sum(axis=0) + _PRIOR_TARGETS * pooled.mean()) / (n + _PRIOR_TARGETS)) * scale
    remaining = _remaining(head, training.own, effects)
    shrunk = np.where(own, _fall(head, remaining), shrunk)
    head = replace(
        head,
        weights=fit_weights(training, effects, se).weights.astype(np.float32),
        strength=strength,
        residual_sd=spread.astype(np.float32),
        remaining=remaining,
        evidence=_evidence(head, single, shrunk, mean, training, effects, se) | {"strength": strength},
    )
    several = [i for i, targets in enumerate(head.perturbations) if len(targets) > 1]
    answers = {head.perturbations[i][0]: head.network[i].astype(np.float64) for i in single}
    singles = [head.predict([(name,) for name in head.perturbations[i]], answers)[0] for i in several]
    weights = fit_combination(singles, [head.effects[i].astype(np.float64) for i in several])
    return replace(head, combination=weights)


def _evidence(
    head: PerturbationHead,
    single: list[int],
    predicted: Array,
    mean: Array,
    training: Knowledge,
    effects: Array,
    se: Array,
) -> dict[str, Any]:
    """Scores of every target, predicted from the others, beside the baselines."""
    own, folds = training.own_mask(), fold_of(len(single))
    linear = np.zeros_like(effects)
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        linear[out] = linear_bilinear(effects[rest], own[rest], own[out])
    methods = {"model": predicted, "training_mean": mean, "target_falls": target_falls(own), "linear": linear}
    z = effects / np.maximum(se, 1e-12)
    scores = {
        name: perturbation(
            values, effects, control=head.control_mean, perturbed_mean=effects.mean(axis=0), own=own, ranking=z
        )
        for name, values in methods.items()
    }
    table: dict[str, Any] = {"target": [head.perturbations[i][0] for i in single]}
    table |= {f"delta_{name}": found.delta_off.tolist() for name, found in scores.items()}
    table |= {f"centroid_{name}": np.nan_to_num(found.centroid, nan=0.5).tolist() for name, found in scores.items()}
    table["signal"] = [float(np.mean(row[~mask] ** 2)) for row, mask in zip(z, own, strict=True)]
    return {"targets": table, "n_folds": int(folds.max()) + 1}


def _remaining(head: PerturbationHead, own: NDArray[np.int64], effects: Array) -> float:
    """Median expression of the measured targets relative to control."""
    rows = np.flatnonzero(own >= 0)
    base = head.control_mean.astype(np.float64)[own[rows]]
    rows, base = rows[base > 1e-3], base[base > 1e-3]
    if not rows.size:
        return _REMAINING[head.kind]
    found = np.expm1(np.maximum(base + effects[rows, own[rows]], 0)) / np.expm1(base)
    return float(np.median(found))


def _fall(head: PerturbationHead, remaining: float) -> Array:
    base = head.control_mean.astype(np.float64)
    found: Array = np.log1p(remaining * np.expm1(base)) - base
    return found


def _loadings(correlations: Array) -> Array:
    """(M, R) whose products are the correlations, as far as the leading components hold them."""
    values, vectors = np.linalg.eigh(correlations)
    order = np.argsort(-values)[:MAX_LOADINGS]
    found: Array = vectors[:, order] * np.sqrt(np.maximum(values[order], 0))
    return found


def _features(names: list[str], table: pd.DataFrame | None) -> dict[str, Any]:
    if table is None:
        return {"names": tuple(names), "features": np.zeros((len(names), 1), np.float32)}
    rows = [str(name) for name in table.index]
    found = list(dict.fromkeys([*names, *rows]))
    values = pd.DataFrame(unit_rows(table.to_numpy(np.float64)), index=rows).reindex(found).fillna(0)
    return {"names": tuple(found), "features": values.to_numpy(np.float32)}
