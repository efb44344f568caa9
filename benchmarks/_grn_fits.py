"""Fit the models of the network benchmark: single networks, and ensembles."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import scbioformers as bf
from benchmarks._grn_truth import Problem

N_MEMBERS = 5  # members of an ensemble


@lru_cache(maxsize=16)  # the methods of bf.tl.grn read the same fits
def fit(
    problem: Problem,
    seed: int,
    svd_init: bool,
    max_steps: int | None,
    n_models: int,
    external_key: str | None = None,
) -> bf.BioFormer:
    """Fit a model of ``n_models`` networks, whose seeds follow each other. Models of different seeds share none."""
    adata = problem.adata.copy()
    config = bf.ModelConfig(svd_init=svd_init)
    train = bf.TrainConfig(max_steps=max_steps)
    options = {"n_models": n_models, "rng": seed * n_models, "external_key": external_key}
    bf.tl.fit(adata, binning=problem.binning, config=config, train=train, **options)
    return bf.get.model(adata)


def fit_once(
    folder: Path,
    problem: Problem,
    seed: int,
    svd_init: bool,
    max_steps: int | None,
    n_models: int,
    *,
    overwrite: bool,
) -> bf.BioFormer:
    """Fit a model and save it in ``folder``, or load it if an earlier run has saved it."""
    start, steps = "svd" if svd_init else "random", "full" if max_steps is None else max_steps
    path = folder / f"{problem.name}-{start}-{steps}-{n_models}-{seed}"
    if overwrite or not path.exists():
        fit(problem, seed, svd_init, max_steps, n_models).save(path)
    return bf.BioFormer.load(path)
