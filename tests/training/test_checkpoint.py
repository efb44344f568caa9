"""Checkpoints: what is in them, what they continue, and what is refused."""

import os
import pickle
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

import scbioformers as bf
from scbioformers.__main__ import main
from scbioformers.config import ModelConfig, TrainConfig
from scbioformers.core import ConfigError, ModelFormatError, StorageError
from scbioformers.data import AnnDataSource, BlockSource, MemorySource, survey
from scbioformers.nn import OBJECTIVES, Sizes
from scbioformers.tokens import Sampler
from scbioformers.training import BatchDataset
from scbioformers.training._checkpoint import SCHEMA, Checkpoints, MemberIO, _join, _split, read_tensors, seal, unseal
from scbioformers.training._data import BatchLoader, TrainingData
from scbioformers.training._run import run_training

TRAIN = bf.TrainConfig(max_epochs=2, batch_size=16, checkpoint_minutes=0)  # 54 training cells: epochs of three steps


class Killed(BaseException):
    """Ends a fit at once. What it leaves on disk is what a killed process leaves."""


@pytest.fixture
def fit(tiny_config, tmp_path):
    """`bf.tl.fit` with a tiny model and checkpoints in `tmp_path / "c"`. `train=` changes parameters of training."""

    def fit(adata, *, train=None, **kwargs):
        train = replace(TRAIN, **{"checkpoint_dir": tmp_path / "c"} | (train or {}))
        options = {"config": replace(tiny_config, dropout=0.1), "train": train, "device": "cpu", "copy": True}
        return bf.tl.fit(adata, **options | kwargs)

    return fit


@pytest.fixture
def at_step(monkeypatch):
    """Call a function in a training step of this number. The loss is multiplied by what it returns.

    Validation losses can be given as well.
    """
    objective = OBJECTIVES["masked_bins"]

    def at_step(step, act, validation=None):
        counts = {True: 0, False: 0}

        def spy(network, output, batch):
            counts[network.training] += 1
            loss = objective(network, output, batch)
            if network.training and counts[True] == step:
                loss = loss * (act() or 1)
            return loss if network.training or validation is None else 0 * loss + validation[counts[False] - 1]

        monkeypatch.setitem(OBJECTIVES, "masked_bins", spy)

    return at_step


def kill():
    raise Killed


@pytest.fixture
def killed(fit, at_step, monkeypatch, simulated):
    """Fit until a step, in which the process is killed."""

    def killed(step, *, validation=None, **kwargs):
        at_step(step, kill, validation)
        with pytest.raises(Killed):
            fit(simulated, **kwargs)
        monkeypatch.undo()

    return killed


def bits(adata) -> bytes:
    return adata.uns["bioformer"]["model"].tobytes()


def state(path) -> dict:
    header, body = unseal(path.read_bytes(), "", "")
    return _join(header["state"], read_tensors(body))


@pytest.mark.fault("kill-9")
@pytest.mark.parametrize(
    ("step", "train", "kwargs"),
    [
        pytest.param(5, {"precision": "bf16-mixed"}, {"progress_bar": True}, id="mixed"),
        pytest.param(2, {"batch_size": 100}, {}, id="one batch in an epoch"),
        pytest.param(4, {"max_steps": 5}, {"batch_key": "batch"}, id="max_steps, the start of an epoch"),
    ],
)
def test_the_same_call_continues_with_the_same_bits(simulated, fit, killed, tmp_path, step, train, kwargs):
    expected = fit(simulated, train=train | {"checkpoint_dir": None}, **kwargs)
    killed(step, train=train, **kwargs)
    assert state(tmp_path / "c" / "member-0.checkpoint")["global_step"] == step - 1
    found = fit(simulated, train=train, **kwargs)
    assert bits(found) == bits(expected)
    pd.testing.assert_frame_equal(bf.get.history(found), bf.get.history(expected), check_exact=True)
    assert bf.get.params(found) == bf.get.params(expected)  # without names of directories


