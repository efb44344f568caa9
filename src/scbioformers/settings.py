"""Defaults of a session, the same in every verb. ``bf.settings.progress_bar = False`` switches all bars off."""

from __future__ import annotations

progress_bar: bool = True
"""Whether verbs show a progress bar where their argument ``progress_bar`` is None."""


def shows_progress(argument: bool | None) -> bool:
    """The argument ``progress_bar`` of a verb, or the setting if it is None."""
    return progress_bar if argument is None else argument
