"""Checks of the input data: errors for a matrix that cannot be used, and warnings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import DataError, warn
from scbioformers.data._inspect import FLOAT32_EXACT, Inspection, inspect

COUNTS_FROM_RAW = "adata.layers['counts'] = adata.raw[:, adata.var_names].X"


def require_valid(
    adata: Any,
    layer: str | None = None,
    *,
    modelled: NDArray[np.bool_] | None = None,
    inspection: Inspection | None = None,
) -> Inspection:
    """Check that a matrix has finite numbers, at least one cell and one gene, and unique gene names.

    Parameters
    ----------
    adata
        AnnData, in memory or backed.
    layer
        Layer to read. None reads ``X``.
    modelled
        bool (n_vars,): the genes that will be used. Only these are checked for all-zero genes. None means all.
    inspection
        The result of :func:`inspect` for the same matrix, to avoid a second pass.

    Returns
    -------
    Inspection
        Properties of the matrix.

    Raises
    ------
    DataError
        If the matrix cannot be used. The message says what was found, what is expected and what to call next.
    MissingKeyError
        If there is no such layer.

    Warns
    -----
    BioformersWarning
        For all-zero genes, values beyond the precision of float32, and a matrix that seems to be transposed.
    """
    return _require(adata, layer, modelled, inspection, find_problems)


def require_counts(
    adata: Any,
    layer: str | None = None,
    *,
    allow_non_integer: bool = False,
    modelled: NDArray[np.bool_] | None = None,
    inspection: Inspection | None = None,
) -> Inspection:
    """Do the checks of :func:`require_valid`, and check that the values are counts (non-negative integers).

    Parameters
    ----------
    adata
        AnnData, in memory or backed.
    layer
        Layer to read. None reads ``X``.
    allow_non_integer
        Whether values that are not integers are accepted, such as estimated counts. Negative values are not accepted.
    modelled
        bool (n_vars,): the genes that will be used. None means all.
    inspection
        The result of :func:`inspect` for the same matrix, to avoid a second pass.

    Returns
    -------
    Inspection
        Properties of the matrix.

    Raises
    ------
    DataError, MissingKeyError
        As in :func:`require_valid`, and if the values are not counts. The message names a slot that seems to contain
        counts, if there is one.

    Warns
    -----
    BioformersWarning
        As in :func:`require_valid`, and if values that seem to be on a log scale are accepted by ``allow_non_integer``.
    """

    def problems_of(found: Inspection) -> list[str]:
        return find_problems(found) or find_count_problems(found, allow_non_integer)

    found = _require(adata, layer, modelled, inspection, problems_of)
    if found.kind == "log1p":
        warn(f"{found.name} looks as if it were on a log scale. It is used as counts because `allow_non_integer=True`.")
    return found


def find_problems(found: Inspection) -> list[str]:
    """Return the reasons why a matrix cannot be used, the most important first. The list is empty if it can be used."""
    problems = []
    if found.n_obs == 0 or found.n_vars == 0:
        problems.append(
            f"The data has {found.n_obs} cells and {found.n_vars} genes, expected at least one of each. "
            "Check whether a filter removed all of them."
        )
    if found.n_unnamed_vars:
        problems.append(
            f"{found.n_unnamed_vars} genes have no name (NaN or empty), expected a name for each. "
            "Remove them, `adata = adata[:, adata.var_names.notna() & (adata.var_names != '')].copy()`."
        )
    if found.duplicate_vars:
        problems.append(
            f"{len(found.duplicate_vars)} gene names occur more than once, such as {list(found.duplicate_vars[:3])}. "
            "Call `adata.var_names_make_unique()` first."
        )
    if found.n_non_finite:
        problems.append(
            f"{found.name} has {found.n_non_finite} NaN or infinite values, the first "
            f"{_place(found.first_non_finite)}; expected finite numbers. "
            "Call `np.nan_to_num` on it if they mean zero, or remove these cells or genes."
        )
    return problems


def find_count_problems(found: Inspection, allow_non_integer: bool = False) -> list[str]:
    """Return the reason why the values of a matrix are not counts. The list is empty if they are counts."""
    if found.n_negative:
        return [
            f"{found.name} has {found.n_negative} negative values, the first {_place(found.first_negative)}; "
            f"expected raw counts. {_next_call(found)}"
        ]
    if not found.n_non_integer or allow_non_integer:
        return []
    if found.kind == "log1p":
        return [
            f"{found.name} is on a log scale (log1p; largest value {found.max_value:.3g}, the first "
            f"{_place(found.first_non_integer)}); expected raw counts. {_next_call(found)}"
        ]
    return [
        f"{found.name} has {found.n_non_integer} values that are not integers "
        f"({found.n_non_integer / found.n_nonzero:.0%} of those above zero), "
        f"the first {_place(found.first_non_integer)}; expected raw counts. {_next_call(found)} "
        "`allow_non_integer=True` accepts estimated counts."
    ]


def find_cautions(found: Inspection, modelled: NDArray[np.bool_] | None = None) -> list[str]:
    """Return warnings on properties of a matrix that can be used."""
    cautions = []
    if found.transposed:
        cautions.append(
            "The matrix seems transposed: the names indicate genes in the rows and cells in the columns. "
            "If so, call `adata = adata.T.copy()`."
        )
    if found.max_value >= FLOAT32_EXACT:
        cautions.append(
            f"{found.name} has values up to {found.max_value:.4g}. From 2**24 on, float32 cannot represent every "
            "integer, so the largest values are rounded."
        )
    gene_nnz = found.gene_nnz if modelled is None else found.gene_nnz[modelled]
    n_zero = int((gene_nnz == 0).sum())
    if n_zero:
        cautions.append(
            f"All-zero genes: {n_zero:,} of {len(gene_nnz):,}. They carry no information. "
            "`sc.pp.filter_genes(adata, min_cells=3)` removes them."
        )
    return cautions


def _require(
    adata: Any,
    layer: str | None,
    modelled: NDArray[np.bool_] | None,
    inspection: Inspection | None,
    problems_of: Callable[[Inspection], list[str]],
) -> Inspection:
    found = inspect(adata, layer) if inspection is None else inspection
    problems = problems_of(found)
    if problems:
        raise DataError(" ".join(problems))
    for caution in find_cautions(found, modelled):
        warn(caution)
    return found


def _next_call(found: Inspection) -> str:
    calls = {
        "layer": f"adata.layers[{found.counts_layer!r}] seems to hold counts: pass `layer={found.counts_layer!r}`",
        "X": "adata.X seems to hold counts: pass `layer=None`",
        "raw": f"adata.raw seems to hold counts: call `{COUNTS_FROM_RAW}` and pass `layer='counts'`",
        None: "Save the counts before normalisation, `adata.layers['counts'] = adata.X.copy()`, and pass "
        "`layer='counts'`",
    }
    return f"{calls[found.counts_at]}. `binning='segment'` also accepts data on other scales."


def _place(first: tuple[str, str] | None) -> str:
    cell, gene = first if first is not None else ("?", "?")
    return f"in cell {cell!r}, gene {gene!r}"
