"""Several processes that train one network, on one machine or on several."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

import scbioformers as bf
from scbioformers.training._processes import choose_strategy, warn_if_alone

NEEDS_GLOO = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="gloo is missing"
)

PROGRAM = """
import json, os, shutil, signal, sys, time
from datetime import timedelta
from pathlib import Path
import numpy as np
import torch
import scbioformers as bf
from scbioformers.core import ProcessLostError, TrainingDiverged
from scbioformers.nn import OBJECTIVES
from scbioformers.training import _processes

torch.set_num_threads(1)
folder = Path(__file__).parent
rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))  # the first process starts the others with theirs
data = bf.datasets.simulate(n_cells=67, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)
config = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
objective, seen = OBJECTIVES["masked_bins"], []

def watched(network, output, batch):
    cells = zip(batch.rows.tolist(), batch.masked_ids.tolist())
    seen.append([network.training, {row: [i for i in ids if i] for row, ids in cells} if batch.weight else {}])
    return objective(network, output, batch)

def fit(name, devices, num_nodes=1, **changed):
    seen.clear()
    train = bf.TrainConfig(
        max_epochs=3, batch_size=13, validation_fraction=0.25, devices=devices, num_nodes=num_nodes,
        strategy="auto" if devices == 1 else "ddp", precision="64-true", **changed,
    )
    options = {"config": config, "train": train, "batch_key": "batch", "device": "cpu"}
    adata = bf.tl.fit(data, save_dir=folder / name, copy=True, **options)
    bf.tl.embed(adata)
    model = bf.get.model(adata)
    result = {
        "seen": seen,
        "history": bf.get.history(adata).to_dict("list"),
        "embedding": adata.obsm["X_bioformer"].tolist(),
        "dtypes": sorted({str(x.dtype) for x in model.members[0].state_dict().values()}),
        "temperature": model.members[0].temperature.item(),
        "hash": model.hash,
    }
    folder.joinpath(f"{name}-{rank}.json").write_text(json.dumps(result))

