"""Read key regulators, regulators of gene sets, and enrichment of gene programs."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData
from mudata import MuData

from scbioformers.core import Category, MissingKeyError, check_arguments, find_category
from scbioformers.data import names_modality, open_modality
from scbioformers.results import read_enrichment, read_regulators, result_genes, show_genes

_HINT = "Run `bf.tl.regulators(adata)` first."


@names_modality
def regulators(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    condition: Category | None = None,
    gene_symbols: str | None = None,
    key: str = "regulators",
) -> pd.DataFrame:
    """Key drivers: the regulators of a network, sorted by strength (paper, section 3.4).

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.regulators`.
    modality
        The modality of a MuData that has the result. None is the only one.
    condition
        Condition to return. None returns all.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.regulators`.

    Returns
    -------
    DataFrame
        One row per regulator and condition. The columns are:

        - ``regulator`` (str).
        - ``strength`` (float): sum of the absolute weights.
        - ``n_targets`` (int): number of targets with a weight.
        - ``attention`` (float): attention that the regulator receives in an average cell, summed over the other genes.
          Only for networks with ``method="attention"``.
        - ``rank`` (int): from 1 in each condition, by ``attention`` if there is that column, else by ``strength``.
        - ``condition`` (str).

    Raises
    ------
    MissingKeyError
        If no result is stored under ``key``, or none for ``condition``.

    Examples
    --------
    See :func:`scbioformers.tl.regulators`.
    """
    check_arguments(regulators, locals())
    adata = open_modality(adata, modality)
    return _read(adata, key, "drivers", condition, gene_symbols, _HINT)


@names_modality
def set_regulators(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    gene_set: Category | None = None,
    condition: Category | None = None,
    gene_symbols: str | None = None,
    key: str = "regulators",
) -> pd.DataFrame:
    """Regulators of each gene set, as found by :func:`scbioformers.tl.regulators`.

    The test of this table treats genes as independent. If the genes of a set are co-expressed, ``p`` is too small. Use
    it to compare regulators, not as a probability.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.regulators` with ``gene_sets``.
    modality
        The modality of a MuData that has the result. None is the only one.
    gene_set
        Gene set to return. None returns all. A list of genes has the name ``"genes"``.
    condition
        Condition to return. None returns all.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.regulators`.

    Returns
    -------
    DataFrame
        One row per gene set, regulator and condition. The columns are:

        - ``gene_set`` (str) and ``regulator`` (str).
        - ``n_genes`` (int): genes of the set that have a weight for this regulator.
        - ``weight`` (float): mean weight of these genes.
        - ``strength`` (float): mean absolute weight of these genes.
        - ``p`` (float): one-sided Mann-Whitney rank-sum test. It tests whether the absolute weights are larger for the
          genes of the set than for all other targets of the regulator.
        - ``p_adjusted`` (float): ``p`` after the Benjamini-Hochberg correction over all sets and regulators of a
          condition.
        - ``rank`` (int): from 1 in each set, by ``p``.
        - ``condition`` (str).

    Raises
    ------
    MissingKeyError
        If no regulators of gene sets are stored under ``key``, or none for ``gene_set`` or ``condition``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"])
    >>> bf.tl.regulators(adata, gene_sets=["G1", "G2", "G3"])
    >>> bf.get.set_regulators(adata)["n_genes"].tolist()
    [3, 3]
    """
    check_arguments(set_regulators, locals())
    adata = open_modality(adata, modality)
    table = _read(adata, key, "sets", condition, gene_symbols, "Run `bf.tl.regulators` with `gene_sets=` first.")
    return table if gene_set is None else _only(table, "gene_set", gene_set)


@names_modality
def known_targets(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    condition: Category | None = None,
    gene_symbols: str | None = None,
    key: str = "regulators",
) -> pd.DataFrame:
    """Number of known targets among the strongest targets of each regulator.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.regulators` with ``known``.
    modality
        The modality of a MuData that has the result. None is the only one.
    condition
        Condition to return. None returns all.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.regulators`.

    Returns
    -------
    DataFrame
        The columns of :func:`scbioformers.metrics.edge_enrichment`, and ``condition``. Sorted by ``k`` and ``p`` in
        each condition.

    Raises
    ------
    MissingKeyError
        If no known targets are stored under ``key``, or none for ``condition``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"])
    >>> bf.tl.regulators(adata, known=adata.uns["grn_true"], k=10)
    >>> sorted(bf.get.known_targets(adata)["regulator"])
    ['TF1', 'TF2']
    """
    check_arguments(known_targets, locals())
    adata = open_modality(adata, modality)
    return _read(adata, key, "known", condition, gene_symbols, "Run `bf.tl.regulators` with `known=` first.")


@names_modality
def program_enrichment(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    program: Category | None = None,
    gene_symbols: str | None = None,
    key: str = "program_enrichment",
) -> pd.DataFrame:
    """Overlap of gene programs with gene sets, as tested by :func:`scbioformers.tl.program_enrichment`.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.program_enrichment`.
    modality
        The modality of a MuData that has the result. None is the only one.
    program
        Program to return, ``"1"``, ``"2"``, …. None returns all.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.program_enrichment`.

    Returns
    -------
    DataFrame
        One row per program and gene set that share a gene, sorted by ``p``. The columns are:

        - ``program`` (str) and ``gene_set`` (str).
        - ``size`` (int): number of genes of the program.
        - ``set_size`` (int): number of modelled genes of the set.
        - ``hits`` (int): number of genes that are in both.
        - ``expected`` (float): number of hits that is expected by chance.
        - ``p`` (float): hypergeometric test.
        - ``p_adjusted`` (float): ``p`` after the Benjamini-Hochberg correction over all programs and sets. Pairs that
          share no gene are counted as tests too.
        - ``genes`` (str): names of the hits.

    Raises
    ------
    MissingKeyError
        If no result is stored under ``key``, or none for ``program``.

    Examples
    --------
    See :func:`scbioformers.tl.program_enrichment`.
    """
    check_arguments(program_enrichment, locals())
    adata = open_modality(adata, modality)
    table = _show(adata, read_enrichment(adata, key), key, gene_symbols)
    return table.reset_index(drop=True) if program is None else _only(table, "program", program)


def _read(
    adata: AnnData, key: str, what: str, condition: Category | None, gene_symbols: str | None, hint: str
) -> pd.DataFrame:
    table = _show(adata, read_regulators(adata, key, what, hint), key, gene_symbols)
    return table.reset_index(drop=True) if condition is None else _only(table, "condition", condition)


def _show(adata: AnnData, table: pd.DataFrame, key: str, gene_symbols: str | None) -> pd.DataFrame:
    """The table with shown names. The column ``genes`` has the names of several genes, separated by commas."""
    genes = result_genes(adata, key, gene_symbols)
    if "regulator" in table:
        table = show_genes(table, genes, ["regulator"])
    if "genes" in table:
        lists = table["genes"].str.split(", ")
        names = genes.shown_by_stored(name for each in lists for name in each)
        table = table.assign(genes=[", ".join(names[name] for name in each) for each in lists])
    return table


def _only(table: pd.DataFrame, column: str, value: Category) -> pd.DataFrame:
    place = f"the {column.replace('_', ' ')}s of this result"
    available = table[column].unique().tolist()
    name = find_category(value, available, argument=column, place=place, error=MissingKeyError)
    return table[table[column] == name].reset_index(drop=True)
