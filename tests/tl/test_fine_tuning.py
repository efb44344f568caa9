"""`tl.fit(adata, model=…)`: a fit that starts from a model."""

import json
import logging
import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch

import scbioformers as bf
from scbioformers.config import Masking
from scbioformers.core import BioformersWarning, ConfigError, DataError, TrainingDiverged
from scbioformers.model import run_network
from scbioformers.nn._transformer import PART_OF, batch_vectors
from scbioformers.results import open_query
from scbioformers.tl._fit_cells import read_cells_for
from scbioformers.training import fit_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*other genes than:scbioformers.core.BioformersWarning"),
    pytest.mark.filterwarnings("ignore:Found .* of the model's:scbioformers.core.BioformersWarning"),
    pytest.mark.filterwarnings("ignore:All-zero genes:scbioformers.core.BioformersWarning"),
]
N_KNOWN = 30
ZERO = bf.TrainConfig(max_steps=0)


@pytest.fixture(scope="module")
def sources():
    """Two data sets of one network, with batches of their own."""
    drawn = bf.datasets.simulate_sources((90, 80), 40, n_regulators=5, measured=1.0, expected=True)
    for adata, names in zip(drawn.values(), ("ab", "bxy"), strict=True):
        adata.obs["batch"] = pd.Categorical([names[i % len(names)] for i in range(adata.n_obs)])
    return list(drawn.values())


@pytest.fixture(scope="module")
def known(sources):
    """The first data set with the genes of `start` alone."""
    return sources[0][:, :N_KNOWN].copy()


@pytest.fixture(scope="module")
def start(known, tiny_config):
    """A model of 30 genes and two batches, 5 steps; nobody may change it."""
    train = bf.TrainConfig(max_steps=5, batch_size=16)
    return bf.get.model(bf.tl.fit(known, config=tiny_config, train=train, batch_key="batch", copy=True))


@pytest.fixture
def second(sources):
    return sources[1].copy()


def fit(adata, start, *, train=ZERO, mask_var=None, **options):
    return bf.get.model(bf.tl.fit(adata, model=start, train=train, mask_var=mask_var, copy=True, **options))


# --- without a step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "directory", "adata"])
def test_without_a_step_and_with_nothing_added_it_is_the_same_model(kind, start, known, tmp_path):
    given = start
    if kind == "directory":
        given = str(start.save(tmp_path / "model"))
    elif kind == "adata":
        given = ad.AnnData(np.ones((1, 1)))
        given.uns["bioformer"] = {"model": np.frombuffer(start.to_bytes(), np.uint8)}
    assert fit(known, given, batch_key="batch").hash == start.hash
    assert fit(known, given).hash == start.hash


