"""Reading the results of a fit: the model, the history, the parameters and the gene embeddings."""

import numpy as np
import pandas as pd
import pytest
import torch

import scbioformers as bf
from scbioformers.core import SPECIALS, DataError, MissingKeyError, ModelFormatError

READERS = {"model": bf.get.model, "history": bf.get.history, "params": bf.get.params}


def test_model(fitted, simulated):
    model = bf.get.model(fitted)
    assert isinstance(model, bf.BioFormer)
    assert model.hash == fitted.uns["bioformer"]["model_hash"]
    assert model.vocabulary.feature_names() == list(simulated.var_names)
    assert not any(member.training for member in model.members)


def test_history(fitted):
    history = bf.get.history(fitted)
    assert isinstance(history, pd.DataFrame)
    assert {"member", "epoch", "step", "train_loss"} <= set(history)
    assert (history["member"] == 0).all()
    assert history["epoch"].is_monotonic_increasing
    assert history["step"].max() == 3


def test_reading_gives_copies(fitted):
    history = bf.get.history(fitted)
    history["epoch"] = -1
    assert (bf.get.history(fitted)["epoch"] > 0).all()
    bf.get.params(fitted)["seed"] = -1
    assert bf.get.params(fitted)["seed"] == 0
    before = bf.get.model(fitted).hash
    with torch.no_grad():
        next(bf.get.model(fitted).members[0].parameters()).add_(1)
    assert bf.get.model(fitted).hash == before


def test_params(fitted, tiny_config):
    params = bf.get.params(fitted)
    assert params["config"] == tiny_config.to_dict()
    assert params["train"]["max_steps"] == 3
    assert params["layer"] is None


def test_gene_embeddings(fitted, simulated, tmp_path):
    found = bf.get.gene_embeddings(fitted)
    model = bf.get.model(fitted)
    table = model.members[0].feature.weight.detach().numpy()
    assert found.shape == (40, model.config.width)
    assert list(found.index) == list(simulated.var_names)
    for gene, name in enumerate(simulated.var_names):
        np.testing.assert_array_equal(found.loc[name], table[len(SPECIALS) + gene])
    directory = model.save(tmp_path / "model")
    for source in (model, fitted, directory, str(directory)):
        pd.testing.assert_frame_equal(bf.get.gene_embeddings(model=source), found)
    pd.testing.assert_frame_equal(bf.get.gene_embeddings(simulated, model=model), found)


def test_gene_embeddings_of_an_ensemble_are_concatenated(simulated, tiny_config):
    simulated.var["mine"] = np.arange(40) % 2 == 1
    train = bf.TrainConfig(max_steps=1)
    bf.tl.fit(simulated, mask_var="mine", n_models=2, config=tiny_config, train=train)
    found = bf.get.gene_embeddings(simulated)
    assert found.shape == (20, 32)
    assert list(found.index) == list(simulated.var_names[1::2])
    second = bf.get.model(simulated).members[1].feature.weight.detach().numpy()
    np.testing.assert_array_equal(found.iloc[:, 16:], second[len(SPECIALS) :])


@pytest.mark.parametrize("name", READERS)
def test_nothing_fitted(simulated, name):
    with pytest.raises(
        MissingKeyError, match=r"Did not find adata\.uns\['bioformer'\]\. Run `bf\.tl\.fit\(adata\)` first"
    ):
        READERS[name](simulated)


@pytest.mark.parametrize("name", READERS)
def test_another_key(fitted, name):
    with pytest.raises(MissingKeyError, match=r"\['other'\].*Available: .*'bioformer'"):
        READERS[name](fitted, key="other")
    fitted.uns["other"] = fitted.uns.pop("bioformer")
    assert READERS[name](fitted, key="other") is not None


def test_gene_embeddings_without_a_model(simulated):
    with pytest.raises(MissingKeyError, match="Did not find"):
        bf.get.gene_embeddings(simulated)


def test_gene_embeddings_without_arguments():
    with pytest.raises(DataError, match="Expected an AnnData, found NoneType"):
        bf.get.gene_embeddings()


def test_damaged_model(fitted):
    fitted.uns["bioformer"]["model"][-1] ^= 1
    with pytest.raises(ModelFormatError, match="damaged"):
        bf.get.model(fitted)
    assert not bf.get.history(fitted).empty  # the rest can still be read


@pytest.mark.parametrize("value", [np.zeros(0, np.uint8), np.zeros(100, np.uint8), np.zeros(1000, np.uint8)])
def test_bytes_that_are_not_a_model(fitted, value):
    fitted.uns["bioformer"]["model"] = value
    with pytest.raises(ModelFormatError):
        bf.get.model(fitted)
