"""The network: what depends on what, and what does not."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn.functional import pad

from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS
from scbioformers.nn import OBJECTIVES, Sizes
from scbioformers.nn._blocks import Attention, TransformerBlock, ValueEmbedding
from scbioformers.nn._transformer import batch_vectors

FIRST = len(SPECIALS)
SIZES = Sizes(n_features=30, n_values=12, n_batches=3, phenotype_sizes=(2,))
CONFIG = ModelConfig(width=16, n_layers=2, n_heads=2, n_latent=8, n_components=8)
CONFIGS = [
    pytest.param(CONFIG, id="default"),
    pytest.param(replace(CONFIG, attend_masked=True), id="attend-masked"),
    pytest.param(replace(CONFIG, bag=False), id="no-bag"),
    pytest.param(replace(CONFIG, attention=False), id="no-attention"),
    pytest.param(replace(CONFIG, value_embedding="lookup", n_layers=1), id="lookup-one-layer"),
    pytest.param(replace(CONFIG, attend_masked=True, n_layers=1), id="attend-masked-one-layer"),
    pytest.param(replace(CONFIG, attention=False, n_layers=1), id="no-attention-one-layer"),
]


@pytest.fixture
def build(make_network):
    """A network in float64 whose every weight is far from its start, so that no path through it is closed."""

    def make(config=CONFIG):
        network = make_network(config, SIZES).double()
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        return network

    return make


@pytest.fixture
def draw(make_batch):
    """A batch in float64."""

    def make(**kwargs):
        batch = make_batch(sizes=SIZES, **kwargs)
        tensors = {name: x for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
        return replace(batch, **{name: x.double() for name, x in tensors.items() if x.is_floating_point()})

    return make


@torch.no_grad()
def run(network, batch):
    return network(batch, contextual=True)


def assert_close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def differs(first, second):
    return bool((first - second).abs().max() > 1e-4)


# --- attention -----------------------------------------------------------------------------------------------------


def attention_by_formula(module, x, context, readable):
    """softmax(Q K' / sqrt(d)) V, one head and one cell at a time; keys that are not `readable` do not exist."""

    def linear(layer, y):
        return y @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    width = x.shape[-1]
    per_head = width // module.n_heads
    mixed = np.zeros(x.shape)
    for cell in range(len(x)):
        kept = context[cell][readable[cell]]
        query, key, value = linear(module.query, x[cell]), *np.split(linear(module.key_value, kept), 2, axis=-1)
        for head in range(module.n_heads):
            at = slice(head * per_head, (head + 1) * per_head)
            weights = softmax(query[:, at] @ key[:, at].T / np.sqrt(per_head), axis=-1)
            mixed[cell, :, at] = weights @ value[:, at]
    return linear(module.out, mixed)


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_softmax_formula(n_heads, masked):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Attention(8, n_heads, 0.0).double().eval()
    random = np.random.default_rng(0)
    x, context = random.normal(size=(3, 7, 8)), random.normal(size=(3, 5, 8))
    readable = random.random((3, 5)) < 0.6 if masked else np.ones((3, 5), bool)
    readable[:, 0] = True
    mask = torch.from_numpy(readable)[:, None, None] if masked else None
    keys = module.key_value(torch.from_numpy(context))
    found = module(torch.from_numpy(x), keys, mask).detach().numpy()
    np.testing.assert_allclose(found, attention_by_formula(module, x, context, readable), rtol=1e-10, atol=1e-12)


def test_without_attention_there_are_no_attention_parameters_and_nothing_is_attended_to(build, draw):
    whole, removed = build(), build(replace(CONFIG, attention=False))
    assert any(isinstance(module, Attention) for module in whole.modules())
    assert not any(isinstance(module, Attention) for module in removed.modules())
    assert not any("attention" in name for name, _ in removed.named_parameters())
    per_layer = 4 * 16 * 16  # query, key, value, out
    n_whole, n_removed = (sum(p.numel() for p in network.parameters()) for network in (whole, removed))
    assert n_whole - n_removed >= CONFIG.n_layers * per_layer
    batch = draw()
    other = replace(batch, context_bins=(batch.context_bins + 3) % SIZES.n_values)
    assert_close(run(removed, batch).cls, run(removed, other).cls)
    assert_close(run(removed, batch).log_probs, run(removed, other).log_probs)
    assert differs(run(whole, batch).cls, run(whole, other).cls)
    assert differs(run(whole, batch).log_probs, run(whole, other).log_probs)


def test_a_block_is_pre_norm_so_its_updates_do_not_depend_on_the_scale_of_the_stream():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block, x = TransformerBlock(CONFIG).double().eval(), 10 * torch.randn(2, 6, 16, dtype=torch.float64)
    with torch.no_grad():
        block.contract.weight.zero_()  # what remains of the feed-forward half is a constant
        updates = [block(scale * x, block.keys(scale * x[:, :4]), None) - scale * x for scale in (1.0, 50.0)]
    assert updates[0].abs().max() > 0.01
    torch.testing.assert_close(updates[0], updates[1], rtol=1e-4, atol=1e-5)


# --- order, padding, batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_the_order_of_the_visible_features_carries_no_meaning(config, build, draw):
    network, batch = build(config), draw()
    order = torch.from_numpy(np.random.default_rng(0).permutation(batch.context_ids.shape[1]))
    names = ("context_ids", "context_bins")
    permuted = replace(batch, **{name: getattr(batch, name)[:, order] for name in names})
    before, after = run(network, batch), run(network, permuted)
    assert_close(after.context, before.context[:, order])
    for name in ("cls", "latent", "log_rate", "log_probs"):
        assert_close(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_order_of_the_masked_features_carries_no_meaning(config, build, draw):
    network, batch = build(config), draw()
    names = ("masked_ids", "target_bins")
    flipped = replace(batch, **{name: getattr(batch, name).flip(1) for name in names})
    before, after = run(network, batch), run(network, flipped)
    assert_close(after.log_probs, before.log_probs.flip(1))
    assert_close(after.cls, before.cls)


@pytest.mark.parametrize("config", CONFIGS)
def test_padding_changes_nothing(config, build, draw):
    network, batch = build(config), draw(full=True)
    wider = replace(
        batch,
        context_ids=pad(batch.context_ids, (0, 4)),
        context_bins=pad(batch.context_bins, (0, 4), value=7),
        masked_ids=pad(batch.masked_ids, (0, 3)),
        target_bins=pad(batch.target_bins, (0, 3), value=-1),
    )
    n_context, n_masked = batch.context_ids.shape[1], batch.masked_ids.shape[1]
    before, after = run(network, batch), run(network, wider)
    assert_close(after.context[:, :n_context], before.context)
    assert_close(after.log_probs[:, :n_masked], before.log_probs)
    for name in ("cls", "latent", "log_rate"):
        assert_close(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_cell_alone_gives_what_it_gives_in_a_batch(config, build, draw):
    network, batch = build(config), draw(n_cells=4)
    together = run(network, batch)
    for cell in range(4):
        n_context = int((batch.context_ids[cell] > 0).sum())
        n_masked = int((batch.masked_ids[cell] > 0).sum())
        widths = {"context": n_context, "masked": n_masked, "target_bins": n_masked}
        alone = {}
        for name, x in vars(batch).items():
            if isinstance(x, torch.Tensor):
                cut = [n for prefix, n in widths.items() if name.startswith(prefix)]
                alone[name] = x[[cell], : cut[0]] if cut else x[[cell]]
        output = run(network, replace(batch, **alone))
        assert_close(output.cls[0], together.cls[cell])
        assert_close(output.log_rate[0], together.log_rate[cell])
        assert_close(output.log_probs[0], together.log_probs[cell, :n_masked])
        assert_close(output.context[0], together.context[cell, :n_context])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("external", ["drawn", "none", "no-tensor"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "padded"])
def test_without_the_outputs_of_the_visible_all_else_is_the_same(config, external, full, build, draw):
    """One block then projects the keys of each word of the batch once, and more update fewer tokens in the last."""
    network, batch = build(config), draw(full=full)
    random = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 3, batch.context_ids.shape, generator=random)
    if external != "no-tensor":
        table = torch.randn(3, 16, generator=random, dtype=network.cls.dtype)
        table[0] = 0.0
        drawn = codes if external == "drawn" else torch.zeros_like(codes)
        batch = replace(batch, context_external=drawn, external=table)
    whole = run(network, batch)
    with torch.no_grad():
        brief = network(batch)
    assert whole.context.shape == (*batch.context_ids.shape, 16)
    assert brief.context is None
    for name in ("cls", "latent", "log_rate", "log_probs"):
        assert_close(getattr(brief, name), getattr(whole, name))


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_not_asked_for_does_not_change_the_gradients(config, build, draw):
    """Training takes the short way; the long one must teach the same."""
    network, batch = build(config).train(), draw()
    gradients = []
    for contextual in (True, False):
        output = network(batch, contextual=contextual)
        network.zero_grad()
        (output.log_probs.square().sum() + output.log_rate.square().sum()).backward()
        pairs = network.named_parameters()
        gradients.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in pairs})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("n_cells", [1, 3])
