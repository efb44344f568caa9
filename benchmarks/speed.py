"""Measure speed and memory of the default model.

Run ``python -m benchmarks.speed --data DIR``. Each part runs in a separate process, so that peak memory is measured
for this part only. Times on a shared machine vary, so compare ratios of times. Floating-point operations are counted
by the counter of torch, including attention. They are compared with the fastest of several large matrix products in
the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks._common import make_parser, markdown_table, read_counts, run_once, warm_up, write_json

WARM_UP, TIMED = 3, 5  # number of warm-up steps, number of timed rounds


def _rss() -> float:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _gemm_peak() -> float:
    """Return the speed of the fastest of several square matrix products in GFLOP/s."""
    import torch

    best = 0.0
    for n in (1024, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        for _ in range(6):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best


def _flops(run: Callable[[], Any]) -> float:
    """Count the GFLOP of one call, including scaled-dot-product attention on the CPU."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def attention(query: Any, key: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        batch, heads, length, width = query
        return 4 * batch * heads * length * key[-2] * width

    def attention_backward(grad: Any, query: Any, key: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return attention(query, key) * 5 // 2  # the scores are computed again, and there are four products

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops() / 1e9


def _stepper(data: Path, changes: dict[str, Any], n_cells: int | None = None) -> tuple[Callable[[], None], int, int]:
    """Return a training step of the default model on pbmc3k, its number of cells, and the number of parameters.

    A step makes a batch, runs forward and backward passes, and updates the parameters. With ``n_cells``, only the first
    ``n_cells`` cells are used, all in one batch.
    """
    import torch

    import scbioformers as bf
    from scbioformers.core import Vocabulary
    from scbioformers.data import AnnDataSource
    from scbioformers.tokens import Sampler
    from scbioformers.training import BatchDataset, TrainingModule, fit_model

    adata = read_counts(data / "pbmc3k.h5ad")[:n_cells].copy()
    genes = np.flatnonzero(adata.var["highly_variable"])
    source = AnnDataSource(adata, columns=genes)
    config, train = replace(bf.ModelConfig.small(), **changes), bf.TrainConfig(max_steps=0)
    vocabulary = Vocabulary.from_names(adata.var_names[genes])
    model = fit_model(source, vocabulary, bf.Binning(), config, train).model
    network = model.members[0].train()
    module = TrainingModule(network, train, 1000, {"masked_bins": 1.0, "profile_counts": 1.0})
    optimizer = module.configure_optimizers()["optimizer"]
    sampler = Sampler(np.ones(adata.n_obs, bool), train.batch_size, 0)
    batches = iter(BatchDataset(source, model.tokenizer, sampler, train, 0, True))
    module.log_dict = module.log = lambda *args, **kwargs: None

    def step() -> None:
        loss = module.training_step(next(batches), 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.gradient_clip)
        optimizer.step()

    return step, min(train.batch_size, adata.n_obs), sum(p.numel() for p in network.parameters())


def training(data: Path, **changes: Any) -> dict[str, float]:
    """Measure cells per second and GFLOP/s of training steps, median of 5 rounds."""
    step, cells, _ = _stepper(data, changes)
    for _ in range(WARM_UP):
        step()
    gflop = _flops(step)
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        for _ in range(3):
            step()
        seconds.append((time.perf_counter() - start) / 3)
    median, peak = statistics.median(seconds), _gemm_peak()
    return {
        "cells/s": cells / median,
        "GFLOP/cell": gflop / cells,
        "GFLOP/s": gflop / median,
        "GEMM peak GFLOP/s": peak,
        "share of peak": gflop / median / peak,
        "peak RSS MB": _rss(),
    }


def fitting(data: Path) -> dict[str, float]:
    """Measure a default fit and embedding of pbmc3k: seconds, cells per second and peak memory."""
    import scbioformers as bf

    adata = read_counts(data / "pbmc3k.h5ad")
    start = time.perf_counter()
    bf.tl.fit(adata)
    fitted = time.perf_counter()
    bf.tl.embed(adata)
    done = time.perf_counter()
    history = bf.get.history(adata)
    target = 1.01 * history["val_loss"].min()
    reached = history.loc[history["val_loss"] <= target, "epoch"].iloc[0] / history["epoch"].max()
    return {
        "fit s": fitted - start,
        "embedding cells/s": adata.n_obs / (done - fitted),
        "cells/s to 1.01 x best validation loss": adata.n_obs / ((fitted - start) * reached),
        "peak RSS MB": _rss(),
    }


BURN = "while True: pass"


def busy(data: Path) -> dict[str, float]:
    """Measure a default fit of pbmc3k on the machine as it is, then while one busy process runs for each core."""
    import scbioformers as bf

    adata = read_counts(data / "pbmc3k.h5ad")
    warm_up()
    seconds = {}
    for name, n_burners in (("quiet", 0), ("busy", os.cpu_count() or 1)):
        burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(n_burners)]
        try:
            start = time.perf_counter()
            bf.tl.fit(adata)
            seconds[name] = time.perf_counter() - start
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
    return {"quiet fit s": seconds["quiet"], "busy fit s": seconds["busy"], "ratio": seconds["busy"] / seconds["quiet"]}


