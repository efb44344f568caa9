"""Code that all benchmarks share: command-line arguments, data, stored results and tables."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData

import scbioformers as bf

bf.settings.progress_bar = False

PACKAGES = ("scbioformers", "torch", "numpy", "scipy", "scikit-learn", "scanpy", "anndata", "igraph", "scvi-tools",
            "scib-metrics")  # fmt: skip


def make_parser(
    description: str, sets: Sequence[str], methods: Sequence[str], *, needs_data: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=needs_data, help="folder with the data sets")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    for name, known in (("--sets", sets), ("--methods", methods)):
        parser.add_argument(name, type=choice(known), default=list(known), help=f"some of {','.join(known)}")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; the first seed is 0")
    parser.add_argument("--overwrite", action="store_true", help="run again if a result is already stored")
    return parser


def choice(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names that raises an error for unknown names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not in {','.join(known)}")
        return names

    return parse


def read_counts(path: Path, n_genes: int = 2000) -> AnnData:
    """Read counts and mark highly variable genes, see :func:`select_genes`."""
    adata = sc.read_h5ad(path)
    select_genes(adata, n_genes)
    return adata


def select_genes(adata: AnnData, n_genes: int = 2000) -> None:
    """Set ``var["highly_variable"]`` with flavor seurat_v3. If there are at most ``n_genes`` genes, all are marked."""
    if adata.n_vars > n_genes:
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=n_genes)
    else:
        adata.var["highly_variable"] = True


def fit_scvi(adata: AnnData, seed: int, batch_key: str | None = None) -> Any:
    """Fit scVI to the highly variable genes.

    The model has 2 layers, 30 latent dimensions and a negative binomial likelihood. The number of epochs is the default
    of scVI, but at most 200.
    """
    import scvi

    scvi.settings.seed, scvi.settings.verbosity = seed, logging.WARNING
    subset = adata[:, adata.var["highly_variable"]].copy()
    scvi.model.SCVI.setup_anndata(subset, batch_key=batch_key)
    model = scvi.model.SCVI(subset, n_layers=2, n_latent=30, gene_likelihood="nb")
    max_epochs = min(200, round(20_000 / subset.n_obs * 400))
    model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    return model


@cache
def warm_up() -> None:
    """Import and compile our code once, so that this time is not measured. scVI needs no compilation."""
    tiny = bf.datasets.simulate(n_cells=40, n_genes=40)
    bf.tl.fit(tiny, train=bf.TrainConfig(max_steps=1))
    bf.tl.embed(tiny)


def run_once(path: Path, run: Callable[[], dict[str, Any]], *, overwrite: bool) -> dict[str, Any]:
    """Return the result stored in ``path``, or run and store the result with versions, machine and wall time."""
    if path.exists() and not overwrite:
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    print(f"… {path.stem}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = run()
    result |= {"wall_seconds": time.perf_counter() - start, "versions": _versions(), "machine": _machine()}
    write_json(path, result)
    return result


StoredRun = tuple[Path, Callable[[], dict[str, Any]]]  # where the result is stored, and the function that computes it


def _run_group(group: list[StoredRun], overwrite: bool) -> None:
    for path, run in group:
        run_once(path, run, overwrite=overwrite)


def run_groups(groups: Iterable[list[StoredRun]], *, overwrite: bool, n_workers: int) -> None:
    """Run the jobs without a stored result. Jobs of a group run one after the other, in one process with one thread.

    Two processes with one thread are faster than one with two threads.
    """
    wanted = [[job for job in group if overwrite or not job[0].exists()] for group in groups]
    wanted = [group for group in wanted if group]
    if min(n_workers, len(wanted)) <= 1:
        for group in wanted:
            _run_group(group, overwrite)
        return
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    with ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(_run_group, group, overwrite) for group in wanted]:
            done.result()


def run_jobs(
    arguments: argparse.Namespace, name: str, jobs: Iterable[tuple[str, str, Callable[[], dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """Run jobs (group, name, function) as :func:`run_groups` does. Return all results, which are also in one file."""
    groups: dict[str, list[StoredRun]] = {}
    for group, job, run in jobs:
        groups.setdefault(group, []).append((arguments.out / name / f"{job}.json", run))
    run_groups(groups.values(), overwrite=arguments.overwrite, n_workers=arguments.workers)
    results = [json.loads(path.read_text()) for group in groups.values() for path, _ in group]
    write_json(arguments.out / f"{name}.json", results)
    return results


def installed(methods: Sequence[str], needs: Mapping[str, str]) -> list[str]:
    """The methods whose package (``needs``, by method) is installed. The others are printed."""
    found = []
    for method in methods:
        if method in needs and importlib.util.find_spec(needs[method]) is None:
            print(f"{method} is left out: {needs[method]} is not installed.", file=sys.stderr)
        else:
            found.append(method)
    return found


def write_json(path: Path, content: Any) -> None:
    """Write the file atomically, so that an interrupted run does not leave an incomplete result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if name in os.environ}
    return {"system": platform.platform(), "cpus": os.cpu_count(), **threads}


def mean_and_range(values: Iterable[float | None], digits: int = 3) -> str:
    """Return ``mean (lowest–highest)``, the mean alone if all values are equal, or a dash if there is no value."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if known.size == 0:
        return "–"
    texts = [f"{value:.{digits}f}" for value in (known.mean(), known.min(), known.max())]
    return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}–{texts[2]})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is left-aligned, the others are right-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
