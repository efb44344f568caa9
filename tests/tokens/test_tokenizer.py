"""Blocks of counts to token batches: what the model sees, what it is scored on, and that the two do not mix."""

import math
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import kstest

from scbioformers.config import Masking, bin_rows
from scbioformers.core import SPECIALS
from scbioformers.data import AnnDataSource, Block

FIRST = len(SPECIALS)  # vocabulary id of the first feature
INPUTS = ["context_ids", "context_bins", "masked_ids", "visible", "known",
          "log_depth", "small_count_bins", "batch_codes", "phenotypes"]  # fmt: skip
ALL = 10_000  # a budget that covers every cell

LAYOUTS = [
    pytest.param({}, id="value"),
    pytest.param({"kind": "segment"}, id="segment"),
    pytest.param({"tokens": "all"}, id="value-all"),
    pytest.param({"kind": "segment", "tokens": "all"}, id="segment-all"),
    pytest.param({"masking": Masking(rule="paper", ratio=0.6)}, id="paper-mask"),
    pytest.param({"kind": "segment", "counts": False}, id="log-scale"),
]


def train(tokenizer, block, rows=None, *, seed=3, epoch=1, n_context=ALL, n_masked=ALL, **kwargs):
    rows = np.arange(len(block.depth)) if rows is None else np.asarray(rows)
    return tokenizer.training_batch(
        block, rows, seed=seed, epoch=epoch, n_context=n_context, n_masked=n_masked, **kwargs
    )


def read(tokenizer, block):
    return tokenizer.inference_batch(block, np.arange(len(block.depth)))


def features(ids):
    """The features of each row of padded ids."""
    return [[int(i) - FIRST for i in row if i > 0] for row in ids]


def tokens(ids, values):
    """{feature: value} of each row, padding left out."""
    return [
        {int(i) - FIRST: int(v) for i, v in zip(*row, strict=True) if i > 0} for row in zip(ids, values, strict=True)
    ]


