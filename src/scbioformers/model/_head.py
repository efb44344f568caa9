"""Heads, which tasks add to a fitted model. All heads are stored and loaded in the same way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Head:
    """Configuration and arrays of one task. The key in :attr:`scbioformers.BioFormer.heads` is the name of the task.

    The model does not interpret them. The task checks them and creates its own object from them.

    Examples
    --------
    >>> len(Head({"kind": "knockout"}, {"effects": np.zeros((2, 3), np.float32)}).hash)
    64
    """

    config: dict[str, Any]
    """Everything except the arrays, as plain JSON types."""
    arrays: dict[str, NDArray[np.float32]]
    """The arrays, by name."""

    @property
    def hash(self) -> str:
        """SHA-256 over configuration and arrays."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()
