"""Names of the genes of an AnnData: ``var_names``, or a column of ``var``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import GeneIndex, MissingKeyError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GeneNames:
    """Names of all genes of an AnnData. Results are stored by ``var_names`` and shown by the names that the user chose.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> var = pd.DataFrame({"symbol": ["CD4", "MS4A1"]}, index=["ENSG00000010610", "ENSG00000156738"])
    >>> genes = GeneNames.of(ad.AnnData(np.ones((1, 2)), var=var), "symbol")
    >>> genes.shown_by_stored(["ENSG00000156738"]), genes.index.positions(["MS4A1"]).tolist()
    ({'ENSG00000156738': 'MS4A1'}, [1])
    """

    var_names: NDArray[np.object_]
    """(n_vars,) ``adata.var_names`` as text."""
    shown: NDArray[np.object_]
    """(n_vars,) values of the column, or ``var_names``."""
    gene_symbols: str | None
    """Column of ``adata.var`` with the shown names, None for ``var_names``."""
    var: pd.DataFrame
    """``adata.var``, in which messages look for a column with other names."""

    @classmethod
    def of(cls, adata: Any, gene_symbols: str | None) -> GeneNames:
        """Names of the genes of ``adata``, see :func:`gene_names`."""
        return cls(gene_names(adata), gene_names(adata, gene_symbols), gene_symbols, adata.var)

    @cached_property
    def index(self) -> GeneIndex:
        """Positions of genes by either name."""
        return GeneIndex(self.shown.tolist(), self.var_names.tolist())

    def spelled(self, names: Iterable[str], among: Collection[str]) -> dict[str, str]:
        """The spelling that is ``among`` the shown names of a result, by name. Other genes have their shown name.

        Names that are not genes of the data are left out, unless they are among the names of the result.
        """
        names, wanted = list(dict.fromkeys(names)), set(among)
        found = {}
        for name, i in zip(names, self.index.positions(names), strict=True):
            choices = [name] if i < 0 else [name, str(self.shown[i]), str(self.var_names[i])]
            known = [choice for choice in choices if choice in wanted]
            if known or i >= 0:
                found[name] = known[0] if known else choices[1]
        return found

    def column_hint(self, unknown: Sequence[str], n_known: int) -> str:
        """Advice to name genes by another column of ``adata.var``, if it has more than ``n_known`` of these names."""
        column, n_found = column_of_names(unknown, self.var)
        if n_found <= n_known:
            return ""
        return f" adata.var[{column!r}] has {n_found:,} of them: pass `gene_symbols={column!r}`."

    def shown_by_stored(self, stored: Iterable[str]) -> dict[str, str]:
        """Shown name of each stored name of a result. Genes that share a shown name keep their stored names."""
        stored = list(dict.fromkeys(stored))
        if self.gene_symbols is None:
            return {name: name for name in stored}
        shown = dict(zip(self.var_names, self.shown, strict=True))
        names = {name: str(shown.get(name, name)) for name in stored}
        n_genes = Counter(names.values())
        return {name: each if n_genes[each] == 1 else name for name, each in names.items()}


def gene_names(adata: Any, gene_symbols: str | None = None) -> NDArray[np.object_]:
    """Name of each gene as text, object (n_vars,).

    Parameters
    ----------
    adata
        The data. Its ``var_names`` may be text, integers or categorical.
    gene_symbols
        Column of ``adata.var`` with the names. A gene without a value in it keeps its ``var_names``. None returns
        ``var_names``.

    Raises
    ------
    MissingKeyError
        If there is no such column. The message lists the columns of text.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> var = pd.DataFrame({"symbol": ["CD4", None]}, index=["ENSG00000010610", "ENSG00000290825"])
    >>> gene_names(ad.AnnData(np.ones((1, 2)), var=var), "symbol").tolist()
    ['CD4', 'ENSG00000290825']
    """
    names = np.array([str(name) for name in adata.var_names], dtype=object)
    if gene_symbols is None:
        return names
    if gene_symbols not in adata.var:
        raise MissingKeyError(
            f"adata.var has no column {gene_symbols!r}. Pass one of these columns as `gene_symbols=`: "
            f"{list(text_columns(adata.var))}. By default, genes are named by `adata.var_names`."
        )
    symbols = _texts(adata.var[gene_symbols])
    return np.where(pd.isna(symbols) | (symbols == ""), names, symbols)


def best_measured(
    names: NDArray[np.object_], n_cells: Sequence[int] | NDArray[np.int64], gene_symbols: str | None
) -> NDArray[np.bool_]:
    """Which genes keep their name, bool (n_vars,): of genes with the same name, the one that most cells express.

    Parameters
    ----------
    names
        (n_vars,), see :func:`gene_names`.
    n_cells
        (n_vars,), number of cells that express each gene.
    gene_symbols
        Column of the names, for the log message.

    Examples
    --------
    >>> best_measured(np.array(["A", "B", "A"], dtype=object), [3, 1, 5], "symbol").tolist()
    [False, True, True]
    """
    table = pd.DataFrame({"name": names, "n": n_cells}).sort_values("n", ascending=False, kind="stable")
    kept = np.zeros(len(names), dtype=bool)
    kept[table.index[~table["name"].duplicated()]] = True
    if not kept.all():
        repeated = pd.unique(names[~kept])
        logger.info(
            "Several genes have the same name in %s (%d names, such as %s). Of these, the gene that most cells express "
            "is used.",
            "adata.var_names" if gene_symbols is None else f"adata.var[{gene_symbols!r}]",
            len(repeated),
            list(repeated[:3]),
        )
    return kept


def column_of_names(names: Sequence[str], var: pd.DataFrame) -> tuple[str | None, int]:
    """The text column of ``adata.var`` with the most of the names, and their number. None if no column has any.

    Examples
    --------
    >>> column_of_names(["CD4", "x"], pd.DataFrame({"n": [1, 2], "symbol": ["CD4", "MS4A1"]}))
    ('symbol', 1)
    """
    best, most = None, 0
    for column, values in text_columns(var).items():
        n_found = int((GeneIndex([str(value) for value in values]).positions(names) >= 0).sum())
        best, most = (column, n_found) if n_found > most else (best, most)
    return best, most


def text_columns(var: pd.DataFrame) -> dict[str, NDArray[np.object_]]:
    """Columns of ``adata.var`` with text, by name."""
    found = {}
    for key in var:
        values = var[key].cat.categories if isinstance(var[key].dtype, pd.CategoricalDtype) else var[key]
        if pd.api.types.infer_dtype(values, skipna=True) == "string":
            found[str(key)] = _texts(var[key])
    return found


def _texts(column: pd.Series[Any]) -> NDArray[np.object_]:
    values = column.astype(object).to_numpy()
    return np.array([None if pd.isna(value) else str(value) for value in values], dtype=object)
