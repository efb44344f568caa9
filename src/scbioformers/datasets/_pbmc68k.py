"""The small real data set that is included in scanpy, with recovered counts."""

from __future__ import annotations

import warnings

from anndata import AnnData

from scbioformers.datasets._recovery import recover_counts


def pbmc68k() -> AnnData:
    """Load the counts of 700 peripheral blood cells and 765 genes. No download is needed.

    The cells are a part of "Fresh 68k PBMCs (donor A)" of 10x Genomics (Zheng et al. 2017), included in scanpy as
    ``sc.datasets.pbmc68k_reduced()``. The stored values are logarithms of normalised counts. The smallest non-zero
    value of a cell corresponds to one count. The counts are the ratios to this value, rounded. The ratios differ from
    whole numbers by at most 0.12, because the stored values are float32.

    Returns
    -------
    AnnData with

    `.X` : CSR, float32
        Recovered counts, whole numbers.
    `.obs["bulk_labels"]` : categorical
        10 cell types, by correlation with sorted populations.
    `.obs["n_counts"]` : float32
        Counts of the cell over the whole transcriptome. Most of them belong to genes outside the 765.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.pbmc68k()
    >>> adata.shape, float(adata.X.max())
    ((700, 765), 259.0)
    """
    import scanpy as sc

    with warnings.catch_warnings():
        # anndata warns about the old format of the file at every reading
        warnings.simplefilter("ignore", FutureWarning)
        stored = sc.datasets.pbmc68k_reduced()
    counts = recover_counts(stored.raw.X)
    obs = stored.obs[["bulk_labels", "n_counts"]]
    return AnnData(counts, obs=obs.rename_axis(None), var=stored.raw.var[[]].rename_axis(None))
