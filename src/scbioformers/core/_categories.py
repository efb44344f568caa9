"""Categories as text. Columns hold text, numbers or bools, and an argument that names a category may differ in type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scbioformers.core._errors import DataError
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


def find_category(value: Any, categories: Sequence[str], *, argument: str, place: str) -> str:
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
        Where the categories are, for the message, such as ``"adata.obs['condition']"``.

    Raises
    ------
    DataError
        If there is no such category. The message shows the value and the categories as Python writes them.

    Examples
    --------
    >>> find_category(0, ["0", "1"], argument="reference", place="adata.obs['x']")
    '0'
    >>> find_category(True, ["False", "True"], argument="condition", place="adata.obs['x']")
    'True'
    """
    for text in (str(value), category_text(value)):  # first as it is written: "1.0" may be the text of a category
        if text in categories:
            return text
    near = near_names(str(value), categories)
    hint = f" Similar: {near}." if near else ""
    raise DataError(
        f"`{argument}={value!r}` is not a category of {place}.{hint} Pass one of these: {short_list(categories)}."
    )


def short_list(names: Sequence[Any], limit: int = N_SHOWN) -> str:
    """Return names as Python writes them, at most ``limit`` of them.

    Examples
    --------
    >>> short_list(["a", 1, "c"], limit=2)
    "['a', 1] and 1 more"
    """
    return str(list(names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
