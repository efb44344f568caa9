"""Checks of the types of arguments, from the annotations of public functions and of the configurations.

The first line of every public function is ``check_arguments(FUNCTION, locals())``. A function that fails later, with a
message about the inside of a library, would not say which argument was wrong.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from scbioformers.core._errors import ConfigError, DataError

Category: TypeAlias = str | float | bool
"""A category of a column, as text or as the value that the column holds. See :func:`find_category`."""

_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool, np.bool_), "True or False"),
    int: ((int, np.integer), "an integer"),
    float: ((int, float, np.integer, np.floating), "a number"),
    type(None): ((type(None),), "None"),
}
_PLURALS = {str: "strings", int: "integers", float: "numbers"}


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise an error of ours if an argument does not have the type of its annotation.

    Numpy integers are integers and integers are numbers, but bools are neither. Where a list is expected, any ordered
    or unordered collection is accepted, but a string is not: its letters are hardly meant.

    Parameters
    ----------
    function
        A function whose parameters are annotated.
    arguments
        The arguments by name. Other names are ignored, so a function passes ``locals()`` in its first line.

    Raises
    ------
    ConfigError
        If a type is wrong. The message names the argument, what is expected, and what was found.
    DataError
        The same, if the wrong argument is ``adata``.

    Examples
    --------
    >>> def fit(adata: list[int], *, max_epochs: int | None = None) -> None:
    ...     check_arguments(fit, locals())
    >>> fit([1, 2], max_epochs=1.0)
    Traceback (most recent call last):
    scbioformers.core._errors.ConfigError: `max_epochs` must be an integer or None, found 1.0 (float).
    """
    for name, expected in _expected_types(function).items():
        if name in arguments and not _accepts(arguments[name], expected):
            _refuse(name, arguments[name], expected)


def check_fields(config: Any) -> None:
    """Check the types of the fields of a frozen dataclass in ``__post_init__``, like :func:`check_arguments`.

    Numpy scalars become Python numbers, which JSON can store, and lists become tuples where a tuple is expected.
    """
    kind: Any = type(config)
    for name, expected in _expected_types(kind).items():
        value = getattr(config, name)
        if not _accepts(value, expected):
            _refuse(f"{kind.__name__}.{name}", value, expected)
        if isinstance(value, np.generic):
            object.__setattr__(config, name, value.item())
        elif isinstance(value, list) and any(get_origin(option) is tuple for option in _options(expected)):
            object.__setattr__(config, name, tuple(value))


@cache
def _expected_types(annotated: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(annotated).items() if name != "return"}


def _options(expected: Any) -> tuple[Any, ...]:
    """The alternatives of a union. The long union for which ``ArrayLike`` stands is kept as one."""
    alias = get_origin(expected)
    if hasattr(alias, "__value__"):  # NDArray, since numpy 2.5
        expected = alias.__value__[get_args(expected)]
    if get_origin(expected) not in (Union, types.UnionType):
        return (expected,)
    options, array_like = get_args(expected), set(get_args(ArrayLike))
    if array_like and array_like <= set(options):  # before numpy 2.5
        options = (ArrayLike, *(option for option in options if option not in array_like))
    return tuple(each for option in options for each in ((option,) if option is ArrayLike else _options(option)))


def _accepts(value: Any, expected: Any) -> bool:
    return any(_accepts_one(value, option) for option in _options(expected))


def _accepts_one(value: Any, expected: Any) -> bool:
    kind, inner = get_origin(expected), get_args(expected)
    if expected is Any:
        return True
    if expected in _PLAIN:
        is_bool = isinstance(value, bool | np.bool_)
        return isinstance(value, _PLAIN[expected][0]) and (expected is bool or not is_bool)
    if expected is ArrayLike or kind is np.ndarray:
        return _is_array(value, ArrayLike if expected is ArrayLike else inner[-1])
    if kind is Literal:
        return isinstance(value, str | int) and value in inner
    if kind is None:
        return isinstance(value, expected) or (issubclass(expected, sp.spmatrix) and sp.issparse(value))
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            _accepts(key, inner[0]) and _accepts(item, inner[1]) for key, item in value.items()
        )
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection) or getattr(value, "ndim", 1) != 1:
        return False
    if kind is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_accepts, value, inner))
    return all(_accepts(item, inner[0]) for item in value)


def _is_array(value: Any, kind: Any) -> bool:
    """Whether a value converts to an array of bools (if ``kind`` is that dtype), or of numbers."""
    if value is None or isinstance(value, str | bytes | Mapping):
        return False
    try:
        array = np.asarray(value)
        if kind == np.dtype[np.bool_]:  # a mask, which may miss values until they are checked
            return array.ndim > 0 and (array.dtype == np.bool_ or str(getattr(value, "dtype", "")) == "boolean")
        if array.dtype.kind not in "biuf":
            array.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def not_anndata(value: Any) -> DataError:
    """The error for what is passed instead of an AnnData. It names the modalities of a MuData."""
    modalities = list(value.mod) if type(value).__name__ == "MuData" else []
    hint = f" Pass one of its modalities {modalities}, such as `mdata[{modalities[0]!r}]`." if modalities else ""
    return DataError(f"Expected an AnnData, found {type(value).__module__}.{type(value).__name__}.{hint}")


def _refuse(name: str, value: Any, expected: Any) -> None:
    if name == "adata" and any(getattr(option, "__name__", "") == "AnnData" for option in _options(expected)):
        raise not_anndata(value)
    raise ConfigError(f"`{name}` must be {_describe(expected)}, found {_shown(value)}.")


def _shown(value: Any) -> str:
    kind = type(value).__name__
    if value is None or isinstance(value, str):
        return reprlib.repr(value)
    if hasattr(value, "shape") and value.shape != ():
        dtype = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        return f"{'an' if kind.startswith(('n', 'A', 'I', 'i')) else 'a'} {kind}{dtype} with shape {tuple(value.shape)}"
    return f"{reprlib.repr(value)} ({kind})"


def _describe(expected: Any) -> str:
    texts = list(dict.fromkeys(text for option in _options(expected) for text in _describe_one(option)))
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _describe_one(expected: Any) -> tuple[str, ...]:
    kind, inner = get_origin(expected), get_args(expected)
    if kind is Literal:
        return tuple(repr(choice) for choice in inner)
    if expected in _PLAIN:
        text = _PLAIN[expected][1]
    elif expected is ArrayLike or kind is np.ndarray:
        text = "a bool array" if inner and inner[-1] == np.dtype[np.bool_] else "an array of numbers"
    elif kind is None:
        name = expected.__name__
        is_sparse = name in ("spmatrix", "sparray", "csr_matrix", "csc_matrix")
        text = "a sparse matrix" if is_sparse else f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
    elif issubclass(kind, Mapping):
        text = "a dict" if Any in inner else f"a dict (from {_describe(inner[0])} to {_describe(inner[1])})"
    elif kind is tuple and inner[-1] is not Ellipsis:
        text = f"{len(inner)} values ({', '.join(_describe(each) for each in inner)})"
    else:
        text = f"a list of {_PLURALS[inner[0]]}" if inner[0] in _PLURALS else f"a list (each {_describe(inner[0])})"
    return (text,)
