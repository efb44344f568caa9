"""The order in which training reads cells."""

from dataclasses import replace

import numpy as np
import pytest

from scbioformers.core import ConfigError
from scbioformers.tokens import Sampler


@pytest.fixture
def sampler():
    """500 of 603 cells, in several buffers."""
    rows = np.ones(603, bool)
    rows[np.random.default_rng(0).choice(603, 103, replace=False)] = False
    return Sampler(rows, batch_size=16, seed=1, chunk_size=40, buffer_chunks=4)


@pytest.fixture
def small(sampler):
    """The same cells in one buffer."""
    return replace(sampler, buffer_chunks=16)


def batches(sampler, epoch=0):
    return [part.draws.tolist() for buffer in sampler.epoch(epoch) for part in buffer.batches]


def workers(sampler, world_size, n_workers=1):
    """The samplers of all workers of all ranks, in order."""
    return [
        replace(sampler, rank=rank, world_size=world_size, worker=worker, n_workers=n_workers)
        for rank in range(world_size)
        for worker in range(n_workers)
    ]


def flat(lists):
    return [row for part in lists for row in part]


# --- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_each_cell_is_in_exactly_one_batch(sampler, epoch):
    assert sorted(flat(batches(sampler, epoch))) == np.flatnonzero(sampler.rows).tolist()


def test_batches_have_the_size_asked_for_or_a_little_more(sampler):
    for buffer in sampler.epoch(0):
        sizes = [len(part.draws) for part in buffer.batches]
        assert min(sizes) >= 16
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == sum(sizes) // 16


def test_buffers_are_whole_chunks_in_the_order_of_the_file(sampler):
    ranges = []
    for buffer in sampler.epoch(0):
        assert len(buffer.ranges) <= 4
        assert list(buffer.ranges) == sorted(buffer.ranges)
        inside = np.concatenate([np.arange(start, stop) for start, stop in buffer.ranges])
        assert np.isin(np.concatenate([part.draws for part in buffer.batches]), inside).all()
        ranges += buffer.ranges
    assert sorted(ranges) == [(start, min(start + 40, 603)) for start in range(0, 603, 40)]


def test_buffers_without_cells_are_not_read(sampler):
    rows = sampler.rows.copy()
    rows[80:400] = False
    sampler = replace(sampler, rows=rows, buffer_chunks=1)
    starts = {start for buffer in sampler.epoch(0) for start, _ in buffer.ranges}
    assert starts == {0, 40, *range(400, 603, 40)}
    assert sorted(flat(batches(sampler))) == np.flatnonzero(rows).tolist()
    assert all(len(batch) for batch in batches(sampler))


def test_within_one_buffer_all_cells_are_shuffled():
    sampler = Sampler(np.ones(1000, bool), batch_size=50, seed=0, chunk_size=100)
    buffer, *others = sampler.epoch(0)
    assert others == []
    # each batch draws from the whole: the share of its cells from the first half is binomial
    first_half = [(part.draws < 500).mean() for part in buffer.batches]
    assert all(0.2 < share < 0.8 for share in first_half)
    assert np.std(first_half) > 0.01
    assert len({tuple(flat(batches(sampler, epoch))) for epoch in range(4)}) == 4


