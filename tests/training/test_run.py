"""Training through Lightning: one process or several, and what they agree on."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scbioformers as bf
from scbioformers.config import Masking, TrainConfig
from scbioformers.core import validation_rows
from scbioformers.data import AnnDataSource, MemorySource
from scbioformers.data._survey import _SPLIT_STREAM
from scbioformers.nn import Sizes
from scbioformers.training._data import TrainingData
from scbioformers.training._depth import fit_depth_models
from scbioformers.training._run import _strategy, run_training

PARAMETERS_MAY_BE_UNREACHED = "ddp_find_unused_parameters_true"

NEEDS_GLOO = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="gloo is missing"
)

PROGRAM = """
import json, os
from pathlib import Path
import numpy as np
import torch
import scbioformers as bf
from scbioformers.nn import OBJECTIVES
from scbioformers.core import TrainingDiverged

torch.set_num_threads(1)
rank = int(os.environ.get("LOCAL_RANK", 0))  # the first process starts the others with theirs
config = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
data = bf.datasets.simulate(n_cells=68, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)

def fit(devices):
    train = bf.TrainConfig(
        max_epochs=3, batch_size=16, validation_fraction=0.25, devices=devices,
        strategy="auto" if devices == 1 else "ddp",
    )
    adata = bf.tl.fit(data, config=config, train=train, batch_key="batch", device="cpu", copy=True)
    bf.tl.embed(adata)
    history = bf.get.history(adata)
    temperature = bf.get.model(adata).members[0].temperature.item()
    if devices == 2:
        Path(__file__).with_name(f"temperature-{rank}").write_text(json.dumps(temperature))
    return [list(history), history.to_numpy().tolist(), adata.obsm["X_bioformer"].tolist(), temperature]

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
    """Of one process; of two; the error of two of which one meets a NaN; and the temperature in each of the two."""
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
        printed, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: all of its processes, and no other
        pytest.fail(f"it hangs: {process.communicate()[1][-2000:]}")
    assert process.returncode == 0, errors
    temperatures = [json.loads(path.with_name(f"temperature-{rank}").read_text()) for rank in range(2)]
    return [*json.loads(printed.splitlines()[-1]), temperatures]


@NEEDS_GLOO
def test_two_processes_learn_what_one_does(results):
    """48 cells in global batches of 16, and 20 held out: shares that divide by two, so that no cell is left out."""
    (names, one, embedding, temperature), (names_of_two, two, embedding_of_two, _), *_ = results
    assert names_of_two == names
    one = np.array(one)
    assert one.shape == (3, len(names))
    assert one[:, names.index("step")].tolist() == [3, 6, 9]
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert np.ptp(one[:, names.index("val_loss")]) > 3e-4 * one[0, names.index("val_loss")]  # it learned
    np.testing.assert_allclose(embedding_of_two, embedding, rtol=0, atol=1e-3)
    # each process fits it to all validation cells
    assert results[3][0] == results[3][1] == pytest.approx(temperature, rel=1e-3)
    assert temperature != 1


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


def fit(simulated, config, **train):
    bf.tl.fit(simulated, config=config, train=bf.TrainConfig(max_steps=0, **train))
    return bf.get.model(simulated)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_the_gene_means_are_those_of_the_training_cells_at_their_mean_depth(simulated, tiny_config, fraction):
    """Not of the cells held out to validate, nor of the empty ones."""
    x = simulated.X.toarray()
    x[[3, 11]] = 0
    simulated.X = sp.csr_matrix(x)
    model = fit(simulated, tiny_config, validation_fraction=fraction)
    filled = np.flatnonzero(x.sum(axis=1) > 0)
    kept = filled[~validation_rows(58, fraction, 0 ^ _SPLIT_STREAM)] if fraction else filled
    depth = x[kept].sum(axis=1, dtype=np.float64)
    assert model.binnings["rna"].mean_depth == pytest.approx(depth.mean())
    np.testing.assert_allclose(model.gene_mean, (x[kept] / depth[:, None]).mean(axis=0) * depth.mean(), rtol=1e-5)
    np.testing.assert_allclose(model.gene_share, (x[kept] > 0).mean(axis=0), rtol=1e-6)
    for array in (model.gene_mean, model.gene_share, model.bin_mean):
        assert array.dtype == np.float32
    # so is the depth that is estimated from a part of the counts
    expected = fit_depth_models([AnnDataSource(simulated).rows(kept)], Masking(), depth.mean(), seed=0).to_arrays()
    found = model.depth.to_arrays()
    assert [name for name, array in expected.items() if not np.array_equal(found[name], array)] == []
    assert model.tokenizer.depth is model.depth
    assert model.gene_mean.sum() == pytest.approx(depth.mean(), rel=1e-5)  # all genes are modelled


def test_the_masked_shares_are_those_of_the_training_cells_and_logged(simulated, tiny_config, caplog):
    masking = bf.Masking(rule="paper", ratio=0.2)
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        fit(simulated, tiny_config, validation_fraction=0.0, masking=masking)
    expressed = np.diff(AnnDataSource(simulated).read(0, 60).counts.indptr)
    nonzero, zero = np.array([masking.counts(int(n), 40) for n in expressed]).sum(axis=0)
    share = nonzero / expressed.sum()
    assert share != masking.ratio
    shares = 100 * share, 100 * zero / (2400 - expressed.sum()), 100 * nonzero / (nonzero + zero)
    (said,) = [record for record in caplog.records if record.getMessage().startswith("Masking")]
    assert said.args == pytest.approx(shares)


def test_mixed_precision_trains_to_a_similar_loss(simulated, tiny_config):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        adata = simulated.copy()
        train = bf.TrainConfig(max_epochs=2, batch_size=16, precision=precision)
        bf.tl.fit(adata, config=tiny_config, train=train, device="cpu")
        losses[precision] = bf.get.history(adata)["val_loss"].to_numpy()[-1]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert losses["bf16-mixed"] != losses["32-true"]  # the setting reaches the trainer


@pytest.mark.parametrize("seed", [0, 1])
def test_the_schedule_ends_with_the_last_batch_of_the_last_epoch(make_block, make_tokenizer, make_network, seed):
    """Chunks of unequal numbers of cells are combined anew in each epoch, so epochs differ in their batches."""
    block = make_block(90, seed=1)
    tokenizer = make_tokenizer(block)
    training = np.random.default_rng(seed).random(90) < 0.7
    config = TrainConfig(max_epochs=7, batch_size=8, patience=99)
    data = TrainingData(MemorySource(block), tokenizer, config, training, ~training, seed)
    data.sampler = replace(data.sampler, chunk_size=13, buffer_chunks=2)
    batches = [data.sampler.n_batches(epoch) for epoch in range(7)]
    assert len(set(batches)) > 1
    network = make_network(sizes=Sizes(60, tokenizer.binning.n_values))
    history, _ = run_training(network, data, config, True, seed)
    assert [row["step"] for row in history] == np.cumsum(batches).tolist()
    assert "val_loss" in history[-1]
