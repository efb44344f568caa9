"""What functions that run a network do with the threads and settings of torch, and with a lack of memory."""

import dataclasses
import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import scbioformers as bf
from scbioformers.core import BioformersError, DataError, OutOfMemoryError
from scbioformers.nn import Encoder, computes, use_threads

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)
VERBS = {
    "fit": lambda adata, config: bf.tl.fit(adata, config=config, train=TRAIN),
    "embed": lambda adata, config: bf.tl.embed(adata),
    "impute": lambda adata, config: bf.tl.impute(adata),
    "grn": lambda adata, config: bf.tl.grn(adata),
    "gene_programs": lambda adata, config: bf.tl.gene_programs(adata),
    "imputed": lambda adata, config: bf.get.imputed(adata, genes=[adata.var_names[0]]),
}


def state() -> tuple:
    return (
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
    )


@pytest.fixture
def of_the_user():
    """Settings of torch that a user may have, none of them the default."""
    before = torch.get_default_dtype(), torch.get_rng_state()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    torch.use_deterministic_algorithms(True)
    with torch.no_grad():
        yield state()
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(before[0])
    torch.set_rng_state(before[1])
    torch.set_num_threads(1)


@pytest.fixture
def inside(monkeypatch):
    """The settings of torch whenever a network runs. `inside.act` runs there too."""

    class Inside(list):
        act = staticmethod(lambda: None)

    found, forward = Inside(), Encoder.forward

    def spied(self, *args, **kwargs):
        found.append((torch.get_num_threads(), torch.get_default_dtype()))
        found.act()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Encoder, "forward", spied)
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_one_thread_within_and_the_settings_of_the_user_afterwards(fitted, tiny_config, of_the_user, inside, verb):
    VERBS[verb](fitted, tiny_config)
    assert set(inside) == {(1, torch.float32)}
    assert state() == of_the_user


@pytest.mark.parametrize("verb", ["fit", "embed", "impute"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, DataError])
def test_the_settings_of_the_user_after_an_error(fitted, tiny_config, of_the_user, inside, verb, error):
    def fail():
        raise error

    inside.act = fail
    with pytest.raises(error):
        VERBS[verb](fitted, tiny_config)
    assert inside
    assert state() == of_the_user


def test_the_settings_of_the_user_do_not_change_a_fit(simulated, tiny_config, request):
    expected = bf.tl.fit(simulated, config=tiny_config, train=TRAIN, copy=True).uns["bioformer"]["model"]
    request.getfixturevalue("of_the_user")
    found = bf.tl.fit(simulated, config=tiny_config, train=TRAIN, copy=True).uns["bioformer"]["model"]
    assert np.array_equal(found, expected)


def test_the_number_of_threads_can_be_set(fitted, inside, monkeypatch):
    monkeypatch.setattr(bf.settings, "n_threads", 2)
    bf.tl.embed(fitted)
    assert {threads for threads, _ in inside} == {2}
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("width", "expected"), [(16, 1), (256, 1), (257, 3), (1024, 3)])
def test_a_wide_network_has_the_number_of_the_user(width, expected):
    torch.set_num_threads(3)

    @computes
    def threads() -> int:
        use_threads(width)
        return torch.get_num_threads()

    assert threads() == expected
    assert torch.get_num_threads() == 3


def test_the_number_is_not_changed_outside_of_a_function_that_computes():
    torch.set_num_threads(3)
    use_threads(16)
    assert torch.get_num_threads() == 3


@pytest.mark.fault("two-fits")
def test_threads_that_compute_at_the_same_time_do_not_meet_in_the_settings():
    """Each of them has begun before another ends; threads that start meanwhile or afterwards have the user's number."""
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    barrier, n = threading.Barrier(4), 4

    @computes
    def threads() -> tuple:
        use_threads(16)
        barrier.wait(20)
        with ThreadPoolExecutor(1) as fresh:
            started_meanwhile = fresh.submit(torch.get_num_threads).result(20)
        found = torch.get_num_threads(), torch.get_default_dtype(), started_meanwhile
        barrier.wait(20)
        return found

    def run(_: int) -> tuple:
        return *threads(), torch.get_num_threads()

    try:
        with ThreadPoolExecutor(n) as pool:
            assert set(pool.map(run, range(n))) == {(1, torch.float32, 3, 3)}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == 3 == torch.get_num_threads()


def test_all_functions_with_a_device_compute():
    for namespace in (bf.tl, bf.get, bf.pp, bf.pl):
        for name in namespace.__all__:
            function = getattr(namespace, name)
            if "device" in inspect.signature(function).parameters:
                assert inspect.unwrap(function) is not function, name  # decorated, see `computes`


# memory

TOO_MUCH = {"torch": lambda: torch.empty(2**60, dtype=torch.uint8), "numpy": lambda: np.empty(2**60, np.uint8)}


@pytest.mark.fault(49)
@pytest.mark.parametrize("allocate", TOO_MUCH)
def test_a_lack_of_memory_suggests_a_batch_size_that_works(fitted, inside, allocate):
    inside.act = TOO_MUCH[allocate]
    with pytest.raises(OutOfMemoryError, match=r"Out of memory in `bf\.tl\.embed`: .*allocate.*batch") as caught:
        bf.tl.embed(fitted, batch_size=50)
    assert isinstance(caught.value, BioformersError)
    assert isinstance(caught.value, MemoryError)
    assert "X_bioformer" not in fitted.obsm
    (size,) = re.findall(r"`batch_size=(\d+)` \(it was 50\)", str(caught.value))
    inside.act = lambda: None
    bf.tl.embed(fitted, batch_size=int(size))
    assert fitted.obsm["X_bioformer"].shape[0] == 60


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, bf.TrainConfig(batch_size=32)),
        ({"config": "paper"}, dataclasses.replace(bf.TrainConfig.paper(), batch_size=32)),
        ({"train": TRAIN}, dataclasses.replace(TRAIN, batch_size=8)),
    ],
)
def test_a_lack_of_memory_in_training_suggests_parameters_that_differ_in_the_batch_alone(given, expected):
    @computes
    def fit(*, config="small", train=None):
        TOO_MUCH["torch"]()

    with pytest.raises(OutOfMemoryError) as caught:
        fit(**given)
    (call,) = re.findall(r"`train=(.*?)` \(it was", str(caught.value))
    assert eval(call, {"bf": bf, "dataclasses": dataclasses, **given}) == expected


@pytest.mark.fault(49)
def test_a_lack_of_memory_in_a_fit(simulated, tiny_config, inside):
    inside.act = TOO_MUCH["torch"]
    with pytest.raises(OutOfMemoryError, match=r"in `bf\.tl\.fit`: .*`train=dataclasses\.replace\(train, batch_size=8"):
        bf.tl.fit(simulated, config=tiny_config, train=TRAIN)
    assert "bioformer" not in simulated.uns


@pytest.mark.fault(49)
def test_a_lack_of_memory_without_a_batch_suggests_fewer_cells(fitted, inside):
    inside.act = TOO_MUCH["torch"]
    with pytest.raises(OutOfMemoryError, match=r"in `bf\.tl\.grn`.*`n_cells=500` \(it was 1000\)"):
        bf.tl.grn(fitted)
    inside.act = lambda: None
    bf.tl.grn(fitted, n_cells=500)


def test_other_errors_are_not_taken_for_a_lack_of_memory(fitted, inside):
    def fail():
        raise RuntimeError("size mismatch")

    inside.act = fail
    with pytest.raises(RuntimeError, match="size mismatch") as caught:
        bf.tl.embed(fitted)
    assert not isinstance(caught.value, BioformersError)