def test_cells_without_any_token_give_finite_outputs(config, n_cells, build, draw):
    network = build(config)
    empty = draw(n_cells=n_cells, n_context=0, n_masked=0, full=True)
    padded = draw(n_cells=n_cells)
    padded = replace(
        padded, **{name: torch.zeros_like(getattr(padded, name)) for name in ("context_ids", "masked_ids")}
    )
    for batch in (empty, padded):
        output = run(network, batch)
        assert all(torch.isfinite(getattr(output, f.name)).all() for f in fields(output))
        assert output.log_rate.shape == (n_cells, SIZES.n_features)


# --- what may be known of what -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_masked_features_do_not_influence_each_other_unless_they_are_attended_to(config, build, draw):
    network, batch = build(config), draw(full=True)
    others = replace(
        batch,
        masked_ids=torch.cat([batch.masked_ids[:, :2], batch.masked_ids[:, 2:].roll(1, dims=0)], dim=1),
        target_bins=batch.target_bins.roll(1, dims=0),
    )
    fewer = replace(batch, **{n: getattr(batch, n)[:, :2] for n in ("masked_ids", "target_bins")})
    before = run(network, batch)
    for changed in (others, fewer):
        after = run(network, changed)
        if config.attend_masked:
            assert differs(after.log_probs[:, :2], before.log_probs[:, :2])
            assert differs(after.cls, before.cls)
        else:
            assert_close(after.log_probs[:, :2], before.log_probs[:, :2])
            assert_close(after.cls, before.cls)
            assert_close(after.context, before.context)


