"""Gene programs, read back."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scbioformers.core import MissingKeyError
from scbioformers.results import read_program_genes, read_program_scores


def gene_programs(adata: AnnData, *, program: str | None = None, key: str = "gene_program") -> pd.DataFrame:
    """The genes of each program that :func:`scbioformers.tl.gene_programs` found.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.gene_programs`; after the genes were subset, those that are left.
    program
        One of the programs, ``"1"``, ``"2"``, …; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    Columns program, gene, weight (cosine with the centroid of the program; the highest first) and support (share of the
    other genes of the program that a member of the ensemble has beside this one, mean over the members).

    Raises
    ------
    MissingKeyError
        If there are no programs, or not this one.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.gene_programs(adata, progress_bar=False)
    >>> list(bf.get.gene_programs(adata))
    ['program', 'gene', 'weight', 'support']
    """
    genes = read_program_genes(adata, key)
    if program is not None:
        there = genes["program"].unique().tolist()
        if program not in there:
            raise MissingKeyError(f"There is no program {program!r}. There: {there}.")
        genes = genes[genes["program"] == program]
    left = {str(name) for name in adata.var_names}
    return genes[genes["gene"].isin(left)].reset_index(drop=True)


def gene_program_scores(adata: AnnData, *, key: str = "gene_program") -> pd.DataFrame:
    """Scores of the cells for each program that :func:`scbioformers.tl.gene_programs` found.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.gene_programs`.
    key
        The name given as ``key_added``.

    Returns
    -------
    float32, cells x programs: mean over the program's genes of their standardised expression.

    Raises
    ------
    MissingKeyError
        If there are no programs.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.gene_programs(adata, progress_bar=False)
    >>> bf.get.gene_program_scores(adata).shape[0]
    200
    """
    return read_program_scores(adata, key)
