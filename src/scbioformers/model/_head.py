"""Heads: what a task adds to a fitted model. They are stored and loaded by one rule, whatever the task."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Head:
    """Configuration and arrays of one task, by its name in :attr:`BioFormer.heads`.

    The model does not know what they mean: the task makes its own object of them, and checks them.

    Examples
    --------
    >>> len(Head({"kind": "knockout"}, {"effects": np.zeros((2, 3), np.float32)}).hash)
    64
    """

    config: dict[str, Any]
    """All but the arrays, as plain JSON types."""
    arrays: dict[str, NDArray[np.float32]]
    """The arrays, by name."""

    @property
    def hash(self) -> str:
        """SHA-256 over configuration and arrays."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()
