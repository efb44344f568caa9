"""Positions that the caller masks, features that the data does not measure, and what remains known of a cell."""

import math
from dataclasses import fields, replace
from itertools import product

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbioformers.config import Binning, Masking
from scbioformers.core import SPECIALS
from scbioformers.data import AnnDataSource, Block, DepthRule
from scbioformers.tokens import Tokenizer

FIRST = len(SPECIALS)  # vocabulary id of the first feature
INPUTS = [
    "context_ids",
    "context_bins",
    "masked_ids",
    "visible",
    "known",
    "log_depth",
    "small_count_bins",
    "phenotypes",
]
ALL = 10_000  # a budget that covers every cell

LAYOUTS = [
    pytest.param({}, id="value"),
    pytest.param({"kind": "segment"}, id="segment"),
    pytest.param({"tokens": "all"}, id="value-all"),
    pytest.param({"kind": "segment", "tokens": "all"}, id="segment-all"),
    pytest.param({"max_tokens": 6}, id="few-tokens"),
    pytest.param({"tokens": "all", "max_tokens": 30}, id="few-tokens-all"),
    pytest.param({"kind": "segment", "counts": False}, id="log-scale"),
]


def read(tokenizer, block, asked=None, **kwargs):
    return tokenizer.inference_batch(block, np.arange(len(block.depth)), asked, **kwargs)


def train(tokenizer, block, rows=None, *, epoch=1, **kwargs):
    rows = np.arange(len(block.depth)) if rows is None else rows
    return tokenizer.training_batch(block, rows, seed=3, epoch=epoch, n_context=ALL, n_masked=ALL, **kwargs)


def tokens(ids, values):
    """{feature: value} of each row, padding left out."""
    return [
        {int(i) - FIRST: int(v) for i, v in zip(*row, strict=True) if i > 0} for row in zip(ids, values, strict=True)
    ]


def ask(block, share=0.2, seed=5):
    """Random positions, expressed or not; none of the first cell, all of the second, the expressed of the third."""
    asked = np.random.default_rng(seed).random(block.counts.shape) < share
    asked[0], asked[1], asked[2] = False, True, block.counts[2].toarray().ravel() > 0
    return asked


