"""Measure what cells cost that do not fit in memory: reading, training, embedding, and whether estimates are right.

Run ``python -m benchmarks.scale --data DIR``. The cells are simulated, so DIR is not read. They are written once, block
by block, to sharded zarr stores in a temporary folder, or in ``--folder`` where they stay for the next run. Each part
runs in a process of its own with one thread, so that its peak memory is its own. CPU time (user and system) is given
beside wall time: on a quiet machine they are nearly the same, and on a busy one only the first can be compared.

The parts ``… (annbatch)`` read the same cells from a collection that annbatch has shuffled. Without annbatch, which
needs Python 3.12 or newer, they are left out, and this is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import choice, make_parser, markdown_table, run_once, warm_up, write_json
from benchmarks._scale_cells import N_TYPES, in_memory, open_cells, write_cells, write_collection
from benchmarks._scale_training import processes, resume

CELLS = (10_000, 100_000, 1_000_000)
COST_CELLS = (2_000, 20_000, 100_000)
EMBEDDED_CELLS = (697,)  # of the data set that comes with the package; batches of 62 do not divide it
STEPS = 2048  # two buffers of 65,536 cells, so that reading them is part of the time
TIMED_BATCHES = 100
MANY = 1000  # epochs: more than the steps need
Numbers = dict[str, float]


# measuring


def _seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def _reset_peak() -> None:
    """From here on, :func:`_peak` is the peak since this call. Only Linux can do this."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Peak resident memory in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _model(folder: Path) -> Any:
    """A default model of 20 steps for the simulated genes, fitted once."""
    import scbioformers as bf

    path = folder / "model"
    if not path.exists():
        adata = in_memory(open_cells(folder / f"{_smallest(folder)}.zarr"), 2000)
        bf.tl.fit(adata, train=bf.TrainConfig(max_steps=20))
        bf.get.model(adata).save(path)
    return bf.BioFormer.load(path)


def _smallest(folder: Path) -> int:
    return min(int(path.stem) for path in folder.glob("*.zarr"))


# the parts


def disk(folder: Path, n_cells: int, subfolder: str = "") -> Numbers:
    """Rows per second of a pass over all cells, converted to blocks."""
    from scbioformers.data import AnnDataSource

    source = AnnDataSource(open_cells(folder / subfolder / f"{n_cells}.zarr"))
    read = 0

    def run() -> None:
        nonlocal read
        for block in source.blocks():
            read += len(block.depth)

    cpu, wall = _seconds(run)
    return {"rows/CPU s": read / cpu, "rows/s": read / wall}


def batches(folder: Path, n_cells: int, subfolder: str = "") -> Numbers:
    """Masked batches per second from disk, against training steps per second on batches that are ready."""
    import torch

    import scbioformers as bf
    from scbioformers.data import AnnDataSource
    from scbioformers.tokens import Sampler
    from scbioformers.training import BatchDataset, TrainingModule

    torch.set_num_threads(1)
    model, train = _model(folder), bf.TrainConfig()
    source = AnnDataSource(open_cells(folder / subfolder / f"{n_cells}.zarr"))
    sampler = Sampler(np.ones(source.n_obs, bool), train.batch_size, 0)
    stream = iter(BatchDataset(source, model.tokenizer, sampler, train, 0, True))
    ready: list[Any] = [next(stream)]
    per_buffer = sampler.chunk_size * sampler.buffer_chunks // train.batch_size
    wanted = min(len(range(0, n_cells, train.batch_size)) // 2, per_buffer)
    cpu, _ = _seconds(lambda: ready.extend(next(stream) for _ in range(wanted)))
    network = model.members[0].train()
    module = TrainingModule(network, train, 1000, {"masked_bins": 1.0, "profile_counts": 1.0})
    optimizer = module.configure_optimizers()["optimizer"]
    module.log_dict = module.log = lambda *args, **kwargs: None

    def steps() -> None:
        for batch in ready[-TIMED_BATCHES:]:
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), train.gradient_clip)
            optimizer.step()

    step_cpu, _ = _seconds(steps)
    rates = {"batches/CPU s": wanted / cpu, "steps/CPU s": len(ready[-TIMED_BATCHES:]) / step_cpu}
    return rates | {"batches a step": rates["batches/CPU s"] / rates["steps/CPU s"]}


