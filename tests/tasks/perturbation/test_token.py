"""The external token of the perturbed gene: how it is read, trained on pairs, and what it leaves as it was."""

from copy import deepcopy
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scbioformers as bf
from scbioformers.core import SPECIALS
from scbioformers.results import open_query
from scbioformers.tasks.perturbation import (
    TokenPredictor,
    choose_probes,
    pair_chances,
    read_design,
    require_head,
    target_features,
)

TARGETS = [f"TF{i}" for i in range(1, 9)]
UNMEASURED = ["like TF1", "like TF1 too", "unknown"]
TASK = bf.Perturbation("perturbation", "control")
N_GENES = 40


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return bf.datasets.simulate(1000, N_GENES, n_regulators=10, n_batches=2, perturbations=TARGETS, rng=4)


@pytest.fixture(scope="module")
def controls(cells) -> ad.AnnData:
    controls = cells[cells.obs["perturbation"] == "control"].copy()
    config = bf.ModelConfig(width=32, n_heads=2, n_latent=16)
    bf.tl.fit(controls, config=config, train=bf.TrainConfig(max_steps=60))
    return controls


@pytest.fixture(scope="module")
def pairing(controls) -> TokenPredictor:
    """With one feature for each gene, which two targets that are not measured share with TF1."""
    genes = [str(name) for name in controls.var_names]
    features = pd.DataFrame(np.eye(N_GENES), index=genes)
    for name in UNMEASURED[:2]:
        features.loc[name] = features.loc["TF1"]
    features.loc["unknown"] = 0.0
    return of(controls, features)


def of(controls: ad.AnnData, features: pd.DataFrame | None, kind: str = "knockout") -> TokenPredictor:
    model = bf.get.model(controls)
    block = open_query(controls, model, layer=None, key="bioformer").source.rows(np.arange(30))
    genes = [str(name) for name in controls.var_names]
    return TokenPredictor(model, block, *target_features(genes, features), kind)


def flat(pairing: TokenPredictor, n: int) -> np.ndarray:
    return np.full((n, len(pairing.cells.depth)), 1 / len(pairing.cells.depth))


def test_a_knock_out_is_a_count_of_zero_and_one_more_token(pairing):
    cells = np.array([0, 1, 2, 3])
    names = ["TF1", "TF2", "G1", UNMEASURED[0]]
    before, after = (
        pairing.model.tokenizer.inference_batch(pairing.cells.take(cells), cells),
        pairing.perturbed_batch(cells, names),
    )
    for i, name in enumerate(names):
        place = list(pairing.names).index(name)
        token = len(SPECIALS) + (place if place < N_GENES else N_GENES + place)
        there = {int(k) for k in before.context_ids[i] if k > 0}
        found = [int(k) for k in after.context_ids[i] if k > 0]
        assert sorted(found) == sorted(there | {token})
        at = int(torch.nonzero(after.context_ids[i] == token)[0, 0])
        assert int(after.context_bins[i, at]) == 0
        expected = torch.zeros_like(after.context_external[i])
        expected[at] = 1
        torch.testing.assert_close(after.context_external[i], expected)
        others = np.arange(N_GENES) != place
        profile = after.target_counts[i].numpy()
        np.testing.assert_array_equal(profile[others], before.target_counts[i].numpy()[others])
        assert place >= N_GENES or profile[place] == 0


def test_an_activation_is_twice_the_count_and_no_second_token(controls):
    pairing = of(controls, None, "activation")
    counts = pairing.cells.counts.toarray()
    gene = int(np.argmax((counts > 0).sum(axis=0) * ((counts == 0).any(axis=0))))
    name, expressed = str(pairing.names[gene]), counts[:, gene] > 0
    cells = np.arange(len(counts))
    batch = pairing.perturbed_batch(cells, [name] * len(cells))
    mine = batch.context_ids == len(SPECIALS) + gene
    assert (mine.sum(dim=1) == 1).all()  # visible where it is expressed, one more where it is not
    assert (batch.context_external[mine] == 1).all()
    assert not batch.context_external[~mine].any()
    np.testing.assert_array_equal(batch.target_counts[:, gene].numpy(), 2 * counts[:, gene])
    assert (batch.context_bins[mine].numpy() > 0).tolist() == expressed.tolist()


def test_profiles_are_those_of_a_network_with_that_token_and_those_genes(pairing):
    """Beside a network whose tables were changed by hand."""
    token = torch.linspace(-1, 1, 32)
    network = deepcopy(pairing.network)
    with torch.no_grad():
        table = torch.cat([network.feature.weight, torch.randn(43, 32)])
        table[len(SPECIALS) + N_GENES :] = pairing.embeddings[len(SPECIALS) + N_GENES :]
        network.feature = torch.nn.Embedding.from_pretrained(table, padding_idx=0)
        for name in ("TF3", UNMEASURED[0]):
            batch = pairing.perturbed_batch(np.arange(5), [name] * 5)
            told = replace(batch, external=torch.stack([torch.zeros(32), token]))
            torch.testing.assert_close(
                pairing.profiles(batch, token), network.profile(network(told).latent, told.phenotypes)
            )


