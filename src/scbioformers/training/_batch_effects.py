"""Effects of technical batches, estimated from similar cells of different batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import uniform

Array = NDArray[np.float64]

MAX_CELLS = 3000  # maximum number of compared cells, because all pairs are compared
N_NEIGHBORS = 10  # more would pair a type of few cells with the next type
N_PAIRED = 30  # the nearest of many cells are too similar in what is compared, too
N_COMPONENTS = 30
MAX_DISTANCE = 1.5  # of a difference from the median difference, in multiples of the median distance
N_ROUNDS = 3
PSEUDO_COUNT = 0.02  # added to mean counts, so that the rate of a rare gene changes little
_CELL_STREAM = 0xBA7C


def batch_effects(
    profile: Array, rates: Array, components: Array, codes: NDArray[np.integer], n_batches: int
) -> tuple[Array, Array]:
    """Estimate how each batch changes the profiles (by a sum) and the rates (by a factor).

    Batches may consist of different cell types, so their means are not compared. A cell is compared with its *mutual
    nearest neighbours* (Haghverdi et al. 2018): cells of other batches that are among its 10 nearest cells of other
    batches, while it is among their 10 nearest cells of its batch. Cells without such neighbours do not count. Neither
    do cells whose difference from their neighbours is far from the median difference, for example because their type is
    in no other batch. The effects are subtracted and the neighbours are searched again, three times in all.

    Parameters
    ----------
    profile, rates
        (n, M), log-normalised profiles and normalised counts of the cells.
    components
        (M, K), orthonormal principal components of the profiles. Distances are those of the cosine of the first 30.
    codes
        (n,), batch of each cell.
    n_batches
        Number of batches.

    Returns
    -------
    (n_batches, M) each: the shift of the profile relative to all cells, and the log of the factor of the rates
    relative to the average batch. Both are 0 for batches without similar cells in other batches.
    """
    shift, log_factor = (np.zeros((n_batches, profile.shape[1])) for _ in range(2))
    rest = 1 - np.bincount(codes, minlength=n_batches)[:, None] / len(codes)
    scores = (profile - profile.mean(axis=0)) @ components[:, :N_COMPONENTS]
    member = np.equal.outer(np.arange(n_batches), codes)
    for _ in range(N_ROUNDS):
        moved = scores - (shift @ components[:, :N_COMPONENTS])[codes]
        weights = _mutual_neighbors(moved, codes, n_batches, N_NEIGHBORS).astype(np.float64)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)  # (n, n), the mean over the partners of a cell
        paired, differences = weights.sum(axis=1) > 0, moved - weights @ moved
        typical = np.zeros(len(codes), bool)
        for rows in (codes == code for code in range(n_batches)):
            typical[rows] = paired[rows] & _typical(differences[rows], paired[rows])
        own = (member & typical).astype(np.float64)  # (n_batches, n), the cells that count
        partners = own @ weights  # (n_batches, n), weights of their partners
        size = own.sum(axis=1, keepdims=True)
        # a batch moves by the part of the difference that is the share of the other cells: they move as well
        shift += rest * ((own - partners) @ (profile - shift[codes])) / np.maximum(size, 1)
        corrected = rates * np.exp(-log_factor[codes])
        mean, expected = (of_cells @ corrected / np.maximum(size, 1) + PSEUDO_COUNT for of_cells in (own, partners))
        log_factor += rest * np.log(mean / expected)
    return shift, log_factor - log_factor.mean(axis=0)


def paired_shift(values: Array, scores: Array, codes: NDArray[np.integer], n_batches: int) -> Array:
    """How the values of each batch differ from those of all cells, by pairs of mutual nearest neighbours.

    Parameters
    ----------
    values
        (n, L), what is compared.
    scores
        (n, K), by whose cosine neighbours are found. They should not contain the batch.
    codes
        (n,), batch of each cell.
    n_batches
        Number of batches.

    Returns
    -------
    (n_batches, L), the differences. 0 for batches without similar cells in others.
    """
    weights = _mutual_neighbors(scores - scores.mean(axis=0), codes, n_batches, N_PAIRED).astype(np.float64)
    number = weights.sum(axis=1)
    weights /= np.maximum(number, 1)[:, None]
    differences, shift = values - weights @ values, np.zeros((n_batches, values.shape[1]))
    for code in range(n_batches):
        rows = (codes == code) & (number > 0)
        if rows.any():
            # a batch moves by the part of the difference that is the share of the other cells: they move as well
            shift[code] = differences[rows].mean(axis=0) * (codes != code).mean()
    return shift


def compared_cells(codes: NDArray[np.integer], n_batches: int, seed: int) -> NDArray[np.int64]:
    """Rows of at most ``MAX_CELLS`` cells, chosen at random with an equal limit for each batch, in ascending order."""
    order = np.lexsort((uniform(seed ^ _CELL_STREAM, np.arange(len(codes))), codes))
    first = np.searchsorted(codes[order], codes[order])
    return np.sort(order[np.arange(len(codes)) - first < max(1, MAX_CELLS // n_batches)])


def _mutual_neighbors(scores: Array, codes: NDArray[np.integer], n_batches: int, k: int) -> NDArray[np.bool_]:
    """(n, n), which cells are mutual nearest neighbours. Cells of one batch are not."""
    units = (scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    similar = units @ units.T
    other = codes[:, None] != codes
    # the k-th highest similarity of each cell to cells of other batches, and to cells of each batch
    to_others = _kth_highest(np.where(other, similar, -np.inf), k)
    to_batch = np.stack([_kth_highest(similar[:, codes == code], k) for code in range(n_batches)])  # (n_batches, n)
    near = (similar >= to_others[:, None]) & (similar >= to_batch[codes])
    return near & other


def _typical(differences: Array, paired: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,), whether the difference (n, K) of a cell from its partners is near the median of all paired cells."""
    if not paired.any():
        return paired
    distance = np.linalg.norm(differences - np.median(differences[paired], axis=0), axis=1)
    return np.asarray(distance <= MAX_DISTANCE * np.median(distance[paired]))


def _kth_highest(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(n,), the k-th highest value of each row, or the lowest if there are fewer."""
    if values.shape[1] == 0:
        return np.full(len(values), np.inf, np.float32)
    k = min(k, values.shape[1])
    return np.partition(values, -k, axis=1)[:, -k]
