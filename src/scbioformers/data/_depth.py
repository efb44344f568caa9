"""The depth of the cells of a query, such that it can be compared with the depth of the training cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import warn

DEPTH_RATIO = (0.8, 1.25)  # the totals of the cells are used if the median ratio to the expected depth lies within


@dataclass(frozen=True)
class DepthRule:
    """How the depth of a cell follows from its counts: a total, divided by the expected share of the depth in it."""

    modelled_only: bool = False
    """Whether the total is over the modelled features. If not, it is over all columns of the data."""
    share: float = 1.0
    """Share of the depth that these features have in the training data."""


TOTALS = DepthRule()  # the depth is the total over all columns


def depth_ratio(total: NDArray[np.float64], modelled: NDArray[np.float64], modelled_share: float) -> float:
    """Median over the cells of the total, relative to the depth that the modelled features let expect."""
    filled = modelled > 0
    return float(np.median(total[filled] * (modelled_share / modelled[filled]))) if filled.any() else 1.0


def fits_total(ratio: float) -> bool:
    """Whether totals are so near to the expected depth that they are used."""
    return DEPTH_RATIO[0] <= ratio <= DEPTH_RATIO[1]


def choose_depth_rule(
    total: NDArray[np.float64], modelled: NDArray[np.float64], modelled_share: float, absent_share: float = 0.0
) -> DepthRule:
    """Choose how the depth of the cells of a query is computed. The choice is made once, for all cells.

    If the data have lost genes, or have gained some, the total of a cell over all columns is not its depth. So it is
    compared with the depth that the modelled features let expect: their total, divided by their share of the depth in
    training. If the median ratio over the cells lies within 0.8 and 1.25, the depth is the total over all columns,
    corrected for the features of the model that the data do not measure. If not, it is the expected depth.

    Parameters
    ----------
    total
        (n_obs,) sum of each cell over all columns.
    modelled
        (n_obs,) sum of each cell over the modelled features. Cells in which it is 0 are not compared.
    modelled_share
        Share of the depth that the modelled features of the data had in training.
    absent_share
        Share of the depth that the features of the model have that the data do not measure.

    Warns
    -----
    BioformersWarning
        If the expected depth is used.

    Examples
    --------
    >>> import numpy as np
    >>> choose_depth_rule(total=np.array([100.0]), modelled=np.array([31.0]), modelled_share=0.3)
    DepthRule(modelled_only=False, share=1.0)
    """
    ratio = depth_ratio(total, modelled, modelled_share)
    if fits_total(ratio):
        return DepthRule(share=1.0 - absent_share)
    warn(
        f"The data have other genes than the training data: the median total of the cells is {ratio:.2f} times the "
        "depth expected from the genes of the model. So the depth of each cell is estimated from the genes of the "
        "model. If you removed genes after the fit, data with all genes give the exact depth."
    )
    return DepthRule(modelled_only=True, share=modelled_share)
