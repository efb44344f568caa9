"""Read gene sets from a list, a dict, a table, or a column of ``adata.var``."""

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
    """Genes of each set that are among the ``known`` genes. Sets without a known gene are left out, with a log message.

    Raises
    ------
    MissingKeyError
        If the column of ``adata.var`` does not exist.
    ConfigError
        If ``gene_sets`` has another type.
    DataError
        If a gene of a list is not known, no gene of any set is known, or a table lacks a column.
    """
    known_genes = set(known)
    if isinstance(gene_sets, str):
        column = pd.Series(np.asarray(get_column(adata, gene_sets), object), index=adata.var_names).dropna()
        named = {str(name): [str(gene) for gene in part.index] for name, part in column.groupby(column, sort=False)}
    elif isinstance(gene_sets, pd.DataFrame):
        if missing := [name for name in ("source", "target") if name not in gene_sets]:
            raise DataError(
                f"The table of gene sets has no column {missing[0]!r}, found {list(gene_sets.columns)}. Rename the "
                "columns to 'source' (name of the set) and 'target' (gene)."
            )
        table = gene_sets[["source", "target"]].astype(str)
        named = {str(name): part["target"].tolist() for name, part in table.groupby("source", sort=False)}
    elif isinstance(gene_sets, Mapping):
        named = {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    elif isinstance(gene_sets, Collection):
        listed = [str(gene) for gene in gene_sets]
        if unknown := [gene for gene in listed if gene not in known_genes]:
            raise DataError(
                f"{len(unknown)} of {len(listed)} listed genes are not among the {len(known_genes)} modelled genes: "
                f"{describe_unknown(unknown, known_genes)}. Remove them from the list."
            )
        named = {LISTED: listed}
    else:
        raise ConfigError(
            "`gene_sets` must be a list, a dict, a DataFrame or the name of a column of adata.var, found "
            f"{type(gene_sets).__name__}."
        )
    if not named:
        if isinstance(gene_sets, str):
            raise DataError(f"adata.var[{gene_sets!r}] has no value in any gene. Pass another column as `gene_sets`.")
        raise DataError("`gene_sets` is empty. Pass at least one gene set.")
    matched = {name: sorted(known_genes.intersection(genes)) for name, genes in named.items()}
    kept = {name: genes for name, genes in matched.items() if genes}
    if not kept:
        unknown = [gene for genes in named.values() for gene in genes]
        hint = f" Unknown genes: {describe_unknown(unknown, known_genes)}." if unknown else ""
        raise DataError(
            f"No gene of the {len(named)} gene sets is among the {len(known_genes)} modelled genes.{hint} Pass sets "
            "with the gene names of adata.var_names."
        )
    if len(kept) < len(matched):
        logger.info("%d of %d gene sets have no modelled gene and are skipped.", len(matched) - len(kept), len(matched))
    return kept