def growth_cells(data: Path, n_cells: int, n_genes: int = 2000) -> dict[str, float]:
    """Measure the embedding of ``n_cells`` random cells from a backed file: seconds, and memory beyond the result.

    Another process writes the file, so that its memory does not count. A first embedding of few cells loads the code.
    """
    import anndata as ad

    import scbioformers as bf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        small = bf.datasets.simulate(n_cells=200, n_genes=n_genes)
        writer = get_context("spawn").Process(target=_write_random, args=(path, n_cells, list(small.var_names)))
        writer.start()
        writer.join()
        bf.tl.fit(small, train=bf.TrainConfig(max_steps=1))
        bf.tl.embed(small)
        before = _rss()
        adata = ad.read_h5ad(path, backed="r")
        start = time.perf_counter()
        bf.tl.embed(adata, model=small)
        seconds = time.perf_counter() - start
    result = adata.obsm["X_bioformer"].nbytes / 2**20
    return {
        "cells": n_cells,
        "embed s": seconds,
        "cells/s": n_cells / seconds,
        "result MB": result,
        "RSS grew beyond it MB": _rss() - before - result,
    }


def _write_random(path: Path, n_cells: int, genes: list[str]) -> None:
    import anndata as ad
    import pandas as pd

    rng = np.random.default_rng(0)
    counts = sparse.random(n_cells, len(genes), 0.1, "csr", np.float32, rng, lambda n: rng.poisson(1.0, n) + 1.0)
    ad.AnnData(counts, var=pd.DataFrame(index=genes)).write_h5ad(path)


def growth_genes(data: Path, n_genes: int) -> dict[str, float]:
    """Measure eight training steps on 128 simulated cells with ``n_genes`` genes. Genes without counts are removed."""
    import scbioformers as bf

    adata = bf.datasets.simulate(n_cells=128, n_genes=n_genes)
    adata = adata[:, adata.X.getnnz(axis=0) > 0].copy()
    train = bf.TrainConfig(max_steps=1)
    bf.tl.fit(adata.copy(), train=train)
    start = time.perf_counter()
    bf.tl.fit(adata, train=replace(train, max_steps=8))
    return {"genes": adata.n_vars, "8 steps and set-up s": time.perf_counter() - start, "peak RSS MB": _rss()}


def binning(data: Path) -> dict[str, float]:
    """Measure value and segment binning of 100,000 cells x 2,000 genes, in cells per second."""
    from scbioformers.config import Binning, bin_rows

    rng = np.random.default_rng(0)
    counts = sparse.random(100_000, 2000, 0.1, "csr", np.float32, rng, lambda n: rng.poisson(1.0, n) + 1.0)
    depth = np.asarray(counts.sum(axis=1)).ravel()
    result = {}
    for kind in ("value", "segment"):
        seconds = []
        for _ in range(TIMED + 1):  # the first round compiles
            start = time.perf_counter()
            bin_rows(Binning(kind=kind), counts.data, counts.indptr, depth, float(depth.mean()))
            seconds.append(time.perf_counter() - start)
        result[f"{kind} bins cells/s"] = counts.shape[0] / statistics.median(seconds[1:])
    return result


def imports(data: Path) -> dict[str, float]:
    """Measure the additional seconds of ``import scbioformers`` after ``import scanpy``, median of 5 new processes."""
    seconds: dict[str, list[float]] = {"scanpy": [], "scanpy, scbioformers": []}
    for _ in range(TIMED + 1):
        for modules in seconds:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
            seconds[modules].append(time.perf_counter() - start)
    medians = {modules: statistics.median(values[1:]) for modules, values in seconds.items()}
    return {"scanpy s": medians["scanpy"], "more s": medians["scanpy, scbioformers"] - medians["scanpy"]}


def paper_preset(data: Path) -> dict[str, float]:
    """Count the parameters of ``config="paper"`` on 2,000 genes, and time a training step with one cell.

    The cell has 2,000 tokens. On a CPU, attention with dropout stores all attention scores in torch: more than 3 GB
    for each cell.
    """
    import scbioformers as bf

    step, cells, parameters = _stepper(data, vars(bf.ModelConfig.paper()), n_cells=1)
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return {"parameters": parameters, "step s/cell": seconds / cells, "peak RSS MB": _rss()}


