"""The memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")  # Linux; the page cache counts as free there


def free_memory() -> float | None:
    """Bytes of memory that are free, or all memory of the machine if the system does not say. None if unknown.

    Examples
    --------
    >>> free = free_memory()
    >>> free is None or free > 1e6
    True
    """
    try:
        entries = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        return 1024.0 * int(entries["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