@pytest.mark.parametrize("config", CONFIGS)
def test_targets_and_the_full_depth_are_not_read(config, build, draw):
    network, batch = build(config), draw()
    blind = replace(
        batch,
        rows=batch.rows + 100,
        target_bins=torch.zeros_like(batch.target_bins),
        target_counts=batch.target_counts * 0,
        size_factor=batch.size_factor * 7,
    )
    before, after = run(network, batch), run(network, blind)
    for field in fields(before):
        assert torch.equal(getattr(before, field.name), getattr(after, field.name)), field.name


def test_the_visible_profile_reaches_cls_and_predictions_through_the_bag_alone(build, draw):
    batch = draw()
    beyond_the_context = torch.zeros_like(batch.visible)
    for cell, ids in enumerate(batch.context_ids):
        known = {int(j) for j in batch.known[cell].nonzero()}
        beyond_the_context[cell, min(known - {int(i) - FIRST for i in ids})] = 2.0
    other = replace(batch, visible=batch.visible + beyond_the_context)
    for bag in (True, False):
        network = build(replace(CONFIG, bag=bag))
        before, after = run(network, batch), run(network, other)
        assert differs(before.cls, after.cls) == bag
        assert differs(before.log_probs, after.log_probs) == bag


def test_bins_depth_and_fields_reach_the_predictions(build, draw):
    network, batch = build(), draw(full=True)
    before = run(network, batch)
    external = torch.stack([torch.zeros(16), torch.linspace(-1, 1, 16)]).to(network.cls.dtype)
    for changed in (
        replace(batch, context_bins=(batch.context_bins + 1) % SIZES.n_values),
        replace(batch, context_ids=FIRST + (batch.context_ids - FIRST + 1) % SIZES.n_features),
        replace(batch, log_depth=batch.log_depth + 1),
        replace(batch, small_count_bins=batch.small_count_bins.roll(1, dims=1)),
        replace(batch, batch_codes=1 - batch.batch_codes.clamp(max=1)),
        replace(batch, phenotypes=1 - batch.phenotypes),
        replace(batch, context_external=torch.ones_like(batch.context_ids), external=external),
    ):
        assert differs(run(network, changed).log_probs, before.log_probs)


