"""Features of genes from pairs of genes and terms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from scbioformers.core import ConfigError, MissingKeyError


def term_features(
    genes: NDArray[np.object_], terms: NDArray[np.object_], n_features: int, sizes: tuple[int, int]
) -> pd.DataFrame:
    """Return leading singular vectors of the genes x terms matrix, in which rare terms have a higher weight.

    Raises
    ------
    ConfigError
        If ``n_features`` is below 1 or no term has a size in the range.
    """
    if n_features < 1:
        raise ConfigError(f"`n_features` must be at least 1, found {n_features}.")
    pairs = pd.DataFrame({"gene": genes, "term": terms}).dropna().astype(str).drop_duplicates()
    n_genes = pairs["gene"].nunique()
    count = pairs.groupby("term")["gene"].transform("count")
    pairs = pairs[(count >= sizes[0]) & (count <= sizes[1])]
    if pairs.empty:
        raise ConfigError(f"No term has between {sizes[0]} and {sizes[1]} genes.")
    gene, term = pd.Categorical(pairs["gene"]), pd.Categorical(pairs["term"])
    shape = (len(gene.categories), len(term.categories))
    matrix = sp.csr_matrix((np.ones(len(pairs)), (gene.codes, term.codes)), shape=shape)
    matrix = (matrix @ sp.diags(np.log(n_genes / np.asarray(matrix.sum(axis=0)).ravel()) + 1e-3)).tocsr()
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    matrix = sp.diags(1 / np.maximum(norm, 1e-12)) @ matrix
    k = min(n_features, min(shape) - 1)
    if k < 1:
        values = matrix.toarray()[:, :1]
    else:
        left, scale, _ = svds(matrix, k=k, v0=np.ones(min(shape)), solver="arpack")
        order = np.argsort(-scale)
        left, scale = left[:, order], scale[order]
        # the sign of a singular vector is arbitrary: make its largest entry positive
        left *= np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(k)])
        values = left * np.sqrt(scale)
    names = [f"term_{i + 1}" for i in range(values.shape[1])]
    return pd.DataFrame(values.astype(np.float32), index=list(gene.categories), columns=names)


def term_table(table: pd.DataFrame, gene: str, term: str) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Return the columns of the genes and of the terms.

    Raises
    ------
    MissingKeyError
        If the table does not have the columns.
    """
    for name in (gene, term):
        if name not in table:
            raise MissingKeyError(f"The table has no column {name!r}, only {[str(column) for column in table]}.")
    return table[gene].to_numpy(object), table[term].to_numpy(object)
