"""Splits of cells and of perturbations into training and test sets."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from scbioformers.core._errors import ConfigError
from scbioformers.core._random import uniform


def validation_rows(n: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose validation rows. The random number of a row depends only on the seed and the row number.

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
    bool array (n,), True for validation. If `fraction` > 0 and `n` > 1, at least one row is True and at least one is
    False. A single row is never held out.

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


def split_targets(targets: Sequence[Collection[str]], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign perturbations to folds, so that no target is in two folds.

    A combination is in the fold of its targets. If its targets are in different folds, it is in no fold.

    Parameters
    ----------
    targets
        Features that each perturbation hits; empty for controls.
    n_folds
        Number of folds, at least 2 and at most the number of targets.
    seed
        Integer seed.

    Returns
    -------
    int64 (n,), fold of each perturbation, from 0; -1 for controls and for combinations across folds.

    Raises
    ------
    ConfigError
        If there are fewer than two folds or fewer targets than folds.

    Examples
    --------
    >>> split_targets([["A"], ["B"], ["A"], ["A", "B"], []], 2, seed=0).tolist()
    [0, 1, 0, -1, -1]
    """
    names = sorted({name for hit in targets for name in hit})
    if not 2 <= n_folds <= len(names):
        raise ConfigError(f"`n_folds` must be from 2 to the number of targets, {len(names)}, found {n_folds}.")
    rank = np.argsort(np.argsort(uniform(seed, np.arange(len(names))), kind="stable"), kind="stable")
    fold = {name: int(position % n_folds) for name, position in zip(names, rank, strict=True)}
    return np.array([next(iter(f)) if len(f := {fold[name] for name in hit}) == 1 else -1 for hit in targets])