def test_what_is_added_changes_nothing_for_cells_without_it(start, known, second):
    found = fit(second, start, batch_key="batch")
    assert found.vocabulary.names[:N_KNOWN] == start.vocabulary.names
    assert found.vocabulary.feature_names()[N_KNOWN:] == second.var_names[N_KNOWN:].tolist()
    assert found.batch.categories == ("a", "b", "x", "y")
    assert found.n_original_features == N_KNOWN
    assert found.binnings == start.binnings
    network, former = found.members[0], start.members[0]
    assert torch.equal(network.feature.weight[: N_KNOWN + 1], former.feature.weight)
    assert torch.equal(network.batch_rate.weight[:2, :N_KNOWN], former.batch_rate.weight)
    for name, n in (("batch_rate", N_KNOWN), ("batch_shift", 16)):
        table, old = (getattr(x, name) for x in (network, former))
        table, old = (getattr(each, "weight", each) for each in (table, old))
        torch.testing.assert_close(batch_vectors(table, None)[:n], batch_vectors(old, None), atol=1e-6, rtol=0)
    for use in ("profile", "cls", "latent"):
        cells = [bf.tl.embed(known, model=model, use=use, copy=True).obsm["X_bioformer"] for model in (start, found)]
        np.testing.assert_allclose(cells[1], cells[0], atol=1e-5)
    imputed = [bf.tl.impute(known, model=model, copy=True).layers["imputed"] for model in (start, found)]
    np.testing.assert_allclose(imputed[1], imputed[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_a_new_phenotype_changes_little(known, tiny_config, attention):
    """Here it says nothing, so its effects on the profiles, which are estimated from the data, are noise."""
    known = known.copy()
    known.obs["half"] = ["low", "high"] * 45
    config = replace(tiny_config, attention=attention)
    start = bf.get.model(bf.tl.fit(known, config=config, train=bf.TrainConfig(max_steps=5, batch_size=16), copy=True))
    found = fit(known, start, phenotype_keys="half")
    assert found.phenotypes[0].categories == ("high", "low")
    before, after = (bf.tl.embed(known, model=model, copy=True).obsm["X_bioformer"] for model in (start, found))
    change = np.square(after - before).mean() ** 0.5 / before.std(axis=0).max()
    assert 0 < change < 0.1


def test_new_genes_are_predicted_better_than_by_their_mean(tiny_config):
    first, second = bf.datasets.simulate_sources((400, 300), 60, n_regulators=5, measured=1.0, expected=True).values()
    first, genes = first[:, :45].copy(), slice(45, 60)
    config, train = replace(tiny_config, width=32), bf.TrainConfig(max_steps=60, batch_size=32)
    start = bf.get.model(bf.tl.fit(first, config=config, train=train, n_models=2, copy=True))
    found = fit(second, start)
    depth = second[:, :45].X.sum(axis=1).A1  # the first data set has no other genes
    truth = np.log1p(second.layers["expected"] / depth[:, None] * found.binnings["rna"].mean_depth)[:, genes]
    query = open_query(second[:, :45].copy(), found)  # the new genes are not visible
    for network in found.members:
        predicted = np.zeros((300, 60))
        for batch, output in run_network(found, network, query.source.blocks(), 64):
            predicted[batch.rows] = network.profile(output.latent, batch.phenotypes).detach().numpy()
        predicted = predicted[:, genes]
        r = [np.corrcoef(predicted[:, j], truth[:, j])[0, 1] for j in range(15)]
        assert np.median(r) > 0.4
        centred = [x - x.mean(axis=0) for x in (predicted, truth)]
        assert np.square(centred[0] - centred[1]).mean() < 0.9 * np.square(centred[1]).mean()
        np.testing.assert_allclose(predicted.mean(axis=0), truth.mean(axis=0), atol=0.35)


def test_the_depth_of_a_panel_does_not_change_where_genes_are_added(sources, tiny_config):
    adata = sources[0].copy()
    train = bf.TrainConfig(max_steps=1, batch_size=16)
    start = bf.get.model(bf.tl.fit(adata, mask_var=np.arange(40) < 20, config=tiny_config, train=train, copy=True))
    panel = adata[:, 8:26].copy()
    with pytest.warns(BioformersWarning, match="estimated from the genes of the model"):
        before = open_query(panel, start).source.read(0, 90).depth
    with pytest.warns(BioformersWarning, match="estimated from the genes of the model"):
        _, cells = read_cells_for(start, panel, None, None, (), False)
    assert len(cells.vocabulary) == 26
    np.testing.assert_allclose(cells.source.read(0, 90).depth.sum(), before.sum())
    after = open_query(panel, fit(panel, start)).source.read(0, 90).depth
    np.testing.assert_allclose(after.sum(), before.sum(), rtol=0.03)
    assert 0.8 < after.sum() / adata.X.sum() < 1.25


# --- what data may have --------------------------------------------------------------------------------------------

SHORT = bf.TrainConfig(max_steps=2, batch_size=16)


@pytest.mark.fault(33, 34)
def test_cells_of_unknown_batches(start, second):
    found = fit(second, start, train=SHORT)  # batches x and y are not registered, because there is no `batch_key`
    assert found.batch == start.batch
    del second.obs["batch"]
    found = fit(second, start, train=SHORT)
    assert found.batch == start.batch
    assert torch.isfinite(found.members[0].feature.weight).all()


def test_fewer_cells_than_components(start, second):
    found = fit(second[:6].copy(), start, train=SHORT)
    assert found.axes.shape == (40, start.config.n_components)
    assert np.isfinite(bf.tl.embed(second, model=found, copy=True).obsm["X_bioformer"]).all()


def test_the_layer_is_remembered(start, second):
    second.layers["counts"] = second.X.copy()
    sc.pp.log1p(second)
    bf.tl.fit(second, model=start, layer="counts", train=SHORT)
    assert bf.get.model(second).reading.layer == "counts"
    assert bf.get.params(second)["layer"] == "counts"
    bf.tl.embed(second)  # X has no counts


def test_a_single_new_batch_is_added_to_the_batches_of_the_model(start, second, tiny_config):
    second.obs["batch"] = "x"
    found = fit(second, start, train=SHORT, batch_key="batch")
    assert found.batch.categories == ("a", "b", "x")
    alone = bf.get.model(bf.tl.fit(second, config=tiny_config, train=SHORT, batch_key="batch", copy=True))
    assert alone.batch is None


def test_phenotypes_beside_new_batches(sources, second, tiny_config):
    first = sources[0].copy()
    for adata in (first, second):
        adata.obs["half"] = np.where(np.arange(adata.n_obs) % 3, "low", "high")
    start = bf.get.model(bf.tl.fit(first, config=tiny_config, train=SHORT, phenotype_keys="half", copy=True))
    found = fit(second, start, train=SHORT, batch_key="batch")
    assert [each.name for each in found.fields] == ["batch", "half"]
    assert found.batch.categories == ("b", "x", "y")
    assert found.phenotypes == start.phenotypes


def test_columns_of_different_names_are_not_merged(start, known, second):
    known = known.copy()
    known.obs["sample"] = known.obs["batch"].map({"a": "a", "b": "c"})  # is "a" the batch "a" of the model?
    same = r"model is 'batch', that of the data 'sample', and both have the categories \['a'\]"
    with pytest.raises(DataError, match=same) as caught:
        fit(known, start, batch_key="sample")
    first, key, second_call = re.findall("`([^`]+)`", str(caught.value))
    for call, name, expected in (
        (first, "batch", ("a", "b", "c")),
        (second_call, "sample", ("a", "b", "new_a", "new_c")),
    ):
        adata = known.copy()
        exec(call, {"adata": adata})
        found = fit(adata, start, batch_key=name)
        assert (found.batch.name, found.batch.categories) == (name, expected)
    assert key == "batch_key='batch'"
    second.obs["lane"] = ["x", "y"] * 40
    found = fit(second, start, batch_key="lane")
    assert (found.batch.name, found.batch.categories) == ("lane", ("a", "b", "x", "y"))


def test_a_column_does_not_change_its_role(start, known, second, tiny_config):
    with pytest.raises(ConfigError, match=r"\['batch'\] is one of `batch_key` in the model, found as `phenotype_keys`"):
        fit(second, start, phenotype_keys="batch")
    pheno = bf.get.model(bf.tl.fit(known, config=tiny_config, train=SHORT, phenotype_keys="batch", copy=True))
    with pytest.raises(ConfigError, match=r"one of `phenotype_keys` in the model, found as `batch_key`"):
        fit(known, pheno, batch_key="batch")
    new = r"has 2 categories that the model has not seen: \['x', 'y'\]. `phenotype_keys=\['batch'\]` adds them"
    with pytest.raises(DataError, match=new):
        fit(second, pheno)
    assert fit(second, pheno, phenotype_keys=["batch"]).phenotypes[0].categories == ("a", "b", "x", "y")


def test_the_global_generator_is_left_alone(start, second):
    state = torch.get_rng_state()
    fit(second, start, train=SHORT)
    assert torch.equal(state, torch.get_rng_state())


# --- training ------------------------------------------------------------------------------------------------------


def test_training_that_lowers_no_validation_loss_keeps_the_weights(start, known, caplog):
    train = bf.TrainConfig(max_steps=4, lr=5.0, warmup_steps=1)
    fitted = bf.tl.fit(known, model=start, train=train, mask_var=None, copy=True)
    for name, weight in start.members[0].state_dict().items():
        if name != "temperature":
            torch.testing.assert_close(bf.get.model(fitted).members[0].state_dict()[name], weight, rtol=0, atol=0)
    losses = bf.get.history(fitted).set_index("step")["val_loss"]
    assert losses.index[0] == 0
    assert losses.idxmin() == 0
    assert "No step lowered the loss" in caplog.text


@pytest.mark.parametrize("frozen", [("embeddings", "bins"), ("blocks", "bag", "decoder")])
def test_frozen_parts_keep_their_bits_and_the_others_learn(start, known, frozen):
    train = bf.TrainConfig(max_steps=3, batch_size=16, lr=1e-2, freeze=frozen, validation_fraction=0.0)
    found = fit(known, start, train=train, batch_key="batch").members[0]
    changed = set()
    for (name, new), (_, old) in zip(found.named_parameters(), start.members[0].named_parameters(), strict=True):
        part = PART_OF[name.split(".")[0]]
        if not torch.equal(new, old):
            changed.add(part)
        assert new.requires_grad
    assert changed == set(PART_OF.values()) - set(frozen)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("head",), r"freeze has \['head'\]; the parts of the network are \['embeddings', 'blocks', "),
        (("bins", "decoder", "bag", "blocks", "embeddings"), "freeze has all parts.*`max_steps=0`"),
    ],
)
def test_parts_that_cannot_be_frozen(freeze, message):
    with pytest.raises(ConfigError, match=message):
        bf.TrainConfig(freeze=freeze)


