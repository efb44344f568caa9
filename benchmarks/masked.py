"""Compare masked expression (Tables 2-4 of the paper) and imputation with baselines and with variants of our model.

Run ``python -m benchmarks.masked --data DIR``. DIR contains the data sets with counts, for example ``pbmc3k.h5ad``. A
tenth of the cells is held out. Genes and bins are chosen on the other cells. All methods predict the same masked
positions. The seed sets the split, the masks in training and the model.

All methods have one estimate of the depth of a masked cell, :class:`scbioformers.core.DepthModel`, and where they sum
count probabilities within bins, its seven equally likely depths. Our model fits it to its training cells without those
that stop the training, the baselines and scVI to all training cells. With natural odds, the baselines and scVI fit it
to masks of the share of the test, our model to several shares. Both differences are in favour of the others. In
``mcv`` and ``absent`` no count of a method's input is masked, so there is nothing to estimate.

Parts: ``table`` (all methods with the default mask, and with natural odds of zeros), ``paper`` (masks of the paper),
``curve`` (increasing number of training cells), ``mcv`` (molecular cross-validation) and ``absent`` (genes that the
test cells lack). ``mcv`` uses the first seed only. ``paper`` and ``curve`` use pbmc3k and the first seed only. Jobs
that share cells and models run in the same process, with one thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc

import scbioformers as bf
from benchmarks import _masked_tables as tables
from benchmarks._common import StoredRun, choice, make_parser, run_groups, write_json
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
    """One result: part, data set, method and seed, and the function that computes it."""

    part: str
    set: str
    method: str
    seed: int
    run: Callable[[], dict[str, Any]]
    setting: str = ""

    @property
    def name(self) -> str:
        """Name of the file with the result."""
        return "-".join(filter(None, (self.part, self.set, self.setting, self.method, str(self.seed))))

    @property
    def group(self) -> str:
        """Jobs with the same group share cells and models."""
        shared = "table" if self.part in ("table", "absent", "curve") else f"{self.part} {self.setting}"
        return f"{self.set} {self.seed} {shared}"


@lru_cache(maxsize=1)
def load_problem(
    path: Path, seed: int, masking: bf.Masking | None = None, binning: bf.Binning | None = None
) -> Problem:
    """Return cells, masks and fitted models. Only the last problem is kept in memory."""
    return Problem.make(sc.read_h5ad(path), seed, masking, binning)


def probability_scores(log_probabilities: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return calibration errors (zero or not, most probable bin) and the coverage of 80 % intervals."""
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
    """Return all scores by name, None for NaN. Scores with natural odds of zeros are called ``natural_…``."""
    found = bf.metrics.masked_scores(prediction.masked, cells.bins, cells.genes, cutoff=cutoff).to_dict()
    found |= probability_scores(prediction.masked, cells.bins)
    if prediction.natural is not None and natural is not None:
        bits = -prediction.natural[np.arange(natural.bins.size), natural.bins].mean(dtype=np.float64) / np.log(2)
        scores = {"nll_bits": float(bits)} | probability_scores(prediction.natural, natural.bins)
        found |= {f"natural_{name}": value for name, value in scores.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def run_table(path: Path, method: str, seed: int) -> dict[str, Any]:
    """Score one method with the default mask, and with natural odds of zeros."""
    problem = load_problem(path, seed)
    prediction = METHODS[method](problem)
    scores = score(prediction, problem.mask_test(), problem.mask_test(EvenMasking()), problem.binning.cutoff)
    sizes = {"n_train": problem.train.n_obs, "n_test": problem.test.n_obs, "n_genes": problem.genes.size}
    return {"scores": scores, "fit_seconds": prediction.fit_seconds, "binning": problem.binning.to_dict(), **sizes}


def run_paper(path: Path, method: str, masking: bf.Masking, normalize: bool) -> dict[str, Any]:
    """Train and score one method with a mask of the paper, and return the shares that the mask really masks."""
    problem = load_problem(path, 0, masking, bf.Binning(normalize=normalize))
    cells, whole = problem.mask_test(), problem.test_cells.counts
    prediction = METHODS[method](problem)
    realised = {
        "masked_share": cells.bins.size / math.prod(whole.shape),
        "hidden_share_of_expressed": float((cells.bins > 0).sum() / whole.nnz),
        "nonzero_share": float((cells.bins > 0).mean()),
    }
    scores = score(prediction, cells, None, problem.binning.cutoff)
    mask = {"ratio": masking.ratio, "nonzero_share": masking.nonzero_share, "normalize": normalize}
    return {"scores": scores, "mask": mask, "realised": realised, "fit_seconds": prediction.fit_seconds}


def run_curve(path: Path, n_cells: int, fixed: str) -> dict[str, Any]:
    """Train our model on ``n_cells`` random training cells. Genes and test mask are the same for all sizes."""
    problem = load_problem(path, 0)
    n_train = problem.train.n_obs
    if n_cells == n_train and fixed == "steps":
        fitted = problem.fitted("ours")
    else:
        order = np.argsort(uniform(_SUBSET_STREAM, np.arange(n_train)))
        fitted = _fit_subset(problem, np.sort(order[:n_cells]), fixed)
    binning = fitted.model.binnings["rna"]
    cells = problem.mask_test(binning=binning)
    prediction = Prediction(predict_ours(fitted.model, problem.test_cells, cells), None, fitted.seconds)
    scores = score(prediction, cells, None, binning.cutoff)
    return {
        "scores": scores,
        "n_cells": n_cells,
        "fixed": fixed,
        "steps": fitted.steps,
        "fit_seconds": fitted.seconds,
        "binning": binning.to_dict(),
    }


def _fit_subset(problem: Problem, rows: np.ndarray, fixed: str) -> Fitted:
    train = bf.TrainConfig(max_epochs=CURVE_EPOCHS)
    if fixed == "steps":
        steps = problem.fitted("ours").steps
        n_fitted = rows.size * (1 - train.validation_fraction)
        # the number of epochs matches the number of steps, so that the last validation follows the last step
        train = bf.TrainConfig(max_steps=steps, max_epochs=math.ceil(steps / math.ceil(n_fitted / train.batch_size)))
    return fit_ours(problem.train[rows].copy(), "ours", problem.seed, train)


def run_mcv(path: Path, method: str, seed: int) -> dict[str, Any]:
    """Score one method by molecular cross-validation."""
    return cross_validate(path, method, seed)


def run_absent(path: Path, method: str, seed: int) -> dict[str, Any]:
    """Score one method on genes that the test cells lack, with the models of the part ``table``."""
    return score_absent(load_problem(path, seed), method)


def jobs(data: Path, sets: list[str], methods: list[str], n_seeds: int) -> Iterator[Job]:
    """Yield all requested jobs. The slow ones come first."""
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


def main() -> None:
    """Run the jobs that have no stored result, then print the tables."""
    known = list(dict.fromkeys([*METHODS, *MCV_METHODS]))
    parser = make_parser(__doc__, list(SETS), known)
    parser.add_argument("--parts", type=choice(list(PARTS)), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=2, help="number of processes; 1 runs all jobs in this process")
    arguments = parser.parse_args()
    folder: Path = arguments.out / "masked"
    found = jobs(arguments.data, arguments.sets, arguments.methods, arguments.seeds)
    wanted = [job for job in found if job.part in arguments.parts]
    groups: dict[str, list[StoredRun]] = {}
    for job in wanted:
        groups.setdefault(job.group, []).append((folder / f"{job.name}.json", job.run))
    run_groups(groups.values(), overwrite=arguments.overwrite, n_workers=arguments.workers)
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
