"""Names of genes: their forms as text, where they are in other data, and suggestions for unknown ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scbioformers.core._errors import ConfigError

Names: TypeAlias = str | int | Collection[str | int]
"""One name of a gene, or several. Data may have integers as gene names. See :func:`as_names`."""

N_NEAR = 3
_ENSEMBL = re.compile(r"(ENS[A-Z]*\d{11})(\.\d+)?")
_NAME = str | int | float | np.integer | np.floating


def plain_ensembl(name: str) -> str | None:
    """Ensembl id without its version, or `None` if the name is not an Ensembl id.

    Examples
    --------
    >>> plain_ensembl("ENSG00000010610.5"), plain_ensembl("CD4")
    ('ENSG00000010610', None)
    """
    parts = _ENSEMBL.fullmatch(name)
    return parts.group(1) if parts else None


def as_names(given: Any, argument: str) -> list[str]:
    """Names of genes that were passed as an argument, as a list of text. One text or number is one name.

    Parameters
    ----------
    given
        One name, or a list, an array, a set or a pandas object of names. Numbers are names too: data may have integers
        as gene names.
    argument
        Name of the argument, for messages.

    Raises
    ------
    ConfigError
        If ``given`` is a table, a mapping, a mask or empty, or if a name is missing, empty or not a single value.

    Examples
    --------
    >>> as_names("CD4", "genes"), as_names([1, "CD4"], "genes")
    (['CD4'], ['1', 'CD4'])
    """
    expected = f"`{argument}` must be a name or a list of names"
    if isinstance(given, _NAME):
        given = [given]
    if isinstance(given, Mapping) or hasattr(given, "columns") or not isinstance(given, Iterable):
        raise ConfigError(f"{expected}, found {type(given).__name__}.")
    given = np.atleast_1d(given) if isinstance(given, np.ndarray) else given
    listed: list[Any] = sorted(given, key=str) if isinstance(given, Set) else list(given)
    if not listed:
        raise ConfigError(f"`{argument}` is empty. Pass at least one name.")
    if isinstance(listed[0], bool | np.bool_):
        raise ConfigError(f"{expected}, found bools. Pass the names that they select, `adata.var_names[mask]`.")
    # NaN is not equal to itself
    if wrong := [name for name in listed if not isinstance(name, _NAME) or name == "" or name != name]:
        raise ConfigError(f"{expected}, found {wrong[0]!r} among them.")
    return [str(name) for name in listed]


class GeneIndex:
    """Positions of genes by name. Each gene has a name in every spelling.

    A name is looked up in the spellings in their order. A name that is in none of them is compared without the version
    of its Ensembl id, unless several genes have this id.

    Examples
    --------
    >>> index = GeneIndex(["CD4", "ENSG00000156738"], ["ENSG00000010610.3", "ENSG00000156738"])
    >>> index.positions(["ENSG00000156738.18", "ENSG00000010610.3", "CD4", "CD8A"]).tolist()
    [1, 0, 0, -1]
    """

    def __init__(self, *spellings: Sequence[str]) -> None:
        self._at: dict[str, int] = {}
        for names in spellings:
            for position, name in enumerate(names):
                self._at.setdefault(name, position)
        self._plain: dict[str, int] = {}
        for name, position in self._at.items():
            plain = plain_ensembl(name)
            if plain is not None and self._plain.setdefault(plain, position) != position:
                self._plain[plain] = -1  # several genes

    @property
    def names(self) -> Collection[str]:
        """All names, in all spellings."""
        return self._at.keys()

    def positions(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Position of each name, int64, -1 for unknown names."""
        return np.array([self._position(name) for name in names], dtype=np.int64)

    def _position(self, name: str) -> int:
        at = self._at.get(name)
        return self._plain.get(plain_ensembl(name) or "", -1) if at is None else at


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most similar to an unknown name, at most three. Case is ignored.

    Examples
    --------
    >>> near_names("stat", ["STAT1", "STAT3", "GATA1"])
    ['STAT3', 'STAT1']
    """
    by_folded = {str(candidate).casefold(): str(candidate) for candidate in known}
    return [by_folded[folded] for folded in difflib.get_close_matches(str(name).casefold(), by_folded, N_NEAR)]


def describe_unknown(unknown: Sequence[str], known: Iterable[str]) -> str:
    """Return a text for messages: the first five unknown names, and the known names nearest to the first one.

    Examples
    --------
    >>> describe_unknown(["stat1", "x"], ["STAT1"])
    "'stat1', 'x' (near 'stat1': STAT1)"
    """
    text = ", ".join(repr(name) for name in unknown[:5]) + (", …" if len(unknown) > 5 else "")
    return f"{text} (near {unknown[0]!r}: {', '.join(near_names(unknown[0], known)) or 'none'})"
