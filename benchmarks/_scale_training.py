"""What several processes change in a fit, and what is lost if one is killed: two parts of :mod:`benchmarks.scale`.

Each fit is a run of this file, ``python -m benchmarks._scale_training FOLDER``, on cells of ``bf.datasets.pbmc68k``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

STEPS, BATCH_SIZE, N_GENES = 300, 62, 300
N_FIRST = 10  # steps after which rounding has not grown yet
PRECISIONS = {"float64": "64-true", "float32": "32-true"}
CHECKPOINT_SECONDS = 1.0
Found = dict[str, Any]


# one fit, in a process that is one of several, or that may be killed


class Watch(L.Callback):
    """Records the loss of each batch, the cells and masks of this process, and the weights after the last step."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.losses: list[float] = []
        self.cells: list[dict[int, str]] = []
        self.validation: list[float] = []
        self.weights: dict[str, np.ndarray] = {}
        self.write: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Name the step, for the process that waits for it. Before the last one, time a checkpoint."""
        print("step", trainer.global_step, flush=True)
        if self.checkpoint is not None and trainer.global_step == trainer.max_steps - 1:
            start = time.perf_counter()
            trainer.save_checkpoint(self.checkpoint)
            self.write = {"seconds": time.perf_counter() - start, "MB": self.checkpoint.stat().st_size / 2**20}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The loss of a process is weighted, so that the mean of all is that of the batch."""
        self.losses.append(float(outputs["loss"]))
        self.cells.append(describe_cells(batch) if batch.weight else {})

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The loss of all validation cells, which Lightning has averaged over the processes."""
        self.validation.append(float(trainer.callback_metrics["val_loss"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """These are not the best weights, which the model has, so no step is left out."""
        self.weights = {name: value.numpy().copy() for name, value in pl_module.state_dict().items()}


def describe_cells(batch: Any) -> dict[int, str]:
    """For each cell of a batch, a hash of what is masked, and of what the network reads, in any order of the cells."""
    found = {}
    for i, row in enumerate(batch.rows.tolist()):
        masked, read = batch.masked_ids[i] > 0, batch.context_ids[i] > 0  # the rest is padding
        parts = (
            batch.masked_ids[i][masked], batch.target_bins[i][masked], batch.context_ids[i][read],
            batch.context_bins[i][read], batch.known[i], batch.visible[i].float(), batch.log_depth[i].float(),
        )  # fmt: skip
        found[row] = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    return found


def fit_once(arguments: argparse.Namespace) -> None:
    """Fit, and write what was recorded, for each process to a file of its own."""
    import torch

    import scbioformers as bf

    bf.settings.progress_bar = False
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    checkpoints = folder / "checkpoints" if arguments.checkpoints else None
    watch = Watch(None if checkpoints is None else folder / "timed.checkpoint")
    config = bf.ModelConfig(width=32, n_layers=1, n_heads=2, n_latent=16)
    train = bf.TrainConfig(
        max_epochs=-(-STEPS // 10), max_steps=STEPS, patience=STEPS, batch_size=BATCH_SIZE,
        devices=arguments.devices, num_nodes=arguments.nodes, strategy="auto" if arguments.devices == 1 else "ddp",
        precision=arguments.precision, checkpoint_dir=checkpoints, checkpoint_minutes=CHECKPOINT_SECONDS / 60,
    )  # fmt: skip
    adata = bf.datasets.pbmc68k()[: arguments.cells, :N_GENES].copy()
    bf.tl.fit(adata, config=config, train=train, device="cpu", save_dir=folder / "model", callbacks=[watch])
    np.savez(folder / f"weights-{rank}.npz", **watch.weights)
    recorded = {name: getattr(watch, name) for name in ("losses", "cells", "validation", "write")}
    history = bf.get.history(adata).to_json(double_precision=15)
    recorded |= {"history": history, "hash": bf.get.model(adata).hash}
    (folder / f"recorded-{rank}.json").write_text(json.dumps(recorded))


def _command(folder: Path, n_cells: int, *options: str, launcher: tuple[str, ...] = ()) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    program = ["-m", "benchmarks._scale_training", str(folder), "--cells", str(n_cells), *options]
    return [sys.executable, *launcher, *program]


def _recorded(folder: Path, n: int) -> list[Found]:
    return [json.loads((folder / f"recorded-{rank}.json").read_text()) for rank in range(n)]


# the parts


def processes(folder: Path, n_cells: int) -> list[Found]:
    """How much the losses and weights of 2 processes, and of 2 nodes with 2 processes each, differ from those of one.

    Losses are compared with those of one process, weights with the largest weight of the same tensor.
    """
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name, precision in PRECISIONS.items():
            own, options = Path(place) / name, ("--precision", precision)
            _run([_command(own / "1", n_cells, *options)])
            _run([_command(own / "2", n_cells, *options, "--devices", "2")])
            options, port = (*options, "--devices", "2", "--nodes", "2"), _free_port()
            _run([_command(own / "4", n_cells, *options, launcher=_torchrun(node, port)) for node in range(2)])
            found += [
                {"numbers": name, "processes": text} | _compare(own / "1", own / str(n), n)
                for text, n in (("2", 2), ("2 nodes x 2", 4))
            ]
    return found


def _torchrun(node: int, port: int) -> tuple[str, ...]:
    """The arguments of torchrun for one of two nodes, which are both this machine."""
    shared = ("--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-id=fit")
    return ("-m", "torch.distributed.run", *shared, f"--rdzv-endpoint=127.0.0.1:{port}", f"--node-rank={node}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(commands: list[list[str]]) -> None:
    """Run programs at the same time."""
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"A fit ended with the codes {codes}: {commands[0]}")


def _compare(one: Path, several: Path, n: int) -> Found:
    (expected,), ranks = _recorded(one, 1), _recorded(several, n)
    parts = zip(*(rank["cells"] for rank in ranks), strict=True)
    equal = [
        sum(map(len, each)) == len(cells) and {row: x for part in each for row, x in part.items()} == cells
        for cells, each in zip(expected["cells"], parts, strict=True)
    ]
    losses = _relative(np.mean([rank["losses"] for rank in ranks], axis=0), expected["losses"])
    weights, right = (np.load(path / "weights-0.npz") for path in (several, one))
    shares = [np.abs(weights[name] - right[name]).max() / (np.abs(right[name]).max() or 1.0) for name in right]
    return {
        "same cells and masks": all(equal),
        f"loss, first {N_FIRST} steps": float(losses[:N_FIRST].max()),
        "loss, all steps": float(losses.max()),
        "validation loss": float(_relative(ranks[0]["validation"], expected["validation"]).max()),
        "weights": float(max(shares)),
    }


def _relative(found: Any, expected: Any) -> Any:
    return np.abs(np.asarray(found) / np.asarray(expected) - 1)


def resume(folder: Path, n_cells: int) -> Found:
    """Whether a fit that is killed in three random steps, and while it writes a checkpoint, ends with the same bits."""
    first, *later = np.sort(np.random.default_rng(0).integers(20, STEPS, 3)).tolist()
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        _run([_command(whole, n_cells)])
        again = _command(killed, n_cells, "--checkpoints")
        starts = [_kill_at_step(again, first), _kill_while_writing(again, killed / "checkpoints")]
        starts += [_kill_at_step(again, step) for step in later]
        _run([again])
        (expected,), (found,) = _recorded(whole, 1), _recorded(killed, 1)
        weights, right = (np.load(path / "weights-0.npz") for path in (killed, whole))
        return {
            "killed at steps": ", ".join(map(str, [first, "writing", *later])),
            "went on from steps": ", ".join(map(str, [*starts[1:], STEPS - len(found["losses"])])),
            "weights bit-equal": all(np.array_equal(weights[name], right[name]) for name in right),
            "model and history bit-equal": all(found[name] == expected[name] for name in ("hash", "history")),
            "seconds of a checkpoint": found["write"]["seconds"],
            "MB of a checkpoint": found["write"]["MB"],
        }


def _kill_at_step(command: list[str], step: int) -> int:
    """Start a fit and kill it with SIGKILL when it begins a step. Returns its own first step."""
    steps = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            steps += [int(line.split()[1])] if line.startswith("step ") else []
            if steps and steps[-1] >= step:
                process.kill()
    return steps[0]


def _kill_while_writing(command: list[str], checkpoints: Path) -> int:
    """The same, when there is a new checkpoint that has not replaced the former one yet."""
    while True:
        with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output) as process:
            while process.poll() is None and not any(checkpoints.glob(".*.new")):
                time.sleep(1e-4)
            process.kill()
            process.wait()
            output.seek(0)
            steps = [int(line.split()[1]) for line in output if line.startswith("step ")]
        if any(checkpoints.glob(".*.new")):
            return steps[0]
        if process.returncode == 0:
            raise RuntimeError("The fit ended before it could be killed while it wrote a checkpoint.")


def main() -> None:
    """Fit in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--checkpoints", action="store_true")
    fit_once(parser.parse_args())


if __name__ == "__main__":
    main()
