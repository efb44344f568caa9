"""Score the memories of experiment 90: ``python -m dev.trials.memory.score --data DIR --models DIR``.

Prints one JSON line for each model: bits of every row of the tables, on the masked entries of held-out cells.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import scbioformers as bf
from benchmarks._masked_methods import EVALUATION_SEED, Problem
from benchmarks._masking import masked_cells
from benchmarks._transfer_methods import Transfer, read_by
from dev.trials.memory.fits import QUERIES, load_problem, load_transfer
from dev.trials.memory.memory import (
    Queries,
    Reading,
    References,
    bits,
    fit_head,
    head_inputs,
    joined,
    masked_queries,
    memory_features,
    references,
    tilted,
    value_basis,
)
from scbioformers.data import Block
from scbioformers.results import open_query
from scbioformers.training import find_validation

Rows = NDArray[np.int64]
Scores = dict[str, dict[str, float]]
Cells = tuple[list[Queries], References]  # masked cells, one part for each draw of the mask, and what they read
ATTENTION = [(Reading("attention", t),) for t in (1, 2, 4, 8, 16)]
KNN = [(Reading("knn", k),) for k in (15, 60)]
COMPONENTS = [(Reading("components", t),) for t in (0.1, 0.3, 1)]
MEAN = [(Reading("mean"),)]
BOTH = [(*MEAN[0], *each) for each in ATTENTION]
Readings = tuple[Reading, ...]  # each gives the head two inputs more
N_DRAWS, N_TEST_DRAWS, N_QUERY_CELLS = 4, 3, 200
_HEAD_STREAM = 0x4EAD


class Trial:
    """One model, and the cells to which heads are fitted and on which they are scored."""

    def __init__(self, model: bf.BioFormer) -> None:
        self.model, self.basis = model, value_basis(model.binning)
        self.depth = float(model.binning.mean_depth or 1.0)
        self._read: dict[tuple[int, int, Reading, int | None, float, int], np.ndarray] = {}

    def draws(self, block: Block, rows: Rows, seed: int, n: int, own: Rows | None = None) -> list[Queries]:
        """The cells of a block under n masks."""
        found = []
        for epoch in range(n):
            given = block.counts, block.depth, rows
            masked = masked_cells(bf.Masking(), self.model.binning, *given, seed=seed, epoch=epoch)
            found.append(masked_queries(self.model, block, masked, own))
        return found

    def inputs(self, parts: Sequence[Cells], readings: Readings, size: int | None, share: float) -> np.ndarray:
        """Inputs of the head for all draws. Each draw reads a random ``share`` of ``size`` references."""
        found = []
        for queries, refs in parts:
            for i, each in enumerate(queries):
                drawn = np.random.default_rng(90).permutation(len(refs.latent))[:size]
                half = np.sort(np.random.default_rng(i).permutation(drawn)[: round(share * len(drawn))])
                memory = []
                for reading in readings:
                    key = id(each), id(refs), reading, size, share, i
                    if key not in self._read:
                        self._read[key] = memory_features(each, refs, reading, half, self.depth)
                    memory.append(self._read[key])
                found.append(head_inputs(each, np.hstack(memory) if memory else None))
        return np.concatenate(found)

    def score(
        self,
        head: Sequence[Cells],
        test: Cells,
        choices: Sequence[Readings],
        size: int | None = None,
    ) -> dict[str, float]:
        """Bits of the test entries with the reading of the best cross-validation; with all references and a half."""
        log_probs, bins = answers([q for queries, _ in head for q in queries])
        cells = np.concatenate([q.masked.cells for p, _ in head for q in p])
        best: tuple[float, Readings, np.ndarray] | None = None
        for readings in choices:
            inputs, loss = self.inputs(head, readings, size, 0.5), 0.0
            for fold in (0, 1):
                fitted, held = cells % 2 != fold, cells % 2 == fold
                weights = fit_head(log_probs[fitted], inputs[fitted], bins[fitted], self.basis)
                loss += bits(tilted(log_probs[held], inputs[held], weights, self.basis), bins[held]) / 2
            if best is None or loss < best[0]:
                best = loss, readings, fit_head(log_probs, inputs, bins, self.basis)
        assert best is not None
        _, readings, weights = best
        log_probs, bins = answers(test[0])
        found = {"head_cv": best[0], "setting": readings[-1].value if readings else 0.0}
        for name, share in (("all", 1.0), ("half", 0.5)):
            inputs = self.inputs([test], readings, size, share)
            found[name] = bits(tilted(log_probs, inputs, weights, self.basis), bins)
        return found


def score_own(model: bf.BioFormer, problem: Problem, extra: Callable[[Trial], References] | None) -> Scores:
    """A model that was fitted to the query: the head is fitted to its validation cells."""
    trial = Trial(model)
    source = open_query(problem.train, model).source
    validation = np.flatnonzero(find_validation(model, source))
    if not validation.size:
        raise RuntimeError("The validation cells of the model were not found.")
    block, test = source.read(0, source.n_obs), read_by(model, problem.test)
    training = np.setdiff1d(np.arange(source.n_obs), validation)
    whole = references(model, block)
    fitting = take(whole, training)
    queries = trial.draws(
        _part(block, validation), problem.train_rows[validation], problem.seed ^ _HEAD_STREAM, N_DRAWS
    )
    tested = trial.draws(test, problem.test_rows, EVALUATION_SEED, N_TEST_DRAWS)
    found = rows_of(trial, [(queries, fitting)], (tested, whole), brief=problem.seed > 0)
    if extra is not None:
        pool = extra(trial)
        for size in (256, 1024, None) if problem.seed == 0 else ():
            found[f"pool {size or 'all'}"] = trial.score([(queries, pool)], (tested, pool), ATTENTION, size)
    return found


def score_zero_shot(model: bf.BioFormer, transfer: Transfer) -> Scores:
    """A model that never saw the query, whose own cells are the memory. Two heads: of the pool, and of the query."""
    trial, problem = Trial(model), transfer.problem
    block, test = read_by(model, problem.train), read_by(model, problem.test)
    whole, tested = references(model, block), trial.draws(test, problem.test_rows, EVALUATION_SEED, N_TEST_DRAWS)
    parts: list[Cells] = []
    for name, adata in transfer.pool.items():
        apart = np.flatnonzero(transfer._apart(adata))
        cells = transfer._block(name, adata[apart].copy())
        queries = trial.draws(cells, apart, problem.seed ^ _HEAD_STREAM, 3)
        memory = references(model, transfer._block(name, transfer.given[name]))
        parts.append(([measured(q, cells.present) for q in queries], memory))
    some = np.sort(np.random.default_rng(problem.seed).permutation(len(block.depth))[:N_QUERY_CELLS])
    queries = trial.draws(_part(block, some), problem.train_rows[some], problem.seed ^ _HEAD_STREAM, 2, own=some)
    found = {}
    for head, fitted_to in (("pool's head", parts), ("query's head", [(queries, whole)])):
        for name, scores in rows_of(trial, fitted_to, (tested, whole), brief=problem.seed > 0).items():
            found[f"{head}, {name}"] = scores
    pool = joined([refs for _, refs in parts])
    for size in (256, 1024, None) if problem.seed == 0 else ():
        found[f"query's head, pool {size or 'all'}"] = trial.score([(queries, pool)], (tested, pool), ATTENTION, size)
    return found


def rows_of(
    trial: Trial,
    head: Sequence[Cells],
    test: Cells,
    *,
    brief: bool,
) -> Scores:
    """The rows of a table."""
    log_probs, bins = answers(test[0])
    found = {
        "alone": {"all": bits(log_probs, bins)},
        "head": trial.score(head, test, [()]),
        "mean": trial.score(head, test, MEAN),
        "knn": trial.score(head, test, KNN),
        "components": trial.score(head, test, COMPONENTS),
        "memory all": trial.score(head, test, ATTENTION),
    }
    if not brief:
        found["memory 256"] = trial.score(head, test, ATTENTION, 256)
        found["components 256"] = trial.score(head, test, COMPONENTS, 256)
        found["mean and memory"] = trial.score(head, test, BOTH)
    return found


def answers(queries: Sequence[Queries]) -> tuple[np.ndarray, Rows]:
    """Predictions and true bins of all masked entries."""
    return np.concatenate([q.log_probs for q in queries]), np.concatenate([q.masked.bins for q in queries])


def take(refs: References, rows: Rows) -> References:
    """Some of the references."""
    names = ("latent", "counts", "exposure", "expected", "positions")
    return replace(refs, **{name: getattr(refs, name)[rows] for name in names})


def measured(queries: Queries, present: NDArray[np.bool_]) -> Queries:
    """Without the entries of absent genes."""
    kept, m = present[queries.masked.genes], queries.masked
    masked = replace(m, cells=m.cells[kept], genes=m.genes[kept], bins=m.bins[kept])
    return replace(queries, masked=masked, log_probs=queries.log_probs[kept], log_rate=queries.log_rate[kept])


def _part(block: Block, rows: Rows) -> Block:
    return replace(block.take(rows), start=0)


def pool_memory(transfer: Transfer) -> Callable[[Trial], References]:
    """The cells of the pool as a memory."""

    def make(trial: Trial) -> References:
        blocks = [transfer._block(name, adata) for name, adata in transfer.given.items()]
        return joined([references(trial.model, block) for block in blocks])

    return make


def score(data: Path, model: bf.BioFormer, name: str, seed: int, kind: str) -> Scores:
    """All rows of one model."""
    if name not in QUERIES:
        return score_own(model, load_problem(data, name, seed), None)
    transfer = load_transfer(data, name, seed)
    if kind == "pretrained":
        return score_zero_shot(model, transfer)
    return score_own(model, transfer.problem, pool_memory(transfer) if kind == "tuned" else None)


def main() -> None:
    """Score all models that are there, and that have no line in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", default="pretrained,tuned,scratch")
    arguments = parser.parse_args()
    done = {json.loads(line)["model"] for line in arguments.out.open()} if arguments.out.exists() else set()
    for seed in range(3):
        for name in (*QUERIES, "pbmc68k"):
            for kind in arguments.kinds.split(","):
                for end in ("", "_no_attention"):
                    folder = arguments.models / f"{name}-{seed}-{kind}{end}"
                    if not (folder / "model.safetensors").exists() or folder.name in done:
                        continue
                    start = time.perf_counter()
                    found = score(arguments.data, bf.BioFormer.load(folder), name, seed, kind)
                    line = {"model": folder.name, "seconds": time.perf_counter() - start, "rows": found}
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(folder.name, {row: round(scores["all"], 4) for row, scores in found.items()}, flush=True)


if __name__ == "__main__":
    main()
