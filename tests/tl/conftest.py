"""What the tests of imputation share."""

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import scbioformers as bf

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


@pytest.fixture
def model(fitted):
    return bf.get.model(fitted)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return np.random.default_rng(0).random((60, 40)) < 0.2


@pytest.fixture(scope="module")
def segment() -> ad.AnnData:
    """Log-normalised data and a model with segment bins."""
    adata = bf.datasets.simulate(60, 40, n_regulators=5, n_types=3, n_batches=2, rng=0)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    config = bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8)
    bf.tl.fit(adata, binning=bf.Binning("segment", n_bins=10), config=config, train=TRAIN)
    return adata


@pytest.fixture(scope="session")
def with_genes() -> Callable[[ad.AnnData, list[str]], ad.AnnData]:
    """Add genes that are not modelled, before the others."""

    def with_genes(adata, names) -> ad.AnnData:
        var, obs = pd.DataFrame(index=names), adata.obs[[]]
        extra = ad.AnnData(sp.csr_matrix(np.ones((adata.n_obs, len(names)), np.float32)), obs=obs, var=var)
        return ad.concat([extra, adata], axis=1, merge="first")

    return with_genes