def slow_bins(tokenizer, counts, depth, mean_depth):
    """SPEC 2, one count at a time; `counts` {feature: count} of one cell."""
    binning = tokenizer.binning
    if binning.kind == "segment":
        at_most = {j: sum(y <= x for y in counts.values()) for j, x in counts.items()}
        return {j: -(-binning.n_bins * n // len(counts)) for j, n in at_most.items()}
    bins = {}
    for j, count in counts.items():
        x = count * mean_depth / depth
        if x <= 1:
            bins[j] = 1
        elif x <= binning.cutoff:
            bins[j] = math.floor(x + 0.5)
        else:
            doublings = math.log2(x / binning.cutoff)
            bins[j] = binning.cutoff + math.ceil(binning.bins_per_doubling * doublings - 1e-9)
    return {j: min(b, binning.n_values - 1) for j, b in bins.items()}


def same(first, second, name):
    a, b = getattr(first, name), getattr(second, name)
    return np.array_equal(a, b, equal_nan=a.is_floating_point()) if isinstance(a, torch.Tensor) else a == b


def assert_same_batch(first, second):
    assert [field.name for field in fields(first) if not same(first, second, field.name)] == []


# --- no leak -------------------------------------------------------------------------------------------------------


def with_other_masked_counts(block, masked, *, log):
    random = np.random.default_rng(9)
    x = block.counts.toarray()
    before = x.sum(axis=1, dtype=np.float64)
    for row, chosen in enumerate(masked):
        chosen = [j for j in chosen if x[row, j] > 0]
        x[row, chosen] = random.integers(1, 500, size=len(chosen)) / (64 if log else 1)
    return replace(block, counts=sp.csr_matrix(x), total=block.total - before + x.sum(axis=1, dtype=np.float64))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [ALL, 6])
def test_what_the_model_reads_knows_nothing_of_the_masked_counts(layout, budget, make_block, make_tokenizer):
    log = not layout.get("counts", True)
    block = make_block(n_fields=1, log=log, empty=[3])
    tokenizer = make_tokenizer(block, **layout)
    masked = features(train(tokenizer, block).masked_ids)
    other = with_other_masked_counts(block, masked, log=log)
    first = train(tokenizer, block, n_context=budget, n_masked=budget)
    second = train(tokenizer, other, n_context=budget, n_masked=budget)
    assert [name for name in INPUTS if not same(first, second, name)] == []
    targets = ["target_bins", "target_counts", *([] if log else ["size_factor"])]
    assert [name for name in targets if same(first, second, name)] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_model_reads_knows_the_visible_counts(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True))
    tokenizer = make_tokenizer(block, **layout)
    first = train(tokenizer, block)
    x = block.counts.toarray()
    for row, masked in enumerate(features(first.masked_ids)):
        seen = np.setdiff1d(np.flatnonzero(x[row]), masked)
        x[row, seen[np.argmin(x[row, seen])]] = 600  # from the lowest rank to the highest
    second = train(tokenizer, replace(block, counts=sp.csr_matrix(x)))
    assert torch.equal(first.masked_ids, second.masked_ids)
    assert (first.context_bins != second.context_bins).any(dim=1).all()
    assert (first.visible != second.visible).any(dim=1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_feature_is_read_or_predicted_never_both(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True))
    batch = train(make_tokenizer(block, **layout), block)
    for row, (seen, masked) in enumerate(zip(features(batch.context_ids), features(batch.masked_ids), strict=True)):
        assert len({*seen, *masked}) == len(seen) + len(masked)
        assert not batch.visible[row, masked].any()


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["value", "segment"])
@pytest.mark.parametrize("ratio", [0.15, 0.6])
def test_visible_counts_are_binned_by_what_they_say_of_the_depth_and_targets_by_the_depth(
    kind, ratio, make_block, make_tokenizer, slow_depth
):
    block = make_block()
    tokenizer = make_tokenizer(block, kind=kind, masking=Masking(ratio=ratio))
    batch = train(tokenizer, block)
    mean, n_values = tokenizer.binning.mean_depth, tokenizer.binning.n_values
    spreads = []
    context, scored = tokens(batch.context_ids, batch.context_bins), tokens(batch.masked_ids, batch.target_bins)
    for row, x in enumerate(block.counts.toarray().astype(float)):
        counts = {j: x[j] for j in np.flatnonzero(x)}
        seen = {j: n for j, n in counts.items() if j not in scored[row]}
        seen_depth = block.depth[row] - sum(counts[j] for j in scored[row] if j in counts)
        depth, depths = slow_depth(tokenizer.depth.drawn, seen, seen_depth, scored[row])
        spreads.append(depths[-1] / depths[0])
        assert context[row] == slow_bins(tokenizer, seen, depth, mean)
        full_bins = slow_bins(tokenizer, counts, block.depth[row], mean)
        assert scored[row] == {j: full_bins.get(j, 0) for j in scored[row]}
        profile = [math.log1p(seen.get(j, 0) * mean / depth) for j in range(x.size)]
        np.testing.assert_allclose(batch.visible[row], profile, rtol=1e-6)
        assert batch.log_depth[row].item() == pytest.approx(math.log(depth / mean), abs=1e-6)
        few = np.zeros((8, n_values))  # at how many of the likely depths a count of 1 to 8 is in each bin
        for n, each in product(range(1, 9), depths if kind == "value" else []):
            few[n - 1, slow_bins(tokenizer, {0: n}, each, mean)[0]] += 1 / 7
        np.testing.assert_allclose(batch.small_count_bins[row], few, atol=1e-6)
        assert batch.size_factor[row].item() == pytest.approx(block.depth[row] / mean)
        assert batch.target_counts[row].tolist() == x.tolist()
        assert np.flatnonzero(~batch.known[row]).tolist() == sorted(scored[row])
    assert min(spreads) > 1.01


def test_visible_bins_are_those_of_bin_rows_on_the_visible_counts(make_block, make_tokenizer):
    block = make_block()
    tokenizer = make_tokenizer(block)
    batch = train(tokenizer, block)
    x = block.counts.toarray()
    for row, masked in enumerate(features(batch.masked_ids)):
        x[row, masked] = 0
    seen, mean = sp.csr_matrix(x), tokenizer.binning.mean_depth
    depth = mean * batch.log_depth.double().exp().numpy()  # what the model is told of the depth
    bins = bin_rows(tokenizer.binning, seen.data, seen.indptr, depth, mean)
    assert batch.context_bins[batch.context_ids > 0].tolist() == bins.tolist()
    assert features(batch.context_ids) == [row.indices.tolist() for row in seen]


