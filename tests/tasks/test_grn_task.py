"""Attention, knock-outs and embeddings against loops over single cells, and against each other at every batch size."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from tqdm.auto import tqdm

import scbioformers as bf
from scbioformers.core import SPECIALS, ConfigError
from scbioformers.data import AnnDataSource, Block, MemorySource
from scbioformers.model import make_batches
from scbioformers.tasks import EdgeScorer, draw_conditions
from scbioformers.tasks import _grn as regulation
from scbioformers.tasks._grn import sum_attention

CONFIGS = {
    "one layer": bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8),
    "two layers, four heads, masked attended": bf.ModelConfig(
        width=16, n_layers=2, n_heads=4, n_latent=8, n_components=8, attend_masked=True, dropout=0.2
    ),
    "no bag, all tokens": bf.ModelConfig(
        width=16, n_layers=2, n_heads=2, n_latent=8, n_components=8, bag=False, tokens="all"
    ),
}
TRAIN = bf.TrainConfig(max_steps=3, batch_size=16)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def fit(request):
    """A model and 30 cells of unequal length, one of them empty."""
    adata = bf.datasets.simulate(60, 20, n_regulators=4, n_batches=2, rng=0)
    bf.tl.fit(adata, config=request.param, train=TRAIN, batch_key="batch")
    model = bf.get.model(adata)
    block = AnnDataSource(adata, fields=(adata.obs["batch"] == "batch_2").to_numpy(np.int32)[:, None]).read(0, 30)
    counts = block.counts.toarray()
    counts[3] = 0
    return model, replace(block, counts=sp.csr_matrix(counts))


def ask(model, method, regulators=None, **kwargs) -> EdgeScorer:
    chosen = np.arange(len(model.vocabulary)) if regulators is None else np.array(regulators)
    return EdgeScorer(model, method, chosen, **kwargs)


def weigh(asked: EdgeScorer, cells: Block, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return asked.score(asked.model.members[0], MemorySource(cells), seed, tqdm(disable=True))


def expressing(cells: Block) -> np.ndarray:
    """(M, M), number of cells that express the rarer of two genes."""
    n = (cells.counts.toarray() > 0).sum(axis=0)
    return np.minimum.outer(n, n)


# attention


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


class Naive:
    """The transformer written out for one cell and one query at a time, in double precision."""

    def __init__(self, network) -> None:
        self.network, self.n_heads = network.eval(), network.config.n_heads
        self.state = {name: value.double().numpy() for name, value in network.state_dict().items()}

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def step(self, x, tokens, readable, layer):
        """A query after a block, and what each of its heads read of each token."""
        at, width = f"blocks.{layer}", len(x)
        projected = self.linear(self.norm(tokens, f"{at}.attention_norm"), f"{at}.attention.key_value")
        query = self.linear(self.norm(x, f"{at}.attention_norm"), f"{at}.attention.query")
        size, read, mixed = width // self.n_heads, [], []
        for head in range(self.n_heads):
            part = slice(head * size, (head + 1) * size)
            logits = projected[:, :width][:, part] @ query[part] / np.sqrt(size)
            weights = softmax(np.where(readable, logits, -np.inf))
            read.append(weights)
            mixed.append(weights @ projected[:, width:][:, part])
        x = x + self.linear(np.concatenate(mixed), f"{at}.attention.out")
        inner = np.maximum(self.linear(self.norm(x, f"{at}.feedforward_norm"), f"{at}.expand"), 0)
        return x + self.linear(inner, f"{at}.contract"), np.array(read)

    @torch.no_grad()
    def attention(self, batch, n_layers):
        """(layers, heads, C, C) of a batch of one cell."""
        network = self.network
        bag = network.bag(batch) if network.config.bag else torch.zeros(1, network.config.width)
        words, which = network.context_tokens(batch)
        head, masked = network.query_tokens(replace(batch, masked_ids=batch.context_ids), bag)
        tokens = torch.cat([head[0], words[which[0]]]).double().numpy()
        queries, n_head, n = masked[0].double().numpy(), head.shape[1], batch.context_ids.shape[1]
        found = np.zeros((n_layers, self.n_heads, n, n))
        for layer in range(n_layers):
            after = []
            for i, query in enumerate(queries):
                readable = np.arange(len(tokens)) != n_head + i
                query, read = self.step(query, tokens, readable, layer)
                found[layer, :, i] = read[:, n_head:]
                after.append(query)
            everything = np.ones(len(tokens), bool)
            tokens = np.array([self.step(token, tokens, everything, layer)[0] for token in tokens])
            queries = np.array(after)
        return found


def naive_attention(model, cells, layers, heads):
    """Sums and counts, cell by cell."""
    n = len(model.vocabulary)
    total, count, naive = np.zeros((n, n)), np.zeros((n, n), int), Naive(model.members[0])
    for i in range(len(cells.depth)):
        (batch,) = make_batches(model, cells.take(np.array([i])), 1)
        genes = batch.context_ids[0].numpy() - len(SPECIALS)
        if not (genes >= 0).all():  # nothing is expressed
            continue
        read = naive.attention(batch, model.config.n_layers)[layers][:, heads].mean(axis=(0, 1))
        for a, target in enumerate(genes):
            for b, regulator in enumerate(genes):
                total[target, regulator] += read[a, b]
                count[target, regulator] += 1
    return total, count


def test_attention_is_summed_over_blocks(fitted, monkeypatch):
    expected = bf.tl.grn(fitted, method="attention", n_cells=None, copy=True)
    monkeypatch.setattr("scbioformers.tasks._grn.STREAM_CELLS", 17)
    found = bf.tl.grn(fitted, method="attention", n_cells=None, copy=True)
    assert (found.varp["grn_count"] != expected.varp["grn_count"]).nnz == 0
    np.testing.assert_allclose(found.varp["grn"].toarray(), expected.varp["grn"].toarray(), rtol=0, atol=1e-6)
    assert found.uns["grn"]["params"] == expected.uns["grn"]["params"]


@pytest.mark.parametrize(("layers", "heads"), [(None, None), ([0], [1]), ([-1], [1, 0])], ids=str)
def test_attention_equals_loops(fit, layers, heads):
    model, cells = fit
    layers = None if layers is None else [i % model.config.n_layers for i in layers]
    found, found_count = sum_attention(model, model.members[0], [cells], layers, heads, tqdm(disable=True))
    every = list(range(model.config.n_layers)), list(range(model.config.n_heads))
    expected, count = naive_attention(model, cells, layers or every[0], heads or every[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.array_equal(found_count, count)
    assert np.abs(np.diag(found)).max() == 0


def test_attention_is_corrected_and_rare_pairs_shrink(fit):
    model, cells = fit
    total, count = naive_attention(model, cells, list(range(model.config.n_layers)), list(range(model.config.n_heads)))
    np.fill_diagonal(count, 0)
    mean = total / np.where(count > 0, count, np.nan)
    rows, columns = np.nanmean(mean, axis=1), np.nanmean(mean, axis=0)
    expected = (mean - np.outer(rows, columns) / np.nanmean(mean)) * count / (count + 10)
    pairs = weigh(ask(model, "attention", [2, 0]), cells)
    np.testing.assert_allclose(pairs.weight, expected[:, [2, 0]], atol=1e-5)
    assert np.array_equal(pairs.count, np.minimum(count, expressing(cells))[:, [2, 0]])
    assert not pairs.signed
    assert np.array_equal(pairs.strength, pairs.weight, equal_nan=True)


# knock-outs


@torch.no_grad()
def naive_log_rate(model, counts, depth, fields):
    block = Block(0, sp.csr_matrix(counts[None]), np.array([depth]), fields[None])
    (batch,) = make_batches(model, block, 1)
    return model.members[0].eval()(batch).log_rate[0].double().numpy()


def explained_by_hand(model, cells, rates):
    """Spread of each gene's predicted log1p profile over the cells, as a share of the measured one."""
    measured = np.log1p(cells.counts.toarray() / cells.depth[:, None] * model.binnings["rna"].mean_depth)
    return np.minimum(np.log1p(np.exp(rates)).std(axis=0) / measured.std(axis=0), 1)


