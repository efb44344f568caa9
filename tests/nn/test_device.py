"""Devices by name: an error unless they are available."""

import pytest
import torch

from scbioformers.core import ConfigError
from scbioformers.nn import choose_device


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with these devices besides its CPU."""

    def machine(*, n_cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return machine


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_everywhere(machine, name):
    machine()
    assert choose_device(name) == str(name)


def test_what_is_here_passes(machine):
    machine(n_cuda=2)
    for name in ("cuda", "cuda:0", "cuda:1", torch.device("cuda", 1)):
        assert choose_device(name) == str(name)
    machine(mps=True)
    assert choose_device("mps") == "mps"
    assert choose_device("mps:0") == "mps:0"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", torch.device("cuda", 7), "mps", "mps:0"])
def test_absent_kind(machine, name):
    machine()
    with pytest.raises(ConfigError, match=f"The device '{name}' is not available; use 'auto' or 'cpu'.$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cpu:1", "cuda:2", "cuda:7", "cuda:256", "mps", "mps:1"])
def test_absent_index(machine, name):
    machine(n_cuda=2)
    with pytest.raises(ConfigError, match=rf"The device '{name}' .* use 'auto' or 'cpu' or 'cuda' \(0 to 1\)\.$"):
        choose_device(name)


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:x", "cuda:-1", "cuda:", "cuda:01", "CUDA", " cpu", "tpu", "meta", "", None]
)
def test_name_of_no_device(machine, name):
    machine(n_cuda=1, mps=True)
    with pytest.raises(ConfigError, match=f"The device '{name}' .* use 'auto' or 'cpu' or 'cuda' or 'mps'.$"):
        choose_device(name)


def test_every_name_that_torch_finds_passes():
    for index in range(torch.accelerator.device_count()):
        name = f"{torch.accelerator.current_accelerator()}:{index}"
        assert choose_device(name) == name
    assert choose_device(str(torch.zeros(1).device)) == "cpu"


def test_auto_is_a_gpu_of_nvidia_where_there_is_one(machine):
    machine(n_cuda=2, mps=True)
    assert choose_device("auto") == "cuda"
    machine(mps=True)
    assert choose_device("auto") == "cpu"
