"""Choice of the device by name."""

from __future__ import annotations

import torch

from scbioformers.core import ConfigError


def choose_device(name: str) -> str:
    """Name of the device to compute on. ``"auto"`` is the first CUDA device if there is one, else the CPU.

    Names are compared with the list of available devices, because torch parses "cuda:256" as "cuda:0".

    Raises
    ------
    ConfigError
        If ``name`` is not "auto" and not the name of an available device, such as "cpu", "cuda:0" or "mps".
    """
    n_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if str(name) == "auto":
        return "cuda" if n_devices["cuda"] else "cpu"
    known = {kind for kind, n in n_devices.items() if n}
    known |= {f"{kind}:{index}" for kind, n in n_devices.items() for index in range(n)}
    if str(name) not in known:  # `name` may also be a torch.device
        available = ["'auto'", *(f"{kind!r}" + f" (0 to {n - 1})" * (n > 1) for kind, n in n_devices.items() if n)]
        raise ConfigError(f"The device {str(name)!r} is not available; use {' or '.join(available)}.")
    return str(name)
