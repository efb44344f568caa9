"""Fit of the perturbation head to measured effects, with cross-validation over targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.baselines import linear_bilinear, target_falls
from scbioformers.config import Perturbation
from scbioformers.metrics import perturbation
from scbioformers.tasks.perturbation._combinations import fit_combination
from scbioformers.tasks.perturbation._components import COMPONENTS, Array, TargetData, unit_rows
from scbioformers.tasks.perturbation._correlations import Correlations
from scbioformers.tasks.perturbation._effects import Effects
from scbioformers.tasks.perturbation._folds import N_GROUPS, fold_of, group_of
from scbioformers.tasks.perturbation._head import MAX_LOADINGS, PerturbationHead
from scbioformers.tasks.perturbation._labels import Targets, require_singles
from scbioformers.tasks.perturbation._stack import choose_strength, fit_weights, out_of_fold

_REMAINING = {"knockout": 0.3, "activation": 3.0, "drug": 1.0}  # default if no perturbed gene is measured
_PRIOR_TARGETS = 5.0  # weight of the mean over genes in the error of each gene, in targets
#: Function of the rows of the effects to train on and the names of targets. Returns predicted effects (M,) by name.
TokenPrediction = Callable[[NDArray[np.int64], Sequence[str]], dict[str, NDArray[Any]]]


def fit_head(
    genes: Sequence[str],
    perturbations: Sequence[Targets],
    effects: Effects,
    correlations: Correlations,
    task: Perturbation,
    mean_depth: float,
    network: TokenPrediction | None = None,
) -> PerturbationHead:
    """Fit the head to the effects of P perturbations, and cross-validate it over targets.

    Parameters
    ----------
    genes
        The M genes.
    perturbations
        The P targets or combinations, in the order of the effects.
    effects
        Effects of the perturbations.
    correlations
        Correlations of genes in the control cells and in the cells of these perturbations.
    task
        Description of the task, of which the features and the kind are used.
    mean_depth
        Depth to which counts were scaled before log1p.
    network
        Function that trains the network on the effects of some perturbations and predicts those of other targets.

    Raises
    ------
    DataError
        If there are fewer than two single targets.
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
        largest=np.full(len(COMPONENTS), np.inf, np.float32),
        residual_sd=sd,
        interval_se=(effects.se if effects.interval_se is None else effects.interval_se).astype(np.float32),
        control_se=(np.zeros_like(effects.se) if effects.control_se is None else effects.control_se).astype(np.float32),
        cross_validated=np.zeros(effects.mean.shape, np.float32),
        remaining=_REMAINING[task.kind],
        strength=1.0,
        combination=(1.0, 0.0),
        correlation_error=correlations.noise,
        mean_depth=mean_depth,
    )
    found, features = target_features(names, task.features)
    predicted = predict_by_token(network, perturbations, single, len(genes))
    by_network = head.network.copy()
    by_network[single] = predicted[group_of(len(single)), np.arange(len(single))]
    head = replace(head, names=found, features=features, network=by_network)
    return _validated(head, single, correlations, predicted)


def predict_by_token(
    network: TokenPrediction | None, perturbations: Sequence[Targets], single: list[int], n_genes: int
) -> Array:
    """(n_groups, T, M), effects of T single targets predicted by the network.

    For the entry (g, t), the network is trained without group g of the folds and without the group of target t.
    """
    groups, rows = group_of(len(single)), np.array(single, dtype=np.int64)
    found = np.zeros((N_GROUPS, len(single), n_genes))
    if network is None:
        return found
    for a, b in combinations_with_replacement(np.unique(groups), 2):
        out = np.flatnonzero((groups == a) | (groups == b))
        predicted = network(np.delete(rows, out), [perturbations[single[i]][0] for i in out])
        for i in out:
            found[b if groups[i] == a else a, i] = predicted.get(perturbations[single[i]][0], 0.0)
    return found


