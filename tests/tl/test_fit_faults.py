"""Fit under difficult conditions: few cells, a NaN loss, Ctrl-C, parallel fits, and no side effects."""

import os
import random
import signal
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scbioformers as bf
from scbioformers.core import BioformersError, BioformersWarning, ConfigError, DataError, TrainingDiverged
from scbioformers.data import BlockSource
from scbioformers.nn import OBJECTIVES

TRAIN = bf.TrainConfig(max_steps=3, batch_size=16)


@pytest.fixture
def fit(tiny_config):
    """`bf.tl.fit` with a tiny model and three steps. `train=` changes parameters of the training."""

    def fit(adata, *, train=None, **kwargs):
        return bf.tl.fit(adata, **{"config": tiny_config, "train": replace(TRAIN, **(train or {})), **kwargs})

    return fit


def bits(adata) -> bytes:
    return adata.uns["bioformer"]["model"].tobytes()


def embedded(adata) -> np.ndarray:
    return bf.tl.embed(adata, copy=True).obsm["X_bioformer"]


def expressed(adata):
    """The data without genes that have no count, because these raise a warning."""
    return adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()


# few cells


@pytest.mark.fault(24)
@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_few_cells(simulated, fit, n_cells):
    few = expressed(simulated[:n_cells])
    fit(few)
    values = embedded(few)
    assert values.shape[0] == n_cells
    assert np.isfinite(values).all()


@pytest.mark.fault(25)
@pytest.mark.parametrize("batch_size", [1, 16, 59, 10_000])
def test_batch_sizes(simulated, fit, batch_size):
    fit(simulated, train={"batch_size": batch_size})
    assert np.isfinite(embedded(simulated)).all()


@pytest.mark.fault(24)
def test_last_batch_of_one(simulated, fit):
    train = {"batch_size": 16, "max_steps": None, "max_epochs": 1, "validation_fraction": 0.0}
    few = expressed(simulated[:17])
    fit(few, train=train)
    assert np.isfinite(embedded(few)).all()


@pytest.mark.parametrize("max_epochs", [1, 19, 20, 40])  # a validation after every epoch, or after some
def test_max_steps_within_an_epoch(simulated, fit, max_epochs):
    fit(simulated, train={"max_epochs": max_epochs, "max_steps": 2, "batch_size": 8})
    assert bf.get.history(simulated)["step"].tolist() == [2]
    assert np.isfinite(embedded(simulated)).all()


def test_one_gene(simulated, fit):
    name = simulated.var_names[np.argmax(np.asarray(simulated.X.sum(axis=0)))]
    one = simulated[:, [name]].copy()
    one = one[one.X.toarray().ravel() > 0].copy()
    fit(one)
    assert np.isfinite(embedded(one)).all()


@pytest.mark.fault(20)
def test_empty_cells_are_skipped_and_reported(simulated, fit, caplog):
    x = simulated.X.toarray()
    x[[4, 40]] = 0
    simulated.X = sp.csr_matrix(x)
    fit(simulated, train={"validation_fraction": 0.0})
    assert "2 of 60 cells have no count in the modelled genes" in caplog.text
    without = simulated[~np.isin(np.arange(60), [4, 40])].copy()
    fit(without, train={"validation_fraction": 0.0})
    model, other = bf.get.model(simulated), bf.get.model(without)
    assert model.binnings == other.binnings
    np.testing.assert_allclose(model.gene_mean, other.gene_mean, rtol=1e-6)


def test_no_modelled_gene_is_expressed(simulated, fit):
    x = simulated.X.toarray()
    x[:, :3] = 0
    simulated.X = x
    with (
        pytest.warns(BioformersWarning, match="All-zero genes"),
        pytest.raises(DataError, match="No cell has a count in the modelled genes"),
    ):
        fit(simulated, mask_var=np.arange(40) < 3)


@pytest.mark.fault(22)
def test_zero_genes_that_are_not_modelled_raise_no_warning(simulated, fit):
    x = simulated.X.toarray()
    x[:, 3] = 0
    simulated.X = x
    fit(simulated, mask_var=np.arange(40) != 3)  # a warning would be an error here
    assert len(bf.get.model(simulated).vocabulary) == 39


# objectives with side effects at chosen training steps


class Spy:
    """Replaces an objective. It runs actions at given training steps, and returns given validation losses."""

    def __init__(self, validation, actions=None) -> None:
        self.objective, self.validation, self.actions = OBJECTIVES["masked_bins"], validation, actions or {}
        self.step, self.weights = 0, []

    def __call__(self, network, output, batch):
        loss = self.objective(network, output, batch)
        if network.training:
            self.step += 1
            act = self.actions.get(self.step)
            return act(loss) if act else loss
        self.weights.append({name: x.clone() for name, x in network.state_dict().items()})
        return 0 * loss + self.validation[len(self.weights) - 1]


