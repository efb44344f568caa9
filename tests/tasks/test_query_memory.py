"""What cells of a query read of each other, and the head that uses it, against loops over cells."""

import math
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import logsumexp

import scbioformers as bf
from scbioformers.config import Binning
from scbioformers.core import SPECIALS, posterior_mean
from scbioformers.data import AnnDataSource
from scbioformers.model import predict_masked, run_network
from scbioformers.tasks import _query_memory as query_memory
from scbioformers.tasks import fit_query_memory, folds, impute_blocks, posterior_blocks
from scbioformers.tasks._query_memory_head import RIDGE, bin_log_levels, directions, fit_head, head_inputs, tilted
from scbioformers.tasks._query_memory_reader import Reader, References, masked_in_all

FOLDS = folds(40, 7).columns
NONE = np.zeros(0, np.int64)
NAMES = [f"cell {i}" for i in range(120)]


@pytest.fixture(scope="module")
def model(_fitted_once):
    return bf.get.model(_fitted_once)


@pytest.fixture(scope="module")
def x():
    """120 cells of other data, two of which are equal."""
    found = bf.datasets.simulate(n_cells=120, n_genes=40, n_regulators=5, n_types=3, rng=5).X.toarray()
    found[7] = found[50]
    return found


@pytest.fixture(scope="module")
def hidden():
    return sp.csr_matrix(np.random.default_rng(1).random((120, 40)) < 0.2)


@pytest.fixture(scope="module")
def memory(model, x):
    return fit_query_memory(model, source(x), NAMES, FOLDS)


def source(x):
    return AnnDataSource(ad.AnnData(sp.csr_matrix(np.asarray(x, np.float32))))


def references_of(model, x, hidden=None):
    """All cells as references, with made-up rates."""
    cells = source(x if hidden is None else np.where(hidden.toarray(), 0, x)).read(0, len(x))
    rate = np.random.default_rng(2).gamma(1.0, 2.0, x.shape).astype(np.float32)
    size = model.first_tokenizer.whole_depth(cells, hidden) / model.binning.mean_depth
    return References(cells, np.arange(len(x)), np.arange(len(x)), hidden, size, rate)


def slow_weights(model, x, mask, compared):
    """(N, N) weights of all cells in all cells, from dense matrices and plain sums."""
    n, mean_depth = len(x), model.binning.mean_depth
    tokenizer = model.first_tokenizer
    batch = tokenizer.inference_batch(source(x).read(0, n), np.arange(n), sp.csr_matrix(mask))
    depth = np.exp(batch.log_depth.numpy().astype(float)) * mean_depth
    profile = np.log1p(np.where(mask, 0, x) * mean_depth / depth[:, None])[:, compared]
    missing = mask[:, compared]
    mean = profile.sum(axis=0) / np.maximum((~missing).sum(axis=0), 1)
    profile = np.where(missing, mean, profile)
    mean = profile.mean(axis=0)
    _, sizes, axes = np.linalg.svd(profile - mean, full_matrices=False)
    variance, k = sizes**2 / n, 10
    noise = variance[k:].sum() / (len(mean) - k)
    loadings = axes[:k].T * np.sqrt(np.maximum(variance[:k] - noise, 0))
    places = []
    for row, lost in zip(profile, missing, strict=True):
        seen = loadings[~lost]
        score = np.linalg.solve(seen.T @ seen + noise * np.eye(k), seen.T @ (row - mean)[~lost])
        places.append(score * np.sqrt((loadings**2).sum(axis=0)))
    distance = np.full((n, n), np.inf)
    for c in range(n):
        for r in range(n):
            both = compared & ~mask[c] & ~mask[r]
            if c != r and (x[c, both] != x[r, both]).any():
                distance[c, r] = ((places[c] - places[r]) ** 2).sum()
    scale = np.mean([np.sort(row)[14] for row in distance])
    weights = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / scale)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("columns", [NONE, FOLDS[2]], ids=["all features", "a fold"])