def test_knockout_equals_one_by_one(fit):
    model, cells = fit
    counts = cells.counts.toarray()
    pairs = weigh(ask(model, "knockout"), cells)
    rates = [naive_log_rate(model, x, cells.depth[i], cells.fields[i]) for i, x in enumerate(counts)]
    explained = explained_by_hand(model, cells, rates)
    for regulator in range(0, 20, 4):
        changes = []
        for i in np.flatnonzero(counts[:, regulator]):
            without = counts[i].copy()
            without[regulator] = 0
            before, after = (naive_log_rate(model, x, cells.depth[i], cells.fields[i]) for x in (counts[i], without))
            changes.append(before - after)
        effect = np.mean(changes, axis=0) * explained
        effect[regulator] = 0
        expected = effect / np.sqrt((effect**2).sum()) * explained[regulator]
        expected[regulator] = np.nan
        np.testing.assert_allclose(pairs.weight[:, regulator], expected, atol=1e-4)
        assert np.array_equal(pairs.count[:, regulator], expressing(cells)[:, regulator])
    assert pairs.signed
    assert np.array_equal(pairs.strength, np.abs(pairs.weight), equal_nan=True)


def test_a_regulator_that_no_cell_expresses(fit):
    model, cells = fit
    counts = cells.counts.toarray()
    counts[:, 1] = 0
    cells = replace(cells, counts=sp.csr_matrix(counts))
    for regulators in ([0, 1], [1]):
        pairs = weigh(ask(model, "knockout", regulators), cells)
        assert np.isnan(pairs.weight[:, -1]).all()
        assert (pairs.count[:, -1] == 0).all()


