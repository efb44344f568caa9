"""Default number of epochs. Training and ``pp.check`` use the same rule."""

from __future__ import annotations

import math

EPOCHS = 20
FEW_CELLS = 8_000  # with more cells there are fewer epochs, so that the number of steps stays the same
MIN_STEPS = 750  # with few cells there are more epochs, to reach at least this number of steps
MAX_EPOCHS = 100


def default_epochs(n_cells: int, batch_size: int) -> int:
    """Return the default number of epochs for ``n_cells`` training cells.

    Examples
    --------
    >>> [default_epochs(n, batch_size=64) for n in (700, 3000, 80_000)]
    [69, 20, 2]
    """
    if n_cells > FEW_CELLS:
        return max(1, round(EPOCHS * FEW_CELLS / n_cells))
    steps_an_epoch = max(1, math.ceil(n_cells / batch_size))
    return max(EPOCHS, min(MAX_EPOCHS, math.ceil(MIN_STEPS / steps_an_epoch)))
