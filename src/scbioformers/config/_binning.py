"""Binning of abundances: its parameters, which are frozen at the fit, and the function that applies them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scbioformers.core import (
    ConfigError,
    DataError,
    QuantileBins,
    as_float,
    bin_segment_rows,
    bin_value_rows,
    check_fields,
    check_integer,
    check_positive,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Binning:
    """How abundances are converted to bins. The last three fields are frozen on the training cells of a model.

    Value bins (paper, section 2.1.2, Eqs. 4 and 5) keep small counts as they are and group large counts on a log2
    scale. Segment bins (Eq. 2) are ranks within the cell. Quantile bins are ranks of a feature among the training
    cells. They are for few features, such as proteins, and for values that are not counts: ranks within a cell of 10
    proteins would lose how much of them there is.

    Examples
    --------
    >>> binning = Binning(cutoff=8).freeze(mean_depth=2500.0, max_bin=20)
    >>> binning.n_values
    21
    >>> Binning.from_dict(binning.to_dict()) == binning
    True
    """

    kind: Literal["value", "segment", "quantile"] = "value"
    """``"value"`` for value bins of counts, ``"segment"`` for ranks within the cell, ``"quantile"`` for ranks among
    the training cells. The last two also accept data on a log scale, and centred data."""
    n_bins: int = 50
    """Segment and quantile bins only: the number of bins. The highest value of every cell, or of every feature, is in
    the last bin."""
    bins_per_doubling: float = 3
    """Value bins only: number of bins per doubling of the count above the cutoff (`b` in the paper)."""
    cutoff: int = 8
    """Value bins only: up to this normalised count, the bin is the rounded count (`c` in the paper)."""
    normalize: bool = True
    """Value bins only: whether each cell is first scaled to the mean depth of the training cells."""
    mean_depth: float | None = None
    """Mean depth of the training cells, in counts. `None` until frozen."""
    max_bin: int | None = None
    """Highest bin of the training cells. Higher bins of other data are clipped to it. `None` until frozen."""
    quantiles: QuantileBins | None = None
    """Quantile bins only: the edges and means of the bins of each feature. `None` until frozen."""

    def __post_init__(self) -> None:
        check_fields(self)
        # JSON cannot store numpy scalars, so they are converted to Python numbers
        plain: dict[str, float | None] = {
            "n_bins": check_integer("n_bins", self.n_bins, 1),
            "cutoff": check_integer("cutoff", self.cutoff, 1),
            "bins_per_doubling": check_positive("bins_per_doubling", self.bins_per_doubling),
            "mean_depth": None if self.mean_depth is None else check_positive("mean_depth", self.mean_depth),
            "max_bin": None if self.max_bin is None else check_integer("max_bin", self.max_bin, 1),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        bins = self.quantiles
        if bins is not None and (self.kind, self.n_bins) != ("quantile", bins.n_bins):
            raise ConfigError(f"`quantiles` has {bins.n_bins} bins, found {self.n_bins} {self.kind} bins.")

    def freeze(self, *, mean_depth: float, max_bin: int, quantiles: QuantileBins | None = None) -> "Binning":
        """Return a copy with the mean depth, highest bin and (for quantile bins) quantiles of the training cells.

        For segment and quantile bins the highest bin is always `n_bins`.
        """
        highest = max_bin if self.kind == "value" else self.n_bins
        return replace(self, mean_depth=mean_depth, max_bin=highest, quantiles=quantiles)

    def require_quantiles(self) -> QuantileBins:
        """The edges and means of frozen quantile bins. Other bins raise an error."""
        if self.quantiles is None:
            raise ConfigError(
                f"These {self.kind} bins have no quantiles. Call `Binning(kind='quantile').freeze(mean_depth=..., "
                "max_bin=..., quantiles=...)` first."
            )
        return self.quantiles

    @property
    def n_values(self) -> int:
        """Number of distinct bins, including bin 0. Value bins that are not frozen raise an error."""
        return self._highest() + 1

    def _highest(self) -> int:
        if self.kind != "value":
            return self.n_bins
        if self.max_bin is None:
            raise ConfigError(
                "This binning is not frozen, so its highest value bin is unknown. "
                "Call `Binning.freeze(mean_depth=..., max_bin=...)` first."
            )
        return self.max_bin

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper normalised count of each value bin.

        Bins up to the cutoff contain their lower edge. Bins above the cutoff contain their upper edge. The upper edge
        of a bin is the lower edge of the next bin.

        Returns
        -------
        Two float64 arrays (max_bin + 1,). Bin 0 contains only the count 0, so both of its edges are 0.

        Raises
        ------
        ConfigError
            For segment bins, because their edges differ between cells, for quantile bins, whose edges differ between
            features, and for value bins that are not frozen.

        Examples
        --------
        >>> lower, upper = Binning(cutoff=2, bins_per_doubling=1).freeze(mean_depth=1.0, max_bin=4).edges()
        >>> upper
        array([0. , 1.5, 2. , 4. , 8. ])
        """
        if self.kind == "segment":
            raise ConfigError("Segment bins have no fixed edges: they are ranks within each cell.")
        if self.kind == "quantile":
            raise ConfigError("Quantile bins have other edges for each feature: use `Binning.quantiles.edges`.")
        bins = np.arange(self._highest() + 1)
        doublings = np.maximum(bins - self.cutoff, 0) / self.bins_per_doubling
        upper = np.where(bins < self.cutoff, bins + 0.5, self.cutoff * 2.0**doublings)
        upper[0] = 0.0
        return np.concatenate([[0.0], upper[:-1]]), upper

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the quantiles, see :meth:`to_arrays`."""
        return {name: getattr(self, name) for name in _plain_fields()}

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Arrays by name, to be stored beside :meth:`to_dict`: of frozen quantile bins, else none."""
        return {} if self.quantiles is None else {"edges": self.quantiles.edges, "means": self.quantiles.means}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]] | None = None) -> "Binning":
        """Inverse of :meth:`to_dict` and :meth:`to_arrays`.

        Unknown fields and values out of range raise a ``ConfigError``.
        """
        if unknown := set(stored) - set(_plain_fields()):
            raise ConfigError(f"Unknown fields of a binning: {sorted(unknown)}; expected {_plain_fields()}.")
        return cls(**stored, quantiles=QuantileBins(**arrays) if arrays else None)


