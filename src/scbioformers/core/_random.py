"""Counter-based random numbers. A number depends only on its seed and counters, not on earlier draws.

Masks and subsets are therefore the same for every batch size, order of chunks and number of workers. Each counter is
mixed in with the finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators").
"""

import secrets
from numbers import Integral

import numpy as np
from numba import njit, vectorize
from numpy.typing import ArrayLike, NDArray

from scbioformers.core._errors import ConfigError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3, _SHIFT_53_BITS = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_MAX_COUNTERS = 3


@njit(cache=True, nogil=True)
def _mix(state, counter):  # type: ignore[no-untyped-def]
    z = (state ^ np.uint64(counter)) + _GOLDEN
    z = (z ^ (z >> _SHIFT_1)) * _MULTIPLY_1
    z = (z ^ (z >> _SHIFT_2)) * _MULTIPLY_2
    return z ^ (z >> _SHIFT_3)


@njit(cache=True, nogil=True)
def hash_uniform(seed, a, b, c):  # type: ignore[no-untyped-def]
    """One uniform number in [0, 1), for use inside other numba kernels.

    Parameters
    ----------
    seed, a, b, c
        Integers (int64 or uint64). Set counters that are not needed to 0.

    Returns
    -------
    float64 in [0, 1), a multiple of 2**-53.

    Examples
    --------
    >>> hash_uniform(0, 1, 2, 3) == uniform(0, 1, 2, 3)
    np.True_
    """
    state = _mix(_mix(_mix(_mix(np.uint64(0), seed), a), b), c)
    return np.float64(state >> _SHIFT_53_BITS) * 2.0**-53


@vectorize(cache=True)  # type: ignore[no-untyped-call]
def _hash_uniform_ufunc(seed, a, b, c):  # type: ignore[no-untyped-def]
    return hash_uniform(seed, a, b, c)


@vectorize(cache=True)  # type: ignore[no-untyped-call]
def _hash_pairs_ufunc(a, b):  # type: ignore[no-untyped-def]
    return _mix(_mix(np.uint64(0), a), b)


def hash_pairs(a: ArrayLike, b: ArrayLike) -> NDArray[np.uint64]:
    """Hashes of pairs of integers, uint64 of the broadcast shape.

    Examples
    --------
    >>> import numpy as np
    >>> len(np.unique(hash_pairs([0, 0, 1], [0, 1, 0])))
    3
    """
    result: NDArray[np.uint64] = _hash_pairs_ufunc(_as_uint64(a), _as_uint64(b))
    return result


def _as_uint64(values: ArrayLike) -> NDArray[np.uint64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ConfigError(f"Random counters must be integers, found dtype {array.dtype}.")
    return array.astype(np.uint64)


def uniform(seed: int, *counters: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each combination of the broadcast counters.

    Parameters
    ----------
    seed
        Integer seed, see :func:`seed_from`.
    counters
        One to three integer arrays or scalars that broadcast against each other, such as epoch, row and feature.

    Returns
    -------
    float64 array of the broadcast shape. The numbers equal those of :func:`hash_uniform`, with missing counters set to
    0.

    Raises
    ------
    ConfigError
        If there is no counter or more than three, or if one is not of an integer dtype.

    Examples
    --------
    >>> import numpy as np
    >>> uniform(0, np.arange(5))[3] == uniform(0, 3)
    np.True_
    """
    if not 1 <= len(counters) <= _MAX_COUNTERS:
        raise ConfigError(f"Expected 1 to {_MAX_COUNTERS} counters, found {len(counters)}.")
    padded = [*counters, *[0] * (_MAX_COUNTERS - len(counters))]
    result: NDArray[np.float64] = _hash_uniform_ufunc(_as_uint64(seed), *map(_as_uint64, padded))
    return result


def seed_from(rng: int | np.random.Generator | None) -> int:
    """Turn the `rng` argument of a public function into a seed of 63 bits.

    Parameters
    ----------
    rng
        A non-negative integer below 2**63 (returned unchanged), a generator (which advances by one draw), or `None` for
        a random seed.

    Returns
    -------
    An integer in [0, 2**63).

    Raises
    ------
    ConfigError
        If `rng` is none of these.

    Examples
    --------
    >>> seed_from(7)
    7
    """
    if rng is None:
        return secrets.randbits(63)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 2**63 - 1, endpoint=True))
    if isinstance(rng, bool) or not isinstance(rng, Integral) or not 0 <= int(rng) < 2**63:
        raise ConfigError(f"`rng` must be an integer in [0, 2**63), a numpy Generator or None, found {rng!r}.")
    return int(rng)
