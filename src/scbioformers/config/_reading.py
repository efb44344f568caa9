"""How a model reads data: what the fit was told of the training data, and every query is read by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """How the cells of a query are read, as those of the training data were.

    Examples
    --------
    >>> Reading.from_dict(Reading(layer="counts").to_dict()).layer
    'counts'
    """

    layer: str | None = None
    """Layer that was read in training, None for ``X``: the default of every query that has such a layer."""
    counts: bool = True
    """Whether the values are counts; otherwise they are on another scale, and ranks alone are used."""
    allow_non_integer: bool = False
    """Whether values that are not integers are taken as counts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Reading:
        """Inverse of :meth:`to_dict`; raises :class:`TypeError` on unknown or missing names."""
        return cls(**stored)
