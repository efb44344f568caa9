"""How a model reads data. The settings are chosen at the fit and used again for every query."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scbioformers.core import check_fields


@dataclass(frozen=True)
class Reading:
    """How the training data were read. The cells of a query are read in the same way.

    Examples
    --------
    >>> Reading.from_dict(Reading(layer="counts").to_dict()).layer
    'counts'
    """

    layer: str | None = None
    """Layer that was used in training, ``None`` for ``X``. It is the default of every query that has such a layer."""
    counts: bool = True
    """Whether the values are counts. If not, the values are on another scale and only their ranks are used."""
    allow_non_integer: bool = False
    """Whether values that are not integers are accepted as counts."""

    gene_symbols: str | None = None
    """Column of ``var`` with the names of the genes, ``None`` for ``var_names``. It is the default of every query."""

    def __post_init__(self) -> None:
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Reading:
        """Inverse of :meth:`to_dict`. Raises :class:`TypeError` for unknown names."""
        return cls(**stored)