PARTS = ("embeddings", "blocks", "bag", "bins", "decoder")


@pytest.mark.parametrize("objective", ["masked_bins", "profile"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_no_objective_trains_cannot_be_the_only_one(objective, part, start, known):
    options = {"freeze": tuple(set(PARTS) - {part}), "objectives": {objective: 1.0}}
    if (objective, part) == ("profile", "bins"):
        with pytest.raises(
            ConfigError, match=r"all other parts.*'bins' is not trained by the objectives \['profile'\]"
        ):
            bf.TrainConfig(**options)
        return
    train = bf.TrainConfig(max_steps=2, batch_size=16, lr=1e-2, validation_fraction=0.0, **options)
    found = fit(known, start, train=train, batch_key="batch").members[0].named_parameters()
    old = dict(start.members[0].named_parameters())
    assert {PART_OF[name.split(".")[0]] for name, new in found if not torch.equal(new, old[name])} == {part}


def test_a_part_that_the_model_does_not_have_cannot_be_the_only_one(simulated, tiny_config):
    train = bf.TrainConfig(freeze=tuple(set(PARTS) - {"bag"}))
    with pytest.raises(ConfigError, match=r"all other parts.*'bag' is not part of this model.*ModelConfig\.bag=False"):
        bf.tl.fit(simulated, config=replace(tiny_config, bag=False), train=train)


@pytest.fixture(scope="module")
def pair(known, tiny_config):
    """A model of two members, each with a start of its own."""
    train = bf.TrainConfig(max_steps=3, batch_size=16)
    return bf.get.model(bf.tl.fit(known, config=tiny_config, train=train, n_models=2, copy=True))


def test_all_members_of_an_ensemble_are_trained_further(pair, known, caplog):
    fitted = bf.tl.fit(known, model=pair, train=ZERO, copy=True)
    assert bf.get.model(fitted).hash == pair.hash
    assert bf.get.params(fitted)["n_models"] == 2
    assert "leaves out" not in caplog.text
    trained = fit(known, pair, train=replace(SHORT, validation_fraction=0.0))
    for new, old in zip(trained.members, pair.members, strict=True):
        moved = (new.rate.weight - old.rate.weight).abs().max()
        apart = min((new.rate.weight - other.rate.weight).abs().max() for other in pair.members if other is not old)
        assert 0 < moved < apart
    with caplog.at_level(logging.WARNING, "scbioformers"):
        first = fit(known, pair, n_models=1)
    assert "`model` has 2 members. With `n_models=1`, the first are trained further" in caplog.text
    assert torch.equal(first.members[0].rate.weight, pair.members[0].rate.weight) and len(first.members) == 1


def test_members_share_the_start_and_differ_after_the_training(start, known):
    _, cells = read_cells_for(start, known, None, None, (), False)
    settings = (start.vocabulary, start.binnings["rna"], start.config, ZERO)
    zero = fit_model(cells.source, *settings, start=start, batch=start.batch, n_models=2).model
    assert all(
        torch.equal(a, b) for a, b in zip(zero.members[0].parameters(), start.members[0].parameters(), strict=True)
    )
    different = {
        name.split(".")[0]
        for (name, a), (_, b) in zip(*(member.named_parameters() for member in zero.members), strict=True)
        if not torch.equal(a, b)
    }
    assert different == {"bin_inner", "rate_feature_inner", "latent_inner"}
    trained = fit(known, start, train=replace(SHORT, validation_fraction=0.0), n_models=2)
    first, second = (member.state_dict() for member in trained.members)
    assert not any(torch.equal(first[name], second[name]) for name in ("cls", "rate.weight", "feature.weight"))


def test_new_members_without_a_step_predict_nothing(start, pair, known):
    with pytest.raises(ConfigError, match=r"`n_models=2` adds members to a model that has 1.*Leave out `n_models`"):
        fit(known, start, n_models=2)
    with pytest.raises(ConfigError, match=r"`n_models=3` adds members to a model that has 2"):
        fit(known, pair, n_models=3)


def test_a_new_member_whose_training_diverges_is_not_kept(start, known, caplog):
    wild = replace(SHORT, max_steps=6, lr=1e30, gradient_clip=1e30)
    kept = fit(known, start, train=wild)
    assert "The weights of step 0 are kept" in caplog.text
    for name, value in start.members[0].state_dict().items():
        assert name == "temperature" or torch.equal(kept.members[0].state_dict()[name], value), name
    with pytest.raises(TrainingDiverged, match="NaN at step"):
        fit(known, start, train=wild, n_models=2)


def test_the_support_of_members_that_share_a_start(start, pair, known, caplog, tmp_path):
    shared = fit(known, start, train=SHORT, n_models=3)
    assert [each.n_starts for each in (start, pair, shared)] == [1, 2, 1]
    assert fit(known, pair, train=SHORT).n_starts == 2
    assert fit(known, shared).n_starts == 1  # a second fit does not part them
    mixed = bf.BioFormer.load(fit(known, pair, train=SHORT, n_models=3).save(tmp_path / "mixed"))
    assert (len(mixed.members), mixed.n_starts) == (3, 2)
    assert "3, with" in (card := (tmp_path / "mixed" / "README.md").read_text()) and "they share 2 starts" in card
    said = "The 3 members of the model share 2 starts (they were added by"
    for verb, stored in ((bf.tl.grn, "grn"), (bf.tl.gene_programs, "gene_program")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "scbioformers"):
            found = verb(known, model=mixed, copy=True)
        assert said in caplog.text and "`support` is too high" in caplog.text
        params = json.loads(found.uns[stored]["params"])
        assert (params["n_members"], params["n_starts"]) == (3, 2)
    caplog.clear()
    bf.tl.grn(known, model=pair, copy=True)
    assert "share" not in caplog.text


def test_both_fits_are_remembered(known, second, tiny_config, tmp_path):
    atlas = bf.tl.pretrain([known], config=tiny_config, train=SHORT, save_dir=tmp_path / "atlas")
    bf.tl.fit(second, model=tmp_path / "atlas", train=SHORT, mask_var=None)
    found = bf.get.model(second)
    former = found.provenance["started_from"]
    assert former["hash"] == bf.get.params(second)["started_from"] == atlas.hash
    assert former["history"] == atlas.provenance["history"]
    assert former["sources"] == [{"name": "source_1", "n_cells": 90, "n_features": 30}]
    assert found.provenance["train"] == json.loads(json.dumps(SHORT.to_dict()))
    assert bf.get.history(second)["step"].tolist() == [0, 2]
    assert (
        bf.get.params(fit_copy := bf.tl.fit(known, config=tiny_config, train=SHORT, copy=True))["started_from"] is None
    )
    assert "started_from" not in bf.get.model(fit_copy).provenance


def test_the_default_rate_is_lower():
    assert bf.TrainConfig.fine_tuning() == replace(bf.TrainConfig(), lr=bf.TrainConfig().lr / 4)


def test_the_perturbation_task_starts_from_a_model(start, tiny_config):
    adata = bf.datasets.simulate(90, 40, n_regulators=5, perturbations=["TF1", "TF2"])
    task = bf.Perturbation(key="perturbation", control="control")
    bf.tl.fit(adata, model=start, task=task, train=SHORT, mask_var=None)
    found = bf.get.model(adata)
    assert found.vocabulary.names[:N_KNOWN] == start.vocabulary.names
    assert found.provenance["started_from"]["hash"] == start.hash
    bf.tl.perturb(adata, "TF3")
    effect = adata.varm["perturb_effect"]
    assert np.isfinite(np.asarray(effect)).all()
    assert np.abs(np.asarray(effect)).max() > 0


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "small"}, "`config` must be that of the model that is fine-tuned"),
        ({"config": bf.ModelConfig(width=32, n_heads=2)}, "`config` must be that of the model"),
        ({"binning": "segment"}, r"`binning` must be that of the model.*kind='value'.*Leave out `binning`"),
        ({"binning": bf.Binning(cutoff=4)}, "`binning` must be that of the model"),
        ({"binning": bf.Binning().freeze(mean_depth=5.0, max_bin=9)}, "`binning` must be that of the model"),
        ({"train": bf.TrainConfig(masking=Masking(ratio=0.3))}, r"`TrainConfig\.masking` must be that of the model"),
        ({"n_models": 0}, "`n_models` must be at least 1"),
        ({"model": [1]}, "`model` must be a BioFormer"),
    ],
)
def test_other_parameters_are_refused(start, known, options, message):
    with pytest.raises(ConfigError, match=message):
        bf.tl.fit(known, **{"model": start} | options)


def test_the_same_parameters_are_accepted(start, known, tiny_config):
    options = {"config": tiny_config, "batch_key": "batch"}
    assert fit(known, start, binning="value", **options).hash == start.hash
    assert fit(known, start, binning=start.binnings["rna"], **options).hash == start.hash


@pytest.mark.fault(26)
def test_no_gene_of_the_model(start, second):
    second.var_names = [f"other{i}" for i in range(40)]
    with pytest.raises(DataError, match=r"Found 0 of the model's 30 genes"):
        fit(second, start)


@pytest.mark.fault(4)
def test_log_values_and_a_model_of_value_bins(start, second):
    second.X = second.X.log1p()
    with pytest.raises(DataError, match=re.escape("adata.X is on a log scale")) as caught:
        fit(second, start)
    call = "`bf.tl.fit(adata, binning='segment')` (a new model, without `model=`) reads ranks"
    assert call in str(caught.value)
    bf.tl.fit(second, binning="segment", train=ZERO)
