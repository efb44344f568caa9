"""Experiment 90, other scores: molecular cross-validation, and proteins from RNA.

``python -m dev.trials.memory.score_other --data DIR --models DIR --out FILE``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

import scbioformers as bf
from benchmarks._biostate_methods import correlations, fit_both, predict_ours
from benchmarks._biostate_samples import as_mudata, read_samples, split
from benchmarks._masked_tasks import smooth, smooth_neighbours
from dev.trials.memory.fits import QUERIES, kept_half, load_transfer
from dev.trials.memory.memory import references
from scbioformers.metrics import poisson_loss, thin_counts
from scbioformers.results import open_query

TEMPERATURES = (2.0, 4.0, 8.0, 16.0, np.inf)
SHARES = (0.0, 0.1, 0.3, 1.0)  # how much an attended count weighs, compared with a count of the cell itself


def attention(x: np.ndarray, y: np.ndarray, temperature: float, *, own: bool) -> np.ndarray:
    """(N, R) weights. With ``own``, both are the same cells, which do not read themselves."""
    distance = (x**2).sum(axis=1)[:, None] - 2 * x @ y.T + (y**2).sum(axis=1)
    if own:
        np.fill_diagonal(distance, distance.max())
    weights = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / temperature)
    if own:
        np.fill_diagonal(weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def denoised(model: bf.BioFormer, kept: AnnData) -> dict[tuple[float, float], np.ndarray]:
    """(N, M) expected counts of all cells by temperature and share: posterior of own counts and attended residuals.

    The gamma prior of the network has the mean of the rate and the shape of the dispersion. Attended counts x' with
    expectation p' change the mean of the prior to rate · (shape + share x') / (shape + share p').
    """
    source = open_query(kept, model).source
    block = source.read(0, source.n_obs)
    refs = references(model, block)
    shape = model.members[0].log_dispersion.detach().exp().numpy().astype(np.float64)
    counts, prior = refs.counts.astype(np.float64), refs.expected.astype(np.float64)
    found = {}
    for temperature in TEMPERATURES:
        w = attention(refs.latent, refs.latent, temperature, own=True)
        w /= (w**2).sum(axis=1, keepdims=True)
        read, expected = w @ counts, w @ prior
        for share in SHARES:
            mean = prior * (shape + share * read) / (shape + share * expected)
            found[temperature, share] = mean * (shape + counts) / (shape + mean)
    return found


def score_counts(model: bf.BioFormer, kept: AnnData, held: csr_matrix, seed: int) -> dict[str, Any]:
    """Poisson loss of the other half of the counts. Temperature and share are chosen by thinning the kept half again.

    ``best`` is chosen by the score itself, so it is an upper limit.
    """
    genes = kept.var_names.get_indexer(model.vocabulary.feature_names())
    inner_counts, inner_held = thin_counts(csr_matrix(kept.X), 0.5, seed + 1)
    inner = AnnData(inner_counts, obs=kept.obs.copy(), var=kept.var.copy())
    inner_loss = {key: poisson_loss(x, inner_held[:, genes]) for key, x in denoised(model, inner).items()}
    loss = {key: poisson_loss(x, held) for key, x in denoised(model, kept).items()}
    chosen = min(inner_loss, key=lambda key: inner_loss[key])
    means = [key for key in loss if key[0] == np.inf]
    best = min(loss, key=lambda key: loss[key])
    smoothed, _ = smooth(csr_matrix(kept.X), genes, seed, smooth_neighbours)
    depth = np.asarray(kept.X.sum(axis=1), np.float64).ravel()
    mean = np.outer(depth, np.asarray(kept.X[:, genes].sum(axis=0)).ravel() / depth.sum())
    return {
        "gene mean": poisson_loss(mean, held), "knn smoothing": poisson_loss(smoothed, held),
        "alone": loss[TEMPERATURES[0], 0.0], "mean, best": min(loss[key] for key in means),
        "memory": loss[chosen], "chosen": list(chosen), "memory, best": loss[best], "best": list(best),
    }  # fmt: skip


def score_proteins(data: Path, seed: int) -> dict[str, float]:
    """Mean correlation of the proteins of test cells with their prediction, alone and with attended residuals."""
    training, test = split(read_samples(data, "cite_malt", gated=False), seed)
    inner = np.random.default_rng(seed + 90).random(len(training.labels)) < 0.85  # the others choose the temperature
    fitted_to, chosen_on, scored = training.take(inner), training.take(~inner), ~test.controls
    for each in (chosen_on,):
        each.rna.var["highly_variable"] = fitted_to.rna.var["highly_variable"]
    fitted = fit_both(fitted_to, seed)
    sets = {"fit": fitted_to, "choice": chosen_on, "test": test}
    key, predicted, true = {}, {}, {}
    for name, samples in sets.items():
        predicted[name] = predict_ours(samples, samples, "prot", seed, fitted=fitted)["mean"][:, scored]
        true[name] = samples.proteins()[:, scored]
        query = as_mudata({"rna": samples.rna})
        bf.tl.embed(query, model=fitted, use="latent")
        key[name] = np.asarray(query.obsm["X_bioformer"], np.float64)

    def combined(name: str, refs: str, temperature: float, share: float, form: str) -> float:
        w = attention(key[name], key[refs], temperature, own=False)
        read = w @ (true[refs] - predicted[refs]) if form == "residual" else w @ true[refs] - predicted[name]
        return float(correlations(predicted[name] + share * read, true[name]).mean())

    settings = [
        (t, s, f) for t in TEMPERATURES for s in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0) for f in ("residual", "value")
    ]
    # residuals of cells that the network was fitted to, and of the cells of the choice by turns
    chosen = max(settings, key=lambda x: combined("choice", "fit", *x))
    best = max(settings, key=lambda x: combined("test", "fit", *x))
    return {
        "alone": combined("test", "fit", 1.0, 0.0, "value"), "memory": combined("test", "fit", *chosen),
        "chosen": list(chosen), "memory, best": combined("test", "fit", *best), "best": list(best),
        "attended values alone": max(combined("test", "fit", t, 1.0, "value") for t in TEMPERATURES),
    }  # fmt: skip


def main() -> None:
    """Score everything that is there and has no line in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--proteins", action="store_true")
    arguments = parser.parse_args()
    done = {json.loads(line)["name"] for line in arguments.out.open()} if arguments.out.exists() else set()

    def keep(name: str, found: dict[str, Any]) -> None:
        with arguments.out.open("a") as file:
            file.write(json.dumps({"name": name, **found}) + "\n")
        print(name, found, flush=True)

    for seed in range(3):
        for name in (*QUERIES, "pbmc68k"):
            for kind in ("kept", "pretrained"):
                folder = arguments.models / f"{name}-{seed}-{kind}"
                if folder.name in done or not (folder / "model.safetensors").exists():
                    continue
                model = bf.BioFormer.load(folder)
                kept, held = kept_half(arguments.data, name, seed)
                if kind == "pretrained":
                    adata = load_transfer(arguments.data, name, seed).query
                    counts, other = thin_counts(csr_matrix(adata.X), 0.5, seed)
                    kept = AnnData(counts, obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
                    held = other[:, kept.var_names.get_indexer(model.vocabulary.feature_names())]
                keep(folder.name, score_counts(model, kept, held, seed))
        if arguments.proteins and f"proteins-{seed}" not in done:
            keep(f"proteins-{seed}", score_proteins(arguments.data, seed))


if __name__ == "__main__":
    main()