def test_targets_that_are_not_measured_carry_a_token_by_their_features(pairing):
    token = np.linspace(-1, 1, 32, dtype=np.float32)
    found = pairing.predict([*UNMEASURED, "TF1"], token)
    assert set(found) == {*UNMEASURED[:2], "TF1"}  # nothing is known of the last
    np.testing.assert_array_equal(found[UNMEASURED[0]], found[UNMEASURED[1]])
    assert np.abs(found[UNMEASURED[0]]).max() > 0
    # ridge regression on one feature for each gene: half way from the mean to the gene that shares it
    table, at = pairing.embeddings, {name: i for i, name in enumerate(pairing.names)}
    genes = table[len(SPECIALS) : len(SPECIALS) + N_GENES]
    likely = table[len(SPECIALS) + N_GENES + at[UNMEASURED[0]]]
    torch.testing.assert_close(likely, (genes.mean(dim=0) + genes[at["TF1"]]) / 2)


def test_training_finds_the_token_that_made_the_effects(pairing, all_token_steps):
    """A teacher with a token of its own: answers for other targets than those trained on become the teacher's."""
    teacher = 3 * np.random.default_rng(0).normal(size=32).astype(np.float32)
    names, others = TARGETS[:6], ["TF7", "TF8", "G5", UNMEASURED[0]]
    wanted = pairing.predict([*names, *others], teacher)
    effects = np.stack([wanted[name] for name in names])
    token = pairing.train(names, effects, np.full(effects.shape, 1e-3), flat(pairing, 6), 0)
    before, after = pairing.predict(others, np.zeros(32, np.float32)), pairing.predict(others, token)
    error = [sum(np.abs(found[name] - wanted[name]).sum() for name in others) for found in (before, after)]
    assert error[1] < 0.7 * error[0], error
    np.testing.assert_array_equal(
        pairing.train(names, effects, np.full(effects.shape, 1e-3), flat(pairing, 6), 0), token
    )


def test_the_token_is_all_that_is_trained(controls):
    pairing = of(controls, None)
    before = {name: value.clone() for name, value in pairing.network.state_dict().items()}
    embedding = bf.tl.embed(controls, model=pairing.model, copy=True).obsm["X_bioformer"]
    effects = np.random.default_rng(1).normal(size=(2, N_GENES))
    token = pairing.train(["TF1", "TF2"], effects, np.ones_like(effects), flat(pairing, 2), 0)
    assert token.any()
    assert all(torch.equal(value, before[name]) for name, value in pairing.network.state_dict().items())
    again = bf.tl.embed(controls, model=pairing.model, copy=True).obsm["X_bioformer"]
    np.testing.assert_array_equal(again, embedding)
    stored = bf.BioFormer.from_bytes(pairing.model.to_bytes())
    found = replace(pairing, model=stored).predict(["TF3"], token)["TF3"]
    np.testing.assert_array_equal(found, pairing.predict(["TF3"], token)["TF3"])


def test_controls_are_paired_as_the_perturbed_cells_are_spread(cells):
    """Three of four cells of the first target in one batch, all of the second in the other."""
    some = cells[np.isin(cells.obs["perturbation"], ["control", "TF1", "TF2"])].copy()
    labels, batch = some.obs["perturbation"].to_numpy(), np.array(["a"] * some.n_obs, dtype=object)
    at = {name: np.flatnonzero(labels == name) for name in ("control", "TF1", "TF2")}
    batch[at["control"][:4]] = batch[at["TF1"][: len(at["TF1"]) // 4]] = "b"
    batch[at["TF2"]] = "b"
    some.obs["batch"] = batch
    design = read_design(some, TASK, "batch", list(some.var_names))
    probes = choose_probes(design.controls)
    chances = pair_chances(design, probes)
    in_b = batch[probes] == "b"
    share = len(at["TF1"]) // 4 / len(at["TF1"])
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    np.testing.assert_allclose(chances[0, in_b], share / in_b.sum())
    np.testing.assert_allclose(chances[0, ~in_b], (1 - share) / (~in_b).sum())
    np.testing.assert_allclose(chances[1, in_b], 1 / in_b.sum())
    assert not chances[1, ~in_b].any()


@pytest.mark.parametrize("how", ["drug", "no attention"])
def test_where_there_is_nothing_to_tell(controls, how):
    if how == "drug":
        pairing = of(controls, None, "drug")
    else:
        blind = controls.copy()
        config = bf.ModelConfig(width=16, n_heads=2, attention=False)
        bf.tl.fit(blind, config=config, train=bf.TrainConfig(max_steps=1))
        pairing = of(blind, None)
    effects = np.ones((1, N_GENES))
    assert not pairing.train(["TF1"], effects, effects, flat(pairing, 1), 0).any()
    assert pairing.predict(["TF1"], np.zeros(pairing.network.config.width, np.float32)) == {}


def test_the_network_that_answers_has_been_told_in_training(cells):
    """From cells to predictions: with a token trained on strong effects the network has a say, and a file keeps it."""
    adata = cells.copy()
    bf.tl.fit(
        adata,
        task=TASK,
        config=bf.ModelConfig(width=32, n_heads=2),
        train=bf.TrainConfig(max_steps=30),
    )
    model = bf.get.model(adata)
    untold = cells[cells.obs["perturbation"] == "control"].copy()
    bf.tl.fit(untold, config=model.config, train=bf.TrainConfig(max_steps=30))
    mine, other = model.members[0].state_dict(), bf.get.model(untold).members[0].state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert require_head(model).token.any()
    assert require_head(model).network.any(axis=1).all()
