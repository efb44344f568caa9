"""Devices that are asked for by name."""

from __future__ import annotations

import torch

from scbioformers.core import ConfigError


def require_device(name: str) -> None:
    """Refuse a device that is not there, before any work.

    Names are compared, not parsed: torch reads "cuda:256" as "cuda:0". ``"auto"`` is a choice of Lightning's for the
    training, and no device.

    Raises
    ------
    ConfigError
        If ``name`` ("cuda:7", "gpu", "auto", …) is not "cpu", "cuda" or "mps", or its kind or index is not here.
    """
    n_found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    known = {kind for kind, n in n_found.items() if n}
    known |= {f"{kind}:{index}" for kind, n in n_found.items() for index in range(n)}
    if str(name) not in known:  # a torch.device reads as its name
        here = [f"{kind!r}" + f" (0 to {n - 1})" * (n > 1) for kind, n in n_found.items() if n]
        raise ConfigError(f"The device {str(name)!r} was asked for and there is none here; use {' or '.join(here)}.")