SPIED = {
    "max_steps": None,
    "max_epochs": 6,
    "batch_size": 18,
    "patience": 50,
    "objectives": {"masked_bins": 1.0},
}


@pytest.fixture
def spy_on(monkeypatch):
    def spy_on(validation, actions=None) -> Spy:
        spy = Spy(validation, actions)
        monkeypatch.setitem(OBJECTIVES, "masked_bins", spy)
        return spy

    return spy_on


def assert_trained(member, expected):
    """The temperature is fitted after the training."""
    for name, tensor in member.state_dict().items():
        assert torch.equal(tensor, expected[name]) == (name != "temperature"), name


def assert_weights(adata, expected):
    (member,) = bf.get.model(adata).members
    assert_trained(member, expected)
    assert np.isfinite(embedded(adata)).all()


@pytest.mark.parametrize("best", [0, 3, 5])
def test_best_weights_are_kept(simulated, fit, spy_on, best):
    validation = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    validation[best] = 1.0
    spy = spy_on(validation)
    fit(simulated, train=SPIED)
    assert len(spy.weights) == 6
    assert_weights(simulated, spy.weights[best])
    np.testing.assert_allclose(bf.get.history(simulated)["val_loss"], validation)


def test_history_has_each_validation_once(simulated, fit, spy_on):
    validation = [5.0, 4.0, 3.0, 2.0, 1.0]
    spy = spy_on([*validation, *validation])
    fit(simulated, train=SPIED | {"max_epochs": 20})
    history = bf.get.history(simulated)
    assert len(history) == 20
    found = history["val_loss"].dropna().tolist()
    np.testing.assert_allclose(found, (validation * 2)[: len(spy.weights)])
    assert history.dropna(subset="val_loss")["epoch"].tolist() == list(range(2, 21, 2))
    assert np.isfinite(history["train_loss"]).all()


def test_early_stopping(simulated, fit, spy_on):
    spy = spy_on([3.0, 2.0, 4.0, 5.0, 1.0, 1.0])
    fit(simulated, train=SPIED | {"patience": 2})
    assert len(spy.weights) == 4
    assert_weights(simulated, spy.weights[1])


@pytest.mark.fault(48)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_loss_keeps_the_best_weights(simulated, fit, spy_on, caplog, bad):
    spy = spy_on([2.0, 1.0, 3.0, 4.0, 5.0, 6.0], {8: lambda loss: loss * bad})
    fit(simulated, train=SPIED | {"max_steps": 18})
    assert spy.step == 8
    assert "NaN at step 8. The weights of step 6 are kept" in caplog.text
    assert_weights(simulated, spy.weights[1])


@pytest.mark.fault(48)
@pytest.mark.parametrize("train", [{}, {"validation_fraction": 0.0}])
def test_nan_loss_before_any_validation(simulated, fit, spy_on, train):
    spy_on([1.0], {2: lambda loss: loss * np.nan})
    before = set(simulated.uns)
    with pytest.raises(TrainingDiverged, match=r"NaN at step 2; try a lower TrainConfig\.lr"):
        fit(simulated, train=SPIED | train)
    assert set(simulated.uns) == before
    assert issubclass(TrainingDiverged, BioformersError)


