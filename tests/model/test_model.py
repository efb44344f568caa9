"""A fitted model reads each cell by itself, by the names of the genes, and knows itself by its hash."""

import dataclasses
import re
from itertools import product

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scbioformers as bf
from scbioformers.config import Masking
from scbioformers.core import SPECIALS, BioformersWarning, ConfigError, DataError, DepthModels
from scbioformers.data import AnnDataSource
from scbioformers.model import _inference as model_module
from scbioformers.model import embed_cells, on_device, predict_masked, run_network
from scbioformers.results import open_query

USES = ("profile", "cls", "latent", "mean")
CLOSE = 1e-5


@pytest.fixture
def model(fitted):
    return bf.get.model(fitted)


def embed(model, adata, use="profile", batch_size=128) -> np.ndarray:
    return embed_cells(model, open_query(adata, model).source, use=use, batch_size=batch_size)


def with_config(model, **changes):
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **changes))


# a cell's embedding depends on the cell alone


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_batch_size(model, simulated, use, batch_size):
    expected = embed(model, simulated, use)
    np.testing.assert_allclose(embed(model, simulated, use, batch_size=batch_size), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("use", USES)
def test_order_of_cells(model, simulated, use):
    expected = embed(model, simulated, use)
    order = np.random.default_rng(1).permutation(simulated.n_obs)
    shuffled = simulated[order].copy()
    np.testing.assert_allclose(embed(model, shuffled, use), expected[order], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("use", USES)
def test_other_cells(model, simulated, use):
    expected = embed(model, simulated, use)
    for rows in ([3], [59, 0, 17]):
        np.testing.assert_allclose(embed(model, simulated[rows].copy(), use), expected[rows], rtol=0, atol=CLOSE)


@pytest.mark.parametrize(("name", "size"), [("READ_CHUNK", 1), ("READ_CHUNK", 13), ("MAX_BATCH_TOKENS", 40)])
def test_chunks(model, simulated, monkeypatch, name, size):
    expected = embed(model, simulated, "cls")
    monkeypatch.setattr(model_module, name, size)
    np.testing.assert_allclose(embed(model, simulated, "cls"), expected, rtol=0, atol=CLOSE)


def test_batches_stay_within_the_token_budget(model, simulated, monkeypatch):
    monkeypatch.setattr(model_module, "MAX_BATCH_TOKENS", 50)
    read = run_network(model, model.members[0], AnnDataSource(simulated).blocks(), 128)
    shapes = [batch.context_ids.shape for batch, _ in read]
    assert max(n_cells * length for n_cells, length in shapes) <= 50
    assert max(n_cells for n_cells, _ in shapes) > 1
    assert sum(n_cells for n_cells, _ in shapes) == 60


def test_same_bits_again(model, simulated):
    assert np.array_equal(embed(model, simulated), embed(model, simulated))


def test_cells_differ(model, simulated):
    for use in USES:
        values = embed(model, simulated, use)
        assert np.isfinite(values).all()
        assert len(np.unique(values.round(6), axis=0)) == simulated.n_obs, use


# shapes


@pytest.mark.parametrize("use", USES)
def test_shapes(model, simulated, use):
    config = model.config
    width = {"profile": config.n_components, "cls": config.width, "latent": config.n_latent, "mean": config.width}[use]
    values = embed_cells(model, AnnDataSource(simulated), use=use)
    assert values.shape == (60, width)
    assert values.dtype == np.float32


def test_members_are_averaged_in_profile_space_and_concatenated_elsewhere(simulated, tiny_config):
    bf.tl.fit(simulated, config=tiny_config, n_models=2, train=bf.TrainConfig(max_steps=2))
    model = bf.get.model(simulated)
    alone = [dataclasses.replace(model, members=(member,)) for member in model.members]
    for use in ("cls", "latent", "mean"):
        expected = np.hstack([embed(each, simulated, use) for each in alone])
        np.testing.assert_array_equal(embed(model, simulated, use), expected)
    expected = np.mean([embed(each, simulated) for each in alone], axis=0)
    np.testing.assert_allclose(embed(model, simulated), expected, rtol=0, atol=CLOSE)


def test_profile_is_the_projection_of_the_decoded_profile(model, simulated):
    latent = torch.from_numpy(embed(model, simulated, "latent"))
    with torch.no_grad():
        decoded = model.members[0].profile(latent, torch.zeros(len(latent), 0)).numpy()
    assert (decoded >= 0).all()  # log1p of an expected count
    expected = (decoded - model.axes_mean) @ model.axes
    np.testing.assert_allclose(embed(model, simulated), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(model.axes.T @ model.axes, np.eye(model.axes.shape[1]), atol=1e-4)


def test_unknown_use(model, simulated):
    with pytest.raises(ConfigError, match=r"'profile', 'cls', 'latent', 'mean'.*'pca'"):
        embed(model, simulated, "pca")


# genes


@pytest.mark.fault(28)
@pytest.mark.parametrize("use", USES)
def test_permuted_genes_give_the_same_bits(model, simulated, use):
    expected = embed(model, simulated, use)
    order = np.random.default_rng(2).permutation(simulated.n_vars)
    permuted = simulated[:, order].copy()
    assert not (permuted.var_names == simulated.var_names).all()
    assert np.array_equal(embed(model, permuted, use), expected)


def test_missing_genes_are_unknown_not_zero_and_reported(model, simulated, make_depth_models):
    """A cell reads as if they were there and masked, if masked genes have the same share of the depth in all cells."""
    shares = model.gene_mean / model.binnings["rna"].mean_depth
    model = dataclasses.replace(model, depth=make_depth_models(shares))
    at = [2, 5, 30]
    absent = list(simulated.var_names[at])
    asked = np.zeros((60, 40), bool)
    asked[:, at] = True
    masked = model.tokenizer.inference_batch(AnnDataSource(simulated).read(0, 60), np.arange(60), sp.csr_matrix(asked))
    with torch.no_grad():
        expected = model.members[0](masked).cls.numpy()
    zeroed = simulated.copy()
    zeroed.X = zeroed.X.toarray() * ~asked[0]
    partial = simulated[:, ~asked[0]].copy()
    with pytest.warns(BioformersWarning, match=re.escape("37 of the model's 40 genes (92.5 %)")) as caught:
        found = embed(model, partial, "cls")
    assert len(caught) == 1
    assert all(name in str(caught[0].message) for name in absent)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
    assert np.abs(found - embed(model, zeroed, "cls")).max() > 0.01


def test_too_few_genes(model, simulated):
    with pytest.raises(DataError, match=r"Found 8 of the model's 40 genes \(20.0 %\).*, expected at least 20%"):
        embed(model, simulated[:, np.argsort(model.depth_share)[:8]].copy())
    renamed = simulated.copy()
    renamed.var_names = renamed.var_names.str.lower()
    with pytest.raises(DataError, match="case"):
        embed(model, renamed)


def test_extra_genes_without_counts_change_nothing(model, simulated):
    expected = embed(model, simulated)
    extra = ad.AnnData(np.zeros((60, 3), np.float32), obs=simulated.obs[[]], var={"i": [1, 2, 3]})
    extra.var_names = ["aa", "bb", "cc"]
    joined = ad.concat([extra, simulated], axis=1)
    assert np.array_equal(embed(model, joined), expected)


def test_extra_genes_count_for_the_depth_alone(model, simulated):
    few = ad.AnnData(np.full((60, 2), 4, np.float32), obs=simulated.obs[[]], var={"i": [1, 2]})
    few.var_names = ["aa", "bb"]
    one = ad.AnnData(np.full((60, 1), 8, np.float32), obs=simulated.obs[[]], var={"i": [1]})
    one.var_names = ["zz"]
    found = [embed(model, ad.concat([simulated, extra], axis=1)) for extra in (few, one)]
    assert np.array_equal(*found)
    assert not np.allclose(found[0], embed(model, simulated))


# the token budget


@pytest.mark.fault(40)
def test_above_max_tokens_the_highest_counts_are_read(model, simulated):
    """Attention must not see what is over the budget: moving a count between two dropped features changes nothing."""
    whole = with_config(model, bag=False)
    whole.members[0].config = whole.config  # the bag sees every feature, whatever the budget
    few = with_config(whole, max_tokens=5)
    expected = embed(few, simulated, "cls")
    x, moved = simulated.X.toarray(), np.zeros(60, bool)
    for row in range(60):
        order = np.lexsort((np.arange(40), x[row]))  # ascending by (count, id)
        ones = order[:-5][x[row, order[:-5]] == 1]
        if len(ones) > 1 and x[row, order[-5]] > 2:
            x[row, ones[:2]] = 0, 2
            moved[row] = True
    changed = simulated.copy()
    changed.X = x
    assert moved.sum() >= 5
    np.testing.assert_allclose(embed(few, changed, "cls")[moved], expected[moved], rtol=0, atol=CLOSE)
    difference = np.abs(embed(whole, changed, "cls") - embed(whole, simulated, "cls"))[moved].max(axis=1)
    assert (difference > 100 * CLOSE).all()


@pytest.mark.fault(40)
@pytest.mark.parametrize("tokens", ["expressed", "all"])
def test_max_tokens_is_independent_of_chunks(model, simulated, monkeypatch, tokens):
    few = with_config(model, max_tokens=4, tokens=tokens)
    expected = embed(few, simulated, "cls")
    assert not np.allclose(expected, embed(with_config(model, tokens=tokens), simulated, "cls"), atol=1e-3)
    monkeypatch.setattr(model_module, "READ_CHUNK", 11)
    order = np.random.default_rng(3).permutation(60)
    found = embed(few, simulated[order].copy(), "cls", batch_size=3)
    np.testing.assert_allclose(found, expected[order], rtol=0, atol=CLOSE)


def test_max_tokens_as_large_as_the_cell_changes_nothing(model, simulated):
    enough = with_config(model, max_tokens=int((simulated.X > 0).sum(axis=1).max()))
    assert np.array_equal(embed(enough, simulated), embed(model, simulated))


# predictions of what is masked


def question(block, seed=0):
    """Random positions: few of most cells, none of the first, all of the second."""
    asked = np.random.default_rng(seed).random(block.counts.shape) < 0.2
    asked[0], asked[1] = False, True
    return asked


def predictions(model, block, asked, batch_size=128, **kwargs):
    """{(row, feature): probabilities of its bins}"""
    found = {}
    for batch, share in predict_masked(model, block, sp.csr_matrix(asked), batch_size, **kwargs):
        for row, ids, values in zip(batch.rows.tolist(), batch.masked_ids.tolist(), share, strict=True):
            found |= {(row, i - len(SPECIALS)): value for i, value in zip(ids, values, strict=True) if i}
    return found


def assert_close(first, second):
    assert first.keys() == second.keys()
    np.testing.assert_allclose([first[at] for at in second], list(second.values()), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("natural", [True, False])
def test_predictions_are_of_the_asked_positions_whatever_the_batch(model, simulated, natural):
    block = AnnDataSource(simulated).read(10, 40)
    asked = question(block)
    found = predictions(model, block, asked, natural=natural)
    assert found.keys() == {(10 + row, feature) for row, feature in np.argwhere(asked)}
    shares = np.array(list(found.values()))
    assert shares.shape[1] == model.binnings["rna"].n_values
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    assert (shares > 0).all()
    assert_close(predictions(model, block, asked, 4, natural=natural), found)


def test_the_odds_of_a_cell_do_not_depend_on_its_batch_in_any_bit(model, simulated, monkeypatch):
    """Masking rounds the number of expressed features: a last bit could move it by a whole feature."""
    product = torch.Tensor.__matmul__  # made one of a BLAS whose last bits depend on the number of rows
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda x, y: product(x, y) * (1 + 2.0**-50 * len(x)))
    block = AnnDataSource(simulated).read(0, 60)
    asked, seen, odds = sp.csr_matrix(question(block)), [], Masking.odds
    monkeypatch.setattr(Masking, "odds", lambda self, n, of: seen.append(n) or odds(self, n, of))
    numbers = []
    for batch_size in (1, 7, 60):
        rows = [batch.rows.numpy() for batch, _ in predict_masked(model, block, asked, batch_size)]
        numbers.append(np.concatenate(seen)[np.argsort(np.concatenate(rows))])
        seen.clear()
    np.testing.assert_array_equal(numbers[1], numbers[0])
    np.testing.assert_array_equal(numbers[2], numbers[0])


@pytest.mark.parametrize("natural", [True, False])
def test_predictions_know_nothing_of_what_is_asked(model, simulated, natural):
    block = AnnDataSource(simulated).read(0, 30)
    asked, x = question(block), block.counts.toarray()
    random = np.random.default_rng(1)
    drawn = random.integers(0, 2, x.shape) * random.integers(1, 300, x.shape)  # zeros become counts, and counts zeros
    others = np.where(asked, drawn, x).astype(np.float32)
    assert {(a > 0, b > 0) for a, b in zip(x[asked], others[asked], strict=True)} == {*product((True, False), repeat=2)}
    total = block.total + others.sum(axis=1, dtype=float) - x.sum(axis=1, dtype=float)
    other = dataclasses.replace(block, counts=sp.csr_matrix(others), total=total)
    expected = predictions(model, block, asked, natural=natural)
    found = predictions(model, other, asked, natural=natural)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[at], expected[at]) for at in expected)
    query_mask = sp.csr_matrix(asked)
    depths = [model.tokenizer.whole_depth(each, query_mask) for each in (block, other)]
    np.testing.assert_array_equal(*depths)
    seen = dataclasses.replace(block, counts=sp.csr_matrix(np.where(asked, x, 5 * x)))
    changed = predictions(model, seen, asked, natural=natural)
    assert max(np.abs(changed[at] - expected[at]).max() for at in expected) > 0.01


def test_natural_probabilities_take_out_the_odds_of_the_mask(model, simulated):
    """With the same inputs, the odds of a zero are divided by how much likelier the mask makes a zero to be masked."""
    block = AnnDataSource(simulated).read(0, 30)
    asked = question(block)
    asked[1] = False
    natural = predictions(model, block, asked)
    read = model.tokenizer.inference_batch(block, np.arange(30), sp.csr_matrix(asked))
    with torch.no_grad():
        log_probs = model.members[0](read).log_probs.double().numpy()
    seen = np.where(asked, 0, block.counts.toarray()) > 0
    for row, ids in enumerate(read.masked_ids.tolist()):
        usual = model.gene_share.astype(float)
        n_expressed = seen[row].sum() / usual[~asked[row]].sum() * usual.sum()
        (odds,) = model.masking.odds(np.array([n_expressed]), 40)
        for at, feature in enumerate(ids):
            if feature:
                weights = np.exp(log_probs[row, at])
                weights[0] /= odds
                expected = weights / weights.sum()
                np.testing.assert_allclose(natural[row, feature - len(SPECIALS)], expected, rtol=0, atol=CLOSE)


def test_predictions_of_members_are_averaged(ensemble):
    adata = bf.datasets.simulate(20, 30, n_regulators=5, n_batches=2, rng=3)
    block = AnnDataSource(adata, fields=np.zeros((20, 1), np.int32)).read(0, 20)
    asked = question(block)
    alone = [predictions(dataclasses.replace(ensemble, members=(m,)), block, asked) for m in ensemble.members]
    assert_close(predictions(ensemble, block, asked), {at: (alone[0][at] + alone[1][at]) / 2 for at in alone[0]})


# identity


def test_hash_is_stable(model, fitted):
    assert len({model.hash for _ in range(20)}) == 1
    assert bf.BioFormer.from_bytes(model.to_bytes()).hash == model.hash == fitted.uns["bioformer"]["model_hash"]


def test_hash_changes_with_any_weight(model):
    hashes = {model.hash}
    tensors = model.members[0].state_dict().values()
    for tensor in tensors:
        tensor.view(-1)[-1] += 1e-3
        hashes.add(model.hash)
    assert len(hashes) == 1 + len(tensors)


def test_hash_changes_with_configuration_and_axes(model):
    other_drawn = dataclasses.replace(model.depth.drawn, weights=model.depth.drawn.weights * 2)
    other_natural = dataclasses.replace(model.depth.natural, quantiles=model.depth.natural.quantiles * 2)
    others = [
        with_config(model, max_tokens=7),
        dataclasses.replace(model, axes=model.axes * 2),
        dataclasses.replace(model, gene_mean=model.gene_mean * 2),
        dataclasses.replace(model, depth=DepthModels(other_drawn, model.depth.natural)),
        dataclasses.replace(model, depth=DepthModels(model.depth.drawn, other_natural)),
        dataclasses.replace(model, masking=bf.Masking(ratio=0.3)),
        dataclasses.replace(model, vocabulary=model.vocabulary.from_names(model.vocabulary.feature_names()[::-1])),
    ]
    assert len({model.hash, *(other.hash for other in others)}) == 1 + len(others)


def test_repr_says_what_it_is(model):
    assert re.fullmatch(
        rf"BioFormer\(40 genes, 1 layers, width 16, [\d,]+ parameters, 1 member, hash {model.hash[:12]}\)",
        repr(model),
    )


def test_reading_leaves_the_weights_alone(model, simulated):
    before = model.to_bytes()
    for use in USES:
        embed(model, simulated, use)
    assert model.to_bytes() == before
    assert not any(member.training for member in model.members)


def test_another_device_gets_a_copy(ensemble):
    """The tensors of the model itself are neither moved nor changed."""
    before = {name: value.clone() for name, value in ensemble.members[0].state_dict().items()}
    assert on_device(ensemble, "cpu") is ensemble
    moved = on_device(ensemble, "meta")
    assert all(value.is_meta for network in moved.members for value in network.state_dict().values())
    after = ensemble.members[0].state_dict()
    assert all(after[name].device.type == "cpu" and torch.equal(after[name], value) for name, value in before.items())
    assert moved.vocabulary is ensemble.vocabulary


@pytest.mark.parametrize("verb", ["embed", "impute", "grn", "gene_programs"])
def test_a_call_leaves_the_model_as_it_was(ensemble, verb):
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_batches=2, rng=3)
    states = [{name: x.clone() for name, x in network.state_dict().items()} for network in ensemble.members]
    objects = [{name: x.data_ptr() for name, x in network.named_parameters()} for network in ensemble.members]
    getattr(bf.tl, verb)(adata, model=ensemble)
    for network, state, pointers in zip(ensemble.members, states, objects, strict=True):
        assert not network.training
        assert {name: x.data_ptr() for name, x in network.named_parameters()} == pointers
        assert all(torch.equal(x, state[name]) for name, x in network.state_dict().items())
        assert all(x.grad is None for x in network.parameters())
