"""Splits of cells and of perturbations into training and test sets."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def split_combinations(
    targets: Sequence[Collection[str]], fraction: float, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Hold out some targets with all of their perturbations, and some combinations of the other targets.

    Parameters
    ----------
    targets
        Features that each perturbation hits; empty for controls.
    fraction
        Share to hold out of the targets, and of the combinations of the other targets, in (0, 1).
    seed
        Integer seed.

    Returns
    -------
    bool (n,), True for test. int64 (n,), number of targets of each perturbation that are perturbed alone in training
    (0, 1, 2, …).

    Raises
    ------
    ConfigError
        If ``fraction`` lies outside (0, 1).

    Examples
    --------
    >>> test, seen = split_combinations([["A"], ["B"], ["C"], ["A", "B"], ["A", "C"]], 0.4, seed=1)
    >>> bool(test.any()), int(seen.max()) <= 2
    (True, True)
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The fraction must lie in (0, 1), found {fraction!r}.")
    names = sorted({name for hit in targets for name in hit})
    draws = uniform(seed, np.arange(len(names)))
    n_out = max(1, round(fraction * len(names)))
    out = {names[i] for i in np.argsort(draws)[:n_out]}
    test = np.array([any(name in out for name in hit) for hit in targets], dtype=bool)
    combinations = sorted({tuple(sorted(set(hit))) for hit in targets})
    draw_of = dict(zip(combinations, uniform(seed + 1, np.arange(len(combinations))), strict=True))
    for i, hit in enumerate(targets):
        if len(set(hit)) > 1 and not test[i]:
            test[i] = draw_of[tuple(sorted(set(hit)))] < fraction
    alone = {next(iter(hit)) for i, hit in enumerate(targets) if len(set(hit)) == 1 and not test[i]}
    return test, np.array([sum(name in alone for name in set(hit)) for hit in targets], dtype=np.int64)


def split_groups(
    groups: ArrayLike, control: ArrayLike, held_out: object
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Hold out the perturbed cells of one cell type or batch.

    The control cells of the group stay in the training set, because predictions start from them.

    Parameters
    ----------
    groups
        (N,), cell type or batch of each cell.
    control
        bool (N,), True for unperturbed cells.
    held_out
        The group to hold out, a value of `groups`.

    Returns
    -------
    bool (N,), True for training cells; bool (N,), True for test cells.

    Raises
    ------
    ConfigError
        If the group has no perturbed or no control cell.

    Examples
    --------
    >>> train, test = split_groups(["a", "a", "b", "b"], [True, False, True, False], "b")
    >>> train.tolist(), test.tolist()
    ([True, True, True, False], [False, False, False, True])
    """
    inside, unperturbed = np.asarray(groups) == held_out, np.asarray(control, bool)
    if not (inside & unperturbed).any() or not (inside & ~unperturbed).any():
        raise ConfigError(f"The group {held_out!r} needs both control and perturbed cells.")
    test = inside & ~unperturbed
    return ~test, test