def test_the_decoded_profile_is_that_of_the_average_batch(build, draw):
    network, batch = build(), draw()
    with torch.no_grad():
        latent = network(batch).latent
        rates = [network.decode(latent, torch.full_like(batch.batch_codes, code), batch.phenotypes) for code in (0, 1)]
        profile = network.profile(latent, batch.phenotypes)
        table = network.batch_rate
        table.weight.copy_(table.weight.mean(dim=0).expand_as(table.weight))
        averaged = network.decode(latent, batch.batch_codes, batch.phenotypes)
    assert differs(*rates)
    assert_close(profile, torch.log1p(averaged.exp()))


def test_a_phenotype_is_a_token_and_conditions_the_profile_and_a_batch_is_no_token(build, draw):
    """The phenotype reaches the latent through attention alone if the bag is not corrected for it."""
    batch = draw(full=True)
    other_phenotype = replace(batch, phenotypes=1 - batch.phenotypes)
    other_batch = replace(batch, batch_codes=(batch.batch_codes + 1) % 3)
    for attention in (True, False):
        network = build(replace(CONFIG, attention=attention))
        before, after = run(network, batch), run(network, other_phenotype)
        assert differs(before.latent, after.latent) == attention
        with torch.no_grad():
            same = [network.profile(latent, batch.phenotypes) for latent in (before.latent, after.latent)]
            assert differs(*same) == attention
            of_own = network.profile(before.latent, batch.phenotypes)
            assert differs(of_own, network.profile(before.latent, other_phenotype.phenotypes))
    network = build(replace(CONFIG, bag=False))
    before, after = run(network, batch), run(network, other_batch)
    assert_close(before.latent, after.latent)
    assert differs(before.log_rate, after.log_rate)


def test_without_counts_the_decoded_profile_is_a_share_of_the_highest_bin(make_network, make_batch):
    sizes = replace(SIZES, counts=False, n_batches=0, phenotype_sizes=())
    network, batch = make_network(CONFIG, sizes), make_batch(sizes=sizes)
    output = run(network, batch)
    with torch.no_grad():
        torch.testing.assert_close(network.profile(output.latent, batch.phenotypes), torch.sigmoid(output.log_rate))


