"""How long a default fit is: the one rule that training and ``pp.check`` share."""

from __future__ import annotations

import math

EPOCHS = 20
FEW_CELLS = 8_000  # beyond, epochs get fewer so that the number of steps stays the same
MIN_STEPS = 750  # few cells are read more often, so that there are at least so many steps
MAX_EPOCHS = 100


def default_epochs(n_cells: int, batch_size: int) -> int:
    """Passes over ``n_cells`` training cells.

    Examples
    --------
    >>> [default_epochs(n, batch_size=64) for n in (700, 3000, 80_000)]
    [69, 20, 2]
    """
    if n_cells > FEW_CELLS:
        return max(1, round(EPOCHS * FEW_CELLS / n_cells))
    steps_an_epoch = max(1, math.ceil(n_cells / batch_size))
    return max(EPOCHS, min(MAX_EPOCHS, math.ceil(MIN_STEPS / steps_an_epoch)))