def fit(folder: Path, n_cells: int, subfolder: str = "", *, on_disk: bool = True) -> Numbers:
    """Training cells per second, after the set-up and without validations, and the peak memory.

    Memory before the fit is that of the libraries and of the opened data, such as the names of the cells.
    """
    import scbioformers as bf

    warm_up()
    adata = open_cells(folder / subfolder / f"{n_cells}.zarr")
    if not on_disk:
        adata = in_memory(adata, n_cells)
    _reset_peak()
    before = _peak()
    train = bf.TrainConfig(max_epochs=MANY, max_steps=1, validation_fraction=0.0)
    first = _seconds(lambda: bf.tl.fit(adata, train=train))
    cpu, wall = _seconds(lambda: bf.tl.fit(adata, train=replace(train, max_steps=STEPS + 1)))
    n_trained = STEPS * bf.TrainConfig().batch_size
    return {
        "set-up CPU s": first[0],
        "trained cells/CPU s": n_trained / max(cpu - first[0], 1e-9),
        "trained cells/s": n_trained / max(wall - first[1], 1e-9),
        "RSS before MB": before,
        "peak RSS MB": _peak(),
    }


def embed(folder: Path, n_cells: int) -> Numbers:
    """Cells per second of an embedding from disk, and the memory beyond that of 2,000 cells and the result."""
    import scbioformers as bf

    model, adata = _model(folder), open_cells(folder / f"{n_cells}.zarr")
    bf.tl.embed(in_memory(adata, 2000), model=model)
    _reset_peak()
    before = _peak()
    cpu, wall = _seconds(lambda: bf.tl.embed(adata, model=model))
    result = adata.obsm["X_bioformer"].nbytes / 2**20
    return {
        "cells/CPU s": n_cells / cpu,
        "cells/s": n_cells / wall,
        "result MB": result,
        "RSS beyond it MB": _peak() - before - result,
    }


def annotate(folder: Path, n_cells: int) -> Numbers:
    """Cells per second that a reference labels from disk, and that its head labels once they are embedded."""
    from sklearn.cluster import KMeans

    import scbioformers as bf
    from scbioformers.tasks.annotation import AnnotationHead, head_name

    model, adata = _model(folder), open_cells(folder / f"{n_cells}.zarr")
    reference = in_memory(open_cells(folder / f"{_smallest(folder)}.zarr"), 2000)
    bf.tl.embed(reference, model=model)
    clusters = KMeans(N_TYPES, random_state=0).fit_predict(reference.obsm["X_bioformer"])
    reference.obs["cluster"] = [f"type {i}" for i in clusters]
    bf.tl.annotate(reference, "cluster", model=model)
    cpu, wall = _seconds(lambda: bf.tl.annotate(adata, "cluster", model=reference))
    found = bf.get.model(reference)
    head = AnnotationHead.from_head(found.heads[head_name("cluster")], "cluster", found.hash)
    features = np.random.default_rng(0).normal(head.mean, head.scale, (n_cells, head.mean.size)).astype(np.float32)
    head_cpu, _ = _seconds(lambda: head.predict(features))
    return {"cells/CPU s": n_cells / cpu, "cells/s": n_cells / wall, "of the head, cells/CPU s": n_cells / head_cpu}


def costs(folder: Path, n_cells: int, verb: str) -> Numbers:
    """The estimate of ``bf.pp.check`` against a call with the default arguments, on cells in memory."""
    import scbioformers as bf

    model = None if verb == "fit" else _model(folder)
    adata = in_memory(open_cells(folder / f"{n_cells}.zarr"), n_cells)
    adata.uns.clear()
    # the process has imported and compiled already: both belong to the estimate, so the CPU time of the process counts
    estimate = bf.pp.check(adata).costs[verb]
    arguments = {} if model is None else {"model": model}
    getattr(bf.tl, verb)(adata, **arguments)
    minutes = time.process_time() / 60
    with tempfile.TemporaryDirectory() as place:
        empty, full = Path(place) / "a.h5ad", Path(place) / "b.h5ad"
        in_memory(adata, n_cells).write_h5ad(empty)
        adata.write_h5ad(full)
        stored = (full.stat().st_size - empty.stat().st_size) / 1e9
    measured = {"minutes": minutes, "gigabytes": _peak() * 2**20 / 1e9, "disk": stored}
    found: Numbers = {}
    for name, value in measured.items():
        found |= {name: value, f"{name} estimated": getattr(estimate, name)}
        found[f"{name} ratio"] = getattr(estimate, name) / value
    return found


