"""Time and memory for a screen of typical size: 26 perturbations, 20,000 cells and 300 predicted genes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import scbioformers as bf
from benchmarks._common import markdown_table, warm_up

N_PERTURBATIONS, N_CELLS, N_GENES, N_SCREEN = 26, 20_000, 1000, 300


def measure(quick: int | None) -> dict[str, Any]:
    """Fit with cross-validation, then predict a screen."""
    names = [f"TF{i + 1}" for i in range(N_PERTURBATIONS)]
    cells = bf.datasets.simulate(N_CELLS, N_GENES, n_regulators=40, perturbations=names, rng=0)
    warm_up()
    task = bf.Perturbation("perturbation", "control", celltype_key="cell_type")
    before, start, start_cpu = _peak(), time.perf_counter(), time.process_time()
    bf.tl.fit(cells, task=task, train=bf.TrainConfig(max_steps=quick))
    fitted, fitted_cpu = time.perf_counter(), time.process_time()
    bf.tl.perturb(cells, [str(name) for name in cells.var_names[:N_SCREEN]])
    screened, screened_cpu = time.perf_counter(), time.process_time()
    history = bf.get.history(cells)  # empty without training steps
    return {
        "steps": int(history["step"].max()) if len(history) else 0,
        "fit_seconds": fitted - start,
        "fit_cpu_seconds": fitted_cpu - start_cpu,
        "screen_seconds": screened - fitted,
        "screen_cpu_seconds": screened_cpu - fitted_cpu,
        "peak_mb": _peak(),
        "peak_mb_before": before,
    }


def _peak() -> float:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(n_seeds: int, quick: int | None) -> dict[str, Any]:
    """Measure once, in a separate process, so that the peak memory is that of this part only."""
    command = [sys.executable, "-m", "benchmarks._perturbation_speed", json.dumps(quick)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(result: dict[str, Any]) -> Iterator[str]:
    """Yield the table."""
    yield f"### Speed: {N_PERTURBATIONS} perturbations, {N_CELLS:,} cells, {N_GENES:,} genes"
    names = ("steps", "fit_seconds", "fit_cpu_seconds", "screen_seconds", "screen_cpu_seconds", "peak_mb",
             "peak_mb_before")  # fmt: skip
    yield markdown_table(
        [
            "steps",
            "fit with cross-validation, s",
            "its CPU time, s",
            f"screen of {N_SCREEN} genes, s",
            "its CPU time, s",
            "peak memory, MB",
            "peak memory before the fit, MB",
        ],
        [[f"{result[name]:.0f}" for name in names]],
    )


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
