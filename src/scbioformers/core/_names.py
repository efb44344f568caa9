"""Suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

N_NEAR = 3


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
