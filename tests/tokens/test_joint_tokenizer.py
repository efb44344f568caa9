"""Tokens of several modalities: each is masked and binned alone, whole modalities are hidden, and nothing leaks."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbioformers.core import SPECIALS
from scbioformers.tokens import JointTokenizer

FIRST, N_RNA, N_PROT = len(SPECIALS), 60, 9
INPUTS = ["context_ids", "context_bins", "visible", "known", "log_depth", "small_count_bins", "masked_ids"]
TRAIN = {"seed": 3, "epoch": 2, "n_context": 30, "n_masked": 8}


@pytest.fixture(scope="module")
def rna(make_block):
    return make_block(40, N_RNA)


@pytest.fixture(scope="module")
def prot(make_block):
    return make_block(40, N_PROT, unmodelled=0.5, seed=1)


@pytest.fixture(scope="module", params=["value", "segment"])
def tokenizer(rna, prot, make_tokenizer, request):
    return JointTokenizer((make_tokenizer(rna), make_tokenizer(prot, kind=request.param)))


@pytest.fixture(scope="module")
def both(rna, prot):
    """Cells 0 to 9 lack proteins, 10 to 14 lack RNA."""

    def lacks(block, rows):
        measured = ~np.isin(np.arange(40), rows)
        counts = sp.csr_matrix(sp.diags(measured.astype(np.float32)) @ block.counts)
        counts.eliminate_zeros()
        return replace(block, counts=counts, total=block.total * measured, measured=measured)

    return replace(lacks(rna, np.arange(10, 15)), others=(lacks(prot, np.arange(10)),))


def with_other_values(block, factor=7):
    """The same cells and zeros, with other counts and depths."""
    counts = block.counts.copy()
    counts.data = np.roll(counts.data, 1) * factor + 1
    return replace(block, counts=counts, total=block.total * (factor + 3) + 1000)


def equal(first, second, names, rows=slice(None)):
    return [name for name in names if not torch.equal(getattr(first, name)[rows], getattr(second, name)[rows])]


def ids_of(ids, modality):
    """Ids of one modality in a row, as its own tokenizer would write them."""
    start = FIRST + modality * N_RNA
    own = ids[(ids >= start) & (ids < start + (N_PROT if modality else N_RNA))]
    return (own - modality * N_RNA).tolist()


def test_each_modality_is_read_as_by_its_own_tokenizer(tokenizer, both):
    joint = tokenizer.inference_batch(both, np.arange(40))
    n_values = tokenizer.modalities[0].binning.n_values
    for i, (own, part) in enumerate(zip(tokenizer.modalities, both.modalities, strict=True)):
        alone = own.inference_batch(part, np.arange(40))
        for row in range(40):
            seen, expected = joint.context_ids[row], alone.context_ids[row]
            assert ids_of(seen, i) == expected[expected > 0].tolist()
            of = (seen >= FIRST + i * N_RNA) & (seen < FIRST + N_RNA + i * N_PROT)
            assert (joint.context_bins[row][of] - i * n_values).tolist() == alone.context_bins[row][
                expected > 0
            ].tolist()
        columns = slice(i * N_RNA, N_RNA + i * N_PROT)
        measured = torch.from_numpy(part.measured)
        assert torch.equal(joint.visible[:, columns], alone.visible)
        assert torch.equal(joint.known[:, columns], alone.known & measured[:, None])
        assert torch.equal(joint.present[:, columns], measured[:, None].expand(-1, columns.stop - columns.start))
        assert torch.equal(joint.log_depth[:, i], alone.log_depth)
        assert torch.equal(joint.size_factor[:, i], alone.size_factor)
        assert torch.equal(joint.target_counts[:, columns], alone.target_counts)


@pytest.mark.parametrize("hidden", [0, 1], ids=["RNA", "proteins"])
def test_nothing_of_a_queried_modality_reaches_the_input(tokenizer, both, hidden):
    parts = list(both.modalities)
    parts[hidden] = with_other_values(parts[hidden])
    other = replace(parts[0], others=(parts[1],))
    mask = np.zeros((40, N_RNA + N_PROT), bool)
    mask[:, slice(N_RNA, None) if hidden else slice(N_RNA)] = True
    first, second = (tokenizer.inference_batch(x, np.arange(40), sp.csr_matrix(mask)) for x in (both, other))
    assert equal(first, second, INPUTS) == []
    assert equal(first, second, ["target_counts"]) != []
    assert not first.log_depth[:, hidden].any()  # the mean depth: that of the cell is not known


@pytest.mark.parametrize("changed", [0, 1], ids=["RNA", "proteins"])
def test_in_training_a_modality_changes_only_its_own_input(tokenizer, both, changed):
    """Also where it is hidden: then it changes nothing at all but the targets."""
    parts = list(both.modalities)
    parts[changed] = with_other_values(parts[changed])
    other = replace(parts[0], others=(parts[1],))
    first, second = (tokenizer.training_batch(x, np.arange(40), **TRAIN) for x in (both, other))
    dropped = ~first.known[:, [N_RNA, 0][changed - 1] :][:, : [N_RNA, N_PROT][changed]].any(dim=1)
    assert 3 < dropped.sum() < 30
    assert equal(first, second, INPUTS, rows=dropped) == []
    columns = slice(N_RNA) if changed else slice(N_RNA, None)  # of the other modality
    for name in ("visible", "known", "target_counts", "present"):
        assert torch.equal(getattr(first, name)[:, columns], getattr(second, name)[:, columns])
    assert torch.equal(first.log_depth[:, 1 - changed], second.log_depth[:, 1 - changed])
    for row in range(40):
        for name in ("context_ids", "masked_ids"):
            found = [ids_of(getattr(batch, name)[row], 1 - changed) for batch in (first, second)]
            assert found[0] == found[1]


def test_half_of_the_cells_with_several_modalities_lose_one(tokenizer, both):
    hidden = np.stack([tokenizer._dropped(both, np.arange(40), 0, epoch) for epoch in range(200)])
    assert not hidden.all(axis=2).any()
    assert (hidden[:, :10] == [False, True]).all()  # what a cell lacks is hidden, the rest is not
    assert (hidden[:, 10:15] == [True, False]).all()
    share = hidden[:, 15:].mean(axis=(0, 1))
    np.testing.assert_allclose(share, 0.25, atol=0.025)  # 5,000 draws: three standard errors are 0.018


def test_what_is_hidden_is_predicted(tokenizer, both):
    """The masked features of a hidden modality are asked as if it were visible, with the same targets."""
    batch = tokenizer.training_batch(both, np.arange(40), **TRAIN)
    seed = (TRAIN["seed"] ^ 0x3D0DA117) % 2**63
    alone = tokenizer.modalities[1].training_batch(both.others[0], np.arange(40), **TRAIN | {"seed": seed})
    hidden = tokenizer._dropped(both, np.arange(40), TRAIN["seed"], TRAIN["epoch"])[:, 1] & both.others[0].measured
    assert hidden.any()
    n_values = tokenizer.modalities[0].binning.n_values
    for row in np.flatnonzero(hidden):
        asked = alone.masked_ids[row] > 0
        assert ids_of(batch.masked_ids[row], 1) == alone.masked_ids[row][asked].tolist() != []
        own = batch.masked_ids[row] >= FIRST + N_RNA
        assert (batch.target_bins[row][own] - n_values).tolist() == alone.target_bins[row][asked].tolist()
        assert ids_of(batch.context_ids[row], 1) == []
        assert not batch.known[row, N_RNA:].any()
        assert not batch.visible[row, N_RNA:].any()


def test_what_a_cell_lacks_is_never_predicted_in_training(tokenizer, both):
    batch = tokenizer.training_batch(both, np.arange(40), **TRAIN)
    assert all(ids_of(batch.masked_ids[row], 1) == [] for row in range(10))
    assert all(ids_of(batch.masked_ids[row], 0) == [] for row in range(10, 15))
    assert not batch.present[:10, N_RNA:].any()
    assert not batch.present[10:15, :N_RNA].any()


def test_each_modality_has_a_budget_of_its_own(tokenizer, both):
    batch = tokenizer.training_batch(both, np.arange(40), **TRAIN | {"n_context": 5, "n_masked": 2})
    for i, name, budget in ((0, "context_ids", 5), (1, "context_ids", 5), (0, "masked_ids", 2), (1, "masked_ids", 2)):
        numbers = [len(ids_of(getattr(batch, name)[row], i)) for row in range(40)]
        assert max(numbers) == budget


def test_a_cell_does_not_depend_on_the_others(tokenizer, both):
    whole = tokenizer.training_batch(both, np.arange(40), **TRAIN)
    for row in (0, 12, 30):
        alone = tokenizer.training_batch(both.take(np.array([row])), np.array([row]), **TRAIN)
        for name in ("visible", "known", "present", "log_depth", "small_count_bins", "target_counts", "size_factor"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row]), name
        for ids, bins in (("context_ids", "context_bins"), ("masked_ids", "target_bins")):
            used = [getattr(batch, ids)[i] > 0 for batch, i in ((alone, 0), (whole, row))]
            for name in (ids, bins):
                assert torch.equal(getattr(alone, name)[0][used[0]], getattr(whole, name)[row][used[1]]), name
