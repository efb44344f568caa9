"""Categories as text. Columns hold text, numbers or bools, and an argument that names a category may differ in type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scbioformers.core._errors import BioformersError, DataError
from scbioformers.core._names import near_names

N_SHOWN = 20


def category_text(value: Any) -> str:
    """Return a category as text. A whole float is written as an integer.

    pandas stores integers as floats if a value is missing, so the same batch may be 1 in one object and 1.0 in another.

    Examples
    --------
    >>> category_text(1.0), category_text(1), category_text("1.0"), category_text(True)
    ('1', '1', '1.0', 'True')
    """
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def match_category(value: Any, categories: Sequence[str]) -> str | None:
    """Return the category with this value, None if there is none. Text, numbers and bools are compared by value.

    Examples
    --------
    >>> match_category(1.0, ["0", "1"]), match_category(True, ["False", "True"]), match_category("x", ["0", "1"])
    ('1', 'True', None)
    """
    texts = (str(value), category_text(value))  # first as it is written: "1.0" may be the text of a category
    return next((text for text in texts if text in categories), None)


def find_category(
    value: Any, categories: Sequence[str], *, argument: str, place: str, error: type[BioformersError] = DataError
) -> str:
    """Return the category that an argument names. Text, numbers and bools are compared by value.

    Parameters
    ----------
    value
        Value of the argument, for instance ``"stim"``, ``0``, ``1.0`` or ``True``.
    categories
        Categories as text, see :func:`category_text`.
    argument
        Name of the argument, for the message.
    place
        What the categories are, for the message, such as ``"the categories of adata.obs['condition']"``.
    error
        Error to raise: :class:`MissingKeyError` where a stored result is read.

    Raises
    ------
    BioformersError
        If there is no such category. The message shows the value and the categories as Python writes them.

    Examples
    --------
    >>> find_category(0, ["0", "1"], argument="reference", place="adata.obs['x']")
    '0'
    >>> find_category(True, ["False", "True"], argument="condition", place="adata.obs['x']")
    'True'
    """
    if (found := match_category(value, categories)) is not None:
        return found
    near = near_names(str(value), categories)
    hint = f" Similar: {near}." if near else ""
    raise error(f"`{argument}={value!r}` is not among {place}.{hint} Pass one of these: {short_list(categories)}.")


def short_list(names: Sequence[Any], limit: int = N_SHOWN) -> str:
    """Return names as Python writes them, at most ``limit`` of them.

    Examples
    --------
    >>> short_list(["a", 1, "c"], limit=2)
    "['a', 1] and 1 more"
    """
    return str(list(names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