def _plain_fields() -> list[str]:
    return [field.name for field in fields(Binning) if field.name != "quantiles"]


def bin_rows(
    binning: Binning,
    data: ArrayLike,
    indptr: ArrayLike,
    depth: ArrayLike | None = None,
    mean_depth: float | None = None,
    features: ArrayLike | None = None,
) -> NDArray[np.int16]:
    """Convert the rows of a CSR matrix of counts to bins. A frozen binning clips them to its highest bin.

    Parameters
    ----------
    binning
        Parameters of the binning.
    data, indptr
        Stored counts (nnz,) and row pointers (n + 1,) of the matrix.
    depth
        Depth (n,) of each row in counts, needed for normalised value bins. It must be positive for rows with counts.
    mean_depth
        Depth to which the rows are scaled for normalised value bins. By default that of the binning.
    features
        Column (nnz,) of each stored count, needed for quantile bins. They are features of the frozen binning.

    Returns
    -------
    int16 array (nnz,).

    Raises
    ------
    ConfigError
        If depths, features or quantiles are needed and missing.
    DataError
        If a row has counts but no positive depth.

    Examples
    --------
    >>> bin_rows(Binning(), data=[1, 5, 3], indptr=[0, 2, 3], depth=[10, 5], mean_depth=20.0)
    array([ 2,  9, 10], dtype=int16)
    """
    if binning.kind == "segment":
        return bin_segment_rows(data, indptr, binning.n_bins)
    if binning.kind == "quantile":
        if features is None:
            raise ConfigError("Quantile bins need the feature of each value. Pass `features=`.")
        return binning.require_quantiles().apply(data, features)
    values, bounds = as_float(data), np.asarray(indptr, dtype=np.int64)
    if binning.normalize:
        target = binning.mean_depth if mean_depth is None else mean_depth
        if target is None or depth is None:
            raise ConfigError("Normalised value bins need `depth` and `mean_depth`. Pass both, or `normalize=False`.")
        depths = np.asarray(depth, dtype=np.float64)
        _check_depths(values, bounds, depths)
        target = check_positive("mean_depth", target)
    else:
        target, depths = 1.0, np.ones(bounds.size - 1)
    out = np.empty(values.size, dtype=np.int16)
    bin_value_rows(values, bounds, depths, target, binning.cutoff, binning.bins_per_doubling, out)
    if binning.max_bin is not None:
        n_above = int(np.count_nonzero(out > binning.max_bin))
        if n_above:
            _log.debug("%d values are above the highest bin (%d) and are clipped to it.", n_above, binning.max_bin)
            np.minimum(out, binning.max_bin, out=out)
    return out


def _check_depths(values: NDArray[Any], bounds: NDArray[np.int64], depths: NDArray[np.float64]) -> None:
    if depths.shape != (bounds.size - 1,):
        raise DataError(f"Expected one depth for each of {bounds.size - 1} rows, found shape {depths.shape}.")
    for row in np.flatnonzero(~(depths > 0)):
        if np.any(values[bounds[row] : bounds[row + 1]]):
            raise DataError(f"Row {row} has counts, but its depth is {depths[row]}; expected a positive depth.")
