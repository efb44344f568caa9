"""Features of genes from a table of annotated terms, such as Gene Ontology."""

from __future__ import annotations

import pandas as pd

from scbioformers.core import check_arguments
from scbioformers.datasets._term_features import term_features, term_table


def gene_features(
    table: pd.DataFrame,
    *,
    gene: str = "gene",
    term: str = "term",
    n_features: int = 128,
    min_genes: int = 3,
    max_genes: int = 1000,
) -> pd.DataFrame:
    """Features of genes from their annotated terms: a truncated SVD in which rare terms have a higher weight.

    Genes that share terms have similar features, whether they are measured or not. :class:`~scbioformers.Perturbation`
    uses the features to predict the response to one gene from the responses to others.

    Parameters
    ----------
    table
        One row for each pair of a gene and a term. Repeated pairs count once.
    gene, term
        Names of the columns of the genes and of the terms.
    n_features
        Number of features.
    min_genes, max_genes
        Terms with fewer than `min_genes` or more than `max_genes` genes are left out.

    Returns
    -------
    float32 DataFrame, genes x features. The result for a table is the same on every machine, up to rounding.

    Raises
    ------
    MissingKeyError
        If the table does not have the columns.
    ConfigError
        If ``n_features`` is below 1, or no term is left.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"gene": ["A", "A", "B", "C", "C"], "term": ["x", "y", "x", "y", "z"]})
    >>> gene_features(table, min_genes=1, n_features=2).shape
    (3, 2)
    """
    check_arguments(gene_features, locals())
    genes, terms = term_table(table, gene, term)
    return term_features(genes, terms, n_features, (min_genes, max_genes))
