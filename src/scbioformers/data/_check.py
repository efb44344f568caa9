"""Checks of the input data: errors for a matrix that cannot be used, and warnings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import DataError, warn
from scbioformers.data._inspect import FLOAT32_EXACT, UNNAMED, Inspection, inspect

_GENES = "Gene Expression"  # type of genes in the files of 10x
Caller = Literal["fit", "query", "pretrain"]
"""What reads the values: a first fit, a model that exists, or `bf.tl.pretrain`. Messages suggest calls for it."""


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
    caller: Caller = "fit",
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
    caller
        What reads the values. The message suggests calls that work there.

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
        return find_problems(found) or find_count_problems(found, allow_non_integer, caller)

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
            "Remove them, "
            f"`adata = adata[:, ~(adata.var_names.isna() | adata.var_names.isin({UNNAMED}))].{_copied(found)}()`."
        )
    if found.duplicate_vars:
        problems.append(
            f"{len(found.duplicate_vars)} gene names occur more than once, such as {list(found.duplicate_vars[:3])}. "
            "Call `adata.var_names_make_unique()` first."
        )
    if found.n_non_finite:
        problems.append(
            f"{found.name} has {found.n_non_finite} NaN or infinite values, the first "
            f"{_place(found.first_non_finite)}; expected finite numbers. {_set_to_zero(found)}"
        )
    return problems


def find_count_problems(found: Inspection, allow_non_integer: bool = False, caller: Caller = "fit") -> list[str]:
    """Return the reason why the values of a matrix are not counts. The list is empty if they are counts."""
    if found.n_negative:
        return [
            f"{found.name} has {found.n_negative} negative values, the first {_place(found.first_negative)}; "
            f"expected raw counts. {_next_call(found, caller)}"
        ]
    if not found.n_non_integer or allow_non_integer:
        return []
    if found.kind == "log1p":
        return [
            f"{found.name} is on a log scale (log1p; largest value {found.max_value:.3g}, the first "
            f"{_place(found.first_non_integer)}); expected raw counts. {_next_call(found, caller)}"
        ]
    return [
        f"{found.name} has {found.n_non_integer} values that are not integers "
        f"({found.n_non_integer / found.n_nonzero:.0%} of those above zero), "
        f"the first {_place(found.first_non_integer)}; expected raw counts. {_next_call(found, caller)}"
    ]


def fit_call(found: Inspection, **arguments: Any) -> str:
    """The call that fits a model to this matrix, as text.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> fit_call(inspect(ad.AnnData(np.ones((2, 2)))), binning="segment")
    "bf.tl.fit(adata, binning='segment')"
    """
    return call("bf.tl.fit", **({} if found.layer is None else {"layer": found.layer}), **arguments)


def call(function: str, **arguments: Any) -> str:
    """A call on ``adata`` as text, as it is written in messages."""
    return f"{function}({', '.join(['adata', *(f'{name}={value!r}' for name, value in arguments.items())])})"


def find_cautions(found: Inspection, modelled: NDArray[np.bool_] | None = None) -> list[str]:
    """Return warnings on properties of a matrix that can be used."""
    cautions = []
    if found.transposed:
        call = "adata.to_memory().T.copy()" if found.stored == "disk" else "adata.T.copy()"
        cautions.append(
            "The matrix seems transposed: the names indicate genes in the rows and cells in the columns. "
            f"If so, call `adata = {call}`."
        )
    if split := split_call(found):
        others = {name: n for name, n in found.feature_types.items() if name != _GENES}
        cautions.append(
            f"adata.var['feature_types'] has features that are not genes: {others}. Their counts are part of the depth "
            f"of the cells. Call `{split.replace('adata =', 'other =', 1).replace('==', '!=')}` and `{split}`."
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
            f"All-zero genes: {n_zero:,} of {len(gene_nnz):,}. They carry no information. `{filter_call(found, 1)}` "
            "removes them."
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


def filter_call(found: Inspection, axis: int) -> str:
    """The statement that removes cells (axis 0) or genes (axis 1) whose values in this matrix are all zero."""
    if found.layer is None and found.stored != "disk":
        return f"sc.pp.filter_{'genes' if axis else 'cells'}(adata, min_{'cells' if axis else 'genes'}=1)"
    first = "adata = adata.to_memory(); " if found.stored == "disk" else ""
    kept = f"np.asarray(({found.name} != 0).sum(axis={1 - axis})).ravel() > 0"
    return f"{first}adata = adata[{':, ' if axis else ''}{kept}].copy()"


def split_call(found: Inspection) -> str:
    """The statement that keeps the genes, empty if there is no feature of another type."""
    if _GENES not in found.feature_types or len(found.feature_types) < 2:
        return ""
    return f"adata = adata[:, adata.var['feature_types'] == {_GENES!r}].{_copied(found)}()"


def _copied(found: Inspection) -> str:
    """The method that makes a part of the data an object of its own."""
    return "to_memory" if found.stored == "disk" else "copy"


def _set_to_zero(found: Inspection) -> str:
    if found.stored == "disk":
        return "Load the data with `adata = adata.to_memory()`, and remove these cells or genes."
    data = f"{found.name}.data" if found.stored == "sparse" else found.name
    statement = f"{data} = np.nan_to_num({data}, posinf=0, neginf=0)"
    return f"If they mean zero, call `{statement}`. Else remove these cells or genes."


def _next_call(found: Inspection, caller: Caller) -> str:
    calls = []
    if found.counts is not None:
        first = f"call `{found.counts.call}`"
        then = f"pass `layer={found.counts.layer!r}`"
        reached = then if found.counts.call is None else first if found.counts.layer == "X" else f"{first} and {then}"
        if caller == "pretrain" and then in reached:
            reached += ", if all data sets have it, or else copy it to adata.X"
        calls.append(f"{found.counts.name} seems to hold the counts: {reached}.")
    else:
        calls.append("No other slot seems to hold the counts. Load them if you can.")
    if found.kind == "estimated":
        estimated = _other_fit(found, caller, allow_non_integer=True)
        calls.append(f"If these are estimated counts (alevin, SoupX, CellBender), call {estimated}.")
    scale = "a scale that all data sets share" if caller == "pretrain" else "any scale"
    calls.append(f"{_other_fit(found, caller, binning='segment')} reads ranks, on {scale}.")
    return " ".join(calls)


def _other_fit(found: Inspection, caller: Caller, **arguments: Any) -> str:
    """The call that fits a model which reads these values, as text."""
    if caller == "pretrain":
        others = "".join(f", {name}={value!r}" for name, value in arguments.items())
        return f"`bf.tl.pretrain(sources, save_dir=save_dir{others})`"
    return f"`{fit_call(found, **arguments)}`" + " (a new model, without `model=`)" * (caller == "query")


def _place(first: tuple[str, str] | None) -> str:
    cell, gene = first if first is not None else ("?", "?")
    return f"in cell {cell!r}, gene {gene!r}"
