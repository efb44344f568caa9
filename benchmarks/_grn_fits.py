"""Fit the models of the network benchmark, and combine them to ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import scbioformers as bf
from benchmarks._grn_truth import Problem

N_MEMBERS = 5  # members of an ensemble


@lru_cache(maxsize=4 * N_MEMBERS)
def fit(problem: Problem, seed: int, svd_init: bool, max_steps: int | None) -> bf.BioFormer:
    """Fit one member."""
    adata = problem.adata.copy()
    config = bf.ModelConfig(svd_init=svd_init)
    train = bf.TrainConfig(max_steps=max_steps)
    bf.tl.fit(adata, binning=problem.binning, config=config, train=train, rng=seed)
    return bf.get.model(adata)


def fit_once(
    folder: Path, problem: Problem, seed: int, svd_init: bool, max_steps: int | None, *, overwrite: bool
) -> bf.BioFormer:
    """Fit one member and save it in ``folder``, or load it if an earlier run has saved it."""
    start = "svd" if svd_init else "random"
    path = folder / f"{problem.name}-{start}-{'full' if max_steps is None else max_steps}-{seed}"
    if overwrite or not path.exists():
        fit(problem, seed, svd_init, max_steps).save(path)
    return bf.BioFormer.load(path)


def join(members: Sequence[bf.BioFormer]) -> bf.BioFormer:
    """Combine several models of the same data to one ensemble."""
    return replace(members[0], members=tuple(network for member in members for network in member.members))