@pytest.mark.fault("kill-9")
@pytest.mark.parametrize("other", [{}, {"precision": "64-true", "accumulate_grad_batches": 2}], ids=str)
def test_validations_within_an_epoch_are_continued(make_block, make_tokenizer, make_network, tmp_path, at_step, other):
    """Cells of several buffers, which are validated every second batch. The training is killed at every fifth batch."""
    block = make_block(90, seed=1)
    tokenizer, training = make_tokenizer(block), np.arange(90) % 4 > 0
    config = TrainConfig(max_epochs=3, batch_size=8, patience=99, **other)

    def train(io=None):
        network = make_network(
            ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8, dropout=0.1),
            Sizes(60, tokenizer.binning.n_values),
        )
        data = TrainingData(MemorySource(block), tokenizer, config, training, ~training, 0)
        data.sampler = replace(data.sampler, chunk_size=13, buffer_chunks=2)
        history, _ = run_training(network.train(), data, config, True, 0, io=io)
        return history, network.state_dict()

    history, weights = train()
    assert len(history) > 10
    io = MemberIO(Checkpoints(tmp_path, {}, 0.0), 0)
    n_killed = 0
    while n_killed < 20:
        at_step(5, kill)
        try:
            found, weights_found = train(io)
            break
        except Killed:
            n_killed += 1
    assert n_killed >= 4
    assert found == history
    assert [name for name, tensor in weights.items() if not torch.equal(tensor, weights_found[name])] == []


@pytest.mark.fault("kill-9")
def test_early_stopping_and_the_best_weights_are_continued(simulated, fit, killed, at_step):
    """The second validation of six is the best, and two worse ones end the training. It is killed after one of them."""
    train = {"max_epochs": 6, "patience": 2, "objectives": {"masked_bins": 1.0}}
    losses = [3.0, 2.0, 4.0, 5.0, 1.0, 1.0]
    at_step(0, kill, losses)
    expected = fit(simulated, train=train | {"checkpoint_dir": None})
    killed(10, train=train, validation=losses)
    at_step(0, kill, losses[3:])
    found = fit(simulated, train=train)
    assert bf.get.history(found)["val_loss"].tolist() == [3.0, 2.0, 4.0, 5.0]
    assert bits(found) == bits(expected)


@pytest.mark.fault("sigint")
def test_after_ctrl_c_the_same_call_continues(simulated, fit, at_step, monkeypatch):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    expected = fit(simulated, train={"checkpoint_dir": None})
    rarely = {"checkpoint_minutes": 1e6}
    at_step(2, interrupt)
    early = fit(simulated, train=rarely)
    monkeypatch.undo()
    assert bf.get.history(early)["step"].tolist() == [2]
    assert bits(fit(simulated, train=rarely)) == bits(expected)


@pytest.mark.fault(48)
def test_a_loss_that_becomes_nan_later_keeps_the_best_weights(simulated, fit, killed, at_step, tmp_path, caplog):
    train = {"max_epochs": 3}
    killed(8, train=train)
    best = state(tmp_path / "c" / "member-0.checkpoint")["scbioformers"]["best"]
    assert best["step"] in (3, 6)
    at_step(1, lambda: np.nan)
    (member,) = bf.get.model(fit(simulated, train=train)).members
    assert f"NaN at step 8. The weights of step {best['step']} are kept" in caplog.text
    for name, tensor in member.state_dict().items():
        assert torch.equal(tensor, best["weights"][f"network.{name}"]) == (name != "temperature"), name


def test_batches_that_were_used_are_left_out_unread(make_block, make_tokenizer):
    block, ranges = make_block(90), []
    tokenizer = make_tokenizer(block)

    class Counting(MemorySource):
        def read(self, start, stop):
            ranges.append((start, stop))
            return super().read(start, stop)

    sampler = Sampler(np.ones(90, bool), batch_size=8, seed=0, chunk_size=15, buffer_chunks=2)
    batches = {}
    for n_done in (0, 5):
        dataset = BatchDataset(Counting(block), tokenizer, sampler, TRAIN, epoch=1, training=True, n_done=n_done)
        ranges.clear()
        batches[n_done] = list(dataset), list(ranges)
        workers = BatchLoader(dataset, 2)
        assert [batch.rows.tolist() for batch in workers] == [batch.rows.tolist() for batch in batches[n_done][0]]
    (every, all_ranges), (rest, ranges_of_rest) = batches[0], batches[5]
    assert len(every) == 9 and len(rest) == 4
    for expected, found in zip(every[5:], rest, strict=True):
        assert torch.equal(expected.rows, found.rows) and torch.equal(expected.masked_ids, found.masked_ids)
        assert torch.equal(expected.context_ids, found.context_ids)
    assert ranges_of_rest == all_ranges[2:]  # the three batches of the first buffer


