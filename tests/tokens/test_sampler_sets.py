"""The order in which training reads the cells of several data sets."""

from collections import Counter
from dataclasses import fields, replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from scbioformers.config import TrainConfig
from scbioformers.data import JoinedSource, MemorySource
from scbioformers.nn import join_batches
from scbioformers.tokens import Sampler
from scbioformers.training._data import BatchDataset, BatchLoader

STARTS = (0, 900, 1100, 1100, 1130)
N = STARTS[-1]


@pytest.fixture
def sampler():
    """A data set of 23 chunks, a small one, one without cells, and a tiny one. Some rows are not used."""
    rows = np.ones(N, bool)
    rows[np.random.default_rng(0).choice(N, 130, replace=False)] = False
    return Sampler(rows, batch_size=16, seed=1, starts=STARTS, power=0.5, chunk_size=40, buffer_chunks=6)


def draws(sampler, epoch=0):
    return np.concatenate([part.draws for buffer in sampler.epoch(epoch) for part in buffer.batches])


def per_set(sampler, rows):
    return np.array([((rows % N >= a) & (rows % N < b)).sum() for a, b in pairwise(STARTS)])


def test_with_power_1_each_cell_is_drawn_once(sampler):
    for epoch in (0, 5):
        assert sorted(draws(replace(sampler, power=1.0), epoch)) == np.flatnonzero(sampler.rows).tolist()


@pytest.mark.parametrize("power", [0.0, 0.5, 0.8])
def test_each_data_set_has_a_share_by_the_power_of_its_size(sampler, power):
    sizes = per_set(sampler, np.flatnonzero(sampler.rows))
    weights = np.array([n**power if n else 0 for n in sizes])
    found = per_set(sampler, draws(replace(sampler, power=power)))
    assert np.abs(found - sizes.sum() * weights / weights.sum()).max() <= 1
    assert found[2] == 0
    assert abs(found.sum() - sizes.sum()) <= 2


