"""Names of features, their ids, and matching with the names of other data."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scbioformers.core._errors import DataError, ModelFormatError
from scbioformers.core._names import plain_ensembl

#: Reserved ids: padding. The feature at position i of a vocabulary has the id ``i + len(SPECIALS)``. ``<cls>`` and the
#: mask are parameters of the network, not rows of the table of embeddings.
SPECIALS: Final = ("<pad>",)

# below this share of matched names a hint is given
_POOR_SHARE = 0.5


def _check_names(names: Iterable[str]) -> list[str]:
    listed = list(names)
    for position, name in enumerate(listed):
        if not isinstance(name, str) or not name:
            raise DataError(f"Feature names must be non-empty strings, found {name!r} at position {position}.")
    repeated = [name for name, count in Counter(listed).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} feature names occur more than once, such as {repeated[:3]}. "
            "Call `adata.var_names_make_unique()` first."
        )
    return listed


def _qualify(names: Iterable[str], modality: str) -> list[str]:
    if not modality or ":" in modality:
        raise DataError(f"A modality needs a name without ':', found {modality!r}.")
    return [f"{modality}:{name}" for name in _check_names(names)]


@dataclass(frozen=True)
class Vocabulary:
    """Features that a model knows. Names are only appended, so that positions and ids never change.

    Examples
    --------
    >>> vocabulary = Vocabulary.from_names(["CD4", "CD8A"]).extend(["CD4"], "protein")
    >>> vocabulary.names
    ('rna:CD4', 'rna:CD8A', 'protein:CD4')
    >>> vocabulary.index(["protein:CD4", "rna:MS4A1"])
    array([ 2, -1])
    """

    names: tuple[str, ...]
    """Qualified names, which start with the modality, such as `rna:CD4`. Special tokens are not included."""

    def __post_init__(self) -> None:
        _check_names(self.names)
        unqualified = [name for name in self.names if name.find(":") < 1]
        if unqualified:
            raise DataError(f"Names of a vocabulary start with their modality ('rna:CD4'), found {unqualified[:3]}.")

    @classmethod
    def from_names(cls, names: Iterable[str], modality: str = "rna") -> "Vocabulary":
        """Vocabulary of plain names of one modality. Duplicate or invalid names raise a ``DataError``."""
        return cls(tuple(_qualify(names, modality)))

    def extend(self, names: Iterable[str], modality: str) -> "Vocabulary":
        """New vocabulary with the plain `names` appended. Names that it already contains keep their position."""
        known = self._positions
        return Vocabulary(self.names + tuple(name for name in _qualify(names, modality) if name not in known))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of their first feature."""
        return tuple(dict.fromkeys(name.split(":", 1)[0] for name in self.names))

    def only(self, modality: str) -> "Vocabulary":
        """The features of one modality."""
        return Vocabulary(tuple(name for name in self.names if name.startswith(f"{modality}:")))

    def __len__(self) -> int:
        """Return the number of features, without special tokens."""
        return len(self.names)

    def index(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Positions of qualified names, int64, -1 for missing names. Add `len(SPECIALS)` to get token ids."""
        known = self._positions
        return np.array([known.get(name, -1) for name in names], dtype=np.int64)

    def feature_names(self, modality: str | None = None) -> list[str]:
        """Plain names in order, of one modality or (`None`) of all modalities."""
        split = [name.split(":", 1) for name in self.names]
        return [name for kind, name in split if modality is None or kind == modality]

    def to_dict(self) -> dict[str, Any]:
        """Vocabulary as plain JSON types."""
        return {"specials": list(SPECIALS), "names": list(self.names)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Vocabulary":
        """Inverse of :meth:`to_dict`. Other keys or special tokens raise a ``ModelFormatError``."""
        if set(stored) != {"specials", "names"}:
            raise ModelFormatError(f"A stored vocabulary has the keys 'names' and 'specials', found {sorted(stored)}.")
        if tuple(stored["specials"]) != SPECIALS:
            raise ModelFormatError(f"Expected the special tokens {list(SPECIALS)}, found {stored['specials']}.")
        return cls(tuple(stored["names"]))


@dataclass(frozen=True)
class Match:
    """Positions of the features of a vocabulary in other data; see :func:`match`."""

    columns: NDArray[np.int64]
    """int64 (n_vocabulary,), column of each feature in the other data, -1 if the feature is missing."""
    share: float
    """Share of the vocabulary that was found."""
    hint: str
    """Advice for the user if few names matched and only one side has Ensembl ids, else empty."""
    stripped: bool = False
    """Whether names were matched without the version suffix of their Ensembl ids."""
    names: tuple[str, ...] = ()
    """(n_vocabulary,), name of each feature in the spelling of the other data.

    A missing feature keeps its name in the vocabulary. Only if the Ensembl ids of the other data have no versions, its
    version is left out.
    """


def _match_stripped(vocabulary: Sequence[str], query: Sequence[str], columns: NDArray[np.int64]) -> bool:
    """Fill missing `columns` by Ensembl ids without version, and return whether any was filled."""
    taken = set(columns.tolist())
    candidates: dict[str, list[int]] = {}
    for column, name in enumerate(query):
        plain = plain_ensembl(name)
        if plain is not None and column not in taken:
            candidates.setdefault(plain, []).append(column)
    filled = False
    for position in np.flatnonzero(columns < 0).tolist():
        plain = plain_ensembl(vocabulary[position])
        hits = candidates.get(plain, []) if plain is not None else []
        if len(hits) > 1:
            versions = [query[column] for column in hits]
            raise DataError(f"Several genes of the data are versions of {plain}: {versions}. Keep one of them.")
        if hits:
            columns[position] = hits.pop()  # a second version of the id in the vocabulary is missing
            filled = True
    return filled


def _spelled(vocabulary: Sequence[str], query: Sequence[str], columns: NDArray[np.int64], stripped: bool) -> list[str]:
    """Names of the features in the spelling of the other data."""
    names = [query[column] if column >= 0 else name for name, column in zip(vocabulary, columns, strict=True)]
    ids = [name for name in query if plain_ensembl(name) is not None]
    if not stripped or any(plain_ensembl(name) != name for name in ids):
        return names
    taken = {*query, *names}
    for position in np.flatnonzero(columns < 0).tolist():
        plain = plain_ensembl(names[position])
        if plain is not None and plain not in taken:
            names[position] = plain
            taken.add(plain)
    return names


def _share_ensembl(names: Sequence[str]) -> float:
    return sum(plain_ensembl(name) is not None for name in names) / max(len(names), 1)


def _hint(vocabulary: Sequence[str], query: Sequence[str]) -> str:
    known_ensembl, query_ensembl = _share_ensembl(vocabulary) > 0.5, _share_ensembl(query) > 0.5
    if query_ensembl and not known_ensembl:
        return (
            "The data has Ensembl ids where the model has gene symbols: set `adata.var_names` to the symbols, "
            "often found in a column of `adata.var`."
        )
    if known_ensembl and not query_ensembl:
        return (
            "The data has gene symbols where the model has Ensembl ids: set `adata.var_names` to the Ensembl ids, "
            "often found in a column of `adata.var`."
        )
    return ""


def match(vocabulary_names: Sequence[str], query_names: Sequence[str]) -> Match:
    """Find the features of a vocabulary among the names of other data.

    Exact matches have priority. Ensembl ids without an exact match are compared without their version (`.N`).

    Parameters
    ----------
    vocabulary_names
        Plain names in the order of the vocabulary, see :meth:`Vocabulary.feature_names`.
    query_names
        Names of the columns of the other data.

    Returns
    -------
    :class:`Match`
        The columns, the share of matched names and, if the share is below one half, perhaps a hint.

    Raises
    ------
    DataError
        If names are duplicate, empty or not strings, or if the other data has several versions of one Ensembl id.

    Examples
    --------
    >>> match(["CD4", "CD8A", "MS4A1"], ["MS4A1", "CD4"]).columns
    array([ 1, -1,  0])
    """
    vocabulary, query = _check_names(vocabulary_names), _check_names(query_names)
    column_of = {name: column for column, name in enumerate(query)}
    columns = np.array([column_of.get(name, -1) for name in vocabulary], dtype=np.int64)
    stripped = _match_stripped(vocabulary, query, columns)
    n_found = int((columns >= 0).sum())
    share = n_found / len(vocabulary) if vocabulary else 0.0
    hint = _hint(vocabulary, query) if share < _POOR_SHARE else ""
    names = tuple(_spelled(vocabulary, query, columns, stripped))
    return Match(columns=columns, share=share, hint=hint, stripped=stripped, names=names)