def test_the_external_token_none_is_no_external_token(make_network, make_batch):
    network, batch = make_network(CONFIG, SIZES), make_batch(sizes=SIZES)
    none = replace(batch, context_external=torch.zeros_like(batch.context_ids), external=torch.zeros(2, 16))
    assert_close(run(network, batch).log_probs, run(network, none).log_probs)


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scalar", "lookup"])
def test_equal_bins_get_equal_vectors_and_unequal_ones_do_not(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embedding = ValueEmbedding(kind, 20, 8)
    bins = torch.tensor([[3, 19, 0], [0, 3, 4]])
    vectors = embedding(bins)
    assert vectors.shape == (2, 3, 8)
    assert torch.equal(vectors[0, 0], vectors[1, 1])
    assert torch.equal(vectors[0, 2], vectors[1, 0])
    distances = torch.cdist(embedding(torch.arange(20)), embedding(torch.arange(20)))
    assert distances[~torch.eye(20, dtype=torch.bool)].min() > 1e-4


def test_a_table_learns_each_bin_by_itself_and_a_network_all_at_once():
    learned = {}
    for kind in ("scalar", "lookup"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            embedding = ValueEmbedding(kind, 20, 8)
        before = embedding(torch.arange(20)).detach()
        embedding(torch.tensor([5])).square().sum().backward()
        with torch.no_grad():
            for parameter in embedding.parameters():
                parameter -= 0.1 * parameter.grad
        learned[kind] = (embedding(torch.arange(20)) - before).abs().sum(dim=1) > 0
    assert learned["lookup"].nonzero().ravel().tolist() == [5]
    assert learned["scalar"].all()


def test_the_scalar_network_keeps_neighbouring_bins_close():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vectors = ValueEmbedding("scalar", 40, 16)(torch.arange(40))
    step = (vectors[1:] - vectors[:-1]).norm(dim=1)
    assert step.max() < 0.5 * (vectors[-1] - vectors[0]).norm()
    small, large = (sum(p.numel() for p in ValueEmbedding("scalar", n, 16).parameters()) for n in (10, 1000))
    assert small == large


def test_dropout_acts_in_training_only(build, draw):
    network, batch = build(replace(CONFIG, dropout=0.5)), draw()
    assert torch.equal(run(network, batch).log_probs, run(network, batch).log_probs)
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert differs(run(network, batch).log_probs, run(network, batch).log_probs)


def test_noise_on_the_latent_reaches_the_decoder_in_training_only(build, draw):
    quiet, noise = draw(), torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    noisy = replace(quiet, noise=noise)
    network = build(replace(CONFIG, latent_noise=0.7))
    assert torch.equal(run(network, noisy).log_rate, run(network, quiet).log_rate)
    network.train()
    output = run(network, noisy)
    assert torch.equal(output.latent, run(network, quiet).latent)
    assert torch.equal(output.log_probs, run(network, quiet).log_probs)
    with torch.no_grad():
        assert_close(output.log_rate, network.decode(output.latent + 0.7 * noise, noisy.batch_codes, noisy.phenotypes))
    assert differs(output.log_rate, run(network, quiet).log_rate)


def test_a_batch_of_one_trains(make_network, make_batch):
    network, batch = make_network(CONFIG, SIZES).train(), make_batch(n_cells=1, sizes=SIZES)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        output = network(batch)
        loss = OBJECTIVES["masked_bins"](network, output, batch) + OBJECTIVES["profile_counts"](network, output, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def without_gradient(network, batch):
    output = network(batch)
    names = ("masked_bins", "profile_counts", "masked_phenotypes")
    losses = [OBJECTIVES[name](network, output, batch) for name in names]
    torch.stack(losses).sum().backward()
    return [name for name, parameter in network.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_gets_a_gradient(config, build, draw):
    bins = "value." if not config.attention and config.n_layers == 1 else None  # then nobody reads a bin
    network = build(config).train()
    expected = [name for name, _ in network.named_parameters() if bins and name.startswith(bins)]
    batch = draw()
    phenotypes = batch.phenotypes.clone()
    phenotypes[::2] = torch.nan
    masked = replace(batch, phenotypes=phenotypes, target_phenotypes=batch.phenotypes)
    assert without_gradient(network, masked) == expected


def test_external_tokens_get_a_gradient_where_they_are(build, draw):
    network, batch = build().train(), draw()
    codes = torch.arange(batch.context_ids.numel()).view_as(batch.context_ids) % 2
    external = torch.zeros(3, 16, dtype=network.cls.dtype, requires_grad=True)
    without_gradient(network, replace(batch, context_external=codes, external=external))
    assert external.grad[1].any()
    assert not external.grad[2].any()


@pytest.mark.fault(33, 34)
def test_a_cell_of_an_unknown_batch_is_decoded_for_the_mean_of_all_batches():
    table = torch.tensor([[1.0, 0.0], [2.0, 3.0], [6.0, 3.0]])
    found = batch_vectors(table, torch.tensor([2, -1, 0]))
    assert found.tolist() == [[6.0, 3.0], [3.0, 2.0], [1.0, 0.0]]
    assert batch_vectors(table, torch.tensor([-1])).tolist() == [[3.0, 2.0]]
    assert batch_vectors(table, None).tolist() == [3.0, 2.0]
