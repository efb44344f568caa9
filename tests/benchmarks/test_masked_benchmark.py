import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_matrix

from benchmarks._masked_methods import sample_log_probabilities
from benchmarks._masking import EvenMasking, masked_cells
from scbioformers.baselines import MaskedCells
from scbioformers.config import Binning
from scbioformers.core import bin_normalized

BINNING = Binning(cutoff=4, bins_per_doubling=2).freeze(mean_depth=100.0, max_bin=9)


def test_masked_counts_do_not_enter_the_even_mask():
    rng = np.random.default_rng(0)
    counts, outside = rng.poisson(0.7, (30, 40)).astype(float), 25.0

    def mask(counts):
        depth = counts.sum(axis=1) + outside
        return masked_cells(EvenMasking(), BINNING, csr_matrix(counts), depth, np.arange(30), seed=3, epoch=0)

    before = mask(counts)
    counts[before.cells, before.genes] = rng.poisson(5, before.bins.size)
    after = mask(counts)
    assert (after.bins != before.bins).mean() > 0.5
    np.testing.assert_array_equal(after.visible.toarray(), before.visible.toarray())
    for name in ("depth", "cells", "genes"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_samples_of_scvi_are_summed_within_bins():
    rng = np.random.default_rng(1)
    visible = csr_matrix(np.array([[6.0, 0, 2, 0], [0, 1, 0, 7]]))
    cells = MaskedCells(visible, np.array([60.0, 88]), np.array([0, 0, 1]), np.array([1, 3, 2]), np.zeros(3, int))
    drawn, dispersion = rng.dirichlet(np.ones(4), (6, 2)), np.array([0.3, 1.0, 2.0, 0.5])
    depths, odds = np.array([[70.0, 75, 83], [90, 96, 110]]), np.array([0.4, 1.7])
    found = np.exp(sample_log_probabilities(BINNING, drawn, dispersion, depths, odds, cells))
    x = np.arange(5000)
    for entry, (i, j) in enumerate(zip(cells.cells, cells.genes, strict=True)):
        p = np.zeros(10)
        for sample, k in enumerate((0, 1, 2, 0, 1, 2)):
            # the modelled genes have 8 visible counts; the masked counts are all that the depth has beyond the visible
            mean, size = drawn[sample, i, j] * (8 + depths[i, k] - cells.depth[i]), 1 / dispersion[j]
            mass = stats.nbinom.pmf(x, size, size / (size + mean))
            bins = np.minimum(bin_normalized(x * 100.0 / depths[i, k], 4, 2), 9)
            p += np.maximum(np.bincount(bins, weights=mass, minlength=10), 1e-6)
        p[0] *= odds[i]
        assert found[entry] == pytest.approx(p / p.sum(), rel=1e-4)
