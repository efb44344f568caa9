"""Gene programs: labels in ``var[key]``, scores in ``obsm``, genes and background genes in ``uns[key]``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import DataError
from scbioformers.data import gene_names
from scbioformers.results._slots import escape, get_slot, params_to_json, write_result

_HINT = "Run `bf.tl.gene_programs(adata)` first."


def write_gene_programs(
    adata: Any,
    key: str,
    label: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    genes: pd.DataFrame,
    stability: pd.DataFrame,
    background: NDArray[Any],
    params: dict[str, Any],
) -> None:
    """Write the program of each gene (n_vars,), -1 for none, the scores (N, P) and the tables."""
    names = pd.Index([str(i + 1) for i in range(scores.shape[1])], dtype=str)
    stored = {"genes": genes, "stability": stability, "background": background.astype(str)}
    labels = pd.Categorical.from_codes(label, names)
    slots: dict[str, dict[str, Any]] = {"var": {key: labels}, "obsm": {f"{key}_scores": scores}}
    write_result(adata, key, stored | {"params": params_to_json(params)}, slots)


def has_program_genes(adata: Any, key: str) -> bool:
    """Whether the weights of the program genes are stored, as by ``bf.tl.gene_programs``."""
    return "genes" in adata.uns.get(escape(key), {})


def read_program_genes(adata: Any, key: str) -> pd.DataFrame:
    """Table of program genes with the columns program, gene, weight and support.

    Raises
    ------
    MissingKeyError
        If there are no programs.
    """
    return pd.DataFrame(get_slot(adata, "uns", key, hint=_HINT)["genes"])


def read_program_background(adata: Any, key: str) -> list[str]:
    """The genes that were clustered into programs."""
    return [str(gene) for gene in get_slot(adata, "uns", key, hint=_HINT)["background"]]


def read_program_labels(adata: Any, key: str) -> pd.Series[Any]:
    """The program of each gene that belongs to a program, by the stored name of the gene."""
    column = np.asarray(get_slot(adata, "var", key, hint=_HINT), dtype=object)
    return pd.Series(column, index=gene_names(adata), dtype=object).dropna().astype(str)


def read_program_scores(adata: Any, key: str) -> pd.DataFrame:
    """Program scores, cells x programs. If an array is stored, its columns are in the order of the categories.

    Raises
    ------
    MissingKeyError
        If there are no scores.
    DataError
        If the number of columns differs from the number of programs.
    """
    scores = get_slot(adata, "obsm", f"{key}_scores", hint=_HINT)
    if isinstance(scores, pd.DataFrame):
        return scores.rename(columns=str)
    column = get_slot(adata, "var", key, hint=_HINT)
    named = isinstance(column.dtype, pd.CategoricalDtype)
    names = [str(name) for name in column.cat.categories] if named else sorted(set(read_program_labels(adata, key)))
    values = np.asarray(scores)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(
            f"adata.obsm[{f'{key}_scores'!r}] has the shape {values.shape}, expected one column for each of {names}. "
            "Run `bf.tl.gene_programs(adata)` again."
        )
    return pd.DataFrame(values, adata.obs_names, names)
