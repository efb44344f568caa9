"""Devices that are asked for by name."""

from __future__ import annotations

import torch

from scbioformers.core import ConfigError


def require_device(name: str) -> None:
    """Refuse a device that is not there, before any work.

    Raises
    ------
    ConfigError
        If ``name`` ("cuda", "cuda:1", "gpu", "mps", …) asks for one that torch does not find.
    """
    kind = name.split(":")[0]
    found = {
        "cuda": torch.cuda.is_available(),
        "gpu": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not found.get(kind, True):
        raise ConfigError(f"The device {name!r} was asked for and there is none here; use 'cpu'.")
