"""The conditions of ``bf.tl.grn``: which cells each network is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import Category, ConfigError, DataError, find_category, warn
from scbioformers.data import ObsField

ALL_CELLS = "all cells"


def check_sizes(top_k: int, n_cells: int | None, min_cells: int, min_count: int) -> None:
    """Check the numbers of edges and of cells."""
    if top_k < 1 or min_count < 1 or min_cells < 2:
        raise ConfigError(
            "`top_k` and `min_count` must be at least 1 and `min_cells` at least 2, found "
            f"{top_k}, {min_count} and {min_cells}."
        )
    if n_cells is not None and n_cells < min_cells:
        raise ConfigError(f"`n_cells` must be at least `min_cells` ({min_cells}), found {n_cells}.")


@dataclass(frozen=True)
class Conditions:
    """The conditions that have a network of their own."""

    names: list[str]
    """Their names."""
    codes: NDArray[np.int64]
    """(n_obs,), position of the condition of each cell in ``names``, -1 for cells without a condition."""
    reference: str | None
    """The condition with which the others are compared."""


def read_conditions(
    adata: AnnData | MuData,
    groupby: str | None,
    reference: Category | None,
    min_cells: int,
    measured: NDArray[np.bool_],
) -> Conditions:
    """The conditions of the cells that are ``measured`` (n_obs,). Those with fewer than ``min_cells`` are left out."""
    if groupby is None:
        if reference is not None:
            raise ConfigError("`reference` requires `groupby`. Pass the column of the conditions as `groupby=`.")
        if (n := int(measured.sum())) < min_cells:
            raise DataError(f"A network requires at least {min_cells} cells (`min_cells`), found {n}. Pass more cells.")
        return Conditions([ALL_CELLS], np.where(measured, 0, -1), None)
    field = ObsField.register(adata, groupby, allow_missing=True)
    codes = np.where(measured, field.transfer(adata, allow_missing=True).astype(np.int64), -1)
    sizes = np.bincount(codes[codes >= 0], minlength=len(field.categories))
    if reference is not None:
        place = f"the categories of adata.obs[{groupby!r}]"
        reference = find_category(reference, field.categories, argument="reference", place=place)
    small = {name: int(n) for name, n in zip(field.categories, sizes, strict=True) if n < min_cells}
    kept = [i for i, name in enumerate(field.categories) if name not in small]
    if not kept or reference in small:
        raise DataError(
            f"A network requires at least {min_cells} cells of a condition (`min_cells`). These conditions of "
            f"adata.obs[{groupby!r}] have fewer: {small}. Pass another `groupby=` or `reference=`."
        )
    if small:
        warn(f"Conditions with fewer than {min_cells} cells (`min_cells`) are skipped: {small}.")
    new_codes = np.full(len(field.categories) + 1, -1)  # the last entry is for cells without a value (code -1)
    new_codes[kept] = np.arange(len(kept))
    return Conditions([field.categories[i] for i in kept], new_codes[codes], reference)


def warn_of_limit(conditions: Conditions, groupby: str | None, n_cells: int | None) -> None:
    """Warn if the smallest condition leaves less than half of the cells that another condition would have."""
    sizes = np.bincount(conditions.codes[conditions.codes >= 0])
    usable = sizes if n_cells is None else np.minimum(sizes, n_cells)
    smallest = int(sizes.argmin())
    if 2 * usable[smallest] >= usable.max():
        return
    name, size = conditions.names[smallest], int(sizes[smallest])
    hint = f"Pass `min_cells={size + 1}` to leave it out, or no `reference=`."
    if name == conditions.reference:
        hint = f"It is the reference. Pass another `reference=` with `min_cells={size + 1}`, or none."
    warn(
        f"All networks are computed from {size} cells, because {name!r} of adata.obs[{groupby!r}] has no more and a "
        f"`reference` requires equal numbers. The largest condition has {int(sizes.max())} cells. {hint}"
    )
