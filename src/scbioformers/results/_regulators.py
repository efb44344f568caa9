"""Key regulators and enrichment: tables in ``uns[key]``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from scbioformers.core import MissingKeyError
from scbioformers.results._slots import get_slot, params_to_json, write_result

_HINT = "Run `bf.tl.regulators(adata)` first."
_ENRICHMENT_HINT = "Run `bf.tl.program_enrichment(adata, gene_sets)` first."


def write_regulators(adata: Any, key: str, tables: dict[str, pd.DataFrame], params: dict[str, Any]) -> None:
    """Write the table ``"drivers"`` and, if they exist, the tables ``"sets"`` and ``"known"``."""
    stored: dict[str, Any] = dict(tables)
    write_result(adata, key, stored | {"params": params_to_json(params)})


def read_regulators(adata: Any, key: str, table: str, hint: str = _HINT) -> pd.DataFrame:
    """Return one of the tables. ``hint`` names the call that creates it and is added to the error message.

    Raises
    ------
    MissingKeyError
        If there is no such table.
    """
    stored = get_slot(adata, "uns", key, hint=_HINT)
    if table not in stored:
        raise MissingKeyError(f"adata.uns[{key!r}] has no {table!r}. {hint}")
    return pd.DataFrame(stored[table])


def write_enrichment(adata: Any, key: str, table: pd.DataFrame, params: dict[str, Any]) -> None:
    """Write the table of overlaps between programs and gene sets."""
    write_result(adata, key, {"table": table, "params": params_to_json(params)})


def read_enrichment(adata: Any, key: str) -> pd.DataFrame:
    """The table of overlaps between programs and gene sets.

    Raises
    ------
    MissingKeyError
        If there is no such table.
    """
    return pd.DataFrame(get_slot(adata, "uns", key, hint=_ENRICHMENT_HINT)["table"])