def test_every_epoch_has_another_order(sampler):
    orders = [flat(batches(sampler, epoch)) for epoch in range(4)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    chunks = [[buffer.ranges for buffer in sampler.epoch(epoch)] for epoch in range(4)]
    assert all(chunks[i] != chunks[j] for i in range(4) for j in range(i))


def test_the_order_is_a_function_of_seed_and_epoch(sampler):
    assert batches(sampler, 3) == batches(replace(sampler), 3)
    assert batches(sampler, 3) != batches(replace(sampler, seed=2), 3)


def test_the_number_of_batches_is_that_of_the_epoch(sampler):
    for epoch in range(3):
        assert sampler.n_batches(epoch) == len(batches(sampler, epoch))


def test_chunks_make_buffers_of_equal_size_and_batches_with_the_same_share_of_each(sampler):
    sampler = replace(sampler, rows=np.ones(600, bool), batch_size=20)
    sizes = [len(buffer.ranges) for buffer in sampler.epoch(0)]
    assert sorted(sizes) == [3, 4, 4, 4]  # 15 chunks of 40
    for buffer in sampler.epoch(0):
        starts = [start for start, _ in buffer.ranges]
        for part in buffer.batches:
            cells = np.bincount(np.searchsorted(starts, part.draws, side="right") - 1, minlength=len(starts))
            assert np.ptp(cells) <= 1
    # within a chunk, the order is random
    first = np.concatenate([part.draws[:1] for buffer in sampler.epoch(0) for part in buffer.batches])
    assert len(set((first % 40).tolist())) > 15


# --- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["small", "sampler"])
@pytest.mark.parametrize("world_size", [2, 3, 4, 9])
def test_ranks_share_the_global_batches_of_one_process(request, kind, world_size):
    sampler = request.getfixturevalue(kind)
    alone = batches(sampler)
    ranks = [[part for buffer in each.epoch(0) for part in buffer.batches] for each in workers(sampler, world_size)]
    assert {len(rank) for rank in ranks} == {len(alone)}
    for step, whole in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        own = [part.draws.tolist() for part in parts if part.weight]
        assert flat(own) == whole
        assert all(len(part.draws) == 1 for part in parts if not part.weight)
        # so that the mean over the ranks of a weighted mean is the mean of all cells
        total = sum(part.weight * np.mean(part.draws) for part in parts) / world_size
        assert total == pytest.approx(np.mean(whole))
        if kind == "small":
            assert max(map(len, own)) - min(map(len, own)) <= 1


@pytest.mark.parametrize("kind", ["small", "sampler"])
@pytest.mark.parametrize(("world_size", "n_workers"), [(1, 2), (2, 3), (3, 2), (2, 7)])
def test_workers_share_the_part_of_their_rank_in_its_order(request, kind, world_size, n_workers):
    sampler = request.getfixturevalue(kind)
    for rank in range(world_size):
        alone = [part for buffer in workers(sampler, world_size)[rank].epoch(0) for part in buffer.batches]
        own = workers(sampler, world_size, n_workers)[rank * n_workers : (rank + 1) * n_workers]
        shared = [[part for buffer in each.epoch(0) for part in buffer.batches] for each in own]
        assert {len(parts) for parts in shared} == {len(alone)}
        for step, part in enumerate(alone):
            assert flat(parts[step].draws.tolist() for parts in shared) == part.draws.tolist()
            assert {parts[step].weight for parts in shared} == {part.weight}


@pytest.mark.parametrize(("world_size", "n_workers"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_each_chunk_with_cells_is_read_by_one_worker(sampler, world_size, n_workers):
    rows = sampler.rows.copy()
    rows[80:200] = False
    sampler = replace(sampler, rows=rows, buffer_chunks=6)
    read = [
        each for one in workers(sampler, world_size, n_workers) for buffer in one.epoch(0) for each in buffer.ranges
    ]
    assert sorted(read) == [(start, min(start + 40, 603)) for start in (0, 40, *range(200, 603, 40))]


def test_ranks_read_equal_numbers_of_cells(sampler):
    sampler = replace(sampler, rows=np.ones(640, bool))  # 4 buffers of 4 chunks
    for world_size in (2, 4):
        n_cells = [len(flat(batches(each))) for each in workers(sampler, world_size)]
        assert set(n_cells) == {640 // world_size}


def test_a_rank_without_cells_gets_one_that_does_not_count():
    rows = np.zeros(100, bool)
    rows[[20, 50, 70]] = True
    sampler = Sampler(rows, batch_size=8, seed=0)
    parts = [next(each.epoch(0)).batches for each in workers(sampler, 4)]
    assert [len(own) for own in parts] == [1] * 4
    weights = [own[0].weight for own in parts]
    assert weights == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0])
    assert sorted(own[0].draws.tolist() for own in parts[:3]) == [[20], [50], [70]]
    assert rows[parts[3][0].draws].tolist() == [True]
    # the second of two workers of this rank has nothing to do
    second = replace(sampler, rank=3, world_size=4, worker=1, n_workers=2)
    assert [part.draws.tolist() for part in next(second.epoch(0)).batches] == [[]]
    assert next(second.epoch(0)).ranges == ()


# --- small data ----------------------------------------------------------------------------------------------------


@pytest.mark.fault(24)
def test_one_cell():
    sampler = Sampler(np.array([False, True, False]), batch_size=64, seed=0)
    assert batches(sampler) == [[1]]
    assert sampler.n_batches() == 1


@pytest.mark.fault(25)
def test_fewer_cells_than_the_batch_make_one_batch():
    (batch,) = batches(Sampler(np.ones(10, bool), batch_size=64, seed=0))
    assert sorted(batch) == list(range(10))


def test_no_cell_no_batch():
    assert batches(Sampler(np.zeros(10, bool), batch_size=4, seed=0)) == []
    assert batches(Sampler(np.zeros(0, bool), batch_size=4, seed=0)) == []


# --- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch_size", "chunk_size", "buffer_chunks", "world_size", "n_workers"])
def test_sizes_are_at_least_one(name):
    with pytest.raises(ConfigError, match=rf"Sampler\.{name} must be at least 1, found 0"):
        Sampler(np.ones(3, bool), **{"batch_size": 2, "seed": 0, name: 0})


@pytest.mark.parametrize(("name", "number"), [("rank", 2), ("rank", -1), ("worker", 2), ("worker", -1)])
def test_the_rank_and_the_worker_are_among_all(name, number):
    with pytest.raises(ConfigError, match=rf"Sampler\.{name} must lie in 0 to 1, found {number}"):
        Sampler(np.ones(40, bool), 16, 0, world_size=2, n_workers=2, **{name: number})
