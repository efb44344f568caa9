"""Gene names of stored results. They are stored by ``adata.var_names`` and shown by a column of ``adata.var``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from scbioformers.core import DataError, GeneIndex
from scbioformers.data import GeneNames
from scbioformers.results._slots import escape, params_from_json


def result_genes(adata: Any, key: str, gene_symbols: str | None = None) -> GeneNames:
    """Names of the genes of ``adata`` for the result in ``uns[key]``.

    Parameters
    ----------
    adata
        The data with the result.
    key
        Key of the result in ``uns``.
    gene_symbols
        Column of ``adata.var`` with the names to show. None uses the column of the call that stored the result, if
        ``adata.var`` still has it, else ``var_names``.

    Raises
    ------
    MissingKeyError
        If there is no such column.
    """
    if gene_symbols is None:
        stored = adata.uns.get(escape(key))
        params = params_from_json(str(stored["params"])) if isinstance(stored, Mapping) and "params" in stored else {}
        recorded = params.get("gene_symbols")
        gene_symbols = recorded if recorded in adata.var else None
    return GeneNames.of(adata, gene_symbols)


def show_genes(table: pd.DataFrame, genes: GeneNames, columns: Sequence[str]) -> pd.DataFrame:
    """The table with shown names in ``columns``, which have stored names."""
    names = genes.shown_by_stored(pd.unique(pd.concat([table[column] for column in columns])))
    return table.assign(**{column: table[column].map(names) for column in columns})


def stored_edges(known: Any, genes: GeneNames, among: Collection[str]) -> pd.DataFrame:
    """Known edges by stored names. Rows without a source or a target are left out.

    Parameters
    ----------
    known
        Table with the columns ``source`` and ``target``, in any spelling of the genes.
    genes
        Names of the genes of the data.
    among
        Stored names of the genes of the network.

    Raises
    ------
    DataError
        If ``known`` is not a table with the two columns.
    """
    if not isinstance(known, pd.DataFrame) or not {"source", "target"} <= set(known.columns):
        columns = list(known.columns) if isinstance(known, pd.DataFrame) else type(known).__name__
        raise DataError(
            f"`known` must be a pandas.DataFrame of edges with the columns 'source' and 'target', found {columns}."
        )
    edges = known.dropna(subset=["source", "target"])
    stored = list(among)
    index = GeneIndex(list(genes.shown_by_stored(stored).values()), stored)
    for end in ("source", "target"):
        given = edges[end].astype(str)
        names = list(dict.fromkeys(given))
        at = index.positions(names)
        edges = edges.assign(
            **{end: given.map({n: stored[i] if i >= 0 else n for n, i in zip(names, at, strict=True)})}
        )
    return edges