@pytest.mark.parametrize("is_hidden", [False, True])
def test_what_is_read_equals_a_loop_over_cells(model, x, hidden, columns, is_hidden):
    hidden = hidden if is_hidden else None
    references = references_of(model, x, hidden)
    mask = masked_in_all(references.cells.counts.shape, columns, hidden)
    found = Reader(model, references, columns).read(references.cells, references.rank, mask)
    compared = ~np.isin(np.arange(40), columns)
    known = np.ones((120, 40)) if hidden is None else 1.0 - hidden.toarray()
    weights = slow_weights(model, x, mask.toarray(), compared)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-3, atol=1e-7)
    for c in (0, 7, 119):
        number = 1 / sum(w**2 for w in weights[c])
        for gene in columns if columns.size else range(40):
            at = found.column[gene]
            parts = [(w * number, known[r, gene] * references.size[r], r) for r, w in enumerate(weights[c])]
            counts = sum(w * x[r, gene] * known[r, gene] for w, _, r in parts)
            assert found.counts[c, at] == pytest.approx(counts, rel=2e-3, abs=1e-5)
            assert found.exposure[c, at] == pytest.approx(sum(w * size for w, size, _ in parts), rel=2e-3)
            expected = sum(w * size * references.rate[r, gene] for w, size, r in parts)
            assert found.expected[c, at] == pytest.approx(expected, rel=2e-3)
    assert (found.column >= 0).tolist() == (~compared if columns.size else compared).tolist()


def test_no_masked_value_has_an_influence_on_its_own_weights_and_what_they_read(model, x):
    columns, changed = FOLDS[3], x.copy()
    changed[20, columns] = [90, 0, 7, *[3] * (len(columns) - 3)]
    rows, found = np.arange(120), []
    for values in (x, changed):
        references = references_of(model, values)
        mask = masked_in_all(references.cells.counts.shape, columns)
        found.append(Reader(model, references, columns).read(references.cells, rows, mask))
    first, second = found
    assert np.array_equal(first.weights, second.weights)
    for name in ("counts", "exposure", "expected"):
        assert np.array_equal(getattr(first, name)[20], getattr(second, name)[20])
    assert not np.array_equal(first.counts, second.counts)  # others read it


def test_a_cell_reads_neither_itself_nor_its_equal(model, x, hidden):
    like, columns = x.copy(), FOLDS[0]
    like[9] = x[30]
    like[9, columns] += 4  # equal where it is visible
    at = hidden[60].toarray().ravel()
    like[61] = x[60]
    like[61, at] += 5  # equal at every feature that is known of both
    mask = sp.csr_matrix(hidden)
    for at_all, hid in ((columns, None), (NONE, mask)):
        references = references_of(model, like, hid)
        own = masked_in_all(references.cells.counts.shape, at_all, hid)
        weights = Reader(model, references, at_all).read(references.cells, references.rank, own).weights
        assert (np.diag(weights) == 0).all()
        zero = set(zip(*np.nonzero(weights == 0), strict=True)) - {(i, i) for i in range(120)}
        pairs = {(9, 30), (30, 9)} if hid is None else {(60, 61), (61, 60)}
        assert pairs <= zero
        assert {(7, 50), (50, 7)} <= zero
        assert len(zero) < 20
        np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_references_that_are_all_equal_are_not_read(model, x):
    references = references_of(model, np.tile(x[3], (120, 1)))
    mask = masked_in_all(references.cells.counts.shape, FOLDS[0])
    found = Reader(model, references, FOLDS[0]).read(references.cells, references.rank, mask)
    for each in (found.weights, found.counts, found.exposure, found.expected):
        assert not each.any()


def test_the_order_is_a_function_of_the_names():
    names, order = [f"c{i}" for i in range(50)], np.random.default_rng(0).permutation(50)
    rank = query_memory.rank_cells(names)
    assert sorted(rank) == list(range(50))
    assert rank.tolist() != list(range(50))
    assert np.array_equal(query_memory.rank_cells([names[i] for i in order]), rank[order])
    assert query_memory.rank_cells(["same"] * 4).tolist() == [0, 1, 2, 3]


# the head


