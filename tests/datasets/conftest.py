"""What several tests of simulated data share."""

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest


@pytest.fixture(scope="session")
def total_scores() -> Callable[[ad.AnnData], np.ndarray]:
    """The total counts of each feature as z-scores, by the mean and the variance that the docstring gives."""

    def score(adata: ad.AnnData) -> np.ndarray:
        mean = adata.layers["expected"].astype(float)
        variance = mean + mean**2 / 4
        return (adata.X.toarray() - mean).sum(axis=0) / np.sqrt(variance.sum(axis=0))

    return score


@pytest.fixture(scope="session")
def centred_log() -> Callable[[np.ndarray], np.ndarray]:
    """Log of expected counts without the mean over genes. It is z plus a number for each gene, minus its mean."""

    def centre(expected: np.ndarray) -> np.ndarray:
        log = np.log(expected.astype(float))
        return log - log.mean(axis=1, keepdims=True)

    return centre
