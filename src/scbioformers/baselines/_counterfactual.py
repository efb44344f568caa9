"""Simple predictions of the effect of a phenotype on a group of cells, from the other groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

Array = NDArray[np.floating]


def mean_effect(effects: Array) -> NDArray[np.float64]:
    """The mean of the effects (T, M) on the other groups, (M,)."""
    return np.asarray(effects, np.float64).mean(axis=0)


def linear_effect(controls: Array, effects: Array, control: Array) -> NDArray[np.float64]:
    """The effect that a linear model expects from the profile without the phenotype, (M,).

    Ridge regression of the effects on the centred profiles of the other groups. The penalty is the best of 13 in
    leave-one-out cross-validation over these groups.

    Parameters
    ----------
    controls, effects
        (T, M), mean profile without the phenotype, and its effect, of each of the other groups.
    control
        (M,), mean profile of the group without the phenotype.

    Examples
    --------
    >>> import numpy as np
    >>> controls = np.array([[0.0, 1], [1, 1], [2, 1]])
    >>> linear_effect(controls, 3 * controls, np.array([1.5, 1.0])).round(1).tolist()
    [4.5, 3.0]
    """
    if len(controls) < 3:  # nothing to fit a slope to
        return mean_effect(effects)
    centre = np.asarray(controls, np.float64).mean(axis=0)
    scale = max(float(np.linalg.norm(controls - centre, axis=1).mean()), 1e-9)
    regression = RidgeCV(np.logspace(-4, 2, 13)).fit((controls - centre) / scale, effects)
    return np.asarray(regression.predict([(control - centre) / scale])[0], np.float64)