def differing(first, second, names):
    pairs = {name: (getattr(first, name).numpy(), getattr(second, name).numpy()) for name in names}
    return [name for name, (a, b) in pairs.items() if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")]


# --- an independent reader -----------------------------------------------------------------------------------------


def slow_bins(tokenizer, counts, depth):
    """SPEC 2, one count at a time; `counts` {feature: count} of one cell."""
    binning = tokenizer.binning
    if binning.kind == "segment":
        at_most = {j: sum(y <= x for y in counts.values()) for j, x in counts.items()}
        return {j: -(-binning.n_bins * n // len(counts)) for j, n in at_most.items()}
    bins = {}
    for j, count in counts.items():
        x = count * binning.mean_depth / depth
        if x <= 1:
            bins[j] = 1
        elif x <= binning.cutoff:
            bins[j] = math.floor(x + 0.5)
        else:
            bins[j] = binning.cutoff + math.ceil(binning.bins_per_doubling * math.log2(x / binning.cutoff) - 1e-9)
    return {j: min(b, binning.n_values - 1) for j, b in bins.items()}


def slow_whole_depth(tokenizer, slow_depth, seen, visible, rule, asked, absent, drawn):
    """What the total of the visible would be with the features that are lost, and with it the estimate."""
    if tokenizer.depth is None:
        return visible / rule.share, [visible / rule.share] * 7
    model = tokenizer.depth.drawn if drawn else tokenizer.depth.natural
    shares = {j: float(s) for j, s in enumerate(model.share) if j not in absent}
    if rule.share != 1:
        scale = rule.share / sum(shares.values()) if rule.modelled_only else 1.0
        missing = min(sum(scale * s for j, s in shares.items() if j in asked), 0.999 * rule.share)
        visible *= (1 - missing) / (rule.share - missing)
    return slow_depth(model, seen, visible, asked, absent)


def slow_read(tokenizer, slow_depth, x, block, row, asked, absent, drawn):
    """One cell: its context, its answers, the profile, what is known, the log of its depth, bins of small counts."""
    total, depth = block.total[row], block.depth[row]
    counts = {j: float(n) for j, n in enumerate(x) if n > 0}
    seen = {j: n for j, n in counts.items() if j not in asked}
    unknown = sorted({*asked, *absent})
    mean, highest = tokenizer.binning.mean_depth, tokenizer.binning.n_values - 1
    visible = total - sum(counts.get(j, 0.0) for j in asked)
    whole, likely = slow_whole_depth(tokenizer, slow_depth, seen, visible, block.rule, asked, absent, drawn)
    few = np.zeros((8, highest + 1))
    for n, each in product(range(1, 9), likely if tokenizer.binning.kind == "value" else []):
        few[n - 1, slow_bins(tokenizer, {0: n}, each or mean)[0]] += 1 / 7
    bins = slow_bins(tokenizer, seen, whole)
    profile = {j: math.log1p(n * mean / whole) if tokenizer.counts else bins[j] / highest for j, n in seen.items()}
    candidates = [(seen.get(j, 0), j) for j in range(len(x)) if j in seen or tokenizer.tokens == "all"]
    read = sorted((n, j) for n, j in candidates if j not in unknown)[-tokenizer.max_tokens :]
    full = slow_bins(tokenizer, counts, depth)
    return (
        {j: bins.get(j, 0) for _, j in sorted(read, key=lambda each: each[1])},
        {j: full.get(j, 0) for j in sorted(asked)},
        [profile.get(j, 0.0) for j in range(len(x))],
        [j not in unknown for j in range(len(x))],
        math.log(whole / mean) if tokenizer.counts and whole > 0 else 0.0,
        few,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("absent", "rule"),
    [
        pytest.param([], DepthRule(), id="all-measured"),
        pytest.param([4, 17, 40], DepthRule(share=0.9), id="some-absent"),
        pytest.param([4, 17, 40], DepthRule(modelled_only=True, share=0.6), id="modelled-only"),
    ],
)
@pytest.mark.parametrize("drawn", [False, True], ids=["chosen", "drawn"])
def test_asked_cells_are_read_as_one_would_by_hand(layout, absent, rule, drawn, make_block, make_tokenizer, slow_depth):
    block = make_block(n_fields=1, log=not layout.get("counts", True), empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    x = block.counts.toarray()
    x[:, absent] = 0
    block = replace(block, counts=sp.csr_matrix(x), present=~np.isin(np.arange(60), absent), rule=rule)
    asked = ask(block)
    batch = read(tokenizer, block, sp.csr_matrix(asked), drawn=drawn)
    context, answers = tokens(batch.context_ids, batch.context_bins), tokens(batch.masked_ids, batch.target_bins)
    for row in range(12):
        queried = set(np.flatnonzero(asked[row]))
        expected = slow_read(tokenizer, slow_depth, x[row], block, row, queried, absent, drawn)
        assert list(context[row].items()) == list(expected[0].items())
        assert list(answers[row].items()) == list(expected[1].items())
        np.testing.assert_allclose(batch.visible[row], expected[2], rtol=1e-6)
        assert batch.known[row].tolist() == expected[3]
        assert batch.log_depth[row].item() == pytest.approx(expected[4], abs=1e-6)
        np.testing.assert_allclose(batch.small_count_bins[row], expected[5], atol=1e-6)
    assert batch.phenotypes.tolist() == block.fields.tolist()


# --- what is asked is masked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_the_asked_positions_are_masked_and_none_of_them_is_seen(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True), empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    asked = ask(block)
    batch = read(tokenizer, block, sp.csr_matrix(asked))
    assert batch.masked_ids.shape == batch.target_bins.shape == (12, 60)  # the second cell is asked for everything
    answers = tokens(batch.masked_ids, batch.target_bins)
    assert [sorted(answer) for answer in answers] == [np.flatnonzero(row).tolist() for row in asked]
    whole = read(replace(tokenizer, tokens="expressed", max_tokens=ALL), block)
    bins = tokens(whole.context_ids, whole.context_bins)
    assert answers == [{j: bins[row].get(j, 0) for j in answer} for row, answer in enumerate(answers)]
    assert (batch.target_bins[batch.masked_ids == 0] == -1).all()
    context = tokens(batch.context_ids, batch.context_bins)
    assert all(not {*seen} & {*answer} for seen, answer in zip(context, answers, strict=True))
    assert not batch.visible.numpy()[asked].any()
    assert (batch.known.numpy() == ~asked).all()
    assert differing(batch, whole, ["target_counts", "size_factor", "rows"]) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_inputs_know_nothing_of_the_asked_counts_not_even_whether_there_are_any(layout, make_block, make_tokenizer):
    log = not layout.get("counts", True)
    block = make_block(n_fields=1, log=log, empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    asked = ask(block)
    random, x = np.random.default_rng(9), block.counts.toarray()
    others = random.integers(0, 3, size=x.shape) * random.integers(1, 500, size=x.shape) / (64 if log else 1)
    changed = np.where(asked, others, x)
    depth = block.depth + changed.sum(axis=1, dtype=np.float64) - x.sum(axis=1, dtype=np.float64)
    other = replace(block, counts=sp.csr_matrix(changed.astype(np.float32)), total=depth)
    first, second = (read(tokenizer, each, sp.csr_matrix(asked)) for each in (block, other))
    assert differing(first, second, INPUTS) == []
    targets = ["target_bins", "target_counts", *([] if log else ["size_factor"])]
    assert differing(first, second, targets) == targets


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_inputs_know_the_counts_that_are_not_asked_for(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True))
    tokenizer = make_tokenizer(block, **layout)
    asked, x = ask(block), block.counts.toarray()
    for row in range(3, 12):
        seen = np.flatnonzero((x[row] > 0) & ~asked[row])
        x[row, seen[np.argmin(x[row, seen])]] = 600  # from the lowest rank to the highest
    first = read(tokenizer, block, sp.csr_matrix(asked))
    second = read(tokenizer, replace(block, counts=sp.csr_matrix(x)), sp.csr_matrix(asked))
    assert (first.visible != second.visible).any(dim=1).tolist() == [False] * 3 + [True] * 9
    assert torch.equal(first.known, second.known)
    if "max_tokens" not in layout:
        assert (first.context_bins != second.context_bins).any(dim=1).tolist() == [False] * 3 + [True] * 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_asking_for_nothing_hides_nothing(layout, make_block, make_tokenizer):
    block = make_block(n_fields=1, log=not layout.get("counts", True), empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    first, second = read(tokenizer, block), read(tokenizer, block, sp.csr_matrix(block.counts.shape, dtype=bool))
    present = [field.name for field in fields(first) if isinstance(getattr(first, field.name), torch.Tensor)]
    assert differing(first, second, present) == []
    assert first.masked_ids.shape == (12, 0)
    assert first.known.all()


def test_the_question_is_the_positions_however_they_are_stored(make_block, make_tokenizer):
    block = make_block()
    tokenizer = make_tokenizer(block)
    asked = sp.csr_matrix(ask(block))
    entries = np.concatenate([np.arange(*asked.indptr[row : row + 2])[::-1] for row in range(12)])
    backwards = sp.csr_matrix((np.full(asked.nnz, 7.0), asked.indices[entries], asked.indptr), shape=asked.shape)
    first, second = read(tokenizer, block, asked), read(tokenizer, block, backwards)
    assert differing(first, second, [*INPUTS, "target_bins"]) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stored_false_asks_for_nothing(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True), empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    asked = ask(block)
    stored = sp.csr_matrix((asked.ravel(), np.tile(np.arange(60), 12), np.arange(13) * 60), shape=asked.shape)
    assert stored.nnz == asked.size
    first, second = (read(tokenizer, block, each) for each in (sp.csr_matrix(asked), stored))
    assert differing(first, second, [*INPUTS, "target_bins"]) == []
    assert tokenizer.n_context(block, stored).tolist() == (first.context_ids > 0).sum(dim=1).tolist()
    measured = [tokenizer.measured(block, "bins", each) for each in (sp.csr_matrix(asked), stored)]
    np.testing.assert_array_equal(*measured)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_n_context_is_the_length_that_remains_and_tells_nothing_of_the_asked(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True), empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    asked = ask(block)
    found = tokenizer.n_context(block, sp.csr_matrix(asked))
    batch = read(tokenizer, block, sp.csr_matrix(asked))
    assert found.tolist() == (batch.context_ids > 0).sum(dim=1).tolist()
    seen = replace(block, counts=sp.csr_matrix(np.where(asked, 0, block.counts.toarray())))
    assert tokenizer.n_context(seen, sp.csr_matrix(asked)).tolist() == found.tolist()


def test_a_cell_answers_the_same_in_any_batch(make_block, make_tokenizer):
    block = make_block(n_fields=1)
    tokenizer = make_tokenizer(block)
    asked, some = sp.csr_matrix(ask(block)), np.array([8, 0, 11])
    together = read(tokenizer, block, asked)
    apart = tokenizer.inference_batch(block.take(some), some, asked[some])
    for ids, values in (("context_ids", "context_bins"), ("masked_ids", "target_bins")):
        of_all = tokens(getattr(together, ids), getattr(together, values))
        assert tokens(getattr(apart, ids), getattr(apart, values)) == [of_all[i] for i in some]
    names = ("rows", "known", "phenotypes", "target_counts", "size_factor", "visible", "log_depth", "small_count_bins")
    for name in names:
        assert torch.equal(getattr(apart, name), getattr(together, name)[some]), name


# --- the depth of the whole cell -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "absent", "expected"),
    [
        pytest.param([], [], 12 / 10, id="nothing-masked"),
        pytest.param([0], [], (12 - 4) / (10 - 1), id="expressed"),
        pytest.param([1], [], 12 / (10 - 2), id="zero"),
        pytest.param([0, 1, 2], [], (12 - 4 - 6) / (10 - 1 - 2 - 3), id="all-modelled"),
        pytest.param([], [1], 12 / (10 - 2), id="absent"),
        pytest.param([1], [1], 12 / (10 - 2), id="asked-and-absent"),
        pytest.param([2], [1], (12 - 6) / (10 - 2 - 3), id="asked-or-absent"),
        pytest.param([3], [], 12 / (10 * 1e-3), id="nearly-all-of-the-depth"),
        pytest.param([2, 3], [], (12 - 6) / (10 * 1e-3), id="more-than-the-depth"),
    ],
)
def test_the_depth_is_scaled_up_by_what_the_unknown_features_hold_on_average(
    asked, absent, expected, make_depth_models
):
    """Of 12 counts, 4 and 6 are in features 0 and 2 and 2 in others; on average the four hold 1, 2, 3 and 9.995."""
    binning = Binning().freeze(mean_depth=10.0, max_bin=30)
    shares = np.array([0.1, 0.2, 0.3, 0.9995])
    tokenizer = Tokenizer(binning, 4, Masking(), make_depth_models(shares))
    counts = sp.csr_matrix(np.array([[4, 0, 6, 0]], np.float32))
    present, rule = ~np.isin(np.arange(4), absent), DepthRule(share=1 - shares[absent].sum())
    fields = np.zeros((1, 0), np.int32)
    block = Block(0, counts, np.array([12.0]), fields, present, rule)
    question = np.zeros((1, 4), bool)
    question[0, asked] = True
    batch = read(tokenizer, block, sp.csr_matrix(question))
    assert batch.log_depth.exp().item() == pytest.approx(expected, rel=1e-5)
    seen = {j: n for j, n in ((0, 4), (2, 6)) if j not in asked}
    assert batch.visible[0].tolist() == pytest.approx(
        [math.log1p(seen.get(j, 0) / expected) for j in range(4)], rel=1e-5
    )
    assert batch.size_factor.item() == pytest.approx(1.2 / (1 - 0.2 * len(absent)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_depth_is_1_on_average_whatever_is_hidden(share, make_block, make_tokenizer):
    block = make_block(n_cells=100, n_features=200, seed=1)
    tokenizer = make_tokenizer(block)
    random = np.random.default_rng(0)
    depths = [
        read(tokenizer, block, sp.csr_matrix(random.random((100, 200)) < share)).log_depth.exp().mean().item()
        for _ in range(10)
    ]
    assert np.mean(depths) == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("layout", [param for param in LAYOUTS if "few" not in param.id])
@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_what_a_mask_draws_reads_as_in_training_when_it_is_asked_for(layout, ratio, make_block, make_tokenizer):
    block = make_block(n_fields=1, log=not layout.get("counts", True), empty=[3])
    tokenizer = make_tokenizer(block, masking=Masking(ratio=ratio), **layout)
    drawn = train(tokenizer, block)
    asked = sp.csr_matrix(~drawn.known.numpy())
    names = [name for name in (*INPUTS, "target_bins") if name != "phenotypes"]  # which are masked in training
    assert differing(drawn, read(tokenizer, block, asked, drawn=True), names) == []
    if not layout:
        assert not torch.equal(drawn.log_depth, read(tokenizer, block, asked).log_depth)


@pytest.mark.parametrize(
    ("absent", "expected"),
    [
        ([], 0.8 * math.exp(1.5 * 0.2)),
        ([2], 0.8 * (1 - 0.2) / (1 - 0.3 - 0.2) * math.exp(1.5 * 0.2)),
        ([0, 2], 0.8 * (1 - 0.2) / (1 - 0.4 - 0.2) * math.exp(1.5 * 0.2)),
    ],
)
def test_the_depth_of_a_drawn_mask_is_that_of_its_own_estimate(absent, expected, make_depth_models):
    """12 counts, of which 4 in the masked feature; the four hold .1, .2, .3 and .4, those of drawn masks 1.5 times."""
    binning = Binning().freeze(mean_depth=10.0, max_bin=30)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    tokenizer = Tokenizer(binning, 4, Masking(), make_depth_models(shares, drawn=(0, 1, 0.5, 0, 0, 0)))
    counts = sp.csr_matrix(np.array([[0, 4, 0, 0]], np.float32))
    present, rule = ~np.isin(np.arange(4), absent), DepthRule(share=1 - shares[absent].sum())
    fields = np.zeros((1, 0), np.int32)
    block = Block(0, counts, np.array([12.0]), fields, present, rule)
    batch = read(tokenizer, block, sp.csr_matrix(np.array([[0, 1, 0, 0]])), drawn=True)
    assert batch.log_depth.exp().item() == pytest.approx(expected, rel=1e-5)


# --- features that the data does not measure ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["expressed", "all"])
def test_features_that_are_not_measured_are_not_known_and_no_tokens(layout, make_block, make_tokenizer):
    complete = make_block()
    tokenizer = make_tokenizer(complete, tokens=layout)
    x, absent = complete.counts.toarray(), np.array([1, 30, 59])
    x[:, absent] = 0
    block = replace(complete, counts=sp.csr_matrix(x), present=~np.isin(np.arange(60), absent))
    for batch in (read(tokenizer, block), train(tokenizer, block), read(tokenizer, block, sp.csr_matrix(ask(block)))):
        assert not batch.known[:, absent].any()
        assert not batch.visible[:, absent].any()
        assert not np.isin(batch.context_ids, absent + FIRST).any()
    assert read(tokenizer, block).known.sum(dim=1).tolist() == [57] * 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_feature_that_is_not_measured_reads_as_one_that_is_hidden(
    layout, make_block, make_tokenizer, make_depth_models
):
    """If its share of the depth is the same in all cells. The estimate of what is hidden knows more."""
    log = not layout.get("counts", True)
    block = make_block(log=log)
    shares = np.random.default_rng(0).dirichlet(np.ones(60)).astype(np.float32)
    tokenizer = make_tokenizer(block, depth=None if log else make_depth_models(shares), **layout)
    names, absent = [f"g{j}" for j in range(60)], [2, 7, 44]
    # the columns beyond the modelled are what the rest of the depth is in
    rest = (block.depth - block.counts.sum(axis=1).A1)[:, None].astype(np.float32)
    whole = ad.AnnData(sp.csr_matrix(np.hstack([block.counts.toarray(), rest])))
    whole.var_names = [*names, "rest"]
    partial = whole[:, ~whole.var_names.isin([names[j] for j in absent])].copy()
    rules = DepthRule(), DepthRule(share=1.0 - float(shares[absent].sum(dtype=float)))
    sources = [
        AnnDataSource(each, columns=each.var_names.get_indexer(names), rule=rule)
        for each, rule in zip((whole, partial), rules, strict=True)
    ]
    assert [np.flatnonzero(~source.present).tolist() for source in sources] == [[], absent]
    asked = np.zeros((12, 60), bool)
    asked[:, absent] = True
    masked = read(tokenizer, sources[0].read(0, 12), sp.csr_matrix(asked))
    found = read(tokenizer, sources[1].read(0, 12))
    assert found.masked_ids.shape == (12, 0)
    # and may be asked for all the same
    both = read(tokenizer, sources[1].read(0, 12), sp.csr_matrix(asked))
    for name in INPUTS:
        torch.testing.assert_close(getattr(both, name), getattr(masked, name), rtol=1e-6, atol=1e-6)
        if name != "masked_ids":
            torch.testing.assert_close(getattr(found, name), getattr(masked, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", ["counts", "log1p", "bins"])
def test_measured_values_are_read_as_the_model_reads_them(scale, make_block, make_tokenizer):
    block = replace(make_block(), present=~np.isin(np.arange(60), [3, 8]))
    tokenizer = make_tokenizer(block)
    asked = np.zeros((12, 60), bool)
    asked[:, [5, 20, 33]] = True
    found = tokenizer.measured(block, scale, sp.csr_matrix(asked))
    assert found.dtype == np.float32
    batch = read(tokenizer, block, sp.csr_matrix(asked))
    expected = {"counts": block.counts.toarray(), "log1p": batch.visible.numpy(), "bins": np.zeros((12, 60))}[scale]
    if scale == "bins":
        for row, bins in enumerate(tokens(batch.context_ids, batch.context_bins)):
            expected[row, list(bins)] = list(bins.values())
    expected[:, [3, 8, 5, 20, 33]] = np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- what is kept from the bag in training -------------------------------------------------------------------------


def test_bag_dropout_takes_known_features_from_the_bag_and_changes_nothing_else(make_block, make_tokenizer):
    block = make_block(n_fields=1)
    tokenizer = make_tokenizer(block, n_noise=5)
    whole, dropped = train(tokenizer, block), train(tokenizer, block, bag_dropout=0.7)
    names = [field.name for field in fields(whole) if isinstance(getattr(whole, field.name), torch.Tensor)]
    assert differing(whole, dropped, names) == ["known"]
    assert not (dropped.known & ~whole.known).any()
    assert differing(train(tokenizer, block, bag_dropout=0.0), whole, names) == []


def test_the_dropped_share_is_uniform_up_to_the_given_one_and_the_same_in_any_batch(make_block, make_tokenizer):
    block = make_block(n_cells=300, n_features=400)
    tokenizer = make_tokenizer(block)
    whole, dropped = (train(tokenizer, block, bag_dropout=share).known.numpy() for share in (0.0, 0.6))
    shares = 1 - dropped.sum(axis=1) / whole.sum(axis=1)
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.15, 0.3, 0.45], atol=0.06)
    assert shares.min() < 0.03
    assert 0.55 < shares.max() < 0.6 + 5 * math.sqrt(0.6 * 0.4 / 350)
    # which features: chance, not the same ones in every cell
    of_features = 1 - dropped.sum(axis=0) / whole.sum(axis=0)
    assert np.abs(of_features - 0.3).max() < 5 * math.sqrt(0.3 * 0.7 / 200)
    some = np.array([250, 3, 77])
    apart = train(tokenizer, block.take(some), rows=some, bag_dropout=0.6).known.numpy()
    assert (apart == dropped[some]).all()
    assert (train(tokenizer, block, bag_dropout=0.6, epoch=2).known.numpy() != dropped).any()
