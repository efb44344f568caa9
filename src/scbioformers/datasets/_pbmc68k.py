"""The small real data set that scanpy ships, with its counts recovered."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData
from scipy import sparse


def pbmc68k() -> AnnData:
    """Load the counts of 700 peripheral blood cells, 765 genes: real data without a download.

    A part of 10x Genomics' "Fresh 68k PBMCs (donor A)" (Zheng et al. 2017), embedded in scanpy as
    ``sc.datasets.pbmc68k_reduced()``. What is stored there is the log of normalised counts, whose smallest non-zero
    value in a cell stands for one count; so counts are the ratios to it, rounded (at most 0.12 are lost to float32).

    Returns
    -------
    AnnData with

    `.X` : CSR, float32
        Recovered counts, whole numbers.
    `.obs["bulk_labels"]` : categorical
        10 cell types, by correlation with sorted populations.
    `.obs["n_counts"]` : float32
        Counts of the cell over the whole transcriptome, most of which the 765 genes leave out.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.pbmc68k()
    >>> adata.shape, float(adata.X.max())
    ((700, 765), 259.0)
    """
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the file is in an old format, remarked on at every reading
        stored = sc.datasets.pbmc68k_reduced()
    counts = _counts_from_log1p(stored.raw.X)
    obs = stored.obs[["bulk_labels", "n_counts"]]
    return AnnData(counts, obs=obs.rename_axis(None), var=stored.raw.var[[]].rename_axis(None))


def _counts_from_log1p(log_normalized: sparse.csr_matrix) -> sparse.csr_matrix:
    """Undo log1p and each cell's scaling, the smallest non-zero of a cell taken as 1. Every cell must have one."""
    counts = sparse.csr_matrix(log_normalized, dtype=np.float64, copy=True)
    normalized = np.expm1(counts.data)
    unit = np.minimum.reduceat(normalized, counts.indptr[:-1])
    counts.data = np.rint(normalized / np.repeat(unit, np.diff(counts.indptr)))
    return counts.astype(np.float32)
