"""A fit that is killed, terminated and out of disk space, each time in a process of its own, and then continued."""

import json
import os
import subprocess
import sys

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs os.fork", allow_module_level=True)

PROGRAM = """
import json, os, resource, signal, time
from dataclasses import replace
from pathlib import Path
import torch
import scbioformers as bf
from scbioformers.nn import OBJECTIVES
from scbioformers.training import _checkpoint

torch.set_num_threads(1)
bf.settings.progress_bar = False
CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8, dropout=0.1)
DATA = bf.datasets.simulate(n_cells=60, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)
PLAIN = bf.TrainConfig(max_epochs=2, batch_size=16)  # two members, each of two epochs of three steps
OFTEN = replace(PLAIN, checkpoint_dir="checkpoints", checkpoint_minutes=0)
RARELY = replace(OFTEN, checkpoint_minutes=1e6)

def fit(train):
    adata = bf.tl.fit(DATA, config=CONFIG, batch_key="batch", device="cpu", n_models=2, train=train, copy=True)
    return adata.uns["bioformer"]["model"].tobytes(), bf.get.history(adata)

def run(train, **actions):
    # Fit in another process. In its training steps of these numbers it is killed, …
    process = os.fork()
    if process == 0:
        objective, n = OBJECTIVES["masked_bins"], 0
        at = {step: action for action, step in actions.items()}

        def spy(network, output, batch):
            nonlocal n
            n += network.training
            if network.training and n in at:
                globals()[at[n]]()
            return objective(network, output, batch)

        OBJECTIVES["masked_bins"], status = spy, 0
        try:
            fit(train)
        except SystemExit as error:
            status = error.code
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return [status, {path.suffix + path.stem[-2:]: step(path) for path in Path("checkpoints").glob("*member*")}]

def step(path):
    header, body = _checkpoint.unseal(path.read_bytes(), "", "")
    return _checkpoint._join(header["state"], _checkpoint.read_tensors(body)).get("global_step", "finished")

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)  # the handler runs between two bytecodes

def kill_before_rename():
    _checkpoint.os.replace = lambda *paths: kill()

def fill_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # no file can become larger

expected, history = fit(PLAIN)
told = [
    run(OFTEN, kill=2),
    run(OFTEN, kill_before_rename=1),
    run(OFTEN, fill_disk=1, kill=4),  # in the second epoch
    run(RARELY, terminate=2),  # in the last step of the first epoch, before a validation
    run(RARELY, kill=5),  # in the second member
    run(OFTEN, terminate=6),  # in the last step
]
model, found = fit(OFTEN)
print(json.dumps([told, model == expected, found.equals(history), len(found)]))
"""


@pytest.mark.fault("kill-9", "sigterm", "checkpoint-disk-full")
def test_a_fit_that_was_killed_continues_with_the_same_bits(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, same_model, same_history, n_rows = json.loads(done.stdout.splitlines()[-1])
    first, second, new = ".checkpoint-0", ".checkpoint-1", ".new"
    names = [{name[:4] if name.startswith(new) else name: step for name, step in files.items()} for _, files in told]
    assert [status for status, _ in told] == [-9, -9, -9, 143, -9, 143]
    assert names == [
        {first: 1},
        {first: 1, new: 2},  # written, but not in its place
        {first: 1},  # the former one stays, and nothing else
        {first: 3},
        {first: "finished"},
        {first: "finished", second: "finished"},
    ]
    assert (same_model, same_history, n_rows) == (True, True, 4)
    assert (
        done.stderr.count("A checkpoint could not be written to checkpoints/member-0.checkpoint: File too large") == 1
    )
    assert done.stderr.count("Terminated (SIGTERM). This step is completed and a checkpoint is written to") == 2