# another fit


@pytest.mark.fault("checkpoint-other-fit")
def test_the_checkpoint_of_another_fit_is_refused(simulated, fit, killed, tmp_path):
    killed(3, batch_key="batch")
    before = (tmp_path / "c" / "member-0.checkpoint").read_bytes()
    other, moved = simulated.copy(), simulated.copy()
    other.X.data += 1
    moved.obs["batch"] = moved.obs["batch"].astype(str).to_numpy()[::-1]
    for adata, kwargs, message in (
        (simulated, {"train": {"lr": 1e-3}}, r"TrainConfig.lr was 0.002 and is 0.001\."),
        (simulated, {"rng": 1, "n_models": 2}, r"rng was 0 and is 1; n_models was 1 and is 2; data.sha256 was .*"),
        (simulated, {"mask_var": np.arange(40) > 0}, r"genes.number was 40 and is 39; genes.sha256 was .*"),
        (moved, {}, r"obs.sha256 was '.{10,}' and is '.{10,}'\."),
        (other, {}, r"data.sha256 was '.{10,}' and is '.{10,}'\."),
    ):
        call = r" Pass another `TrainConfig\(checkpoint_dir=…\)`, or `TrainConfig\(resume='never'\)` to start anew"
        with pytest.raises(ConfigError, match=rf"member-0.checkpoint is .* another fit\. What .*{message}{call}"):
            fit(adata, **{"batch_key": "batch"} | kwargs)
    assert (tmp_path / "c" / "member-0.checkpoint").read_bytes() == before


@pytest.mark.fault("checkpoint-other-fit")
@pytest.mark.parametrize("change", ["count", "label"])
def test_another_validation_cell_is_another_fit(simulated, fit, killed, change):
    """No training cell differs, so neither does their sample."""
    killed(3, batch_key="batch")
    row = np.flatnonzero(survey(AnnDataSource(simulated), TRAIN.validation_fraction, 0).validation)[0]
    if change == "count":
        simulated.X.data[simulated.X.indptr[row]] += 1
    else:
        labels = simulated.obs["batch"].astype(str).to_numpy()
        labels[row] = next(label for label in labels if label != labels[row])
        simulated.obs["batch"] = labels
    with pytest.raises(ConfigError, match=r"What differs: data\.cells_sha256 was '.{10,}' and is '.{10,}'\. Pass"):
        fit(simulated, batch_key="batch")


@pytest.mark.fault("checkpoint-other-fit")
def test_a_new_start_replaces_the_former_checkpoints(simulated, fit, killed, tmp_path):
    killed(6, n_models=2)
    (tmp_path / "c" / "member-1.checkpoint").write_bytes(b"of a former fit")
    (tmp_path / "c" / "notes.txt").write_text("of the user")
    found = fit(simulated, train={"lr": 1e-3, "resume": "never"})
    assert bits(found) == bits(fit(simulated, train={"lr": 1e-3, "checkpoint_dir": None}))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["member-0.checkpoint", "notes.txt"]


# damaged and foreign files, and places that cannot be written


