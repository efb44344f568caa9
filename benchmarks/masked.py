"""Masked expression (the paper's Tables 2-4) and imputation, against baselines and our own model without its parts.

``python -m benchmarks.masked --data DIR``: DIR holds ``pbmc3k.h5ad`` and the like, counts. A tenth of the cells is held
out, genes and bins are chosen on the others, and every method answers the same mask. The seed is that of the split, of
the masks in training and of the model. Parts: ``table`` (all methods under the default mask, and at natural odds),
``paper`` (the paper's masks), ``curve`` (more and more training cells), ``mcv`` (molecular cross-validation) and
``absent`` (genes that the test cells do not have). ``mcv`` is thinned by the first seed only, ``paper`` and ``curve``
are of pbmc3k and the first seed only. What shares cells and models runs in one process, of one thread.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc

import scbioformers as bf
from benchmarks import _masked_tables as tables
from benchmarks._common import choice, make_parser, run_once, write_json
from benchmarks._masked_methods import (
    METHODS,
    OURS,
    TEST_SHARE,
    Fitted,
    Prediction,
    Problem,
    fit_ours,
    predict_ours,
)
from benchmarks._masked_tasks import FROM_OTHERS, SCVI_POSTERIOR, cross_validate, score_absent
from benchmarks._masking import EvenMasking
from scbioformers.baselines import MaskedCells
from scbioformers.core import uniform, validation_rows

SETS = ("pbmc3k", "kang_ifnb", "paul15")
PAPER_SET = "pbmc3k"
RATIOS, SHARES = (0.1, 0.05, 0.025), (0.25, 0.5, 0.75)
PAPER_METHODS = ("ours", "linear_regression")
CURVE_STEP, CURVE_EPOCHS = 500, 20
MCV_METHODS = (
    *("gene_mean", "knn", "low_rank", "scvi", SCVI_POSTERIOR),
    *("ours", FROM_OTHERS, "ours_zero_steps", "ours_no_attention"),
)
ABSENT_METHODS = ("gene_mean", "knn", "low_rank", *OURS)
_SUBSET_STREAM = 0x5B5E


@dataclass(frozen=True)
class Job:
    """One result: where it is stored, what it is of, and how to get it."""

    part: str
    set: str
    method: str
    seed: int
    run: Callable[[], dict[str, Any]]
    setting: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return "-".join(filter(None, (self.part, self.set, self.setting, self.method, str(self.seed))))

    @property
    def group(self) -> str:
        """What shares cells and models has the same."""
        shared = "table" if self.part in ("table", "absent", "curve") else f"{self.part} {self.setting}"
        return f"{self.set} {self.seed} {shared}"


@lru_cache(maxsize=1)
def problem(path: Path, seed: int, masking: bf.Masking | None = None, binning: bf.Binning | None = None) -> Problem:
    """One at a time is kept: cells, masks and the models fitted to them."""
    return Problem.make(sc.read_h5ad(path), seed, masking, binning)


def probability_scores(log_probabilities: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Calibration of zero against non-zero and of the most probable bin, and the coverage of 80 % intervals."""
    p = np.exp(log_probabilities.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    below = np.cumsum(p, axis=1)
    at = below[np.arange(len(p)), target]
    return {
        "zero_calibration": bf.metrics.calibration_error(1 - p[:, 0], target > 0),
        "top_calibration": bf.metrics.top_label_calibration_error(p, target),
        "coverage": bf.metrics.interval_coverage(np.maximum(at - p[np.arange(len(p)), target], 0), at),
    }


def score(prediction: Prediction, cells: MaskedCells, natural: MaskedCells | None, cutoff: int) -> dict[str, Any]:
    """All scores by name, None where there is none; those under the natural mask are called ``natural_…``."""
    found = bf.metrics.masked_scores(prediction.masked, cells.bins, cells.genes, cutoff=cutoff).to_dict()
    found |= probability_scores(prediction.masked, cells.bins)
    if prediction.natural is not None and natural is not None:
        bits = -prediction.natural[np.arange(natural.bins.size), natural.bins].mean(dtype=np.float64) / np.log(2)
        scores = {"nll_bits": float(bits)} | probability_scores(prediction.natural, natural.bins)
        found |= {f"natural_{name}": value for name, value in scores.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def run_table(path: Path, method: str, seed: int) -> dict[str, Any]:
    """One method under the default mask, and at natural odds."""
    asked = problem(path, seed)
    prediction = METHODS[method](asked)
    scores = score(prediction, asked.mask_test(), asked.mask_test(EvenMasking()), asked.binning.cutoff)
    sizes = {"n_train": asked.train.n_obs, "n_test": asked.test.n_obs, "n_genes": asked.genes.size}
    return {"scores": scores, "fit_seconds": prediction.fit_seconds, "binning": asked.binning.to_dict(), **sizes}


def run_paper(path: Path, method: str, masking: bf.Masking, normalize: bool) -> dict[str, Any]:
    """One method trained and asked under one of the paper's masks, with what that mask masks in fact."""
    asked = problem(path, 0, masking, bf.Binning(normalize=normalize))
    cells, whole = asked.mask_test(), asked.test_cells.counts
    prediction = METHODS[method](asked)
    realised = {
        "masked_share": cells.bins.size / math.prod(whole.shape),
        "hidden_share_of_expressed": float((cells.bins > 0).sum() / whole.nnz),
        "nonzero_share": float((cells.bins > 0).mean()),
    }
    scores = score(prediction, cells, None, asked.binning.cutoff)
    mask = {"ratio": masking.ratio, "nonzero_share": masking.nonzero_share, "normalize": normalize}
    return {"scores": scores, "mask": mask, "realised": realised, "fit_seconds": prediction.fit_seconds}


def run_curve(path: Path, n_cells: int, fixed: str) -> dict[str, Any]:
    """Our model on the first ``n_cells`` training cells, in a random order; genes and test mask stay the same."""
    asked = problem(path, 0)
    n_train = asked.train.n_obs
    if n_cells == n_train and fixed == "steps":
        fitted = asked.fitted("ours")
    else:
        order = np.argsort(uniform(_SUBSET_STREAM, np.arange(n_train)))
        fitted = _fit_subset(asked, np.sort(order[:n_cells]), fixed)
    binning = fitted.model.binnings["rna"]
    cells = asked.mask_test(binning=binning)
    prediction = Prediction(predict_ours(fitted.model, asked.test_cells, cells), None, fitted.seconds)
    scores = score(prediction, cells, None, binning.cutoff)
    return {
        "scores": scores,
        "n_cells": n_cells,
        "fixed": fixed,
        "steps": fitted.steps,
        "fit_seconds": fitted.seconds,
        "binning": binning.to_dict(),
    }


def _fit_subset(asked: Problem, rows: np.ndarray, fixed: str) -> Fitted:
    train = bf.TrainConfig(max_epochs=CURVE_EPOCHS)
    if fixed == "steps":
        steps = asked.fitted("ours").steps
        n_fitted = rows.size * (1 - train.validation_fraction)
        # as many epochs as that takes, so that the last validation comes with the last steps
        train = bf.TrainConfig(max_steps=steps, max_epochs=math.ceil(steps / math.ceil(n_fitted / train.batch_size)))
    return fit_ours(asked.train[rows].copy(), "ours", asked.seed, train)


def run_mcv(path: Path, method: str, seed: int) -> dict[str, Any]:
    """Molecular cross-validation."""
    return cross_validate(path, method, seed)


def run_absent(path: Path, method: str, seed: int) -> dict[str, Any]:
    """Genes that the test cells do not have; the models are those of ``table``."""
    return score_absent(problem(path, seed), method)


def jobs(data: Path, sets: list[str], methods: list[str], n_seeds: int) -> Iterator[Job]:
    """All that is asked for, what takes long first."""
    for name in sets:
        path = data / f"{name}.h5ad"
        for seed in range(n_seeds):
            yield from _jobs("table", path, seed, run_table, methods, METHODS)
            yield from _jobs("absent", path, seed, run_absent, methods, ABSENT_METHODS)
            if name == PAPER_SET and seed == 0 and "ours" in methods:
                yield from _curve_jobs(path)
    for name in sets:
        yield from _jobs("mcv", data / f"{name}.h5ad", 0, run_mcv, methods, MCV_METHODS)
    if PAPER_SET in sets:
        yield from _paper_jobs(data / f"{PAPER_SET}.h5ad", methods)


def _jobs(
    part: str, path: Path, seed: int, run: Callable[..., dict[str, Any]], methods: list[str], known: Iterable[str]
) -> Iterator[Job]:
    for method in (each for each in known if each in methods):
        yield Job(part, path.stem, method, seed, partial(run, path, method, seed))


def _curve_jobs(path: Path) -> Iterator[Job]:
    n_train = int((~validation_rows(sc.read_h5ad(path, backed="r").n_obs, TEST_SHARE, 0)).sum())
    for fixed in ("steps", "epochs"):
        for n in [*range(CURVE_STEP, n_train, CURVE_STEP), n_train]:
            yield Job("curve", path.stem, "ours", 0, partial(run_curve, path, n, fixed), f"{fixed}-{n}")


def _paper_jobs(path: Path, methods: list[str]) -> Iterator[Job]:
    raw = [(m, p, normalize) for m, p, normalize in tables.PAPER if not normalize]
    for ratio, share, normalize in [*((m, p, True) for m in RATIOS for p in SHARES), *raw]:
        setting = f"m{ratio}-p{share}-{'normalised' if normalize else 'raw'}"
        for method in (each for each in PAPER_METHODS if each in methods):
            run = partial(run_paper, path, method, bf.Masking(ratio, share, "paper"), normalize)
            yield Job("paper", path.stem, method, 0, run, setting)


PARTS: dict[str, Callable[[pd.DataFrame], Iterator[str]]] = {
    "table": tables.show_table,
    "paper": tables.show_paper,
    "curve": tables.show_curve,
    "mcv": tables.show_mcv,
    "absent": tables.show_absent,
}


def run_group(group: list[Job], folder: Path, overwrite: bool) -> None:
    """Run one after the other."""
    for job in group:
        run_once(folder / f"{job.name}.json", job.run, overwrite=overwrite)


def run_all(groups: Iterable[list[Job]], folder: Path, overwrite: bool, n_workers: int) -> None:
    """Run the groups, in processes of one thread: two of those do more than one of two threads."""
    if n_workers == 1:
        for group in groups:
            run_group(group, folder, overwrite)
        return
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    with ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(run_group, group, folder, overwrite) for group in groups]:
            done.result()


def main() -> None:
    """Run what has no result yet, then print the tables."""
    known = list(dict.fromkeys([*METHODS, *MCV_METHODS]))
    parser = make_parser(__doc__, list(SETS), known)
    parser.add_argument("--parts", type=choice(list(PARTS)), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=2, help="processes; 1 runs all in this one")
    arguments = parser.parse_args()
    folder: Path = arguments.out / "masked"
    found = jobs(arguments.data, arguments.sets, arguments.methods, arguments.seeds)
    wanted = [job for job in found if job.part in arguments.parts]
    groups: dict[str, list[Job]] = {}
    for job in wanted:
        if arguments.overwrite or not (folder / f"{job.name}.json").exists():
            groups.setdefault(job.group, []).append(job)
    run_all(groups.values(), folder, arguments.overwrite, min(arguments.workers, max(len(groups), 1)))
    results = []
    for job in wanted:
        key = {"part": job.part, "set": job.set, "setting": job.setting, "method": job.method, "seed": job.seed}
        results.append(key | json.loads((folder / f"{job.name}.json").read_text()))
    write_json(arguments.out / "masked.json", results)
    for part, show in PARTS.items():
        of_part = [result | result.get("scores", {}) for result in results if result["part"] == part]
        if of_part:
            print("\n\n".join(["", *show(pd.DataFrame(of_part))]))


if __name__ == "__main__":
    main()
