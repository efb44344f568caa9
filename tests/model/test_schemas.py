"""Models that an earlier version stored, and the scores of known cells that schema 5 adds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import scbioformers as bf
from scbioformers.core import ModelFormatError
from scbioformers.model import _storage

# a model of 6 genes, with a batch, that the last version with schema 4 wrote
SCHEMA4 = Path(__file__).parent / "data" / "schema4.bin"
HASH4 = "69fe1de049aeb30cf77b49effbf1cb73dd7045e0595499387236a3fe83c8ec37"
EMBEDDING4 = [[0.16159606, 0.30080214, 1.1376601, -1.6040558], [-1.5362864, 0.6578073, 1.0683024, -0.19382091]]


@pytest.mark.fault(51)
def test_a_model_of_schema_4_is_read_and_keeps_its_hash():
    model = bf.BioFormer.from_bytes(SCHEMA4.read_bytes())
    assert model.hash == HASH4  # results that were computed with it stay valid
    assert model.score_quantiles.shape == (0,)
    adata = bf.datasets.simulate(n_cells=40, n_genes=6, n_regulators=2, n_batches=2, rng=0)
    bf.tl.embed(adata, model=model, use="cls")
    np.testing.assert_allclose(adata.obsm["X_bioformer"][:2], EMBEDDING4, atol=1e-5)
    again = bf.BioFormer.from_bytes(model.to_bytes())
    assert again.hash == HASH4
    assert len(again.to_bytes()) > len(SCHEMA4.read_bytes())


@pytest.mark.fault(51)
def test_a_directory_of_schema_4_is_read(ensemble, directory):
    tensors = ensemble._tensors()
    for name in ("score_quantiles", "members.0.bag_size", "members.1.bag_size"):  # schema 4 has none
        del tensors[name]
    documents = ensemble._documents()
    documents["config"]["schema"] = 4
    former = _storage.SCHEMA
    _storage.SCHEMA = 4
    try:
        _storage.save(directory, tensors, documents, "")
    finally:
        _storage.SCHEMA = former
    assert json.loads((directory / "manifest.json").read_text())["schema"] == 4
    assert bf.BioFormer.load(directory).hash == ensemble.hash


def test_a_model_with_added_features_has_a_hash_of_its_own(ensemble):
    """How many features were there at first is part of how cells are read."""
    grown = bf.BioFormer.from_bytes(ensemble.to_bytes())
    for network in grown.members:
        network.bag_size.fill_(20)
    assert grown.n_original_features == 20
    assert grown.hash != ensemble.hash
    assert bf.BioFormer.from_bytes(grown.to_bytes()).hash == grown.hash


def test_scores_of_known_cells_are_stored_but_not_hashed(ensemble, tmp_path):
    quantiles = np.linspace(-1, 0.5, 21, dtype=np.float32)
    scored = replace(ensemble, score_quantiles=quantiles)
    assert scored.hash == ensemble.hash
    assert scored.to_bytes() != ensemble.to_bytes()
    for loaded in (bf.BioFormer.from_bytes(scored.to_bytes()), bf.BioFormer.load(scored.save(tmp_path / "saved"))):
        np.testing.assert_array_equal(loaded.score_quantiles, quantiles)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([0.0, -1.0]),
        torch.tensor([0.0]),
        torch.tensor([0.0, float("nan")]),
        torch.zeros(2, 2),
        torch.tensor([0, 1]),
        None,
    ],
    ids=["descending", "one", "nan", "shape", "int64", "missing"],
)
def test_scores_that_no_fit_gives(ensemble, wrong):
    tensors = ensemble._tensors()
    del tensors["score_quantiles"]
    if wrong is not None:
        tensors["score_quantiles"] = wrong
    with pytest.raises(ModelFormatError):
        bf.BioFormer.from_bytes(_storage.pack(tensors, ensemble._documents()))
