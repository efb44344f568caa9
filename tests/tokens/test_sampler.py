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


def batches(sampler, epoch=0):
    return [rows.tolist() for buffer in sampler.epoch(epoch) for rows in buffer.batches]


def flat(lists):
    return [row for part in lists for row in part]


# --- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_each_cell_is_in_exactly_one_batch(sampler, epoch):
    assert sorted(flat(batches(sampler, epoch))) == np.flatnonzero(sampler.rows).tolist()


def test_batches_have_the_size_asked_for_or_a_little_more(sampler):
    for buffer in sampler.epoch(0):
        sizes = [len(rows) for rows in buffer.batches]
        assert min(sizes) >= 16
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == sum(sizes) // 16


def test_buffers_are_whole_chunks_in_the_order_of_the_file(sampler):
    ranges = []
    for buffer in sampler.epoch(0):
        assert len(buffer.ranges) <= 4
        assert list(buffer.ranges) == sorted(buffer.ranges)
        inside = np.concatenate([np.arange(start, stop) for start, stop in buffer.ranges])
        assert np.isin(np.concatenate(buffer.batches), inside).all()
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
    first_half = [(rows < 500).mean() for rows in buffer.batches]
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


# --- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_the_global_batches_of_one_process(sampler, world_size):
    alone = batches(sampler)
    ranks = [batches(replace(sampler, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        shares = [rank[step] for rank in ranks]
        assert len({len(share) for share in shares}) == 1
        # disjoint, in the order of the whole, short of less than one cell a rank
        together = flat(shares)
        assert together == whole[: len(together)]
        assert len(whole) - len(together) < world_size
    assert {len(rank) for rank in ranks} == {len(alone)}


def test_ranks_read_the_same_ranges(sampler):
    first, second = (list(replace(sampler, rank=rank, world_size=2).epoch(0)) for rank in range(2))
    assert [buffer.ranges for buffer in first] == [buffer.ranges for buffer in second]


def test_fewer_cells_than_ranks_give_every_rank_the_same_number_of_batches():
    rows = np.zeros(100, bool)
    rows[:3] = True
    sampler = Sampler(rows, batch_size=8, seed=0, world_size=4)
    assert [batches(replace(sampler, rank=rank)) for rank in range(4)] == [[]] * 4


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


@pytest.mark.parametrize("name", ["batch_size", "chunk_size", "buffer_chunks", "world_size"])
def test_sizes_are_at_least_one(name):
    with pytest.raises(ConfigError, match=rf"Sampler\.{name} must be at least 1, found 0"):
        Sampler(np.ones(3, bool), **{"batch_size": 2, "seed": 0, name: 0})


@pytest.mark.parametrize(("world_size", "rank"), [(3, 0), (2, 2), (2, -1)])
def test_the_batch_divides_among_the_ranks(world_size, rank):
    with pytest.raises(ConfigError, match=rf"16 cells must divide among {world_size} processes, rank {rank}"):
        Sampler(np.ones(40, bool), batch_size=16, seed=0, rank=rank, world_size=world_size)