def test_cells_of_small_data_sets_are_drawn_equally_often_with_numbers_of_their_own(sampler):
    found = draws(replace(sampler, power=0.0))
    assert len(set(found.tolist())) == len(found)
    assert sampler.rows[found % N].all()
    for start, stop in ((900, 1100), (1100, 1130)):
        cells = start + np.flatnonzero(sampler.rows[start:stop])
        own = found[np.isin(found % N, cells)]
        times = Counter((own % N).tolist())
        assert set(times) == set(cells.tolist())
        assert max(times.values()) - min(times.values()) <= 1
        for cell, n in times.items():
            assert sorted(own[own % N == cell] // N) == list(range(n))


def test_a_large_data_set_is_read_in_whole_chunks(sampler):
    found = draws(replace(sampler, power=0.0))
    used = Counter((found[found < 900] // 40).tolist())
    sizes = [int(sampler.rows[a : min(a + 40, 900)].sum()) for a in range(0, 900, 40)]
    assert 0 < len(used) < 23
    assert sum(n < sizes[chunk] for chunk, n in used.items()) <= 1  # only the last one in part
    read = {start for buffer in replace(sampler, power=0.0).epoch(0) for start, _ in buffer.ranges if start < 900}
    assert read == {40 * chunk for chunk in used}


def test_every_epoch_draws_other_chunks_in_another_order(sampler):
    sampler = replace(sampler, power=0.0)
    epochs = [draws(sampler, epoch) for epoch in range(4)]
    chunks = [frozenset((rows[rows < 900] // 40).tolist()) for rows in epochs]
    assert len(set(chunks)) == 4
    assert len({tuple(rows.tolist()) for rows in epochs}) == 4
    np.testing.assert_array_equal(draws(replace(sampler), 2), epochs[2])
    assert draws(replace(sampler, seed=2), 2).tolist() != epochs[2].tolist()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [16, 300])
def test_the_number_of_batches_is_that_of_the_epoch(sampler, power, batch_size):
    sampler = replace(sampler, power=power, batch_size=batch_size)
    for epoch in range(4):
        assert sampler.n_batches(epoch) == sum(len(buffer.batches) for buffer in sampler.epoch(epoch))


@pytest.mark.parametrize("world_size", [2, 5])
@pytest.mark.parametrize("buffer_chunks", [6, 99])
def test_ranks_share_the_global_batches(sampler, world_size, buffer_chunks):
    def lists(sampler):
        parts = [part for buffer in sampler.epoch(0) for part in buffer.batches]
        return [part.draws.tolist() if part.weight else [] for part in parts]

    sampler = replace(sampler, buffer_chunks=buffer_chunks)
    ranks = [lists(replace(sampler, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert together == lists(sampler)


def test_one_data_set_does_not_depend_on_the_power(sampler):
    one = replace(sampler, starts=None)
    for power in (0.0, 1.0):
        for starts in (None, (0, N)):
            np.testing.assert_array_equal(draws(replace(one, starts=starts, power=power), 3), draws(one, 3))


class Recorded(JoinedSource):
    """Counts how often rows are read."""

    def __init__(self, sources):
        super().__init__(sources)
        self.reads = Counter()

    def read(self, start, stop):
        self.reads[start, stop] += 1
        return super().read(start, stop)


def as_worker(monkeypatch, worker, n_workers):
    """What a worker process of a DataLoader is told of itself."""
    info = type("Info", (), {"num_workers": n_workers, "id": worker})
    monkeypatch.setattr("scbioformers.training._data.get_worker_info", lambda: info)


@pytest.fixture
def joined(make_block):
    """90 and 6 cells, of which the first 20 and the last 20 features are not measured."""
    large, small = make_block(90, seed=1), make_block(6, seed=2)
    large = replace(large, present=np.arange(60) >= 20)
    small = replace(small, present=np.arange(60) < 40)
    return large, small, Recorded([MemorySource(large), MemorySource(small)])


@pytest.mark.parametrize(("power", "buffer_chunks"), [(0.0, 16), (1.0, 6)], ids=["one buffer", "several"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_prepare_parts_of_the_same_batches(
    joined, make_block, make_tokenizer, monkeypatch, power, buffer_chunks, world_size
):
    source, tokenizer, read = joined[2], make_tokenizer(make_block(90, seed=1)), []
    sampler = Sampler(np.ones(96, bool), 16, 0, source.starts, power, 10, buffer_chunks, world_size=world_size)
    for rank in range(world_size):
        own = replace(sampler, rank=rank)
        dataset = BatchDataset(source, tokenizer, own, TrainConfig(), epoch=1, training=True)
        alone = list(dataset)
        assert len(alone) == len(dataset) == sampler.n_batches(1)
        source.reads.clear()
        shared = []
        for worker in range(2):
            as_worker(monkeypatch, worker, 2)
            shared.append(list(dataset))
        monkeypatch.undo()
        read.append(Counter(source.reads))
        for step, batch in enumerate(alone):
            parts = [parts[step] for parts in shared if parts[step] is not None]
            assert {part.weight for part in parts} == {batch.weight}
            together = join_batches(parts)
            for each in fields(batch):
                value = getattr(batch, each.name)
                if isinstance(value, torch.Tensor):
                    assert torch.equal(getattr(together, each.name), value), each.name
    if buffer_chunks == 6:  # each chunk is read by one worker of one rank
        chunks = [(start, min(start + 10, 90)) for start in range(0, 90, 10)]
        assert sum(read, Counter()) == Counter([*chunks, (90, 96)])


def test_a_data_loader_joins_what_its_worker_processes_prepare(joined, make_block, make_tokenizer):
    source, tokenizer = joined[2], make_tokenizer(make_block(90, seed=1))
    sampler = Sampler(np.ones(96, bool), 16, seed=0, starts=source.starts, power=0.0, chunk_size=10, buffer_chunks=3)
    dataset = BatchDataset(source, tokenizer, sampler, TrainConfig(), epoch=1, training=True)
    loader = BatchLoader(dataset, n_workers=2)
    assert len(loader) == len(dataset)
    for batch, expected in zip(loader, dataset, strict=True):
        for name in ("rows", "context_ids", "masked_ids", "target_bins", "visible", "small_count_bins"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_batches_have_the_cells_of_their_draws_and_repeats_have_other_masks(joined, make_block, make_tokenizer):
    large, small, source = joined
    sampler = Sampler(np.ones(96, bool), 16, seed=0, starts=source.starts, power=0.0, chunk_size=10)
    dataset = BatchDataset(source, make_tokenizer(make_block(90, seed=1)), sampler, TrainConfig(), 1, training=True)
    batches = list(dataset)
    assert len(batches) == len(dataset)
    counts = [large.counts.toarray(), small.counts.toarray()]
    masks = {}
    for batch in batches:
        for i, draw in enumerate(batch.rows.tolist()):
            row = draw % 96
            cell, present = (counts[0][row], large.present) if row < 90 else (counts[1][row - 90], small.present)
            np.testing.assert_array_equal(batch.target_counts[i].numpy(), cell)
            np.testing.assert_array_equal(batch.present[i].numpy(), present)
            assert not (batch.known[i].numpy() & ~present).any()
            masked = frozenset(batch.masked_ids[i].tolist()) - {0}
            assert present[[feature - 1 for feature in masked]].all()
            masks.setdefault(row, []).append(masked)
    assert all(len(found) == 8 for row, found in masks.items() if row >= 90)  # 48 draws of 6 cells
    assert all(len(set(found)) > 4 for row, found in masks.items() if row >= 90)