def test_knocked_out_in_a_few_cells_of_those_that_express_it(fit, monkeypatch):
    model, cells = fit
    monkeypatch.setattr(regulation, "N_PROBES", 4)
    some, same, other = (weigh(ask(model, "knockout", [0]), cells, seed) for seed in (1, 1, 2))
    assert np.array_equal(some.count[:, 0], np.minimum(expressing(cells)[:, 0], 4))
    assert np.array_equal(some.weight, same.weight, equal_nan=True)
    assert not np.array_equal(some.weight, other.weight, equal_nan=True)
    among = weigh(ask(model, "knockout", [5, 0]), cells, 1)  # whatever else is asked for
    np.testing.assert_allclose(among.weight[:, 1], some.weight[:, 0], atol=1e-5)


# embeddings


def test_embedding_of_the_input(fit):
    model, cells = fit
    pairs = weigh(ask(model, "embedding", contextual=False), cells)
    table = model.members[0].feature.weight[len(SPECIALS) :].detach().numpy()
    expected = cosine_similarity(table - table.mean(axis=0))
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(pairs.weight, expected, atol=1e-5)
    assert np.array_equal(pairs.count, expressing(cells))


def test_contextual_embedding_is_the_mean_jacobian(fit):
    model, cells = fit
    network, rows = model.members[0].eval(), []
    with torch.no_grad():
        found = regulation.contextual_embedding(model, network, cells, tqdm(disable=True))
    for i in range(30):
        (batch,) = make_batches(model, cells.take(np.array([i])), 1)
        latent = network(batch).latent.detach()
        # the batch shifts the decoder after its activation, and so is no part of the Jacobian
        decode = lambda z, own=batch: network.decode(z, own.batch_codes, own.phenotypes)[0]  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(decode, latent)
        rows.append(jacobian[:, 0].double().numpy())
    np.testing.assert_allclose(found, np.mean(rows, axis=0), atol=1e-5)


