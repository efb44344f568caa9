"""Read gene sets from a list, a dict, a table, or a column of ``adata.var``."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from scbioformers.core import ConfigError, DataError, GeneIndex, Names, as_names, describe_unknown
from scbioformers.data import GeneNames, gene_names
from scbioformers.results import get_column

logger = logging.getLogger(__name__)

GeneSets: TypeAlias = str | Collection[str | int] | Mapping[str, Names] | pd.DataFrame
LISTED = "genes"


def read_gene_sets(
    adata: Any, gene_sets: GeneSets, known: Collection[str], genes: GeneNames | None = None
) -> dict[str, list[str]]:
    """Genes of each set that are among the ``known`` genes, by their stored names, sorted.

    Genes that are not known, and sets without a known gene, are left out. A log message counts them.

    Parameters
    ----------
    adata
        The data.
    gene_sets
        A list of genes, a dict of lists, a table, or a column of ``adata.var``.
    known
        Stored names of the genes that can be in a set.
    genes
        Names of the genes of the data. Sets may have either name of a gene.

    Raises
    ------
    MissingKeyError
        If the column of ``adata.var`` does not exist.
    ConfigError
        If ``gene_sets`` or one of the sets has another type.
    DataError
        If no gene of any set is known, or a table lacks a column.
    """
    genes = GeneNames.of(adata, None) if genes is None else genes
    named = _named_sets(adata, gene_sets)
    if not named:
        if isinstance(gene_sets, str):
            raise DataError(f"adata.var[{gene_sets!r}] has no value in any gene. Pass another column as `gene_sets`.")
        raise DataError("`gene_sets` is empty. Pass at least one gene set.")
    stored = list(known)
    shown = list(genes.shown_by_stored(stored).values())
    every = list(dict.fromkeys(name for each in named.values() for name in each))
    at = GeneIndex(shown, stored).positions(every)
    found = {name: stored[i] for name, i in zip(every, at, strict=True) if i >= 0}
    matched = {name: sorted({found[gene] for gene in each if gene in found}) for name, each in named.items()}
    kept = {name: each for name, each in matched.items() if each}
    unknown = [name for name in every if name not in found]
    n_measured = int((genes.index.positions(unknown) >= 0).sum())
    left_out = f"{n_measured} are measured but not modelled, {len(unknown) - n_measured} are absent from the data"
    if not kept:
        hint = f": {left_out}. Unknown genes: {describe_unknown(unknown, shown)}" if unknown else ""
        place = "adata.var_names" if genes.gene_symbols is None else f"adata.var[{genes.gene_symbols!r}]"
        advice = genes.column_hint(unknown, 0) or f" Pass sets with the gene names of {place}."
        raise DataError(
            f"No gene of the {len(named)} gene sets is among the {len(stored)} modelled genes{hint}.{advice}"
        )
    if unknown:
        logger.info(
            "`gene_sets`: %d of %d genes are modelled, %s. Only the modelled genes are used; %d of %d sets have none.",
            len(found),
            len(every),
            left_out,
            len(matched) - len(kept),
            len(matched),
        )
    return kept


def _named_sets(adata: Any, gene_sets: GeneSets) -> dict[str, list[str]]:
    """Genes of each set as they were given, by the name of the set."""
    if isinstance(gene_sets, str):
        column = pd.Series(np.asarray(get_column(adata, gene_sets), object), index=gene_names(adata)).dropna()
        return {str(name): list(part.index) for name, part in column.groupby(column, sort=False)}
    if isinstance(gene_sets, pd.DataFrame):
        if missing := [name for name in ("source", "target") if name not in gene_sets]:
            raise DataError(
                f"The table of gene sets has no column {missing[0]!r}, found {list(gene_sets.columns)}. Rename the "
                "columns to 'source' (name of the set) and 'target' (gene)."
            )
        table = gene_sets[["source", "target"]].dropna().astype(str)
        return {str(name): part["target"].tolist() for name, part in table.groupby("source", sort=False)}
    if isinstance(gene_sets, Mapping):
        sets = {str(name): each for name, each in gene_sets.items()}
        return {name: _genes(each, f"gene_sets[{name!r}]") for name, each in sets.items()}
    if isinstance(gene_sets, Collection):
        return {LISTED: listed} if (listed := _genes(gene_sets, "gene_sets")) else {}
    raise ConfigError(
        "`gene_sets` must be a list, a dict, a DataFrame or the name of a column of adata.var, found "
        f"{type(gene_sets).__name__}."
    )


def _genes(given: Any, argument: str) -> list[str]:
    """Names of one set, which may be empty."""
    empty = isinstance(given, Collection) and not len(given)
    return [] if empty else as_names(given, argument)
