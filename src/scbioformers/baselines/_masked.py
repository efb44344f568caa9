"""Baselines of masked expression without information from other genes: constant, histogram, negative binomial.

Each baseline takes training cells, with masks drawn by the rule of the test mask, and test cells. It returns the log
probability of every bin at every masked test entry. It does not read the bins of the test cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import betainc, gammaln

from scbioformers.baselines._masked_cells import MaskedCells, TrainingCells
from scbioformers.baselines._masked_features import Array, estimate_depth, fit_depth, log_histogram, zero_odds
from scbioformers.config import Binning, count_range
from scbioformers.core import ConfigError, check_arguments

LogProbabilities = NDArray[np.float32]

_CHUNK = 1024


def constant_bin(train: TrainingCells, test: MaskedCells, value: int, *, floor: float = 0.01) -> LogProbabilities:
    """Predict the same bin everywhere.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.
    value
        The predicted bin.
    floor
        Total probability of the other bins, above 0 and below 1, divided equally between them. It keeps the likelihood
        finite.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    ConfigError
        If `value` is not one of the bins.
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(constant_bin, locals())
    train.check_genes(test)
    n_values = train.binning.n_values
    if not 0 <= value < n_values:
        raise ConfigError(f"value={value} is not one of the bins 0…{n_values - 1}.")
    row = np.full(n_values, np.log(floor / (n_values - 1)))
    row[value] = np.log1p(-floor)
    return np.tile(row.astype(np.float32), (test.bins.size, 1))


def bin_histogram(train: TrainingCells, test: MaskedCells) -> LogProbabilities:
    """Predict the frequency of each bin among the masked values of the gene. It is the same for every cell.

    The histogram of a gene counts its values in all training cells, each weighted by its chance to be masked. The
    histogram is shrunk towards that of all genes.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    Two cells of three genes. In each cell one expressed gene and one zero are masked.

    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> from scbioformers.config import Binning
    >>> from scbioformers.metrics import MaskedCells, TrainingCells, bin_histogram
    >>> counts = csr_matrix(np.array([[1.0, 0, 2], [0, 3, 1]]))
    >>> visible = csr_matrix(np.array([[1.0, 0, 0], [0, 3, 0]]))
    >>> draw = MaskedCells(visible, np.array([1.0, 3]), np.array([0, 0, 1, 1]), np.array([1, 2, 0, 2]),
    ...                    np.array([0, 2, 0, 1]))
    >>> binning = Binning(normalize=False).freeze(mean_depth=3.5, max_bin=3)
    >>> train = TrainingCells(counts, np.array([3.0, 4]), binning, (draw,))
    >>> np.exp(bin_histogram(train, draw)).round(2)
    array([[0.47, 0.19, 0.13, 0.21],
           [0.35, 0.29, 0.22, 0.14],
           [0.47, 0.27, 0.13, 0.13],
           [0.35, 0.29, 0.22, 0.14]], dtype=float32)
    """
    check_arguments(bin_histogram, locals())
    train.check_genes(test)
    return log_histogram(train)[test.genes].astype(np.float32)


def negative_binomial(train: TrainingCells, test: MaskedCells) -> LogProbabilities:
    """Predict negative binomial counts, summed within the bins, from the mean of the gene and the depth of the cell.

    The mean is the gene's share of all training counts times the estimated depth of the cell. The probabilities are
    averaged over seven equally likely depths. The dispersion has the maximum likelihood. The probability of zero
    is multiplied by the odds of the mask: the chance of a zero to be masked divided by that of an expressed entry.

    Parameters
    ----------
    train
        Training cells: complete counts, and random masks over them.
    test
        Masked cells to predict; their bins are not read.

    Returns
    -------
    float32 (H, V) natural log probabilities of every bin at every masked entry of ``test``.

    Raises
    ------
    DataError
        If the test cells have another number of genes than the training cells.

    Examples
    --------
    See :func:`bin_histogram`.
    """
    check_arguments(negative_binomial, locals())
    train.check_genes(test)
    rate = np.maximum(np.asarray(train.counts.sum(axis=0)).ravel(), 0.5) / train.depth.sum()
    dispersion = _dispersion(train.counts, train.depth, rate)
    _, depths = estimate_depth(fit_depth(train), test)
    odds = zero_odds(train, test)
    out = np.empty((test.bins.size, train.binning.n_values), np.float32)
    for start in range(0, len(out), _CHUNK):
        cells, genes = test.cells[start : start + _CHUNK], test.genes[start : start + _CHUNK]
        p = bin_masses(train.binning, rate[genes], dispersion[genes], depths[cells])
        p[:, 0] *= odds[cells]
        out[start : start + _CHUNK] = np.log(p / p.sum(axis=1, keepdims=True))
    return out


def _dispersion(counts: csr_matrix, depth: Array, rate: Array) -> Array:
    """(M,) maximum-likelihood dispersion on a grid, with variance = mean + dispersion * mean**2."""
    columns = counts.tocsc()
    genes = np.repeat(np.arange(rate.size), np.diff(columns.indptr))
    mean, x = rate[genes] * depth[columns.indices], columns.data.astype(np.float64)
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 25))
    likelihood = np.zeros((grid.size, rate.size))
    for k, dispersion in enumerate(grid):
        size = 1 / dispersion
        for start in range(0, depth.size, _CHUNK):  # as if all entries were zero; corrected below
            means = depth[start : start + _CHUNK, None] * rate
            likelihood[k] -= size * np.log1p(dispersion * means).sum(axis=0)
        nonzero = gammaln(x + size) - gammaln(size) - gammaln(x + 1)
        nonzero += x * np.log(mean * dispersion / (1 + mean * dispersion))
        likelihood[k] += np.bincount(genes, weights=nonzero, minlength=rate.size)
    return grid[likelihood.argmax(axis=0)]


def bin_masses(binning: Binning, rate: Array, dispersion: Array, depths: Array) -> Array:
    """(n, V) negative binomial probability of each bin, averaged over the (n, D) possible depths of the cell."""
    _, highest = count_range(binning, depths.ravel() / float(binning.mean_depth or 1.0))
    size = (1 / dispersion)[:, None, None]
    mean = (rate[:, None] * depths)[:, :, None]
    below = betainc(size, highest.reshape(*depths.shape, -1) + 1, size / (size + mean))
    below[:, :, -1] = 1.0
    mass = np.diff(below, axis=2, prepend=0.0).mean(axis=1)
    return np.maximum(mass, 1e-6)
