"""One check of the shapes of arrays that belong together, before numpy would broadcast them."""

from __future__ import annotations

from typing import Any

import numpy as np

from scbioformers.core._errors import DataError


def check_shapes(**arrays: tuple[Any, str]) -> None:
    """Check that arrays agree on their axes.

    Parameters
    ----------
    arrays
        By the name of the argument: an array, dense or sparse, and one letter for each of its axes. The first array
        with a letter defines the length of this axis. An array that is None is not checked.

    Raises
    ------
    DataError
        If an array has another number of axes, an axis has another length than in an array before it, or rows have
        different lengths. The message has both shapes.

    Examples
    --------
    >>> check_shapes(predicted=([[1.0, 2.0]], "KM"), control=([1.0], "M"))
    Traceback (most recent call last):
    ...
    scbioformers.core._errors.DataError: `control` has the shape (1,); expected (2,), because `predicted` has the shape
    (1, 2). ...
    """
    lengths: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, (array, axes) in arrays.items():
        if array is None:
            continue
        shape = _shape(array, name)
        expected = tuple(lengths.get(axis, axis) for axis in axes)
        if len(shape) != len(axes) or any(lengths.get(axis, n) != n for axis, n in zip(axes, shape, strict=True)):
            text = f"({', '.join(map(str, expected))}{',' * (len(expected) == 1)})"
            others = dict.fromkeys(owner[axis] for axis in axes if axis in owner)
            because = " and ".join(f"`{other}` has the shape {_shape(arrays[other][0], other)}" for other in others)
            reason = f", because {because}. Select the same rows and columns in all arrays" if because else ""
            raise DataError(f"`{name}` has the shape {shape}; expected {text}{reason}.")
        for axis, n in zip(axes, shape, strict=True):
            lengths.setdefault(axis, n)
            owner.setdefault(axis, name)


def _shape(array: Any, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in np.shape(array))
    except ValueError as error:  # of numpy: lists of different lengths
        raise DataError(f"`{name}` has rows of different lengths. Pass an array.") from error
