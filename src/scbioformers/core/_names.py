"""Names that are not known, and what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

N_NEAR = 3


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """The known names nearest to one that is not, whatever the case; at most three.

    Examples
    --------
    >>> near_names("stat", ["STAT1", "STAT3", "GATA1"])
    ['STAT3', 'STAT1']
    """
    folded = {str(each).casefold(): str(each) for each in known}
    return [folded[each] for each in difflib.get_close_matches(str(name).casefold(), folded, N_NEAR)]


def describe_unknown(unknown: Sequence[str], known: Iterable[str]) -> str:
    """The first unknown names, and the known ones that are nearest to the first, for a message.

    Examples
    --------
    >>> describe_unknown(["stat1", "x"], ["STAT1"])
    "'stat1', 'x' (near 'stat1': STAT1)"
    """
    text = ", ".join(repr(name) for name in unknown[:5]) + (", …" if len(unknown) > 5 else "")
    return f"{text} (near {unknown[0]!r}: {', '.join(near_names(unknown[0], known)) or 'none'})"
