"""Warnings as the user reads them: at the line of the user's own code, and without a line of source."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

from scbioformers.core._errors import BioformersWarning

_PACKAGE = __name__.partition(".")[0]
_LOCK = threading.RLock()


def warn(message: str) -> None:
    """Warn with :class:`BioformersWarning` at the line that called scbioformers, whatever function of it warns.

    Python would show a line of source under the message. The text of a :class:`BioformersWarning` says everything, so
    it is shown alone.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    place = frame.f_globals
    with _LOCK:
        former = warnings.formatwarning
        warnings.formatwarning = _without_source
        try:
            warnings.warn_explicit(
                message,
                BioformersWarning,
                frame.f_code.co_filename,
                frame.f_lineno,
                module=place.get("__name__"),
                registry=place.setdefault("__warningregistry__", {}),
            )
        finally:
            warnings.formatwarning = former


def _without_source(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    return f"{category.__name__}: {message}\n"
