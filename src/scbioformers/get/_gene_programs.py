"""Read gene programs and their scores."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import Category, MissingKeyError, check_arguments, find_category
from scbioformers.data import names_modality, open_modality
from scbioformers.results import read_program_genes, read_program_scores, result_genes, show_genes


@names_modality
def gene_programs(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    program: Category | None = None,
    gene_symbols: str | None = None,
    key: str = "gene_program",
) -> pd.DataFrame:
    """Genes of each program, as found by :func:`scbioformers.tl.gene_programs` (paper, section 3.4).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.gene_programs`. Genes that were removed since then are not returned.
    modality
        The modality of a MuData that has the result. None is the only one.
    program
        Program to return, ``"1"``, ``"2"``, …. None returns all.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.gene_programs`.

    Returns
    -------
    DataFrame
        One row per gene, sorted by program and by decreasing ``weight``. The columns are:

        - ``program`` (str) and ``gene`` (str).
        - ``weight`` (float, -1 to 1): cosine between the gene and the centroid of its program.
        - ``support`` (float, 0 to 1): share of the other genes of the program that an ensemble member also puts in one
          program with this gene. It is a mean over the members. NaN if the model has a single member. It is too high if
          members share a start: if ``n_starts`` in ``adata.uns[key]["params"]`` is less than ``n_members``.

    Raises
    ------
    MissingKeyError
        If no programs are stored under ``key``, ``program`` is not among them, or the column does not exist.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.gene_programs(adata)
    >>> list(bf.get.gene_programs(adata))
    ['program', 'gene', 'weight', 'support']
    """
    check_arguments(gene_programs, locals())
    adata = open_modality(adata, modality)
    table = read_program_genes(adata, key)
    if program is not None:
        available, place = table["program"].unique().tolist(), "the programs of this result"
        name = find_category(program, available, argument="program", place=place, error=MissingKeyError)
        table = table[table["program"] == name]
    genes = result_genes(adata, key, gene_symbols)
    table = table[table["gene"].isin(genes.var_names)].reset_index(drop=True)
    return show_genes(table, genes, ["gene"])


@names_modality
def gene_program_scores(
    adata: AnnData | MuData, *, modality: str | None = None, key: str = "gene_program"
) -> pd.DataFrame:
    """Score of each cell for each program, as computed by :func:`scbioformers.tl.gene_programs`.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.gene_programs`.
    modality
        The modality of a MuData that has the result. None is the only one.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.gene_programs`.

    Returns
    -------
    DataFrame
        float32 (n_obs, n_programs), one column per program. A score is the mean standardised expression of the genes
        of the program, in standard deviations over the cells.

    Raises
    ------
    MissingKeyError
        If no programs are stored under ``key``.
    DataError
        If the stored scores do not have one column per program.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=60, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.gene_programs(adata)
    >>> bf.get.gene_program_scores(adata).shape[0]
    200
    """
    check_arguments(gene_program_scores, locals())
    adata = open_modality(adata, modality)
    return read_program_scores(adata, key)