def test_contextual_embeddings_are_weighed_by_what_is_explained_of_both_genes(fit):
    model, cells = fit
    rates = [naive_log_rate(model, x, cells.depth[i], cells.fields[i]) for i, x in enumerate(cells.counts.toarray())]
    explained = explained_by_hand(model, cells, rates)
    embedding = regulation.contextual_embedding(model, model.members[0], cells, tqdm(disable=True))
    cosine = cosine_similarity(embedding - embedding.mean(axis=0))
    pairs = weigh(ask(model, "embedding", [3, 0]), cells)
    for at, regulator in enumerate((3, 0)):
        for gene in set(range(20)) - {regulator}:
            expected = cosine[gene, regulator] * np.sqrt(explained[gene] * explained[regulator])
            assert abs(pairs.weight[gene, at] - expected) < 1e-4
    assert pairs.signed


def test_without_counts_the_share_of_the_regulator_alone_counts():
    adata = bf.datasets.simulate(60, 20, n_regulators=4, rng=0)
    adata.X = np.log1p(adata.X.toarray())
    bf.tl.fit(adata, binning="segment", config=CONFIGS["one layer"], train=TRAIN)
    model, cells = bf.get.model(adata), AnnDataSource(adata).read(0, 30)
    rates = regulation.log_rates(model, model.members[0], cells, tqdm(disable=True))
    share = regulation.explained_share(regulation.Features.of(model), cells, rates)
    cosine = weigh(ask(model, "embedding"), cells).weight / np.sqrt(share)
    np.testing.assert_allclose(cosine, cosine.T, atol=1e-5)
    assert np.nanmax(np.abs(cosine)) <= 1 + 1e-6 and np.ptp(share) > 0.01


@pytest.mark.parametrize("counts", [True, False], ids=["counts", "log"])
def test_without_a_direction_a_weight_is_the_mean_of_both(counts):
    adata = bf.datasets.simulate(60, 20, n_regulators=4, rng=0)
    if not counts:
        adata.X = np.log1p(adata.X.toarray())
    binning = "value" if counts else "segment"
    bf.tl.fit(adata, binning=binning, config=CONFIGS["one layer"], train=TRAIN)
    model, cells = bf.get.model(adata), AnnDataSource(adata).read(0, 30)
    one, both = (weigh(ask(model, "embedding", directed=directed), cells).weight for directed in (True, False))
    np.testing.assert_allclose(both, (one + one.T) / 2, rtol=1e-12)
    assert np.array_equal(both, both.T, equal_nan=True)
    assert (np.nanmax(np.abs(one - one.T)) < 1e-12) == counts


# all methods


@pytest.mark.parametrize("method", ["knockout", "embedding", "attention"])
def test_no_batch_size_matters(fit, method, monkeypatch):
    model, cells = fit
    expected = weigh(ask(model, method), cells)
    for batch, chunk, n_pairs in ((1, 1, 1), (7, 40, 1000), (128, int(expected.count.max(axis=0).sum()), 2**21)):
        monkeypatch.setattr("scbioformers.tasks._gene_signals._BATCH", batch)
        monkeypatch.setattr(regulation, "_CHUNK", chunk)  # the last: filled by the last regulator
        monkeypatch.setattr("scbioformers.tasks._gene_signals._MAX_PAIRS", n_pairs)
        found = weigh(ask(model, method), cells)
        np.testing.assert_allclose(found.weight, expected.weight, atol=2e-5)
        assert np.array_equal(found.count, expected.count)


@pytest.mark.fault(80)
@pytest.mark.parametrize("method", ["knockout", "embedding", "attention"])
def test_weights_from_fewer_cells_than_the_minimum_are_nan(fit, method):
    """One gene is expressed in a single cell. All other weights are the same bits with and without the minimum."""
    model, cells = fit
    counts = cells.counts.toarray()
    counts[:, 4] = np.arange(30) == 7
    cells = replace(cells, counts=sp.csr_matrix(counts))
    every, kept = (weigh(ask(model, method, min_count=least), cells) for least in (1, 3))
    assert np.isfinite(every.weight[4]).any() or method == "attention"
    assert every.count[4].max() == every.count[:, 4].max() == 1
    assert np.isnan(kept.weight[4]).all() and np.isnan(kept.weight[:, 4]).all()
    assert np.array_equal(kept.count, every.count)
    assert np.array_equal(kept.weight, np.where(every.count < 3, np.nan, every.weight), equal_nan=True)


