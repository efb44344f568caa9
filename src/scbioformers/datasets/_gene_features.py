"""Features of genes from a table of their terms, such as Gene Ontology."""

from __future__ import annotations

import pandas as pd

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
    """Features of genes, measured or not, from which terms they have: a truncated SVD in which rare terms weigh more.

    Genes that share terms come out alike, so responses to one speak for the other; see
    :class:`~scbioformers.Perturbation`.

    Parameters
    ----------
    table
        A row for every pair of a gene and a term; repeated pairs count once.
    gene, term
        Columns of the table.
    n_features
        Width.
    min_genes, max_genes
        Terms of fewer or more genes are left out.

    Returns
    -------
    Data frame, genes x features, float32; the same for the same table on every machine up to rounding.

    Raises
    ------
    MissingKeyError
        If a column is not there.
    ConfigError
        If ``n_features`` is below 1, or no term is left.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"gene": ["A", "A", "B", "C", "C"], "term": ["x", "y", "x", "y", "z"]})
    >>> gene_features(table, min_genes=1, n_features=2).shape
    (3, 2)
    """
    genes, terms = term_table(table, gene, term)
    return term_features(genes, terms, n_features, (min_genes, max_genes))