def processes(data: Path) -> dict[str, float]:
    """Compare the losses of two processes (gloo) with the losses of one process, at the same global batch size."""
    script = (
        "import sys, json, scanpy as sc, numpy as np, torch, scbioformers as bf\n"
        "torch.set_num_threads(1)\n"
        "adata = bf.datasets.simulate(n_cells=512, n_genes=200)\n"
        "train = bf.TrainConfig(max_epochs=5, devices=int(sys.argv[1]), strategy=sys.argv[2],\n"
        "                       validation_fraction=0.0)\n"
        "bf.tl.fit(adata, train=train, device='cpu', progress_bar=False)\n"
        "import os\n"
        "if int(os.environ.get('LOCAL_RANK', 0)) == 0:\n"
        "    bf.get.history(adata)['train_loss'].to_json(sys.argv[3])\n"
    )
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(script)
        for devices, strategy in (("1", "auto"), ("2", "ddp")):
            out = Path(folder) / f"{devices}.json"
            subprocess.run([sys.executable, str(path), devices, strategy, str(out)], check=True)
            losses.append(np.array(list(json.loads(out.read_text()).values())))
    return {
        "first loss": float(losses[0][0]),
        "last loss": float(losses[0][-1]),
        "largest relative difference": float(np.abs(losses[0] / losses[1] - 1).max()),
    }


def networks(data: Path, n_cells: int, n_genes: int = 2000) -> dict[str, float]:
    """Measure networks by attention on all ``n_cells`` random cells, then by default knock-outs: seconds and memory."""
    import anndata as ad

    import scbioformers as bf

    small = bf.datasets.simulate(n_cells=200, n_genes=n_genes)
    bf.tl.fit(small, train=bf.TrainConfig(max_steps=1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        _write_random(path, n_cells, list(small.var_names))
        adata = ad.read_h5ad(path)
    before, found = _rss(), {"cells": float(n_cells)}
    for method, drawn in (("attention", None), ("knockout", 1000)):
        start = time.perf_counter()
        bf.tl.grn(adata, model=small, method=method, n_cells=drawn, progress_bar=False)
        found |= {f"{method} s": time.perf_counter() - start, f"{method}, RSS grew MB": _rss() - before}
    return found


def imputation(data: Path) -> dict[str, float]:
    """Measure seconds to impute a quarter, half and all of pbmc3k by both methods, and of the fit, and peak memory."""
    import scbioformers as bf

    adata = read_counts(data / "pbmc3k.h5ad")
    warm_up()
    start = time.perf_counter()
    bf.tl.fit(adata)
    found = {"fit_seconds": time.perf_counter() - start}
    for share in (4, 2, 1):
        part = adata[: adata.n_obs // share].copy()
        start = time.perf_counter()
        bf.tl.impute(part, method="held_out", progress_bar=False)
        found[f"{part.n_obs}_cells_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        bf.tl.impute(part, progress_bar=False)
        found[f"{part.n_obs}_cells_denoised_seconds"] = time.perf_counter() - start
    return found | {"peak_mb": _rss()}


PARTS: dict[str, Callable[[Path], dict[str, float]]] = {
    "training": training,
    "training, tokens=all": partial(training, tokens="all"),
    "training, no attention": partial(training, attention=False),
    "fit": fitting,
    "busy": busy,
    "imputation": imputation,
    **{f"backed {n:,} cells": partial(growth_cells, n_cells=n) for n in (1_000, 20_000, 100_000)},
    **{f"{n:,} genes": partial(growth_genes, n_genes=n) for n in (500, 2_000, 8_000)},
    **{f"network, {n:,} cells": partial(networks, n_cells=n) for n in (5_000, 20_000)},
    "binning": binning,
    "import": imports,
    "paper preset": paper_preset,
    "two processes": processes,
}


def _in_own_process(data: Path, part: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed", "--data", str(data), "--part", part]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"part": part, "result": json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Run the parts that have no stored result, then print the table."""
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--data", type=Path)
        parser.add_argument("--part")
        arguments = parser.parse_args()
        print(json.dumps(PARTS[arguments.part](arguments.data)))
        return
    arguments = make_parser(__doc__ or "", ["pbmc3k"], ["all"]).parse_args()
    results = []
    for part in PARTS:
        path = arguments.out / "speed" / f"{part.replace(' ', '_').replace(',', '')}.json"
        results.append(run_once(path, partial(_in_own_process, arguments.data, part), overwrite=arguments.overwrite))
    write_json(arguments.out / "speed.json", results)
    rows = [
        [result["part"], ", ".join(f"{name} {value:,.3g}" for name, value in result["result"].items())]
        for result in results
    ]
    print(markdown_table(["part", "measured"], rows))


if __name__ == "__main__":
    main()
