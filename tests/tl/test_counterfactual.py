"""The same cells under another phenotype: against decoding by hand, truth of simulations, and faults."""

import logging

import anndata as ad
import numpy as np
import pytest
import torch

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.model import run_network
from scbioformers.results import open_query

KEYS = ["condition", "time"]


@pytest.fixture(scope="module")
def fitted():
    adata = bf.datasets.simulate(400, 40, n_types=3, n_regulators=5, n_conditions=2, n_times=3, rng=2)
    config = bf.ModelConfig(width=32, n_heads=2, n_latent=16, n_components=8)
    bf.tl.fit(adata, phenotype_keys=KEYS, config=config, train=bf.TrainConfig(max_steps=60), n_models=2)
    return adata


def decoded(adata, position):
    """Profiles by hand: each member, cell by cell, with another condition."""
    query = open_query(adata, None)
    found = np.zeros((2, adata.n_obs, 40))
    with torch.no_grad():
        for i, network in enumerate(query.model.members):
            for batch, output in run_network(query.model, network, [query.source.read(0, adata.n_obs)], 1):
                phenotypes, latent = batch.phenotypes.clone(), output.latent
                if position is not None:
                    shift = network.phenotypes[0].latent_shift[[int(phenotypes[0, 0]), int(position)]]
                    latent = latent + shift[1] - shift[0]
                    phenotypes[:, 0] = position
                found[i, batch.rows] = network.profile(latent, phenotypes)
    return found


def test_profiles_effects_and_errors_are_those_of_decoding_by_hand(fitted):
    adata = fitted[:90].copy()
    bf.tl.counterfactual(adata, {"condition": "condition_2"}, groupby="cell_type")
    own, other = decoded(adata, None), decoded(adata, 1.0)
    np.testing.assert_allclose(adata.layers["counterfactual"], other.mean(axis=0), atol=1e-5)
    change, differs = other - own, (adata.obs["condition"] == "condition_1").to_numpy()
    table = bf.get.counterfactual(adata)
    for name in adata.obs["cell_type"].cat.categories:
        rows = differs & (adata.obs["cell_type"] == name).to_numpy()
        of_group = table[table["group"] == name].set_index("gene").loc[adata.var_names]
        np.testing.assert_allclose(of_group["effect"], change[:, rows].mean(axis=(0, 1)), atol=1e-5)
        np.testing.assert_allclose(of_group["predicted"], other[:, rows].mean(axis=(0, 1)), atol=1e-5)
        of_cells = change.mean(axis=0)[rows].var(axis=0, ddof=1) / rows.sum()
        of_members = change[:, rows].mean(axis=1).var(axis=0, ddof=1) / 2
        np.testing.assert_allclose(of_group["se"], np.sqrt(of_cells + of_members), atol=1e-5)
    assert table.groupby("group")["effect"].apply(lambda x: x.abs().is_monotonic_decreasing).all()


def test_the_latent_is_moved_by_the_difference_of_similar_cells(fitted):
    for network in bf.get.model(fitted).members:
        first, second = network.phenotypes[0].latent_shift
        assert (first - second).norm() > 0.05
        # conditions are of equal size, so each is as far from the mean of all cells
        torch.testing.assert_close(first, -second, atol=0.05, rtol=0.5)
        latent, own = torch.randn(4, 16), torch.tensor([[0.0, 1.0]] * 4)
        assert torch.equal(network.moved(latent, own, own), latent)
        halfway = network.moved(latent, own, torch.tensor([[0.5, 1.0]] * 4))
        torch.testing.assert_close(halfway, latent + (second - first) / 2)


def test_effects_have_the_sign_and_the_order_of_the_truth(fitted):
    adata = fitted.copy()
    bf.tl.counterfactual(adata, {"condition": "condition_2"})
    found = adata.varm["counterfactual_effect"]["all"].to_numpy()
    true = adata.uns["condition_true"]["condition_2"].to_numpy()
    large = np.abs(true) > 0.5
    assert large.sum() >= 5
    # the depth is fixed, so what falls lets the others rise a little
    assert (np.sign(found[large]) == np.sign(true[large])).mean() > 0.85
    assert np.corrcoef(found, true)[0, 1] > 0.8


def test_a_number_is_interpolated_and_beyond_the_training_data_extrapolated_with_a_warning(fitted):
    adata, profiles = fitted[:20].copy(), {}
    for time in (0.0, 0.5, 1.0):
        bf.tl.counterfactual(adata, {"time": time})
        profiles[time] = adata.layers["counterfactual"]
    between = (profiles[0.5] - profiles[0.0]) * (profiles[1.0] - profiles[0.5])
    changed = np.abs(profiles[1.0] - profiles[0.0]) > 0.05
    assert changed.any()
    assert (between[changed] > 0).mean() > 0.9
    with pytest.warns(
        BioformersWarning, match=r"fitted to, 0 to 2, such as 2.5. What the model learned is extrapolated"
    ):
        bf.tl.counterfactual(adata, {"time": 2.5})
    with pytest.warns(BioformersWarning, match=r"such as 60\. Is this the same unit"):
        bf.tl.counterfactual(adata, {"time": 60})


