"""Cells drawn from a decoder: with a cache of keys and without, and what they depend on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scbioformers as bf
from scbioformers.config import bin_rows
from scbioformers.core import SPECIALS, ConfigError, uniform
from scbioformers.nn import Batch
from scbioformers.tasks import _generation
from scbioformers.tasks._generation import CountDraws, generate_counts

FIRST = len(SPECIALS)
CONFIG = bf.ModelConfig(architecture="decoder", width=16, n_layers=2, n_heads=2, n_latent=8, n_components=8)


@pytest.fixture(scope="module")
def model():
    adata = bf.datasets.simulate(n_cells=80, n_genes=220, n_batches=2, n_conditions=2, rng=0)
    adata = adata[:, np.flatnonzero(adata.X.sum(axis=0).A1)[:200]].copy()
    adata.obs["time"] = np.random.default_rng(0).integers(0, 3, adata.n_obs).astype(float)
    train = bf.TrainConfig(max_steps=3, batch_size=16)
    options = {"batch_key": "batch", "phenotype_keys": ["condition", "time"], "n_models": 2}
    return bf.get.model(bf.tl.fit(adata, config=CONFIG, train=train, copy=True, **options))


class WholePrefix:
    """What a network says of prefixes, each read from its start: without a cache."""

    def __init__(self, prefix, mean_depth):
        self.network, self.cells, self.sums = prefix.network, prefix.cells, prefix.sums
        self.seen, self.mean_depth = [], mean_depth

    def ask(self, ids):
        n, m = len(ids), self.network.sizes.n_features
        visible, known = torch.zeros(n, m), torch.zeros(n, m, dtype=torch.bool)
        tokens = [[] for _ in range(n)]
        for features, bins, levels in self.seen:
            for cell, (feature, bin_, level) in enumerate(zip(features, bins, levels, strict=True)):
                known[cell, feature - FIRST] = True
                visible[cell, feature - FIRST] = level
                if bin_:
                    tokens[cell].append((int(feature), int(bin_)))
        longest = max(map(len, tokens))
        padded = np.array([row + [(0, 0)] * (longest - len(row)) for row in tokens], np.int64).reshape(n, longest, 2)
        batch = replace(
            self.cells,
            context_ids=torch.from_numpy(padded[..., 0].copy()),
            context_bins=torch.from_numpy(padded[..., 1].copy()),
            masked_ids=ids[:, None],
            visible=visible,
            known=known,
        )
        with torch.no_grad():
            return self.network(batch).log_probs[:, 0], None

    def add(self, ids, bins, levels):
        self.seen.append((ids, bins, levels))


def test_the_cache_changes_neither_predictions_nor_counts(model, monkeypatch):
    """20 cells of 200 genes: every prediction within 1e-5 of that of the whole prefix, and the same counts."""
    depth, phenotypes = np.linspace(300, 3000, 20), np.zeros((20, 2), np.float32)
    phenotypes[3:6], phenotypes[7, 1] = np.nan, 1.5
    whole, furthest = {}, [0.0]
    ask, add = _generation.GrowingPrefix.ask, _generation.GrowingPrefix.add

    def compared(prefix, ids):
        slow = whole.setdefault(id(prefix), WholePrefix(prefix, model.binning.mean_depth))
        log_probs, answers = ask(prefix, ids)
        expected, _ = slow.ask(ids)
        furthest[0] = max(furthest[0], float((log_probs - expected).abs().max()))
        return expected, answers

    def added(prefix, *values):
        whole[id(prefix)].add(*values)
        add(prefix, *values)

    fast = generate_counts(model, depth, phenotypes, 5)
    monkeypatch.setattr(_generation.GrowingPrefix, "ask", compared)
    monkeypatch.setattr(_generation.GrowingPrefix, "add", added)
    slow = generate_counts(model, depth, phenotypes, 5)
    assert furthest[0] < 1e-5
    np.testing.assert_array_equal(fast.toarray(), slow.toarray())
    assert isinstance(whole.popitem()[1].cells, Batch)


def test_cells_depend_neither_on_the_batch_size_nor_on_their_number(model):
    drawn = bf.tl.generate(model, 12, rng=3)
    np.testing.assert_array_equal(bf.tl.generate(model, 12, rng=3, batch_size=5).X.toarray(), drawn.X.toarray())
    some = bf.tl.generate(model, 4, rng=3)
    np.testing.assert_array_equal(some.X.toarray(), drawn.X[:4].toarray())
    assert (bf.tl.generate(model, 12, rng=4).X != drawn.X).nnz


def test_generated_cells_are_counts_that_are_marked(model):
    drawn = bf.tl.generate(model, 30, phenotype={"condition": "condition_2", "time": 0.5})
    assert sp.issparse(drawn.X)
    assert drawn.X.dtype == np.float32
    assert drawn.shape == (30, 200)
    assert (drawn.X.data >= 1).all()
    assert (drawn.X.data == np.rint(drawn.X.data)).all()
    assert drawn.obs["generated"].all()
    assert list(drawn.var_names) == model.vocabulary.feature_names()
    assert (drawn.obs["condition"] == "condition_2").all()
    np.testing.assert_allclose(drawn.obs["time"], 0.5)
    params = json.loads(drawn.uns["generated"]["params"])
    assert params["model_hash"] == model.hash
    bf.tl.embed(drawn, model=model)
    assert np.isfinite(drawn.obsm["X_bioformer"]).all()


def test_depths_and_phenotypes_are_those_of_training_cells(model):
    known = model.heads["generation"].arrays["cells"]
    drawn = bf.tl.generate(model, 40)
    at = np.abs(drawn.obs["depth"].to_numpy()[:, None] - known[:, 0]).argmin(axis=1)
    np.testing.assert_allclose(known[at, 0], drawn.obs["depth"], rtol=1e-6)
    assert set(drawn.obs["condition"]) == {"condition_1", "condition_2"}
    one = bf.tl.generate(model, 40, phenotype={"condition": "condition_1"})
    alike = known[known[:, 1] == 0, 0]
    assert np.isin(one.obs["depth"].to_numpy().astype("f4"), alike).all()
    np.testing.assert_array_equal(bf.tl.generate(model, 3, depth=[500, 700, 900.5]).obs["depth"], [500, 700, 900.5])


def test_a_deeper_cell_has_more_counts(model):
    shallow, deep = (bf.tl.generate(model, 20, depth=depth).X.sum() for depth in (400, 4000))
    assert 5 * shallow < deep < 20 * shallow


def test_counts_are_in_their_bins_and_have_the_probabilities_of_the_answers(model):
    """20,000 draws of one feature, at a depth at which a bin has several counts."""
    n, mean_depth = 20_000, float(model.binning.mean_depth)
    depth = np.full(n, 2.6 * mean_depth)
    draws = CountDraws(model, depth, np.arange(n), 0)
    n_values = model.binning.n_values
    probabilities, answers = np.zeros((n, n_values)), np.zeros((n, n_values + 8))
    probabilities[:, [0, 1, 4, 6]] = 0.4, 0.3, 0.2, 0.1
    answers[:, n_values : n_values + 3] = 0.1, 0.2, 0.1  # the counts 1 to 3 have bin 1 at this depth
    answers[:, 4] = 0.5
    bins, counts = draws.pick(probabilities, answers, np.zeros(n, np.int64))
    found = bin_rows(model.binning, counts, np.arange(n + 1), depth)
    np.testing.assert_array_equal(found, bins)
    np.testing.assert_allclose(np.bincount(bins, minlength=7)[[0, 1, 4, 6]] / n, [0.4, 0.3, 0.2, 0.1], atol=0.015)
    lowest, highest = draws.lowest[0], draws.highest[0]
    assert (lowest[1], highest[1]) == (1, 3)
    shares = np.bincount(counts[bins == 1].astype(int))[1:] / (bins == 1).sum()
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.025)
    assert lowest[4] > 8
    assert set(counts[bins == 4]) == set(np.arange(lowest[4], highest[4] + 1))


def test_bins_that_no_whole_count_has_are_not_drawn(model):
    """At a third of the mean depth the lowest count has bin 3."""
    depth = np.full(2, float(model.binning.mean_depth) / 3)
    draws = CountDraws(model, depth, np.arange(2), 0)
    p = draws.natural(np.log(np.full((2, model.binning.n_values), 1 / model.binning.n_values)))
    assert (p[:, [1, 2]] == 0).all()
    assert p[0, 0] / p[0, 3] == pytest.approx(1 / model.zero_rate)
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_the_order_of_the_features_is_one_of_its_own_in_each_cell():
    orders = np.argsort(uniform(1 ^ _generation._ORDER_STREAM, np.arange(3)[:, None], np.arange(50)), axis=1)
    assert len({tuple(order) for order in orders}) == 3


def test_an_encoder_does_not_generate(fitted):
    with pytest.raises(ConfigError, match=r"is an encoder.*`bf.tl.fit\(adata, config='decoder'\)`"):
        bf.tl.generate(fitted, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"n": 0}, "`n` must be at least 1, found 0", id="no-cells"),
        pytest.param({"n": 2, "depth": 0.0}, "`depth` must be a positive number", id="no-depth"),
        pytest.param({"n": 2, "depth": [1.0, 2.0, 3.0]}, "an array of 2 of them", id="other-length"),
        pytest.param({"n": 2, "phenotype": {"age": 3}}, "which is no phenotype of the model", id="unknown-phenotype"),
        pytest.param({"n": 2, "phenotype": {"condition": "x"}}, "which the model has not seen", id="unknown-category"),
    ],
)
def test_what_cannot_be_generated(model, options, message):
    with pytest.raises(ConfigError, match=message):
        bf.tl.generate(model, **options)
