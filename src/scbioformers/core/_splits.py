"""Which rows are held out."""

import numpy as np
from numpy.typing import NDArray

from scbioformers.core._errors import ConfigError
from scbioformers.core._random import uniform


def validation_rows(n: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose validation rows; each row's draw depends on the seed and its own number only.

    Parameters
    ----------
    n
        Number of rows.
    fraction
        Share of the rows to hold out, in [0, 1).
    seed
        Integer seed.

    Returns
    -------
    bool array (n,), True for validation. With `fraction` > 0 and `n` > 1 at least one row is True and one False; a
    single row is never held out.

    Raises
    ------
    ConfigError
        If `fraction` lies outside [0, 1).

    Examples
    --------
    >>> rows = validation_rows(1000, 0.1, seed=0)
    >>> bool(80 < rows.sum() < 120)
    True
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"The validation fraction must lie in [0, 1), found {fraction!r}.")
    draws = uniform(seed, np.arange(n))
    held_out = draws < fraction
    if fraction > 0 and n > 1 and not held_out.any():
        held_out[np.argmin(draws)] = True
    if held_out.all() and n > 0:
        held_out[np.argmax(draws)] = False
    return held_out
