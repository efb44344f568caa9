"""Settings of a session. ``bf.settings.progress_bar = False`` disables all progress bars."""

from __future__ import annotations

progress_bar: bool = True
"""Whether functions show a progress bar if their argument ``progress_bar`` is None."""


def shows_progress(argument: bool | None) -> bool:
    """Return the argument ``progress_bar`` of a function, or the setting if it is None."""
    return progress_bar if argument is None else argument