@pytest.mark.parametrize("method", ["knockout", "embedding", "attention"])
def test_cells_in_any_order(fit, method):
    model, cells = fit
    order = np.random.default_rng(0).permutation(30)
    found, expected = (weigh(ask(model, method), each) for each in (cells.take(order), cells))
    np.testing.assert_allclose(found.weight, expected.weight, atol=2e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "cosine"}, "one of .*'knockout', 'embedding', 'attention'.*'cosine'"),
        ({"layers": (7,)}, r"`layers` must hold numbers from 0 to \d, found \[7\]"),
        ({"heads": ()}, r"`heads` must hold numbers from 0"),
        ({"heads": (-1,)}, r"`heads` must hold numbers from 0"),
    ],
)
def test_refused(fit, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        ask(fit[0], **({"method": "attention"} | kwargs))


@pytest.mark.parametrize("method", ["knockout", "embedding", "attention"])
def test_an_untrained_model_knows_nothing(method):
    adata = bf.datasets.simulate(150, 100, n_regulators=8, rng=1)
    config = bf.ModelConfig(width=32, n_heads=4, svd_init=False)
    bf.tl.fit(adata, config=config, train=bf.TrainConfig(max_steps=0))
    model, true = bf.get.model(adata), adata.uns["grn_true"]
    pairs = weigh(ask(model, method, range(8)), AnnDataSource(adata).read(0, 150))
    truth = np.zeros((100, 8), bool)
    truth[adata.var_names.get_indexer(true["target"]), adata.var_names.get_indexer(true["source"])] = True
    seen = np.isfinite(pairs.weight)
    assert abs(roc_auc_score(truth[seen], pairs.strength[seen]) - 0.5) < 0.1


# cells


def test_rows_of_all_blocks_are_read():
    adata = bf.datasets.simulate(25, 10, n_regulators=3, rng=0)
    source = AnnDataSource(adata)
    blocks = source.blocks
    source.blocks = lambda: blocks(4)
    found = source.rows(np.array([3, 4, 11, 24]))
    assert np.array_equal(found.counts.toarray(), adata.X[[3, 4, 11, 24]].toarray())
    assert np.array_equal(found.depth, adata.X[[3, 4, 11, 24]].sum(axis=1).A1)


def test_equal_numbers_of_each_condition():
    codes = np.random.default_rng(0).choice([-1, 0, 1, 2], p=[0.2, 0.1, 0.3, 0.4], size=200)
    smallest = np.bincount(codes[codes >= 0]).min()
    for n_cells, expected in ((None, smallest), (5, 5), (1000, smallest)):
        drawn = list(draw_conditions(codes, n_cells, seed=1))
        assert [len(set(rows)) for rows in drawn] == [expected] * 3
        assert all((codes[rows] == code).all() for code, rows in enumerate(drawn))
    again, other = (list(draw_conditions(codes, 5, seed)) for seed in (1, 2))
    before = list(draw_conditions(codes, 5, 1))
    assert all(map(np.array_equal, again, before))
    assert not all(map(np.array_equal, other, before))


@pytest.mark.fault(74)
def test_own_numbers_of_each_condition():
    codes = np.repeat([0, 1, -1, 2], [11, 40, 7, 90])
    for n_cells, expected in ((None, [11, 40, 90]), (50, [11, 40, 50]), (5, [5, 5, 5])):
        drawn = list(draw_conditions(codes, n_cells, seed=1, equal=False))
        assert [len(set(rows)) for rows in drawn] == expected
        assert all((codes[rows] == code).all() for code, rows in enumerate(drawn))


def test_the_cells_of_a_condition_do_not_depend_on_the_others():
    codes = np.random.default_rng(0).integers(0, 3, size=200)
    first = list(draw_conditions(codes, 20, seed=1))
    renamed = list(draw_conditions((codes + 1) % 3, 20, seed=1))
    assert np.array_equal(first[0], renamed[1])
    assert np.array_equal(first[2], renamed[0])
