"""Kernels that bin counts: value bins of single elements, segment bins of the rows of a matrix."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from scbioformers.core._errors import ConfigError

_INT16_MAX = 32767
# rows of counts below this limit are ranked by a histogram, which is several times faster than sorting
_HISTOGRAM_SIZE = 1024
# at exact doublings, rounding can put log2 slightly above the integer
_LOG_TOLERANCE = 1e-9


def check_integer(name: str, value: object, low: int) -> int:
    """Return the parameter as an int, or raise a ConfigError if it is not an integer from `low` to 32767."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= _INT16_MAX:
        raise ConfigError(f"`{name}` must be an integer from {low} to {_INT16_MAX}, found {value!r}.")
    return int(value)


def check_positive(name: str, value: object) -> float:
    """Return the parameter as a float, or raise a ConfigError if it is not a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ConfigError(f"`{name}` must be a positive finite number, found {value!r}.")
    return float(value)


@njit(cache=True, nogil=True)
def _value_bin(x, cutoff, bins_per_doubling):  # type: ignore[no-untyped-def]
    if not x > 0.0:
        return 0
    if x <= 1.0:
        return 1
    if x <= cutoff:
        return int(np.floor(x + 0.5))
    # np.ceil returns a float, so that an infinite x gets the highest bin; math.ceil would overflow
    above = np.ceil(bins_per_doubling * math.log2(x / cutoff) - _LOG_TOLERANCE)
    return int(min(cutoff + above, _INT16_MAX))


@njit(cache=True, nogil=True)
def _bin_flat(x, cutoff, bins_per_doubling, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = _value_bin(x[i], cutoff, bins_per_doubling)


@njit(cache=True, nogil=True, error_model="numpy")
def bin_value_rows(data, indptr, depth, mean_depth, cutoff, bins_per_doubling, out):  # type: ignore[no-untyped-def]
    """Write the value bins of the rows of a CSR matrix to `out` (nnz,).

    `data` (nnz,) are counts, `indptr` (n + 1,) row bounds, `depth` (n,) and `mean_depth` depths in counts.
    See :func:`bin_normalized` for the other parameters.
    """
    for row in range(indptr.size - 1):
        for i in range(indptr[row], indptr[row + 1]):
            # the product is first: it is exact for integer counts, so that ties at 0.5 are rounded as in the formula
            x = np.float64(data[i]) * mean_depth / depth[row]
            out[i] = _value_bin(x, cutoff, bins_per_doubling)


@njit(cache=True, nogil=True)
def _segment_by_histogram(values, below, top, n, n_bins, out):  # type: ignore[no-untyped-def]
    below[: top + 1] = 0
    for i in range(values.size):
        below[np.int64(values[i])] += 1
    below[0] = 0
    for value in range(1, top + 1):
        below[value] += below[value - 1]
    for i in range(values.size):
        out[i] = (n_bins * below[np.int64(values[i])] + n - 1) // n


@njit(cache=True, nogil=True)
def _segment_by_sorting(values, n, zero_is_special, n_bins, out):  # type: ignore[no-untyped-def]
    order = np.argsort(values)
    n_up_to, start = 0, 0
    while start < values.size:
        value, end = values[order[start]], start + 1
        while end < values.size and values[order[end]] == value:
            end += 1
        bin_of_ties = 0
        if value != 0 or not zero_is_special:
            n_up_to += end - start
            bin_of_ties = (n_bins * n_up_to + n - 1) // n
        for i in range(start, end):
            out[order[i]] = bin_of_ties
        start = end


@njit(cache=True, nogil=True)
def _bin_segment_rows(data, indptr, zero_is_special, n_bins, out):  # type: ignore[no-untyped-def]
    below = np.empty(_HISTOGRAM_SIZE, dtype=np.int64)
    for row in range(indptr.size - 1):
        values = data[indptr[row] : indptr[row + 1]]
        bins = out[indptr[row] : indptr[row + 1]]
        n, top, small_counts = 0, 0.0, zero_is_special
        for value in values:
            n += value != 0 or not zero_is_special
            top = max(top, value)
            if not (0 <= value < _HISTOGRAM_SIZE and value == math.floor(value)):
                small_counts = False
        if n == 0:
            bins[:] = 0
        elif small_counts:
            _segment_by_histogram(values, below, int(top), n, n_bins, bins)
        else:
            _segment_by_sorting(values, n, zero_is_special, n_bins, bins)


def as_float(data: ArrayLike) -> NDArray[Any]:
    """Return a contiguous array of float32 (if the data are float32) or float64. Kernels are compiled for these two."""
    array = np.asarray(data)
    return np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float32 else np.float64)


def bin_normalized(x: ArrayLike, cutoff: int, bins_per_doubling: float) -> NDArray[np.int16]:
    """Value bins of normalised counts (paper, Eq. 5, corrected by the term `+ c` that is missing there).

    Parameters
    ----------
    x
        Non-negative normalised counts of any shape. Other values are not checked: negative values and NaN get bin 0.
    cutoff
        `c`: values up to the cutoff are rounded half up, but positive values never to 0.
    bins_per_doubling
        `b`: number of bins per doubling above the cutoff.

    Returns
    -------
    int16 array of the shape of `x`, bins from 0 to 32767.

    Raises
    ------
    ConfigError
        If a parameter is out of range.

    Examples
    --------
    >>> bin_normalized([0, 0.2, 1.5, 8, 9, 12, 16], cutoff=8, bins_per_doubling=3)
    array([ 0,  1,  2,  8,  9, 10, 11], dtype=int16)
    """
    c, b = check_integer("cutoff", cutoff, 1), check_positive("bins_per_doubling", bins_per_doubling)
    values = np.asarray(x, dtype=np.float64)
    out = np.empty(values.size, dtype=np.int16)
    _bin_flat(values.ravel(), c, b, out)
    return out.reshape(values.shape)


def bin_segment_rows(data: ArrayLike, indptr: ArrayLike, n_bins: int) -> NDArray[np.int16]:
    """Segment bins of the rows of a CSR matrix (paper, Eq. 2).

    The bin of x is `ceil(n_bins * #{non-zero values <= x} / #{non-zero values})`, in integer arithmetic.

    Parameters
    ----------
    data, indptr
        Non-negative stored values (nnz,) and row bounds (n + 1,) of the matrix. Explicitly stored zeros are allowed.
    n_bins
        `B`, the bin of the highest value of each row.

    Returns
    -------
    int16 array (nnz,). Zeros get bin 0, and tied values get the same bin.

    Raises
    ------
    ConfigError
        If `n_bins` is out of range.

    Examples
    --------
    >>> bin_segment_rows([1, 1, 2, 5, 7], [0, 4, 5], n_bins=4)
    array([2, 2, 3, 4, 4], dtype=int16)
    """
    values = as_float(data)
    out = np.empty(values.size, dtype=np.int16)
    _bin_segment_rows(values, np.asarray(indptr, dtype=np.int64), True, check_integer("n_bins", n_bins, 1), out)
    return out


def bin_segment_dense(X: ArrayLike, n_bins: int) -> NDArray[np.int16]:
    """Segment bins of the rows of centred data. All values of a row are ranked, zeros included.

    Parameters
    ----------
    X
        Dense matrix (n, m) of real values.
    n_bins
        `B`, the bin of the highest value of each row.

    Returns
    -------
    int16 array (n, m) of bins from 1 to `n_bins`.

    Raises
    ------
    ConfigError
        If `n_bins` is out of range.

    Examples
    --------
    >>> bin_segment_dense([[-1.5, 0.0, 0.0, 2.0]], n_bins=4)
    array([[1, 3, 3, 4]], dtype=int16)
    """
    values = as_float(X)
    indptr = np.arange(values.shape[0] + 1, dtype=np.int64) * values.shape[1]
    out = np.empty(values.size, dtype=np.int16)
    _bin_segment_rows(values.ravel(), indptr, False, check_integer("n_bins", n_bins, 1), out)
    return out.reshape(values.shape)