PARTS: dict[str, tuple[Callable[..., Any], tuple[int, ...] | None]] = {
    "disk": (disk, None),
    "batches": (batches, None),
    "fit from disk": (fit, None),
    "fit from memory": (partial(fit, on_disk=False), None),
    "embed": (embed, None),
    "annotate": (annotate, CELLS[:2]),
    **{
        f"{name} (annbatch)": (partial(run, subfolder="annbatch"), None)
        for name, run in (("disk", disk), ("batches", batches), ("fit from disk", fit))
    },
    **{f"costs of {verb}": (partial(costs, verb=verb), COST_CELLS) for verb in ("fit", "embed", "impute")},
    "processes": (processes, EMBEDDED_CELLS),
    "resume": (resume, EMBEDDED_CELLS),
}
"""Function of each part, and its numbers of cells if they are not those of ``--cells``."""


def _in_own_process(folder: Path, part: str, n_cells: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--part", part, "--n", str(n_cells), "--folder", str(folder)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    return {"part": part, "cells": n_cells, "result": json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Run the parts that have no stored result, then print the tables."""
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--part")
        parser.add_argument("--n", type=int)
        parser.add_argument("--folder", type=Path)
        arguments = parser.parse_args()
        print(json.dumps(PARTS[arguments.part][0](arguments.folder, arguments.n)))
        return
    parser = make_parser(__doc__ or "", ["simulated"], ["all"], needs_data=False)
    parser.add_argument("--cells", type=int, nargs="+", default=list(CELLS), help="numbers of cells")
    parser.add_argument("--parts", type=choice(list(PARTS)), default=list(PARTS), help="some of the parts")
    parser.add_argument("--folder", type=Path, help="folder for the simulated cells, which then stay there")
    arguments = parser.parse_args()
    if importlib.util.find_spec("annbatch") is None:
        print("The parts with annbatch are left out: it is not installed.", file=sys.stderr)
        arguments.parts = [part for part in arguments.parts if "annbatch" not in part]
    given = arguments.cells != list(CELLS)
    jobs = [
        (part, n)
        for part in arguments.parts
        for n in (
            PARTS[part][1] if PARTS[part][1] and (not given or PARTS[part][1] is EMBEDDED_CELLS) else arguments.cells
        )
    ]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for part, n_cells in jobs:
            path = arguments.out / "scale" / f"{part.replace(' ', '_')}_{n_cells}.json"
            if PARTS[part][1] is not EMBEDDED_CELLS and (arguments.overwrite or not path.exists()):
                write_cells(folder / f"{n_cells}.zarr", n_cells)
                if "annbatch" in part:
                    write_collection(folder / "annbatch" / f"{n_cells}.zarr", folder / f"{n_cells}.zarr")
            run = partial(_in_own_process, folder, part, n_cells)
            results.append(run_once(path, run, overwrite=arguments.overwrite))
    write_json(arguments.out / "scale.json", results)
    print("\n\n".join(_table(part, [each for each in results if each["part"] == part]) for part in arguments.parts))


def _table(part: str, results: list[dict[str, Any]]) -> str:
    """The results of a part as a folded table, with a row for each number of cells."""
    rows = []
    for each in results:
        found = each["result"] if isinstance(each["result"], list) else [each["result"]]
        rows += [{"cells": each["cells"]} | row for row in found]
    table = markdown_table(list(rows[0]), [[_text(value) for value in row.values()] for row in rows])
    return f"<details>\n<summary>Any size: {part}</summary>\n\n{table}\n\n</details>"


def _text(value: Any) -> str:
    """A value in a table: three digits of a number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


if __name__ == "__main__":
    main()