def _validated(
    head: PerturbationHead, single: list[int], correlations: Correlations, by_network: Array
) -> PerturbationHead:
    """Fit weights, strength, error and evidence to the single targets, then the weights of combinations."""
    training = head.stack.training
    effects, se = head.effects[single].astype(np.float64), head.se[single].astype(np.float64)
    full, mean = out_of_fold(training, effects, se, correlations, by_network)
    strength = choose_strength(full, mean, training, effects, se)
    shrunk = mean + strength * (full - mean)
    own = training.own_mask()
    residual = np.where(own, 0, shrunk - effects)
    # a lower limit, because genes that hardly vary in control cells would dominate the mean over genes
    scale = np.maximum(head.control_sd.astype(np.float64), max(0.2 * float(head.control_sd.mean()), 1e-6))
    pooled = (residual / scale) ** 2
    n = len(single)
    spread = np.sqrt((pooled.sum(axis=0) + _PRIOR_TARGETS * pooled.mean()) / (n + _PRIOR_TARGETS)) * scale
    remaining = _remaining(head, training.own, effects)
    stack = fit_weights(training, effects, se)
    fitted = {"strength": strength, "weights": dict(zip(COMPONENTS, stack.weights.tolist(), strict=True))}
    shrunk = np.where(own, replace(head, remaining=remaining).own_change(), shrunk)
    head = replace(
        head,
        weights=stack.weights.astype(np.float32),
        largest=stack.largest.astype(np.float32),
        strength=strength,
        residual_sd=spread.astype(np.float32),
        remaining=remaining,
        evidence=_evidence(head, single, shrunk, mean, training, effects, se) | fitted,
    )
    several = [i for i, targets in enumerate(head.perturbations) if len(targets) > 1]
    singles = [head.predict([(name,) for name in head.perturbations[i]])[0] for i in several]
    observed = [head.effects[i].astype(np.float64) for i in several]
    held_out = np.zeros(head.effects.shape)
    held_out[single] = shrunk
    for k, i in enumerate(several):
        others = [j for j in range(len(several)) if j != k]
        rule = replace(head, combination=fit_combination([singles[j] for j in others], [observed[j] for j in others]))
        held_out[i] = rule.combine(head.perturbations[i], singles[k])
    held_out = np.maximum(held_out, -head.control_mean)
    return replace(head, combination=fit_combination(singles, observed), cross_validated=held_out.astype(np.float32))


def _evidence(
    head: PerturbationHead,
    single: list[int],
    predicted: Array,
    mean: Array,
    training: TargetData,
    effects: Array,
    se: Array,
) -> dict[str, Any]:
    """Scores of the out-of-fold predictions and of the baselines, for every single target."""
    own, folds = training.own_mask(), fold_of(len(single))
    linear = np.zeros_like(effects)
    for fold in np.unique(folds):
        out, rest = folds == fold, folds != fold
        linear[out] = linear_bilinear(effects[rest], own[rest], own[out])
    network = head.network[single].astype(np.float64)
    methods = {
        "model": predicted,
        "network": network,
        "training_mean": mean,
        "target_falls": target_falls(own),
        "linear": linear,
    }
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
    """Median expression of the measured targets in perturbed cells, relative to control."""
    rows = np.flatnonzero(own >= 0)
    base = head.control_mean.astype(np.float64)[own[rows]]
    rows, base = rows[base > 1e-3], base[base > 1e-3]
    if not rows.size:
        return _REMAINING[head.kind]
    found = np.expm1(np.maximum(base + effects[rows, own[rows]], 0)) / np.expm1(base)
    return float(np.median(found))


def _loadings(correlations: Array) -> Array:
    """(M, R), leading components of the correlations. Their products approximate the correlations."""
    values, vectors = np.linalg.eigh(correlations)
    order = np.argsort(-values)[:MAX_LOADINGS]
    found: Array = vectors[:, order] * np.sqrt(np.maximum(values[order], 0))
    return found


def target_features(names: Sequence[str], table: pd.DataFrame | None) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """All target names, including those of the table, and their features (N, F), scaled to unit length."""
    if table is None:
        return tuple(names), np.zeros((len(names), 1), np.float32)
    rows = [str(name) for name in table.index]
    found = list(dict.fromkeys([*names, *rows]))
    values = pd.DataFrame(unit_rows(table.to_numpy(np.float64)), index=rows).reindex(found).fillna(0)
    return tuple(found), values.to_numpy(np.float32)
