"""Devices by name."""

from __future__ import annotations

import torch

from scbioformers.core import ConfigError


def choose_device(name: str) -> str:
    """The device to compute on; ``"auto"`` is the first CUDA device if there is one, else the CPU.

    Names are compared, not parsed: torch reads "cuda:256" as "cuda:0".

    Raises
    ------
    ConfigError
        If ``name`` ("cuda:7", "gpu", …) is not "auto", "cpu", "cuda" or "mps", or its kind or index is not available.
    """
    n_found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if str(name) == "auto":
        return "cuda" if n_found["cuda"] else "cpu"
    known = {kind for kind, n in n_found.items() if n}
    known |= {f"{kind}:{index}" for kind, n in n_found.items() for index in range(n)}
    if str(name) not in known:  # a torch.device reads as its name
        here = ["'auto'", *(f"{kind!r}" + f" (0 to {n - 1})" * (n > 1) for kind, n in n_found.items() if n)]
        raise ConfigError(f"The device {str(name)!r} is not available; use {' or '.join(here)}.")
    return str(name)