def test_inputs_by_hand():
    found = head_inputs(*map(np.array, ([[0.25, 0.75]], [0.5], [0.1], [3.0], [2.0], [4.0])))
    count, to_own, to_expected = 0.3, math.log(4 / (1 + 2 * math.exp(0.5))), math.log(4 / 5)
    read = [to_own, to_expected]
    expected = [1, count, 0.1, math.log(1 / 3), *read, *(r**2 for r in read), *(r * count for r in read)]
    np.testing.assert_allclose(found, [expected])


def test_levels_and_directions_by_hand():
    binning = Binning(cutoff=2, bins_per_doubling=1).freeze(mean_depth=1.0, max_bin=4)  # to 1.5, 2, 4 and 8
    levels = bin_log_levels(binning)
    expected = [0.5 * math.log2(a * b) for a, b in ((0.5, 0.5), (0.5, 1.5), (1.5, 2.0), (2.0, 4.0), (4.0, 8.0))]
    np.testing.assert_allclose(levels, expected)
    found = directions(np.array([[0.6, 0.1, 0.0, 0.3, 0.0], [0.2, 0.8, 0, 0, 0]]), levels)
    np.testing.assert_array_equal(found[:, :, 0], [[0, 1, 1, 1, 1]] * 2)
    middle = 0.25 * expected[1] + 0.75 * expected[3]
    np.testing.assert_allclose(found[0, 1:, 1], np.array(expected[1:]) - middle)
    assert found[1, 1, 1] == pytest.approx(0)
    assert found[1, 4, 1] == 2  # 2.7 doublings above the expected level
    assert not found[:, 0].any()


LEVELS = np.array([-1.0, 0.0, 0.7, 1.5, 4.0])


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(4)
    inputs, p = random.normal(size=(400, 10)), random.dirichlet(np.ones(5), 400)
    true = random.normal(scale=0.3, size=(10, 2))
    drawn = np.array([random.choice(5, p=row) for row in tilted(p, inputs, true, LEVELS)])
    return p, inputs, drawn


def slow_logits(p, own, weights):
    """Of one value: log p plus the change of each bin."""
    level = sum(p[b] * LEVELS[b] for b in range(1, 5)) / sum(p[1:])
    slope, tail = own @ weights
    change = [0.0] + [slope + tail * min(max(LEVELS[b] - level, -2.0), 2.0) for b in range(1, 5)]
    return np.log(p) + change


def loss(weights, p, inputs, bins):
    total = 0.5 * RIDGE * (weights**2).sum()
    for row, own, b in zip(p, inputs, bins, strict=True):
        logits = slow_logits(row, own, weights)
        total -= logits[b] - logsumexp(logits)
    return total


def test_the_head_has_the_highest_penalised_likelihood(problem):
    found = fit_head(*problem, LEVELS)
    at = loss(found, *problem)
    assert at < loss(np.zeros((10, 2)), *problem) - 10
    for i, j in np.ndindex(10, 2):
        for step in (-0.02, 0.02):
            moved = found.copy()
            moved[i, j] += step
            assert loss(moved, *problem) > at


