"""Coverage of 95 % intervals with few control cells, on simulated cells whose true effects are known.

A large population is simulated. A model is fitted to a few of its cells: some perturbed cells of each training target,
and 1, 2, 4 or 16 control cells of each cell type. The true effect is the mean difference in the whole population,
weighted as the perturbed cells of the fit are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scbioformers as bf
from benchmarks._common import markdown_table
from scbioformers.tasks.perturbation import require_head

N_CONTROLS = (1, 2, 4, 16)
N_TYPES, N_GENES, N_TARGETS, N_HELD_OUT = 4, 80, 16, 4
N_PERTURBED = 15  # cells of each training target and cell type
N_POPULATION = 60_000
STEPS = 50  # default number of training steps
GOAL = (0.90, 0.98)


def run(n_seeds: int, quick: int | None) -> dict[str, Any]:
    """Run all seeds. Each seed simulates a new gene regulatory network."""
    logging.getLogger("scbioformers").setLevel(logging.ERROR)  # each of these fits warns that the controls are few
    rows = []
    for seed in range(n_seeds):
        targets = [f"TF{i + 1}" for i in range(N_TARGETS)]
        size = N_POPULATION if quick is None else N_POPULATION // 5
        cells = bf.datasets.simulate(size, N_GENES, n_types=N_TYPES, n_regulators=N_TARGETS, perturbations=targets,
                                     rng=seed)  # fmt: skip
        for n_controls in N_CONTROLS:
            rows += [row | {"seed": seed} for row in _covered(cells, targets, n_controls, seed, quick)]
    return {"coverage": rows}


def _covered(
    cells: AnnData, targets: list[str], n_controls: int, seed: int, quick: int | None
) -> Iterator[dict[str, Any]]:
    """Fit to a sample, predict all targets, and yield how many of the true effects are in the intervals."""
    training = targets[:-N_HELD_OUT]
    sample = _sample(cells, training, n_controls, seed)
    task = bf.Perturbation("perturbation", "control", celltype_key="cell_type")
    bf.tl.fit(sample, task=task, train=bf.TrainConfig(max_steps=STEPS if quick is None else quick))
    bf.tl.perturb(sample, targets)
    truth = _true_effects(cells, targets, require_head(bf.get.model(sample)).mean_depth)
    for name in targets:
        table = bf.get.perturb(sample, perturbation=name).set_index("gene").drop(index=name)
        true = truth[name].loc[table.index]
        inside = (table["lower"] <= true) & (true <= table["upper"])
        kind = "seen" if name in training else "unseen"
        yield {"n_controls": n_controls, "kind": kind, "target": name, "covered": float(inside.mean()),
               "half_width": float(1.96 * table["se"].mean()),
               "error": float(np.sqrt(((table["effect"] - true) ** 2).mean()))}  # fmt: skip


def _sample(cells: AnnData, training: list[str], n_controls: int, seed: int) -> AnnData:
    random = np.random.default_rng(2000 + seed)
    wanted = {"control": n_controls} | dict.fromkeys(training, N_PERTURBED)
    label, kind = cells.obs["perturbation"].to_numpy(), cells.obs["cell_type"].to_numpy()
    chosen = [
        random.choice(np.flatnonzero((label == name) & (kind == each)), n, replace=False)
        for name, n in wanted.items()
        for each in np.unique(kind)
    ]
    return cells[np.sort(np.concatenate(chosen))].copy()


def _true_effects(cells: AnnData, targets: list[str], mean_depth: float) -> pd.DataFrame:
    """Mean differences from the control cells of the same cell type, averaged over cell types (genes, targets)."""
    profiles = bf.metrics.log1p_normalize(cells.X, target_sum=mean_depth)
    dense = pd.DataFrame(profiles.toarray(), columns=cells.var_names)
    keys = [cells.obs["cell_type"].astype(str).to_numpy(), cells.obs["perturbation"].astype(str).to_numpy()]
    mean = dense.groupby(keys).mean()
    # every target has the same number of cells of each type
    return pd.DataFrame(
        {
            name: sum(mean.loc[(each, name)] - mean.loc[(each, "control")] for each in np.unique(keys[0])) / N_TYPES
            for name in targets
        }
    )


def show(result: dict[str, Any]) -> Iterator[str]:
    """Yield the table: coverage for each number of control cells."""
    table = pd.DataFrame(result["coverage"])
    yield (
        f"### Simulated: coverage of 95 % intervals of `bf.tl.perturb` ({table['seed'].nunique()} networks, {N_GENES} "
        f"genes, {N_TARGETS - N_HELD_OUT} targets in the training data and {N_HELD_OUT} others, {N_TYPES} cell types)"
    )
    lines = []
    for n_controls, part in table.groupby("n_controls"):
        mean = part.groupby("kind")[["covered", "half_width", "error"]].mean()
        for kind in ("seen", "unseen"):
            covered, width, error = (float(value) for value in mean.loc[kind])
            met = "met" if GOAL[0] <= covered <= GOAL[1] else "missed"
            lines.append([f"{n_controls}", kind, f"{covered:.3f}", met, f"{width:.3f}", f"{error:.3f}"])
    header = ["control cells of each cell type", "target", "coverage", f"goal {GOAL[0]:.2f} to {GOAL[1]:.2f}",
              "half width", "root mean square error"]  # fmt: skip
    yield markdown_table(header, lines)
