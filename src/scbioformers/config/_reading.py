"""How a model reads data. The settings are chosen at the fit and used again for every query."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from scbioformers.core import check_fields

ValueScale = Literal["counts", "log1p", "normalized", "centered"]


@dataclass(frozen=True)
class Reading:
    """How the training data were read. The cells of a query are read in the same way.

    Examples
    --------
    >>> Reading.from_dict(Reading(layer="counts").to_dict()).layer
    'counts'
    >>> Reading(scale="log1p").counts
    False
    """

    layer: str | None = None
    """Layer that was used in training, ``None`` for ``X``. It is the default of every query that has such a layer."""
    scale: ValueScale = "counts"
    """Scale of the training values. A query must have values on the same scale.

    ``"counts"``, or on another scale: ``"log1p"``, ``"normalized"`` (neither counts nor on a log scale), or
    ``"centered"`` (some values are negative). On the other scales only the ranks of the values within a cell are used.
    The depth of a cell is then not used, because the sum of such values is not a number of counts.
    """
    allow_non_integer: bool = False
    """Whether values that are not integers are accepted as counts."""
    gene_symbols: str | None = None
    """Column of ``var`` with the names of the genes, ``None`` for ``var_names``. It is the default of every query."""
    genes_hash: str = ""
    """Hash of the names of *all* genes of the training data, modelled or not, by ``scbioformers.data.hash_genes``.

    A query with the same genes has depths that can be compared with those of the training data.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def counts(self) -> bool:
        """Whether the values are counts."""
        return self.scale == "counts"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Reading:
        """Inverse of :meth:`to_dict`. Raises :class:`TypeError` for unknown names."""
        return cls(**stored)