def test_a_time_that_was_not_measured_is_the_mean_over_the_cells_of_its_neighbours(fitted):
    near = fitted[fitted.obs["time"].isin([0.0, 1.0])].copy()
    bf.tl.counterfactual(near, {"time": 0.5}, model=fitted)
    predicted = bf.get.counterfactual(near).set_index("gene")["predicted"][fitted.var_names]
    whole = fitted.copy()
    bf.tl.counterfactual(whole, {"time": 0.5})
    expected = whole[near.obs_names].layers["counterfactual"].mean(axis=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-5)
    whole.obs["time"] = whole.obs["time"].astype("category")
    bf.tl.counterfactual(whole, {"time": 0.5}, groupby="time")  # one neighbour at a time
    by_time = bf.get.counterfactual(whole).pivot(index="gene", columns="group", values="predicted")
    sizes = [int((near.obs["time"] == time).sum()) for time in (0.0, 1.0)]
    np.testing.assert_allclose(np.average(by_time[["0", "1"]], axis=1, weights=sizes), predicted[by_time.index], 1e-4)


def test_phenotypes_are_set_in_embeddings_and_imputed_values(fitted):
    adata = fitted[:30].copy()
    as_given = adata.copy()
    as_given.obs["condition"] = "condition_2"
    bf.tl.embed(as_given)
    bf.tl.embed(adata, phenotype={"condition": "condition_2"})
    np.testing.assert_array_equal(adata.obsm["X_bioformer"], as_given.obsm["X_bioformer"])
    bf.tl.impute(as_given)
    bf.tl.impute(adata, phenotype={"condition": "condition_2"})
    np.testing.assert_array_equal(adata.layers["imputed"], as_given.layers["imputed"])


def test_it_survives_h5ad_and_names_with_a_slash(fitted, tmp_path):
    adata = fitted[:60].copy()
    adata.obs["group"] = np.where(np.arange(60) % 2, "CD4+/Treg", "B")
    bf.tl.counterfactual(adata, {"condition": "condition_2"}, groupby="group")
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert list(read.varm["counterfactual_effect"]) == ["B", "CD4+%2FTreg"]
    assert bf.get.counterfactual(read, group="CD4+/Treg").equals(bf.get.counterfactual(adata, group="CD4+/Treg"))
    axes = bf.pl.counterfactual(read, n_top=5, show=False)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["B", "CD4+/Treg"]
    assert len(axes[0].get_yticklabels()) == 5


def test_evidence_compares_with_groups_whose_cells_were_left_out(fitted, caplog):
    adata = fitted.copy()
    caplog.set_level("INFO", "scbioformers")
    bf.tl.counterfactual(adata, {"condition": "condition_2"}, groupby="cell_type", evidence=True)
    # the fits themselves say nothing, and the messages are as before afterwards
    assert [message.split(":")[0] for message in caplog.messages[:1]] == ["Evidence"]
    assert not any(message.startswith(("Fitted", "Masking")) for message in caplog.messages)
    assert logging.getLogger("scbioformers").level == logging.INFO
    table = bf.get.counterfactual_evidence(adata)
    names = list(adata.obs["cell_type"].cat.categories)
    assert table["group"].unique().tolist() == names
    has = adata.obs["condition"] == "condition_2"
    counts = adata.X.toarray() / adata.X.sum(axis=1).A1[:, None]
    profiles = np.log1p(counts * bf.get.model(adata).binnings["rna"].mean_depth)
    effects = {}
    for name in names:
        own = (adata.obs["cell_type"] == name).to_numpy()
        effects[name] = profiles[own & has].mean(axis=0) - profiles[own & ~has].mean(axis=0)
    for name in names:
        rows = table[table["group"] == name].set_index("method")
        others = np.mean([effect for other, effect in effects.items() if other != name], axis=0)
        expected = np.corrcoef(others, effects[name])[0, 1], np.sqrt(np.mean((others - effects[name]) ** 2))
        np.testing.assert_allclose(
            rows.loc["mean of the other groups", ["pearson", "rmse"]].astype(float), expected, rtol=1e-3
        )
        assert rows.loc["model", "n_cells"] == (has & (adata.obs["cell_type"] == name)).sum()
        assert rows.loc["model", "pearson"] > 0.5
    assert len(bf.pl.counterfactual(adata, show=False)) == 2


@pytest.mark.fault("counterfactual-unknown")
def test_what_the_model_does_not_have(fitted):
    adata = fitted[:20].copy()
    with pytest.raises(ConfigError, match=r"`phenotype` has 'dose', which is no phenotype.*\['condition', 'time'\]"):
        bf.tl.counterfactual(adata, {"dose": 1})
    with pytest.raises(ConfigError, match=r"is 'stim', which the model has not seen. It knows .*condition_1"):
        bf.tl.counterfactual(adata, {"condition": "stim"})
    with pytest.raises(ConfigError, match=r"must be a number, found '4h'"):
        bf.tl.counterfactual(adata, {"time": "4h"})
    with pytest.raises(ConfigError, match=r"`phenotype` is empty"):
        bf.tl.counterfactual(adata, {})
    with pytest.raises(MissingKeyError, match=r"bf.tl.counterfactual\(adata"):
        bf.get.counterfactual(adata)


@pytest.mark.fault("counterfactual-evidence")
def test_evidence_needs_the_data_of_the_fit_and_groups_with_and_without_the_phenotype(fitted):
    adata = fitted.copy()
    with pytest.raises(ConfigError, match="Leave out `model`"):
        bf.tl.counterfactual(adata, {"condition": "condition_2"}, evidence=True, model=bf.get.model(fitted))
    with pytest.raises(DataError, match=r"1 of 1 groups have at least 20 cells .* Pass another `groupby`"):
        bf.tl.counterfactual(adata, {"condition": "condition_2"}, evidence=True)
    bf.tl.counterfactual(adata, {"condition": "condition_2"})
    with pytest.raises(MissingKeyError, match=r"holds no evidence. Run .*evidence=True"):
        bf.get.counterfactual_evidence(adata)