def killed(network, output, batch):
    seen.append(network.training)
    if rank == 3 and sum(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return objective(network, output, batch)

OBJECTIVES["masked_bins"] = watched
if sys.argv[1:] == ["nodes"]:
    fit("four", 2, num_nodes=2)
    OBJECTIVES["masked_bins"] = killed
    fit("killed", 2, num_nodes=2)
if rank == 0:
    fit("one", 1)
fit("two", 2)

def spoiled(network, output, batch):
    seen.append(network.training)
    return objective(network, output, batch) * (np.nan if rank == 1 and sum(seen) == 2 else 1)

OBJECTIVES["masked_bins"] = spoiled
try:
    fit("spoiled", 2)
except TrainingDiverged as error:
    folder.joinpath(f"diverged-{rank}").write_text(str(error))

def terminated(network, output, batch):
    if rank == 1 and network.training and sum(training for training, _ in seen) == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    return watched(network, output, batch)

OBJECTIVES["masked_bins"] = terminated
try:
    fit("terminated", 2, checkpoint_dir=folder / "checkpoints", checkpoint_minutes=1e6)
except SystemExit as error:
    folder.joinpath(f"status-{rank}").write_text(str(error.code))
OBJECTIVES["masked_bins"] = watched
if rank == 0:
    shutil.copytree(folder / "checkpoints", folder / "fewer-checkpoints")
fit("continued", 2, checkpoint_dir=folder / "checkpoints")
if rank == 0:
    fit("fewer", 1, checkpoint_dir=folder / "fewer-checkpoints")

def hangs(network, output, batch):
    seen.append(network.training)
    while rank == 1 and sum(seen) == 2 and not folder.joinpath("lost-0").exists():
        time.sleep(0.1)
    return objective(network, output, batch)

OBJECTIVES["masked_bins"] = hangs
_processes.TIMEOUT = timedelta(seconds=10)
try:
    fit("hangs", 2)
except ProcessLostError as error:
    folder.joinpath(f"lost-{rank}").write_text(str(error))
"""


def run(commands, folder):
    """Output and exit codes of programs that run at the same time."""
    unset = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"OMP_NUM_THREADS": "1"}
    outputs = [open(folder / f"output-{len(commands)}-{i}", "w+") for i in range(len(commands))]  # noqa: SIM115
    running = [
        subprocess.Popen([sys.executable, *command], env=environment, start_new_session=True, stdout=file, stderr=file)
        for command, file in zip(commands, outputs, strict=True)
    ]
    try:
        codes = [process.wait(timeout=600) for process in running]
    except subprocess.TimeoutExpired:
        codes = None
    for process, file in zip(running, outputs, strict=True):
        with contextlib.suppress(ProcessLookupError):  # its own session: all of its processes, and no other
            os.killpg(process.pid, signal.SIGKILL)
        file.seek(0)
    printed = "\n".join(file.read() for file in outputs)
    for file in outputs:
        file.close()
    assert codes is not None, f"it hangs: {printed[-3000:]}"
    return printed, codes


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "program.py"
    path.write_text(PROGRAM)  # a file, because that is what Lightning starts again
    return path


@pytest.fixture(scope="module")
def two(program):
    """Two processes, of which one hangs in the end."""
    printed, codes = run([[str(program)]], program.parent)
    assert codes == [0], printed


@pytest.fixture(scope="module")
def nodes(program):
    """What two launchers print, as on two machines, with two processes each, of which one is killed in the end."""
    shared = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-id=test"]
    launcher = ["-m", "torch.distributed.run", *shared, "--rdzv-endpoint=127.0.0.1:29643"]
    printed, codes = run([[*launcher, f"--node-rank={i}", str(program), "nodes"] for i in range(2)], program.parent)
    assert codes == [1, 1], printed
    assert program.with_name("four-3.json").exists(), printed
    return printed


def read(program, name, n):
    return [json.loads(program.with_name(f"{name}-{rank}.json").read_text()) for rank in range(n)]


def assert_equals_one_process(program, name, n):
    """Processes have the same batches, masks and losses as one, and the same model each."""
    (one,), ranks = read(program, "one", 1), read(program, name, n)
    steps = [rank["seen"] for rank in ranks]
    assert {len(seen) for seen in steps} == {len(one["seen"])}
    for (training, cells), *parts in zip(one["seen"], *steps, strict=True):
        assert all(part[0] == training for part in parts)
        assert sum(len(part[1]) for part in parts) == len(cells)
        assert {row: masked for part in parts for row, masked in part[1].items()} == cells
    for rank in ranks:
        assert list(rank["history"]) == list(one["history"])
        for column, losses in one["history"].items():
            np.testing.assert_allclose(rank["history"][column], losses, rtol=1e-9)
        np.testing.assert_allclose(rank["embedding"], one["embedding"], rtol=0, atol=1e-4)
        assert rank["temperature"] == pytest.approx(one["temperature"], rel=1e-5)
        assert rank["dtypes"] == ["torch.float32"]
        assert rank["hash"] == ranks[0]["hash"]
    assert bf.BioFormer.load(program.with_name(name)).hash == ranks[0]["hash"]
    assert one["temperature"] != 1
    assert np.ptp(one["history"]["val_loss"]) > 3e-4 * one["history"]["val_loss"][0]  # it learned


@NEEDS_GLOO
def test_two_processes_learn_what_one_does(program, two):
    """51 cells in batches of 12 and 13, and 16 held out."""
    assert_equals_one_process(program, "two", 2)


@NEEDS_GLOO
def test_two_machines_with_two_processes_learn_what_one_does(program, two, nodes):
    assert_equals_one_process(program, "four", 4)


@NEEDS_GLOO
def test_all_processes_stop_at_a_loss_that_is_nan_in_one(program, two):
    for rank in range(2):
        assert "NaN at step 2" in program.with_name(f"diverged-{rank}").read_text()


@NEEDS_GLOO
@pytest.mark.fault("sigterm")
def test_a_checkpoint_of_two_processes_is_continued_by_two_or_by_one(program, two):
    """SIGTERM in the fifth step of one of them. Both end then, and the rest has the same batches and masks."""
    assert [program.with_name(f"status-{rank}").read_text() for rank in range(2)] == ["143", "143"]
    whole, continued, (fewer,) = read(program, "two", 2), read(program, "continued", 2), read(program, "fewer", 1)
    n_done = sum(training for training, _ in whole[0]["seen"][: -len(continued[0]["seen"])])
    assert n_done == 5
    for rank in range(2):
        assert continued[rank]["seen"] == whole[rank]["seen"][-len(continued[rank]["seen"]) :]
        assert continued[rank]["hash"] == whole[rank]["hash"]
        for column, losses in whole[rank]["history"].items():
            np.testing.assert_allclose(continued[rank]["history"][column], losses, rtol=1e-12)
    (one,) = read(program, "one", 1)
    assert fewer["seen"] == one["seen"][-len(fewer["seen"]) :]
    for column, losses in one["history"].items():
        np.testing.assert_allclose(fewer["history"][column], losses, rtol=1e-9)


@NEEDS_GLOO
@pytest.mark.fault("lost-rank")
def test_a_process_that_does_not_answer_ends_the_fit_after_the_timeout(program, two):
    for rank in range(2):
        message = program.with_name(f"lost-{rank}").read_text()
        assert f"Process {rank} of 0 to 1 has lost another one at step" in message
        assert "Then run the same program again" in message


@NEEDS_GLOO
@pytest.mark.fault("lost-rank")
def test_a_process_that_is_killed_ends_those_of_all_machines(nodes):
    """The launcher says which one it was, and those of the other machine that one was lost."""
    assert "Signal 9 (SIGKILL)" in nodes
    assert any(f"ProcessLostError: Process {rank} of 0 to 3 has lost another one at step" in nodes for rank in (0, 1))


@pytest.mark.parametrize(("changed", "expected"), [({}, 1), ({"devices": 2, "num_nodes": 2, "strategy": "ddp"}, 0)])
def test_processes_that_would_fit_alone_are_named(monkeypatch, recwarn, changed, expected):
    """In an environment as that of torchrun. The suggested configuration gives no warning."""
    for name, value in {"TORCHELASTIC_RUN_ID": "fit", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    warn_if_alone(bf.TrainConfig(**changed))
    texts = [str(each.message) for each in recwarn]
    assert len(texts) == expected
    assert all("TrainConfig(devices=2, num_nodes=2, strategy='ddp')" in text for text in texts)


@pytest.mark.parametrize(
    ("train", "n_gpus", "expected"),
    [
        ({}, 0, "auto"),
        ({"devices": 1}, 4, "auto"),
        ({"devices": "1"}, 4, "auto"),
        ({"devices": "auto"}, 0, "auto"),
        ({"devices": "auto"}, 1, "auto"),
        ({"devices": "auto"}, 4, DDPStrategy),
        ({"devices": 2}, 0, DDPStrategy),
        ({"num_nodes": 2}, 1, DDPStrategy),
        ({"strategy": "ddp"}, 0, DDPStrategy),
        ({"strategy": "ddp", "devices": 2}, 2, DDPStrategy),
        ({"strategy": "fsdp", "devices": 2}, 2, "fsdp"),
    ],
)
def test_several_devices_expect_parameters_that_nothing_reaches(monkeypatch, train, n_gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    found = choose_strategy(bf.TrainConfig(**train))
    if expected is DDPStrategy:
        assert isinstance(found, DDPStrategy)
        assert found._ddp_kwargs["find_unused_parameters"]
    else:
        assert found == expected