@pytest.mark.parametrize(
    "masking",
    [
        Masking(),
        Masking(ratio=0.5),
        pytest.param(Masking(rule="paper", ratio=0.9), id="paper-at-its-cap"),
        pytest.param(Masking(rule="paper", ratio=0.1), id="paper-below-its-cap"),
    ],
)
def test_in_training_the_depth_is_1_on_average_as_it_is_at_inference(masking, make_block, make_tokenizer):
    block = make_block(n_cells=100, n_features=200, seed=1)
    tokenizer = make_tokenizer(block, masking=masking)
    depths = [train(tokenizer, block, epoch=epoch).log_depth.exp().mean().item() for epoch in range(20)]
    assert np.mean(depths) == pytest.approx(1.0, abs=0.02)
    assert read(tokenizer, block).log_depth.exp().mean().item() == pytest.approx(1.0, abs=1e-6)


def test_profiles_are_log1p_at_the_mean_depth(make_block, make_tokenizer):
    block = make_block()
    tokenizer = make_tokenizer(block)
    profiles = tokenizer.profiles(block)
    assert profiles.dtype == np.float64
    expected = np.log1p(block.counts.toarray() * (tokenizer.binning.mean_depth / block.depth)[:, None])
    np.testing.assert_allclose(profiles.toarray(), expected, rtol=1e-12)
    np.testing.assert_allclose(read(tokenizer, block).visible, expected, rtol=1e-6)