@pytest.fixture
def handler():
    """The handler of Ctrl-C, which a fit must restore."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, former)


def interrupt(loss):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler runs between two bytecodes of this thread
    return loss


@pytest.mark.fault("sigint")
@pytest.mark.parametrize(("step", "best"), [(8, 1), (10, 1), (1, 0)])
def test_interrupt_keeps_the_best_weights(simulated, fit, spy_on, handler, caplog, step, best):
    spy = spy_on([2.0, 1.0, 3.0, 4.0, 5.0, 6.0], {step: interrupt})
    fit(simulated, train=SPIED)
    assert spy.step == step
    assert "Interrupted" in caplog.text
    assert_weights(simulated, spy.weights[best])
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.fault("sigint")
def test_interrupt_from_outside(simulated, fit, handler, monkeypatch):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    objective = OBJECTIVES["masked_bins"]

    def timed(*args):
        if timer.ident is None:  # the first step; before it, Ctrl-C must end the program
            timer.start()
        return objective(*args)

    monkeypatch.setitem(OBJECTIVES, "masked_bins", timed)
    start = time.process_time()
    try:
        fit(simulated, train={"max_steps": None, "max_epochs": 10_000, "patience": 10_000, "validation_fraction": 0.0})
    finally:
        timer.join()
    assert time.process_time() - start < 20
    assert 1 <= bf.get.history(simulated)["step"].max() < 30_000
    assert np.isfinite(embedded(simulated)).all()
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.fault("sigint")
def test_interrupted_ensemble_has_the_members_so_far(simulated, fit, spy_on, handler, caplog):
    spy = spy_on([2.0, 1.0, 3.0, 4.0, 5.0, 6.0] * 2, {20: interrupt})
    fit(simulated, train=SPIED, n_models=3)
    assert spy.step == 20
    assert "The model has 2 of 3 members" in caplog.text
    model = bf.get.model(simulated)
    assert len(model.members) == 2
    for i, weights in enumerate((1, 6)):  # the best of the first; the interrupted one has one validation
        assert_trained(model.members[i], spy.weights[weights])
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.fault("sigint")
def test_second_interrupt_aborts(simulated, fit, spy_on, handler):
    spy_on([1.0] * 6, {4: lambda loss: interrupt(interrupt(loss))})
    with pytest.raises(KeyboardInterrupt):  # Lightning would end Python
        fit(simulated, train=SPIED)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "bioformer" not in simulated.uns


# hardware


@pytest.mark.fault(50)
@pytest.mark.parametrize("name", ["cuda", "cuda:7", "cuda:x", "gpu", "mps"])
def test_missing_device(simulated, fit, name):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("the device is available")
    with pytest.raises(ConfigError, match=f"The device '{name}' is not available; use 'auto' or 'cpu'"):
        fit(simulated, device=name)
    assert "bioformer" not in simulated.uns


@pytest.mark.fault(50)
def test_missing_device_raises_an_error_before_any_work(simulated, fit, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the device is available")
    monkeypatch.setattr(BlockSource, "read", lambda *args: pytest.fail("the data was read"))
    with pytest.raises(ConfigError, match="The device 'cuda'"):
        fit(simulated, device="cuda")


# no side effects


def digest(adata) -> list:
    x = adata.X
    return [
        x.data.tobytes(),
        x.indices.tobytes(),
        x.indptr.tobytes(),
        x.dtype,
        pd.util.hash_pandas_object(adata.obs).tolist(),
        pd.util.hash_pandas_object(adata.var).tolist(),
        sorted(adata.layers),
        sorted(adata.uns),
        sorted(adata.obsm),
        sorted(adata.varm),
        adata.X.has_sorted_indices,
    ]


def global_state() -> dict:
    state = np.random.get_state()
    return {
        "numpy": (state[0], state[1].tobytes(), *state[2:]),
        "random": random.getstate(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": sorted(os.listdir()),
        "signal": signal.getsignal(signal.SIGINT),
        "scipy": np.geterr(),
    }


@pytest.mark.fault("random-state")
def test_global_state_and_input_are_not_changed(simulated, fit, tmp_path, monkeypatch, tiny_config):
    monkeypatch.chdir(tmp_path)
    simulated.X = sp.csr_matrix(simulated.X)
    data, state = digest(simulated), global_state()
    fitted = fit(simulated, config=replace(tiny_config, dropout=0.1), batch_key="batch", copy=True)
    assert digest(simulated) == data
    assert global_state() == state
    data = digest(fitted)
    bf.tl.embed(fitted, copy=True)
    assert digest(fitted) == data
    assert global_state() == state


@pytest.mark.fault("random-state")
def test_global_random_states_do_not_change_the_result(simulated, fit, tiny_config):
    found = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            found.append(bits(fit(simulated, config=replace(tiny_config, dropout=0.2), copy=True)))
    assert found[0] == found[1]


def test_nothing_is_printed(simulated, fit, capfd, caplog, recwarn):
    fit(simulated)
    bf.tl.embed(simulated)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert not recwarn.list


def fits(fit, adata, config, *, parallel: bool) -> dict[int, bytes]:
    """Bytes of two fits with different seeds, one after the other or in parallel threads."""
    results = {}

    def run(rng):
        results[rng] = bits(fit(adata, config=config, train={"max_steps": 12}, rng=rng, copy=True))

    threads = [threading.Thread(target=run, args=(rng,)) for rng in (0, 1)]
    for thread in threads:
        thread.start()
        if not parallel:
            thread.join(60)
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    return results


@pytest.mark.fault("two-fits")
def test_parallel_fits_give_the_same_results(simulated, fit, tiny_config):
    with warnings.catch_warnings():  # warning filters are global, so two threads may change them
        expected = fits(fit, simulated, tiny_config, parallel=False)
        assert fits(fit, simulated, tiny_config, parallel=True) == expected
