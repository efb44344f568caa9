"""Key drivers and enrichment, read back."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scbioformers.core import MissingKeyError
from scbioformers.results import read_enrichment, read_regulators

_HINT = "Run `bf.tl.regulators(adata)` first."


def regulators(adata: AnnData, *, condition: str | None = None, key: str = "regulators") -> pd.DataFrame:
    """The regulators of a network, the strongest first, as :func:`scbioformers.tl.regulators` found them.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.regulators`.
    condition
        One of the conditions; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    Columns regulator, strength (sum of the absolute weights), n_targets (pairs that were seen), attention (received in
    a cell; of networks by attention alone), rank (from 1 in each condition) and condition.

    Raises
    ------
    MissingKeyError
        If there is no such result, or not of this condition.

    Examples
    --------
    See :func:`scbioformers.tl.regulators`.
    """
    return _read(adata, key, "drivers", condition, _HINT)


def set_regulators(
    adata: AnnData, *, gene_set: str | None = None, condition: str | None = None, key: str = "regulators"
) -> pd.DataFrame:
    """The regulators of each gene set that :func:`scbioformers.tl.regulators` found.

    Parameters
    ----------
    adata
        After ``bf.tl.regulators(adata, gene_sets=…)``.
    gene_set
        One of the sets; None gives all. A plain list of genes is the set ``"genes"``.
    condition
        One of the conditions; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    Columns gene_set, regulator, n_genes (of the set, seen with the regulator), weight (their mean), strength (mean of
    the absolute weights), p (one-sided rank-sum test: are the absolute weights of the set larger than those of all
    other targets of this regulator?), p_adjusted (Benjamini-Hochberg over all sets and regulators of a condition), rank
    (by p, from 1 in each set) and condition. The test takes genes for independent: a set of genes that always go
    together has p too small, so compare regulators by it rather than believe it.

    Raises
    ------
    MissingKeyError
        If there is no such result, or not of this set or condition.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], progress_bar=False)
    >>> bf.tl.regulators(adata, gene_sets=["G1", "G2", "G3"])
    >>> bf.get.set_regulators(adata)["n_genes"].tolist()
    [3, 3]
    """
    table = _read(adata, key, "sets", condition, "Run `bf.tl.regulators(adata, gene_sets=…)` first.")
    return table if gene_set is None else _only(table, "gene_set", gene_set)


def known_targets(adata: AnnData, *, condition: str | None = None, key: str = "regulators") -> pd.DataFrame:
    """How many known targets are among the top targets of each regulator, by :func:`scbioformers.tl.regulators`.

    Parameters
    ----------
    adata
        After ``bf.tl.regulators(adata, known=edges)``.
    condition
        One of the conditions; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    The columns of :func:`scbioformers.metrics.edge_enrichment` and condition, by k and p.

    Raises
    ------
    MissingKeyError
        If there is no such result, or not of this condition.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.grn(adata, regulators=["TF1", "TF2"], progress_bar=False)
    >>> bf.tl.regulators(adata, known=adata.uns["grn_true"], k=10)
    >>> sorted(bf.get.known_targets(adata)["regulator"])
    ['TF1', 'TF2']
    """
    return _read(adata, key, "known", condition, "Run `bf.tl.regulators(adata, known=edges)` first.")


def program_enrichment(adata: AnnData, *, program: str | None = None, key: str = "program_enrichment") -> pd.DataFrame:
    """Overlap of gene programs with gene sets that :func:`scbioformers.tl.program_enrichment` found.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.program_enrichment`.
    program
        One of the programs, ``"1"``, ``"2"``, …; None gives all.
    key
        The name given as ``key_added``.

    Returns
    -------
    Columns program, gene_set, size (genes of the program), set_size (modelled genes of the set), hits (in both),
    expected (hits by chance), p (hypergeometric), p_adjusted (Benjamini-Hochberg over all programs and sets, those that
    share no gene too, which have no row) and genes (the hits by name), by p.

    Raises
    ------
    MissingKeyError
        If there is no such result, or not of this program.

    Examples
    --------
    See :func:`scbioformers.tl.program_enrichment`.
    """
    table = read_enrichment(adata, key)
    return table.reset_index(drop=True) if program is None else _only(table, "program", program)


def _read(adata: AnnData, key: str, what: str, condition: str | None, hint: str) -> pd.DataFrame:
    table = read_regulators(adata, key, what, hint)
    return table.reset_index(drop=True) if condition is None else _only(table, "condition", condition)


def _only(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    there = table[column].unique().tolist()
    if name not in there:
        raise MissingKeyError(f"There is no {column.replace('_', ' ')} {name!r}. There: {there[:20]}.")
    return table[table[column] == name].reset_index(drop=True)
