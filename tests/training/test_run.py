"""Training through Lightning: one process or several, and what they agree on."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.config import Masking, TrainConfig
from scbioformers.core import ConfigError, validation_rows
from scbioformers.data import AnnDataSource, MemorySource
from scbioformers.data._survey import _SPLIT_STREAM
from scbioformers.nn import Sizes
from scbioformers.training._data import TrainingData
from scbioformers.training._depth import fit_depth_models
from scbioformers.training._run import run_training


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


@pytest.fixture(params=[0, 1])
def of_chunks(request, make_block, make_tokenizer, make_network):
    """Data with more cells than a buffer has, and a network for them."""

    def make(**config):
        block = make_block(90, seed=1)
        training = np.random.default_rng(request.param).random(90) < 0.7
        config = TrainConfig(batch_size=4, patience=99, **config)
        data = TrainingData(MemorySource(block), make_tokenizer(block), config, training, ~training, seed=request.param)
        data.sampler = replace(data.sampler, chunk_size=13, buffer_chunks=2)
        return make_network(sizes=Sizes(60, data.tokenizer.binning.n_values)), data, config

    return make


def test_the_schedule_ends_with_the_last_batch_of_the_last_epoch(of_chunks):
    """Chunks of unequal numbers of cells are combined anew in each epoch, so epochs may differ in their batches."""
    network, data, config = of_chunks(max_epochs=4)
    batches = [data.sampler.n_batches(epoch) for epoch in range(4)]
    assert data.sampler.is_large
    history, _ = run_training(network, data, config, True, 0)
    assert [row["step"] for row in history if "train_loss" in row] == np.cumsum(batches).tolist()
    assert history[-1]["epoch"] == 4


@pytest.mark.parametrize("ends", [{"max_epochs": 3}, {"max_epochs": 9, "max_steps": 23}])
def test_with_many_cells_a_fit_has_at_least_ten_validations_whatever_its_epochs(of_chunks, ends):
    network, data, config = of_chunks(**ends)
    history, _ = run_training(network, data, config, True, 0)
    n_steps = ends.get("max_steps", sum(data.sampler.n_batches(epoch) for epoch in range(3)))
    validated = [row["step"] for row in history if "val_loss" in row]
    assert validated == list(range(n_steps // 10, n_steps + 1, n_steps // 10))
    assert history[-1]["step"] == n_steps
    assert 10 <= len(validated) < 20
    assert (np.diff([row["step"] for row in history]) > 0).all()
    assert (np.diff([row["epoch"] for row in history]) > 0).all()
    for row in history:  # the part of the epoch that is done
        done = sum(data.sampler.n_batches(epoch) for epoch in range(int(row["epoch"])))
        if "train_loss" not in row:
            part = (row["step"] - done) / data.sampler.n_batches(int(row["epoch"]))
            assert row["epoch"] % 1 == pytest.approx(part)


def test_two_batches_of_half_the_size_make_the_same_step(simulated, tiny_config):
    histories = []
    for n in (1, 2):
        train = bf.TrainConfig(
            max_epochs=4, batch_size=18 // n, accumulate_grad_batches=n, n_context=None, warmup_steps=2
        )
        adata = bf.tl.fit(simulated, config=tiny_config, train=train, copy=True)
        histories.append(bf.get.history(adata))
    assert histories[1]["step"].tolist() == histories[0]["step"].tolist() == [3, 6, 9, 12]  # 54 cells
    np.testing.assert_allclose(histories[1].to_numpy(), histories[0].to_numpy(), rtol=1e-4)


def test_the_last_step_of_an_epoch_may_be_of_fewer_batches(simulated, tiny_config):
    train = bf.TrainConfig(max_epochs=2, batch_size=18, accumulate_grad_batches=2)
    bf.tl.fit(simulated, config=tiny_config, train=train)
    assert bf.get.history(simulated)["step"].tolist() == [2, 4]


def test_precision_of_weights_in_16_bits_is_refused():
    with pytest.raises(ConfigError, match=r"precision must be one of .*'64-true'.*, found 'bf16-true'"):
        bf.TrainConfig(precision="bf16-true")
