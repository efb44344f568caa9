"""Parts of :mod:`benchmarks.phenotype` that predict profiles: under another condition, and at a time not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.stats import pearsonr
from sklearn.decomposition import PCA

import scbioformers as bf
from benchmarks._phenotype_data import (
    OURS,
    TIMES,
    Values,
    dense,
    fit_ours,
    mean_depth,
    profiles,
    read,
    read_times,
    shares,
)
from scbioformers.baselines import linear_effect, mean_effect

CONDITIONS = {"kang_ifnb": ("ctrl", "stim"), "simulated": ("condition_1", "condition_2")}
SIMULATED_TIME = 2.0  # of the times 0 to 4
LOW = 0.1  # expected counts at the mean depth, below which a gene is not scored in simulations
PSEUDO = 0.01  # counts, so that the logarithm of a measured mean exists


def score_other(data: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """Effect of a condition on each cell type, of whose cells with this condition nothing is known.

    The effect is the difference of mean log1p profiles; in simulations the log fold change of mean counts, and the
    truth is that of the distributions which the counts are drawn from.
    """
    simulated = name == "simulated"
    adata = read(data, name, seed, n_conditions=2)
    types, condition = adata.obs["cell_type"].to_numpy(str), adata.obs["condition"].to_numpy(str)
    names, (control, changed) = sorted(set(types)), CONDITIONS[name]
    found: dict[str, dict[str, float]] = {}
    for held in names[:3] if simulated else names:
        left_out, own = ((types == held) & (condition == value) for value in (changed, control))
        others = [[(types == each) & (condition == v) for v in (control, changed)] for each in names if each != held]
        depth = mean_depth(adata[~left_out])
        values = profiles(adata, depth)
        truth, scored = summary(values[left_out]) - summary(values[own]), np.ones(adata.n_vars, bool)
        if simulated:
            expected = shares(adata, "expected") * depth
            two = expected[left_out].mean(axis=0), expected[own].mean(axis=0)
            truth, scored = np.log(two[0]) - np.log(two[1]), np.minimum(*two) >= LOW
        if method == "half_of_the_cells":  # what measuring half of them would give, scored on the other half
            half = np.random.default_rng(seed).random(adata.n_obs) < 0.5
            predicted, truth = (
                summary(values[left_out & part], simulated) - summary(values[own & part], simulated)
                for part in (half, ~half)
            )
        elif method in BETWEEN_TYPES:
            controls, effects = zip(
                *((c := summary(values[a], simulated), summary(values[b], simulated) - c) for a, b in others),
                strict=True,
            )
            control_profile = summary(values[own], simulated)
            predicted = BETWEEN_TYPES[method](np.array(controls), np.array(effects), control_profile)
        else:
            cells = predict_cells(adata[~left_out].copy(), adata[own].copy(), method, seed, (control, changed))
            predicted = summary(cells[1], simulated) - summary(cells[0], simulated)
        found[held] = compare(predicted[scored], truth[scored])
    means: dict[str, Any] = {score: float(np.mean([each[score] for each in found.values()])) for score in found[held]}
    return {**means, "by_type": found}


BETWEEN_TYPES = {
    "no_change": lambda controls, effects, control: np.zeros_like(control),
    "mean_of_other_types": lambda controls, effects, control: mean_effect(effects),
    "linear": linear_effect,
}


def summary(values: Values, fold_change: bool = False) -> Values:
    """Mean of log1p profiles; with ``fold_change`` the log of the mean counts, whose differences are fold changes."""
    return np.log(np.expm1(values).mean(axis=0) + PSEUDO) if fold_change else values.mean(axis=0)


def predict_cells(
    training: AnnData, cells: AnnData, method: str, seed: int, conditions: tuple[str, str]
) -> list[Values]:
    """The log1p profiles (n, M) of the same cells under both conditions, by our model."""
    fit_ours(training, seed, **OURS[method], phenotype_keys="condition")
    found = []
    for condition in conditions:
        bf.tl.counterfactual(cells, {"condition": condition}, model=training)
        found.append(np.asarray(cells.layers["counterfactual"], np.float64))
    return found


def compare(predicted: Values, truth: Values) -> dict[str, float]:
    """Scores of a predicted effect (M,). ``size`` is the slope of predicted on true, 1 if the size is right.

    ``sign`` is the share of right signs among the 50 largest true effects.
    """
    largest = np.argsort(-np.abs(truth))[:50]
    constant = np.ptp(predicted) < 1e-12
    return {
        "pearson": 0.0 if constant else float(pearsonr(predicted, truth)[0]),
        "rmse": float(np.sqrt(np.mean(np.square(predicted - truth)))),
        "size": float(predicted @ truth / (truth @ truth)),
        "sign": float((np.sign(predicted[largest]) == np.sign(truth[largest])).mean()),
    }


def score_time(data: Path, name: str, method: str, seed: int) -> dict[str, float]:
    """The mean profile at a time of which nothing has been seen.

    Profiles are mean bins on a log scale of the data. In simulations they are logs of mean counts, and the truth is
    that of the distributions which the counts are drawn from.
    """
    simulated = name == "simulated"
    adata = read(data, name, seed, n_times=5) if simulated else read_times(data, name)
    held = SIMULATED_TIME if simulated else TIMES[name]
    time = adata.obs["time"].to_numpy()
    seen = time != held
    around = time[time < held].max(), time[time > held].min()
    if simulated:
        depth = mean_depth(adata[seen])
        counts, expected = shares(adata) * depth, (shares(adata, "expected") * depth)[time == held].mean(axis=0)
        scored, truth = expected >= LOW, np.log(expected)
        mean = lambda rows: np.log(counts[rows].mean(axis=0) + PSEUDO)  # noqa: E731
    else:
        bf.pp.bin_segment(adata)
        bins, scored = dense(adata.layers.pop("bin_segment")), np.ones(adata.n_vars, bool)
        mean = lambda rows: bins[rows].mean(axis=0)  # noqa: E731
        truth = mean(time == held)
    two = mean(time == around[0]), mean(time == around[1])
    share = (held - around[0]) / (around[1] - around[0])
    predicted = {
        "training_mean": mean(seen),
        "time_before": two[0],
        "time_after": two[1],
        "interpolation": (1 - share) * two[0] + share * two[1],
    }
    if method in OURS or method == "ours_added":
        training = adata[seen].copy()
        binning = "value" if simulated else "segment"
        fit_ours(training, seed, **OURS.get(method, {}), binning=binning, phenotype_keys="time")
        decoded = []
        for t in around:  # cells of the neighbouring times, each time with the same weight
            cells = training[training.obs["time"] == t].copy()
            profiles_at = []
            for value in (held, float(t)):
                bf.tl.counterfactual(cells, {"time": value}, model=training)
                values = np.asarray(cells.layers["counterfactual"], np.float64)
                highest = bf.get.model(training).binnings["rna"].n_values - 1
                profiles_at.append(summary(values, True) if simulated else highest * values.mean(axis=0))
            decoded.append(profiles_at)
        at_held = (decoded[0][0] + decoded[1][0]) / 2
        changes = [two[i] + decoded[i][0] - decoded[i][1] for i in (0, 1)]  # of the measured profiles
        predicted[method] = (changes[0] + changes[1]) / 2 if method == "ours_added" else at_held
    difference = predicted[method][scored] - truth[scored]
    change = truth[scored] - predicted["interpolation"][scored]
    return {
        "rmse": float(np.sqrt(np.mean(np.square(difference)))),
        "mean_distance": float(np.abs(difference).mean()),
        "over_interpolation": float(np.sqrt(np.mean(np.square(difference)) / np.mean(np.square(change)))),
    }


def score_bulk(data: Path, name: str, method: str, seed: int) -> dict[str, float]:
    """Share of pseudo-bulks of cells of one type whose nearest centroid is that of this type.

    The embedding is fitted to 80 % of the cells, whose means by type are the centroids. Pseudo-bulks are sums of the
    counts of other cells.
    """
    adata = read(data, name)
    types, training = adata.obs["cell_type"].to_numpy(str), np.random.default_rng(seed).random(adata.n_obs) < 0.8
    fitted, test = adata[training].copy(), adata[~training]
    random, test_types = np.random.default_rng(seed + 1), types[~training]
    sums, truth, sizes = [], [], []
    counts = dense(test.X)
    for kind in sorted(set(types)):
        rows = np.flatnonzero(test_types == kind)
        for size in (n for n in BULK_SIZES if n <= len(rows)):
            for _ in range(N_BULKS):
                sums.append(counts[random.choice(rows, size, replace=False)].sum(axis=0))
                truth.append(kind)
                sizes.append(size)
    bulks = AnnData(np.array(sums, np.float32), var=adata.var)
    embed = embed_pca if method == "pca" else embed_ours
    cells, profiles_of = embed(fitted, bulks, method, seed)
    kinds = np.array(sorted(set(types[training])))
    centroids = np.array([cells[types[training] == kind].mean(axis=0) for kind in kinds])
    distances = np.linalg.norm(profiles_of[:, None] - centroids, axis=2)
    right = kinds[distances.argmin(axis=1)] == np.array(truth)
    by_size = {f"right_{size}": float(right[np.array(sizes) == size].mean()) for size in BULK_SIZES if size in sizes}
    return {"right": float(right.mean()), **by_size}


def embed_pca(fitted: AnnData, bulks: AnnData, method: str, seed: int) -> tuple[Values, Values]:
    """Components of log1p profiles."""
    depth, genes = mean_depth(fitted), fitted.var["highly_variable"].to_numpy()
    pca = PCA(50, svd_solver="randomized", random_state=seed).fit(profiles(fitted, depth)[:, genes])
    return tuple(pca.transform(profiles(each, depth)[:, genes]) for each in (fitted, bulks))


def embed_ours(fitted: AnnData, bulks: AnnData, method: str, seed: int) -> tuple[Values, Values]:
    """Our embedding."""
    fit_ours(fitted, seed, **OURS[method])
    for each in (fitted, bulks):
        bf.tl.embed(each, model=bf.get.model(fitted))
    return fitted.obsm["X_bioformer"], bulks.obsm["X_bioformer"]


BULK_SIZES = (1, 2, 5, 10, 20, 50)
N_BULKS = 30  # of each type and size