def test_types_and_shapes_are_those_of_the_batch(make_block, make_tokenizer):
    block = make_block(n_fields=2)
    batch = train(make_tokenizer(block, has_batches=True), block, rows=np.arange(12) + 70)
    assert len(batch) == 12
    assert batch.rows.tolist() == list(range(70, 82))
    assert batch.batch_codes.tolist() == block.fields[:, 0].tolist()
    known = torch.where(batch.phenotypes.isnan(), batch.target_phenotypes, batch.phenotypes)
    assert known.tolist() == block.fields[:, 1:].tolist()
    floats = {
        "phenotypes",
        "target_phenotypes",
        "visible",
        "log_depth",
        "small_count_bins",
        "target_counts",
        "size_factor",
    }
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    # there are no external tokens where nothing is perturbed
    assert tensors.pop("context_external") is tensors.pop("external") is None
    assert tensors.pop("noise") is None
    assert tensors.pop("prefixes") is None  # a decoder has them
    assert tensors.pop("weight") == 1.0
    assert {name for name, x in tensors.items() if x.dtype == torch.float32} == floats
    assert {name for name, x in tensors.items() if x.dtype == torch.bool} == {"known", "present"}
    assert {x.dtype for x in tensors.values()} == {torch.float32, torch.int64, torch.bool}
    assert batch.context_ids.shape == batch.context_bins.shape
    assert batch.masked_ids.shape == batch.target_bins.shape
    assert batch.visible.shape == batch.known.shape == batch.target_counts.shape == (12, 60)
    assert batch.small_count_bins.shape == (12, 8, 19)
    assert_same_batch(batch, batch.to("cpu"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_follows_the_tokens_and_has_id_0(layout, make_block, make_tokenizer):
    block = make_block(empty=[5], log=not layout.get("counts", True))
    batch = train(make_tokenizer(block, **layout), block)
    for ids, values, nothing in (
        (batch.context_ids, batch.context_bins, 0),
        (batch.masked_ids, batch.target_bins, -1),
    ):
        padding = ids == 0
        assert (padding.int().diff(dim=1) >= 0).all()
        assert not padding[:, -1].all()  # as wide as the longest cell
        assert (values[padding] == nothing).all()
        assert (values[~padding] >= 0).all()
        assert (ids[~padding] >= FIRST).all()


# --- the choice of tokens ------------------------------------------------------------------------------------------


def test_a_budget_reads_some_of_the_visible_and_scores_some_of_the_hidden(make_block, make_tokenizer):
    block = make_block()
    tokenizer = make_tokenizer(block, masking=Masking(ratio=0.3))
    everything, some = train(tokenizer, block), train(tokenizer, block, n_context=7, n_masked=3)
    for ids, values, budget in (("context_ids", "context_bins", 7), ("masked_ids", "target_bins", 3)):
        of_all = tokens(getattr(everything, ids), getattr(everything, values))
        of_some = tokens(getattr(some, ids), getattr(some, values))
        assert [len(row) for row in of_some] == [min(budget, len(row)) for row in of_all]
        assert all(small.items() <= large.items() for small, large in zip(of_some, of_all, strict=True))
    # the bag and the depth are of all that is visible, whatever attention reads
    for name in ("visible", "known", "log_depth", "small_count_bins"):
        assert torch.equal(getattr(everything, name), getattr(some, name)), name


def test_a_quarter_of_the_phenotypes_is_masked_and_predicted(make_block, make_tokenizer):
    block = make_block(n_fields=3)
    tokenizer, rows, n_epochs = make_tokenizer(block, has_batches=True), np.arange(12) + 5, 200
    n_masked = np.zeros(2)
    for epoch in range(n_epochs):
        batch = train(tokenizer, block, rows=rows, epoch=epoch)
        masked = batch.phenotypes.isnan()
        assert torch.equal(batch.target_phenotypes.isnan(), ~masked)
        assert batch.target_phenotypes[masked].tolist() == block.fields[:, 1:][masked.numpy()].tolist()
        assert batch.phenotypes[~masked].tolist() == block.fields[:, 1:][~masked.numpy()].tolist()
        n_masked += masked.sum(dim=0).numpy()
    np.testing.assert_allclose(n_masked / (12 * n_epochs), 0.25, atol=0.04)
    last = batch.phenotypes[3:5].isnan()
    assert torch.equal(
        train(tokenizer, block.take(np.array([3, 4])), rows=rows[3:5], epoch=epoch).phenotypes.isnan(), last
    )


def test_at_inference_no_phenotype_is_masked_and_one_that_is_not_known_stays_so(make_block, make_tokenizer):
    block = make_block(n_fields=2)
    fields = block.fields.astype(np.float32)
    fields[3, 1] = np.nan
    batch = read(make_tokenizer(block, has_batches=True), replace(block, fields=fields))
    np.testing.assert_array_equal(batch.phenotypes[:, 0].numpy(), fields[:, 1])
    assert batch.target_phenotypes.isnan().all()


def test_the_scored_are_an_even_sample_of_the_hidden(make_block, make_tokenizer):
    block = make_block(n_cells=80, n_features=150)
    tokenizer = make_tokenizer(block, masking=Masking(ratio=0.3))
    batches = [train(tokenizer, block, epoch=epoch, n_masked=8) for epoch in range(10)]
    expressed = torch.cat([batch.target_bins[batch.target_bins >= 0] > 0 for batch in batches]).float()
    assert expressed.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(expressed)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cell_reads_the_same_in_any_batch(layout, make_block, make_tokenizer):
    block = make_block(log=not layout.get("counts", True))
    tokenizer = make_tokenizer(block, **layout)
    together = train(tokenizer, block, n_context=9, n_masked=4)
    some = np.array([8, 2, 11])
    apart = train(tokenizer, block.take(some), rows=some, n_context=9, n_masked=4)
    for ids, values in (("context_ids", "context_bins"), ("masked_ids", "target_bins")):
        of_all = tokens(getattr(together, ids), getattr(together, values))
        assert tokens(getattr(apart, ids), getattr(apart, values)) == [of_all[i] for i in some]
    for name in ("visible", "known", "log_depth", "small_count_bins", "target_counts", "size_factor"):
        assert torch.equal(getattr(apart, name), getattr(together, name)[some])


@pytest.mark.parametrize("changed", [{"seed": 4}, {"epoch": 2}, {"rows": np.arange(12) + 12}])
def test_seed_epoch_and_row_change_the_choices_and_nothing_else_does(changed, make_block, make_tokenizer):
    block = make_block()
    tokenizer = make_tokenizer(block)
    first = train(tokenizer, block, n_context=9, n_masked=4)
    assert_same_batch(first, train(tokenizer, block, n_context=9, n_masked=4))
    second = train(tokenizer, block, n_context=9, n_masked=4, **changed)
    assert features(first.context_ids) != features(second.context_ids)
    assert features(first.masked_ids) != features(second.masked_ids)


def test_noise_is_a_function_of_seed_epoch_and_row_alone(make_block, make_tokenizer):
    block = make_block()
    tokenizer = make_tokenizer(block, n_noise=7)
    noise = train(tokenizer, block).noise
    assert noise.shape == (12, 7)
    assert noise.dtype == torch.float32
    some = np.array([8, 2, 11])
    assert torch.equal(train(tokenizer, block.take(some), rows=some, n_context=5, n_masked=2).noise, noise[some])
    wider = make_tokenizer(block, n_noise=9, masking=Masking(ratio=0.4))
    assert torch.equal(train(wider, block).noise[:, :7], noise)
    others = [train(tokenizer, block, **changed).noise for changed in ({"seed": 4}, {"epoch": 2})]
    assert all((other != noise).all() for other in others)
    assert read(tokenizer, block).noise is None
    assert_same_batch(read(tokenizer, block), read(make_tokenizer(block), block))


def test_noise_is_standard_normal(make_block, make_tokenizer):
    block = make_block(n_cells=100)
    noise = torch.cat([train(make_tokenizer(block, n_noise=8), block, epoch=epoch).noise for epoch in range(5)])
    assert torch.isfinite(noise).all()
    assert kstest(noise.numpy().ravel(), "norm").pvalue > 0.001
    correlation = np.corrcoef(noise.numpy(), rowvar=False) - np.eye(8)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(noise))


def test_the_tokens_all_layout_reads_every_feature_that_is_not_hidden(make_block, make_tokenizer):
    block = make_block(empty=[1])
    x = block.counts.toarray()
    tokenizer = make_tokenizer(block, tokens="all")
    batch = train(tokenizer, block)
    # scored or not, a masked zero is no token
    tight = train(tokenizer, block, n_masked=2)
    assert torch.equal(batch.context_ids, tight.context_ids)
    scored = features(batch.masked_ids)
    for row, context in enumerate(tokens(batch.context_ids, batch.context_bins)):
        assert sorted({*context, *scored[row]}) == list(range(60))
        assert all((bin_ > 0) == (x[row, j] > 0) for j, bin_ in context.items())
    whole = read(tokenizer, block)
    assert features(whole.context_ids) == [list(range(60))] * 12
    assert ((whole.context_bins > 0).numpy() == (x > 0)).all()


# --- inference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["value", "segment"])
def test_read_takes_every_expressed_feature_and_hides_none(kind, make_block, make_tokenizer):
    block = make_block(empty=[0])
    tokenizer = make_tokenizer(block, kind=kind)
    batch = read(tokenizer, block)
    assert batch.masked_ids.shape == batch.target_bins.shape == (12, 0)
    assert batch.known.all()
    context = tokens(batch.context_ids, batch.context_bins)
    for row, x in enumerate(block.counts.toarray().astype(float)):
        counts = {j: x[j] for j in np.flatnonzero(x)}
        assert context[row] == slow_bins(tokenizer, counts, block.depth[row], tokenizer.binning.mean_depth)


@pytest.mark.parametrize("layout", ["expressed", "all"])
@pytest.mark.parametrize("max_tokens", [1, 5, 12, 40, 59])
def test_over_max_tokens_read_takes_the_highest_by_count_and_id(layout, max_tokens, make_block, make_tokenizer):
    block = make_block(empty=[7])
    batch = read(make_tokenizer(block, tokens=layout, max_tokens=max_tokens), block)
    whole = read(make_tokenizer(block, tokens=layout), block)
    bins = tokens(whole.context_ids, whole.context_bins)
    for row, x in enumerate(block.counts.toarray()):
        candidates = [(n, j) for j, n in enumerate(x) if n > 0 or layout == "all"]
        expected = sorted(j for _, j in sorted(candidates)[-max_tokens:])
        assert features(batch.context_ids)[row] == expected
        assert tokens(batch.context_ids, batch.context_bins)[row] == {j: bins[row][j] for j in expected}
    assert torch.equal(batch.visible, whole.visible)
    assert torch.equal(batch.log_depth, whole.log_depth)


@pytest.mark.parametrize("layout", ["expressed", "all"])
@pytest.mark.parametrize("max_tokens", [5, 2048])
def test_n_context_is_the_length_that_read_gives(layout, max_tokens, make_block, make_tokenizer):
    block = make_block(empty=[2])
    tokenizer = make_tokenizer(block, tokens=layout, max_tokens=max_tokens)
    assert tokenizer.n_context(block).tolist() == (read(tokenizer, block).context_ids > 0).sum(dim=1).tolist()


def test_permuted_genes_read_the_same(simulated, make_tokenizer):
    order = np.random.default_rng(0).permutation(simulated.n_vars)
    permuted = simulated[:, order].copy()
    modelled = simulated.var_names[5:]
    first = AnnDataSource(simulated, columns=simulated.var_names.get_indexer(modelled)).read(0, 30)
    second = AnnDataSource(permuted, columns=permuted.var_names.get_indexer(modelled)).read(0, 30)
    tokenizer = make_tokenizer(first)
    assert_same_batch(read(tokenizer, first), read(tokenizer, second))
    assert_same_batch(train(tokenizer, first, n_context=9), train(tokenizer, second, n_context=9))


# --- unusual cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_cell_has_no_expressed_token_and_disturbs_no_other(layout, make_block, make_tokenizer):
    block = make_block(empty=[4], log=not layout.get("counts", True))
    tokenizer = make_tokenizer(block, **layout)
    others = np.delete(np.arange(12), 4)
    for batch, without in (
        (read(tokenizer, block), read(tokenizer, block.take(others))),
        (train(tokenizer, block), train(tokenizer, block.take(others), rows=others)),
    ):
        assert not batch.context_bins[4].any()
        assert (batch.target_bins[4] <= 0).all()
        assert not batch.visible[4].any()
        assert not batch.target_counts[4].any()
        assert batch.log_depth[4] == 0
        assert batch.size_factor[4] == 1
        assert torch.equal(batch.context_bins[others][:, : without.context_bins.shape[1]], without.context_bins)
        assert torch.equal(batch.visible[others], without.visible)


def test_a_block_of_empty_cells_has_no_tokens(make_block, make_tokenizer):
    tokenizer = make_tokenizer(make_block())
    nothing = make_block(n_cells=2, empty=[0, 1])
    for batch in (read(tokenizer, nothing), train(tokenizer, nothing)):
        assert batch.context_ids.shape == batch.masked_ids.shape == (2, 0)
        assert torch.isfinite(batch.log_depth).all()


def test_the_only_expressed_feature_of_a_cell_stays_visible(make_tokenizer):
    x = sp.csr_matrix(np.array([[0, 3, 0, 0], [2, 0, 0, 0]], np.float32))
    block = Block(0, x, np.array([3.0, 2.0]), np.zeros((2, 0), np.int32))
    batch = train(make_tokenizer(block, masking=Masking(ratio=0.9)), block)
    assert features(batch.context_ids) == [[1], [0]]
    assert batch.masked_ids.shape == (2, 0)


def test_cells_with_counts_in_unmodelled_features_only_are_like_empty_ones_with_a_depth(make_block, make_tokenizer):
    block = make_block(empty=[6])
    block.total[6] = 50.0
    tokenizer = make_tokenizer(block)
    batch = read(tokenizer, block)
    assert features(batch.context_ids)[6] == []
    mean = tokenizer.binning.mean_depth
    assert batch.size_factor[6].item() == pytest.approx(50 / mean)
    assert batch.log_depth[6].item() == pytest.approx(math.log(50 / mean), rel=1e-6)


def test_without_counts_bins_as_a_share_of_the_highest_stand_in_for_them(make_block, make_tokenizer):
    block = make_block(log=True)
    tokenizer = make_tokenizer(block, kind="segment", counts=False)
    batch = train(tokenizer, block)
    for row, (x, masked) in enumerate(zip(block.counts.toarray(), features(batch.masked_ids), strict=True)):
        counts = {j: x[j] for j in np.flatnonzero(x)}
        seen = {j: n for j, n in counts.items() if j not in masked}
        for dense, levels in ((batch.visible, seen), (batch.target_counts, counts)):
            bins = slow_bins(tokenizer, levels, 1, 1)
            np.testing.assert_allclose(dense[row], [bins.get(j, 0) / 10 for j in range(x.size)], rtol=1e-6)
    np.testing.assert_allclose(tokenizer.profiles(block).toarray(), batch.target_counts, rtol=1e-6)
    # such data have no depth
    assert not batch.log_depth.any()
    assert (batch.size_factor == 1).all()