def test_probabilities_after_the_head(problem):
    p, inputs, _ = problem
    weights = np.random.default_rng(0).normal(size=(400, 10, 2))
    found = tilted(p, inputs, weights, LEVELS)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    logits = np.array([slow_logits(p[i], inputs[i], weights[i]) for i in range(400)])
    np.testing.assert_allclose(np.log(found), logits - logsumexp(logits, axis=1, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(tilted(p, inputs, np.zeros((10, 2)), LEVELS), p)


def test_a_bin_that_is_nearly_impossible_does_not_become_likely():
    """Far from what is expected, all bins are changed alike: the mean does not follow the highest bin."""
    levels, p = np.arange(-1.0, 11.0), np.array([[0.5, 0.3, 0.2, *[1e-5] * 9]])
    weights = np.zeros((10, 2))
    weights[0] = 1.0, 1.5
    found = tilted(p / p.sum(), np.eye(10)[:1], weights, levels)
    assert found[0, 1:3].sum() > 0.7
    assert found[0, 5:].sum() < 0.005  # 0.999 without the limit


# the memory


def test_a_head_is_that_of_the_other_half(model, x, memory):
    changed = x.copy()
    even = memory.rank % 2 == 0
    changed[even] = changed[even][:, ::-1]
    again = fit_query_memory(model, source(changed), NAMES, FOLDS)
    np.testing.assert_allclose(again.heads[0], memory.heads[0], atol=1e-3)  # cells of even rank: fitted to the others
    assert np.abs(again.heads[1] - memory.heads[1]).max() > 0.05
    assert memory.bits[1] < memory.bits[0] - 0.1  # of cells to which the head was not fitted


def test_held_out_values_equal_a_loop_over_values(model, x, memory):
    cells = source(x).read(0, 120)
    found = next(impute_blocks(model, source(x), folds(40, 7), scale="bins", memory=memory))
    levels, weights = bin_log_levels(model.binning), []
    for fold in FOLDS:
        mask = masked_in_all(cells.counts.shape, fold)
        attended = Reader(model, memory.references, fold).read(cells, memory.rank, mask)
        weights.append(attended.weights)
        network = model.members[0]
        rates = {}
        for batch, probabilities in predict_masked(model, cells, mask, 16):
            log_rate = network(batch).log_rate.detach().numpy()
            for i, row in enumerate(batch.rows.tolist()):
                for j, identifier in enumerate(batch.masked_ids[i].tolist()):
                    gene = identifier - len(SPECIALS)
                    rates[row, gene] = log_rate[i, gene], float(batch.log_depth[i]), probabilities[i, j]
        for row in (0, 7, 64):
            for gene in fold:
                log_rate, log_depth, p = rates[row, gene]
                read = (x[row, attended.column[gene]] for x in (attended.counts, attended.exposure, attended.expected))
                values = (np.array([float(value)]) for value in (log_rate, log_depth, *read))
                inputs = head_inputs(p[None].astype(float), *values)[0]
                slope, tail = inputs @ memory.heads[memory.rank[row] % 2]
                doublings = np.clip(levels - p[1:] @ levels[1:] / p[1:].sum(), -2, 2)
                tilt = p * np.exp(np.where(np.arange(len(p)) > 0, slope + tail * doublings, 0))
                expected = (tilt / tilt.sum()) @ np.arange(len(p))
                assert found.values["mean"][row, gene] == pytest.approx(expected, rel=1e-4)
    mean = np.mean(weights, axis=0)
    for row in (0, 7, 64):
        stored = found.references[row].toarray().ravel()
        strongest = np.argsort(-mean[row])[:15]
        assert set(np.flatnonzero(stored)) == set(memory.references.rows[strongest])
        np.testing.assert_allclose(stored[memory.references.rows[strongest]], mean[row][strongest], rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_denoised_values_equal_a_loop_over_values(model, x, memory, share):
    cells, memory = source(x).read(0, 120), replace(memory, share=share)
    found = next(posterior_blocks(model, source(x), scale="counts", memory=memory)).values["mean"]
    attended = memory.read(cells)
    network = model.members[0]
    shape = network.log_dispersion.detach().exp().numpy().astype(float)
    for batch, output in run_network(model, network, [cells], 1):
        row = int(batch.rows)
        rate = output.log_rate[0].exp().numpy().astype(float) * cells.depth[row] / model.binning.mean_depth
        for gene in range(40):
            read, expected = float(attended.counts[row, gene]), float(attended.expected[row, gene])
            prior = rate[gene] * (shape[gene] + share * read) / (shape[gene] + share * expected)
            mean = posterior_mean(np.array([[prior]]), shape[gene : gene + 1], x[row : row + 1, gene : gene + 1])
            assert found[row, gene] == pytest.approx(mean.item(), rel=1e-4)


def test_the_share_is_that_of_the_lowest_loss():
    random = np.random.default_rng(0)
    shape, mean = np.full(5000, 0.5), random.gamma(2.0, 1.0, 5000)
    factor = random.gamma(0.5, 2.0, 5000)  # what the model misses; similar cells have the same
    read, given = random.poisson(20 * factor), np.full(5000, 20.0)

    def chosen(true):
        prior = np.column_stack([random.poisson(mean * true), mean, read, given, shape])
        return query_memory._choose_share([query_memory._Measured(prior, prior, read, prior)])

    assert chosen(factor) == 1.0
    assert chosen(np.ones(5000)) == 0.0
