"""The design of a perturbation experiment: the perturbation, dose and stratum of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.config import Perturbation
from scbioformers.core import DataError, MissingKeyError
from scbioformers.data import ObsField
from scbioformers.tasks.perturbation._labels import Targets, parse_label, require_known, require_singles


@dataclass(frozen=True)
class Design:
    """Perturbation, stratum and dose of N cells."""

    task: Perturbation
    """Description of the task, with the columns of ``adata.obs``."""
    batch_key: str | None
    """Column with the batch. Perturbed cells are compared with control cells of the same batch."""
    perturbations: tuple[Targets, ...]
    """(P,), targets of each perturbation, distinct and sorted."""
    groups: NDArray[np.int64]
    """(N,), 0 for control cells, 1 + the perturbation for perturbed cells, -1 for cells that are not used."""
    strata: NDArray[np.int64]
    """(N,), combination of batch and cell type, as a number."""
    labels: dict[str, str]
    """Targets, joined by "+", of each label that differs from them."""
    dose: NDArray[np.float64] | None
    """(N,), dose of each cell. None if there is no dose."""

    @property
    def controls(self) -> NDArray[np.int64]:
        """Rows of the control cells."""
        return np.flatnonzero(self.groups == 0)


def read_design(
    adata: AnnData, task: Perturbation, batch_key: str | None, genes: Sequence[str], *, counts: bool = True
) -> Design:
    """Read labels, strata and doses. ``counts`` is whether the data are counts.

    Raises
    ------
    MissingKeyError
        If a column is missing.
    DataError
        If the data are not counts, if labels are missing, unknown or cannot be parsed, if there is no control label, if
        a stratum has perturbed cells but no control cell, if a dose is not positive, or if fewer than two perturbations
        have a single target.
    """
    if not counts:
        raise DataError(
            "The data are not counts. Responses to perturbations are changes of log1p counts. "
            "Pass a `layer=` of counts."
        )
    field = ObsField.register(adata, task.key)
    codes = field.transfer(adata)
    if task.control not in field.categories:
        raise DataError(
            f"No cell has the control label {task.control!r} in adata.obs[{task.key!r}]. Labels: "
            f"{list(field.categories)[:10]}. Pass one of these as `control=`."
        )
    parsed = [
        None if label in task.ignore else parse_label(label, task.control, task.targets) for label in field.categories
    ]
    known = {*genes, *(map(str, task.features.index) if task.features is not None else ())}
    named = [name for each in parsed if each for name in each]
    if task.features is not None or task.targets is not None:
        known |= {name for each in (task.targets or {}).values() for name in each.split("+")}
        require_known(named, known, f"adata.obs[{task.key!r}]")
    perturbations = tuple(sorted({each for each in parsed if each}))
    require_singles(perturbations)
    at = {targets: i + 1 for i, targets in enumerate(perturbations)} | {(): 0}
    of_label = np.array([-1 if each is None else at[each] for each in parsed], dtype=np.int64)
    strata, names = _strata(adata, [key for key in (batch_key, task.celltype_key) if key is not None])
    groups = of_label[codes]
    for stratum in np.unique(strata[groups > 0]):
        if not ((strata == stratum) & (groups == 0)).any():
            raise DataError(
                f"The group {names[stratum]} has perturbed cells and no control cell ({task.control!r}). Remove "
                "these cells, or use fewer columns to match controls (`batch_key`, `celltype_key`)."
            )
    labels = {
        label: "+".join(each)
        for label, each in zip(field.categories, parsed, strict=True)
        if each and label != "+".join(each)
    }
    return Design(task, batch_key, perturbations, groups, strata, labels, _dose(adata, task, groups))


def _dose(adata: AnnData, task: Perturbation, groups: NDArray[np.int64]) -> NDArray[np.float64] | None:
    if task.dose is None:
        return None
    if task.dose not in adata.obs:
        raise MissingKeyError(f"Did not find adata.obs[{task.dose!r}]. Available: {[str(key) for key in adata.obs]}.")
    values = np.asarray(adata.obs[task.dose], dtype=np.float64)
    if not (values[groups > 0] > 0).all():
        raise DataError(f"adata.obs[{task.dose!r}] must be positive in every perturbed cell. Correct these doses.")
    return values


def _strata(adata: AnnData, keys: Sequence[str]) -> tuple[NDArray[np.int64], dict[int, str]]:
    texts = np.array(["all cells"] * adata.n_obs, dtype=object)
    for i, key in enumerate(keys):
        field = ObsField.register(adata, key)
        values = np.array(field.categories, dtype=object)[field.transfer(adata)]
        texts = values if i == 0 else texts + " / " + values
    names, codes = np.unique(texts.astype(str), return_inverse=True)
    return codes.astype(np.int64), dict(enumerate(names.tolist()))
