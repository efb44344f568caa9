"""Sets of genes as users have them: a list, a dict, a table, or a column of ``adata.var``."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from scbioformers.core import ConfigError, DataError, describe_unknown
from scbioformers.results import get_column

logger = logging.getLogger(__name__)

GeneSets: TypeAlias = str | Sequence[str] | Mapping[str, Collection[str]] | pd.DataFrame
LISTED = "genes"


def read_gene_sets(adata: Any, gene_sets: GeneSets, known: Collection[str]) -> dict[str, list[str]]:
    """The known genes of each set; sets without any are left out and logged.

    Raises
    ------
    MissingKeyError
        If there is no such column of ``adata.var``.
    ConfigError
        If it is none of what can be read.
    DataError
        If a listed gene is unknown, or none of all sets is known (near names are given), or a table lacks a column.
    """
    there = set(known)
    if isinstance(gene_sets, str):
        column = pd.Series(np.asarray(get_column(adata, gene_sets), object), index=adata.var_names).dropna()
        named = {str(name): [str(gene) for gene in part.index] for name, part in column.groupby(column, sort=False)}
    elif isinstance(gene_sets, pd.DataFrame):
        if missing := [name for name in ("source", "target") if name not in gene_sets]:
            raise DataError(
                f"The table of gene sets has no column {missing[0]!r}, only {list(gene_sets.columns)}. Rename its "
                "columns: 'source' names the set, 'target' the gene."
            )
        table = gene_sets[["source", "target"]].astype(str)
        named = {str(name): part["target"].tolist() for name, part in table.groupby("source", sort=False)}
    elif isinstance(gene_sets, Mapping):
        named = {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    elif isinstance(gene_sets, Collection):
        listed = [str(gene) for gene in gene_sets]
        if unknown := [gene for gene in listed if gene not in there]:
            raise DataError(
                f"{len(unknown)} genes are not among the {len(there)} modelled: {describe_unknown(unknown, there)}."
            )
        named = {LISTED: listed}
    else:
        raise ConfigError(
            f"Gene sets are a list, a dict, a DataFrame or a column of var, got {type(gene_sets).__name__}."
        )
    if not named:
        where = f": adata.var[{gene_sets!r}] has no value" if isinstance(gene_sets, str) else ""
        raise DataError(f"There are no gene sets{where}.")
    found = {name: sorted(there.intersection(genes)) for name, genes in named.items()}
    kept = {name: genes for name, genes in found.items() if genes}
    if not kept:
        unknown = [gene for genes in named.values() for gene in genes]
        hint = f" Unknown: {describe_unknown(unknown, there)}." if unknown else ""
        raise DataError(f"None of the genes of {len(named)} sets is among the {len(there)} modelled.{hint}")
    if len(kept) < len(found):
        logger.info("%d of %d gene sets have no modelled gene.", len(found) - len(kept), len(found))
    return kept
