"""Phenotypes that the model predicts by itself."""

import numpy as np
import pytest
import torch

import scbioformers as bf
from scbioformers.data import field_codes
from scbioformers.results import open_query
from scbioformers.results._slots import params_from_json
from scbioformers.training import find_validation


def params_of(adata, key):
    return params_from_json(adata.uns[key]["params"])


@pytest.fixture(scope="module")
def fitted():
    adata = bf.datasets.simulate(600, 60, n_types=3, n_regulators=8, n_conditions=2, n_times=4, rng=1)
    config = bf.ModelConfig(width=32, n_heads=2, n_latent=16, n_components=8)
    bf.tl.fit(
        adata, phenotype_keys=["condition", "time"], config=config, train=bf.TrainConfig(max_steps=200, batch_size=32)
    )
    return adata


def test_a_condition_is_predicted_in_cells_that_were_not_seen(fitted):
    adata = fitted.copy()
    bf.tl.annotate(adata, "condition", probabilities=True)
    query = open_query(adata, None)
    rows = find_validation(query.model, query.source)
    right = (adata.obs["bioformer_condition"].astype(str) == adata.obs["condition"].astype(str)).to_numpy()
    assert right[rows].mean() > 0.8
    evidence = bf.get.annotation_evidence(adata, "condition")
    assert evidence["accuracy"] == pytest.approx(right[rows].mean())
    assert evidence["confusion"].to_numpy().sum() == rows.sum()
    table = bf.get.annotation(adata, "condition")
    np.testing.assert_allclose(table[["condition_1", "condition_2"]].sum(axis=1), 1, atol=1e-5)
    assert "masked" in params_of(adata, "bioformer_condition")["by"]


def test_the_value_of_a_cell_does_not_change_its_prediction_and_that_of_others_may(fitted):
    adata = fitted[:50].copy()
    bf.tl.annotate(adata, "condition")
    other = fitted[:50].copy()
    swapped = {"condition_1": "condition_2", "condition_2": "condition_1"}
    other.obs["condition"] = other.obs["condition"].astype(str).map(swapped)
    bf.tl.annotate(other, "condition")
    first, second = (each.obs["bioformer_condition_probability"] for each in (adata, other))
    np.testing.assert_array_equal(first, second)
    bf.tl.annotate(other, "condition", phenotype={"time": 3.0})
    assert not np.allclose(first, other.obs["bioformer_condition_probability"])


def test_a_number_is_predicted_as_the_mean_over_its_knots(fitted):
    adata = fitted.copy()
    bf.tl.annotate(adata, "time")
    query = open_query(adata, None)
    network, block = query.model.members[0], query.source.read(0, 40)
    batch = query.model.tokenizer.inference_batch(block, np.arange(40))
    phenotypes = batch.phenotypes.clone()
    phenotypes[:, 1] = torch.nan
    with torch.no_grad():
        output = network(type(batch)(**{**vars(batch), "phenotypes": phenotypes}))
        probs = network.phenotypes[1].answer(output.phenotypes[:, 1]).softmax(dim=-1).numpy()
    np.testing.assert_allclose(adata.obs["bioformer_time"][:40], probs @ [0, 1, 2, 3], atol=1e-4)
    rows = find_validation(query.model, query.source)
    error = np.abs(adata.obs["bioformer_time"] - adata.obs["time"])[rows].mean()
    params = params_of(adata, "bioformer_time")
    assert params["mean_absolute_error"] == pytest.approx(error, abs=1e-4)
    assert error < params["of_the_mean"]


def test_codes_are_those_of_the_model(fitted):
    model = bf.get.model(fitted)
    assert [each.knots for each in model.phenotypes] == [(), (0.0, 1.0, 2.0, 3.0)]
    codes = field_codes(model.fields, fitted)
    np.testing.assert_array_equal(codes[:, 1], fitted.obs["time"])