@pytest.mark.fault("checkpoint-damaged")
def test_a_damaged_or_foreign_checkpoint_is_refused(simulated, fit, killed, tmp_path, fitted):
    killed(3)
    path = tmp_path / "c" / "member-0.checkpoint"
    whole = path.read_bytes()
    header, body = unseal(whole, "", "")
    flipped = [bytes(whole[i] ^ (i == at) for i in range(len(whole))) for at in (0, 35, 5000, len(whole) - 1)]
    tensors = read_tensors(body)
    contents = {
        "truncated": [whole[:0], whole[:4]],
        "damaged, or not written by": [whole[: len(whole) // 2], whole[:-1], *flipped, pickle.dumps(list(range(99)))],
        "schema 2 of a checkpoint; .* reads 1": [seal(tensors, header | {"checkpoint": SCHEMA + 1})],
        "schema None of a checkpoint": [bf.get.model(fitted).to_bytes()],
        "not written by scbioformers": [seal({}, header)[32:], b"\x80" * 10**6],
        "incomplete": [seal({}, header), seal(tensors, header | {"state": {"code": "print"}})],
    }
    checkpoints = Checkpoints(path.parent, header["fit"], 0.0)
    assert checkpoints.read(path)[1] is False
    for message, files in contents.items():
        for content in files:
            path.write_bytes(content)
            with pytest.raises(ModelFormatError, match=rf"/member-0\.checkpoint .*{message}") as caught:
                checkpoints.read(path)
            assert "elete member-0.checkpoint, so that this member is trained from its start" in str(caught.value)
    with pytest.raises(ModelFormatError):
        fit(simulated)
    path.unlink()
    assert bf.get.history(fit(simulated))["step"].tolist() == [3, 6]


@pytest.mark.fault("checkpoint-dir")
def test_a_place_that_cannot_be_written_is_refused_before_any_work(simulated, fit, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(BlockSource, "read", lambda *args: pytest.fail("the data was read"))
    for place in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(StorageError, match=rf"Checkpoints cannot be written to .*{place}: .* that is writable"):
            fit(simulated, train={"checkpoint_dir": str(place)})
    for place in ("atlas", "atlas/c"):
        message = r"must not be in the directory of the model, .* such as '.*atlas-checkpoints'"
        with pytest.raises(ConfigError, match=message):
            fit(simulated, train={"checkpoint_dir": tmp_path / place}, save_dir=tmp_path / "atlas")
        train = bf.TrainConfig(checkpoint_dir=tmp_path / place)
        with pytest.raises(ConfigError, match=message):
            bf.tl.pretrain(simulated, save_dir=tmp_path / "atlas", train=train)
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_times_that_are_none(minutes):
    with pytest.raises(ConfigError, match="checkpoint_minutes must be 0 or a positive number, found"):
        bf.TrainConfig(checkpoint_minutes=minutes)


def test_pretraining_from_the_command_line_continues(simulated, tmp_path, at_step, capsys):
    simulated.write_h5ad(tmp_path / "a.h5ad")
    arguments = ["pretrain", tmp_path / "a.h5ad", "--save-dir", tmp_path / "model", "--checkpoint-dir", tmp_path / "c"]
    call = [*map(str, arguments), "--max-epochs", "1"]
    assert main(call) == 0
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["member-0.checkpoint"]
    first = bf.BioFormer.load(tmp_path / "model")
    at_step(1, lambda: pytest.fail("it was trained again"))
    assert main(call) == 0
    assert bf.BioFormer.load(tmp_path / "model").to_bytes() == first.to_bytes()
    assert main([*call, "--seed", "1"]) == 1
    assert "is the checkpoint of another fit. What differs: rng was 0 and is 1;" in capsys.readouterr().err


# the tree

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None, max_examples=25)
@given(TREES)
def test_a_tree_is_read_back_as_it_was(tree):
    numbers, tensors = torch.arange(3.0), {}
    whole = {"a": tree, 1: (numbers, [torch.tensor(float("inf")), numbers[1:]]), "nan": float("nan")}
    header, body = unseal(seal_tree(whole, tensors), "", "")
    assert repr(_join(header["tree"], read_tensors(body))) == repr(whole)


def seal_tree(tree, tensors) -> bytes:
    split = _split(tree, tensors)
    return seal(tensors, {"tree": split})


# Lightning's own


class Counter(Callback):
    """Counts steps, also over a restart."""

    def __init__(self, state):
        self.n, self.state = 0, state

    def on_train_batch_end(self, *args):
        self.n += 1

    def state_dict(self):
        return {"n": self.n} | self.state

    def load_state_dict(self, state):
        self.n = state["n"]


@pytest.mark.parametrize("kept", [{}, {"a set": {1}}])
def test_callbacks_and_loggers_of_lightning(simulated, fit, killed, tmp_path, caplog, kept):
    rows = CSVLogger(tmp_path, name="rows", version=0)
    counter = Counter(kept)
    killed(4, callbacks=[Counter(kept)])
    found = fit(simulated, callbacks=[counter], logger=rows)
    history = bf.get.history(found)
    n_steps = int(history["step"].max())
    assert counter.n == (n_steps - 3 if kept else n_steps)
    said = caplog.text.count("The state of the callback Counter is not part of the checkpoint: it has a set.")
    assert said == (2 if kept else 0)  # once in each fit
    logged = pd.read_csv(tmp_path / "rows" / "version_0" / "metrics.csv")
    losses = history["train_loss"][1:]  # the first epoch was trained before
    np.testing.assert_allclose(logged["train_loss"].dropna(), losses, rtol=1e-6)
    assert logged["step"].max() == n_steps - 1
