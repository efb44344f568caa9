"""Training through Lightning: one process or several, and what they agree on."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import scbioformers as bf
from scbioformers.data import Source
from scbioformers.training._run import _strategy

PARAMETERS_MAY_BE_UNREACHED = "ddp_find_unused_parameters_true"

NEEDS_GLOO = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="gloo is missing"
)

PROGRAM = """
import json, os
import numpy as np
import torch
import scbioformers as bf
from scbioformers.nn import OBJECTIVES
from scbioformers.training import TrainingDiverged

torch.set_num_threads(1)
rank = int(os.environ.get("LOCAL_RANK", 0))  # the first process starts the others with theirs
config = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
data = bf.datasets.simulate(n_cells=68, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)

def fit(devices):
    train = bf.TrainConfig(
        max_epochs=3, batch_size=16, validation_fraction=0.25, devices=devices, accelerator="cpu",
        strategy="auto" if devices == 1 else "ddp", progress_bar=False,
    )
    adata = bf.tl.fit(data, config=config, train=train, batch_key="batch", copy=True)
    bf.tl.embed(adata)
    history = bf.get.history(adata)
    return [list(history), history.to_numpy().tolist(), adata.obsm["X_bioformer"].tolist()]

results = [fit(1) if rank == 0 else None, fit(2)]

objective, step = OBJECTIVES["masked_bins"], 0

def spoiled(network, output, batch):
    global step
    step += network.training
    return objective(network, output, batch) * (np.nan if rank == 1 and step == 2 else 1)

OBJECTIVES["masked_bins"] = spoiled
try:
    fit(2)
except TrainingDiverged as error:
    results.append(str(error))
if rank == 0:
    print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of one process; of two; and the error of two of which one meets a NaN."""
    path = tmp_path_factory.mktemp("run") / "program.py"
    path.write_text(PROGRAM)  # a file, because that is what Lightning starts again
    unset = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(path)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: all of its processes, and no other
        pytest.fail(f"it hangs: {process.communicate()[1][-2000:]}")
    assert process.returncode == 0, errors
    return json.loads(printed.splitlines()[-1])


@NEEDS_GLOO
def test_two_processes_learn_what_one_does(results):
    """48 cells in global batches of 16, and 20 held out: shares that divide by two, so that no cell is left out."""
    (names, one, embedding), (names_of_two, two, embedding_of_two), _ = results
    assert names_of_two == names
    one = np.array(one)
    assert one.shape == (3, len(names))
    assert one[:, names.index("step")].tolist() == [3, 6, 9]
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert np.ptp(one[:, names.index("val_loss")]) > 3e-4 * one[0, names.index("val_loss")]  # it learned
    np.testing.assert_allclose(embedding_of_two, embedding, rtol=0, atol=1e-3)


@NEEDS_GLOO
def test_all_processes_stop_at_a_loss_that_is_nan_in_one(results):
    assert "NaN at step 2" in results[2]


@pytest.mark.parametrize(
    ("train", "n_gpus", "expected"),
    [
        ({}, 0, "auto"),
        ({"devices": 1}, 4, "auto"),
        ({"devices": "1"}, 4, "auto"),
        ({"devices": "auto"}, 0, "auto"),
        ({"devices": "auto"}, 1, "auto"),
        ({"devices": "auto"}, 4, PARAMETERS_MAY_BE_UNREACHED),
        ({"devices": 2}, 0, PARAMETERS_MAY_BE_UNREACHED),
        ({"num_nodes": 2}, 1, PARAMETERS_MAY_BE_UNREACHED),
        ({"strategy": "ddp"}, 0, PARAMETERS_MAY_BE_UNREACHED),
        ({"strategy": "ddp", "devices": 2}, 2, PARAMETERS_MAY_BE_UNREACHED),
        ({"strategy": "fsdp", "devices": 2}, 2, "fsdp"),
    ],
)
def test_several_devices_expect_parameters_that_nothing_reaches(monkeypatch, train, n_gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert _strategy(bf.TrainConfig(**train)) == expected


def test_the_hidden_share_is_that_of_the_training_cells(simulated, tiny_config):
    masking = bf.Masking(rule="paper", ratio=0.2)
    train = bf.TrainConfig(max_steps=0, validation_fraction=0.0, masking=masking, progress_bar=False)
    bf.tl.fit(simulated, config=tiny_config, train=train)
    expressed = np.diff(Source(simulated).read(0, 60).counts.indptr)
    expected = sum(masking.counts(int(n), 40)[0] for n in expressed) / expressed.sum()
    model = bf.get.model(simulated)
    assert model.hidden_share == model.tokenizer.hidden_share == expected
    assert expected != masking.ratio
