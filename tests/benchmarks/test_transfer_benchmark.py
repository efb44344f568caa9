import numpy as np
import pytest
from scipy.sparse import csr_matrix

from benchmarks._transfer_methods import count_bits
from scbioformers.baselines import MaskedCells
from scbioformers.config import Binning, bin_rows

BINNINGS = [
    pytest.param(Binning(cutoff=4, bins_per_doubling=2).freeze(mean_depth=100.0, max_bin=9), id="fine"),
    pytest.param(Binning(cutoff=2, bins_per_doubling=1).freeze(mean_depth=130.0, max_bin=5), id="coarse"),
]


@pytest.mark.parametrize("binning", BINNINGS)
def test_probabilities_of_counts_sum_to_one_and_are_those_of_their_bins(binning):
    rng = np.random.default_rng(0)
    depth = np.array([40.0, 100.0, 390.0])
    p = rng.dirichlet(np.ones(binning.n_values))
    for size in depth:
        counts = np.arange(2000.0)
        bins = np.where(counts > 0, bin_rows(binning, counts, np.array([0, counts.size]), np.array([size])), 0)
        counts, bins = counts[bins < binning.n_values - 1], bins[bins < binning.n_values - 1]
        reached = np.unique(bins)
        found = []
        for b in bins:
            cells = MaskedCells(csr_matrix((1, 3)), np.array([size]), np.array([0]), np.array([1]), np.array([b]))
            found.append(2.0 ** -count_bits(np.log(p)[None], cells, binning, np.array([size])))
        np.testing.assert_allclose(np.bincount(bins, found)[reached] / found[0] * p[0], p[reached], rtol=1e-6)
        assert sum(found) <= 1 + 1e-9
    assert len(reached) < len(bins)  # in the deepest cell several counts share a bin
