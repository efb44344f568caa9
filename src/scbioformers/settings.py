"""Settings of a session. They mean what ``scanpy.settings`` of the same names mean.

An assignment to a name of this module changes the setting: ``bf.settings.verbosity = "warning"``. A name that is not a
setting, or a value of another type, is an error. Messages go to the logger ``"scbioformers"`` of the standard library.

Examples
--------
>>> import scbioformers as bf
>>> bf.settings.progress_bar = False
>>> bf.settings.figdir = "figures"
>>> bf.settings.verbosity = "hint"
>>> bf.settings.verbosity
3
"""

from __future__ import annotations

import builtins
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

progress_bar: bool = True
"""Whether functions show a progress bar if their argument ``progress_bar`` is None."""

n_threads: int | None = None
"""Number of threads of torch while a function computes. Afterwards, torch has the number that it had before.

None: one thread for networks up to a width of 256, else the number that is set in torch. A small network gains at most
a third by a second thread. On a machine that is busy with other processes, several threads make its fit many times
slower. The result is the same, bit by bit, only for the same number of threads.
"""

verbosity: int = 2
"""Which messages are shown: 0 or "error", 1 or "warning", 2 or "info", 3 or "hint", 4 or "debug"."""

autoshow: bool = True
"""Whether figures are shown if the argument ``show`` is None."""

figdir: Path = Path("figures")
"""Folder of the figures that are saved with ``save=True`` or with a suffix. It is created when it is needed."""

_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "hint": 15, "debug": logging.DEBUG}


def shows_progress(argument: bool | None) -> bool:
    """Return the argument ``progress_bar`` of a function, or the setting if it is None."""
    return progress_bar if argument is None else argument


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def _number(name: str, value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise _wrong(name, value, "a number of threads, at least 1, or None")
    return value


def _verbosity(name: str, value: object) -> int:
    names = list(_LEVELS)
    if isinstance(value, str) and value.lower() in names:
        value = names.index(value.lower())
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(names):
        raise _wrong(name, value, f"one of {names}, or a number from 0 to {len(names) - 1}")
    logging.getLogger("scbioformers").setLevel(_LEVELS[names[value]])
    return int(value)


def _folder(name: str, value: object) -> Path:
    if not isinstance(value, str | Path):
        raise _wrong(name, value, "the path of a folder")
    return Path(value)


_CHECKS = {
    "progress_bar": _flag,
    "n_threads": _number,
    "verbosity": _verbosity,
    "autoshow": _flag,
    "figdir": _folder,
}


def _wrong(name: str, value: object, expected: str) -> Exception:
    return _error(f"`bf.settings.{name}` must be {expected}, found {value!r}.")


def _error(message: str) -> Exception:
    from scbioformers.core import ConfigError  # not loaded before it is needed: the import of the package stays fast

    return ConfigError(message)


class _Settings(ModuleType):
    """The type of this module: it checks each assignment."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if name not in _CHECKS:
                raise _error(f"`bf.settings` has no setting {name!r}. The settings are {sorted(_CHECKS)}.")
            value = _CHECKS[name](name, value)
        super().__setattr__(name, value)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Shows messages as scanpy does: in a notebook on the standard output, elsewhere on the standard error."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # that of StreamHandler would keep the stream of the time of the import

    @property
    def stream(self) -> TextIO:
        return sys.stdout if hasattr(builtins, "__IPYTHON__") else sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        # a program that has configured logging itself gets each message there, once
        return not logging.getLogger().handlers and bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


sys.modules[__name__].__class__ = _Settings
logging.getLogger("scbioformers").addHandler(_Handler())
_verbosity("verbosity", verbosity)
