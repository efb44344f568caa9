"""Log-normalisation, compared with scanpy."""

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp

from scbioformers.core import log1p_rows


def test_rows_equal_scanpy():
    counts = np.random.default_rng(0).poisson(1.0, (20, 9)).astype(np.float32)
    counts[3] = 0
    adata = ad.AnnData(sp.csr_matrix(counts))
    rows = log1p_rows(adata.X, counts.sum(axis=1), 50.0)
    assert rows.dtype == np.float64
    sc.pp.normalize_total(adata, target_sum=50.0)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(rows.toarray(), adata.X.toarray(), rtol=1e-6)
    assert not rows.toarray()[3].any()


def test_depth_can_include_other_genes():
    rows = log1p_rows(sp.csr_matrix([[2.0, 0.0, 4.0]]), np.array([20.0]), 10.0)
    np.testing.assert_allclose(np.expm1(rows.toarray()), [[1.0, 0.0, 2.0]])
