"""What the perturbation column of other data says: which cells are controls, and measured effects."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, GeneIndex, log1p_rows
from scbioformers.data import BlockSource, ObsField, obs_numbers
from scbioformers.tasks.perturbation._design import read_strata
from scbioformers.tasks.perturbation._effects import Array, measure_effects
from scbioformers.tasks.perturbation._head import PerturbationHead
from scbioformers.tasks.perturbation._labels import Targets, require_control


def control_rows(adata: AnnData, head: PerturbationHead) -> NDArray[np.int64]:
    """Rows of the control cells, by the rule of the fit. All cells if there is no perturbation column.

    Raises
    ------
    DataError
        If there is a perturbation column and no control cell.
    """
    key = str(head.task.get("key"))
    if key not in adata.obs:
        return np.arange(adata.n_obs)
    field = ObsField.register(adata, key, allow_missing=True)
    reader = head.reader
    otherwise = (
        f"Rename the label of the control cells to {reader.control!r}. If no cell is perturbed, remove the column with "
        f"`del adata.obs[{key!r}]`: then all cells are controls."
    )
    require_control(field.categories, reader, key, otherwise)
    of_category = np.array([*(reader.is_control(label) for label in field.categories), False])  # code -1: the last
    return np.flatnonzero(of_category[field.transfer(adata, allow_missing=True)])


def observed_effects(
    adata: AnnData, source: BlockSource, head: PerturbationHead, requested: Collection[Targets], index: GeneIndex
) -> dict[Targets, Array]:
    """Measured effect (M,) of each perturbation that has cells in the data, as in the fit.

    Labels of the cells may have the names of the data or of the model, which ``index`` has.

    Cells are compared with control cells of the same batch and cell type, as far as the data have these columns. Cells
    without such control cells are not used. With a dose, effects are for one unit of it.
    """
    key = str(head.task.get("key"))
    if key not in adata.obs:
        return {}
    field = ObsField.register(adata, key, allow_missing=True)
    at = {targets: 1 + i for i, targets in enumerate(dict.fromkeys(requested))} | {(): 0}
    of_category = np.array([*(_group(label, head, at, index) for label in field.categories), -1])
    groups = of_category[field.transfer(adata, allow_missing=True)]
    keys = [str(head.task[name]) for name in ("batch_key", "celltype_key") if head.task.get(name) in adata.obs]
    strata, _ = read_strata(adata, [name for name in keys if adata.obs[name].notna().all()])
    groups[~np.isin(strata, strata[groups == 0])] = -1
    dose = _dose(adata, head)
    groups[(groups > 0) & ~(dose > 0)] = -1
    present = np.unique(groups[groups > 0])
    if not present.size:
        return {}
    groups = np.where(groups > 0, 1 + np.searchsorted(present, groups), groups)
    rows = (log1p_rows(block.counts, block.depth, head.mean_depth) for block in source.blocks())
    mean = measure_effects(rows, groups, strata, present.size).mean
    mean /= np.array([dose[groups == 1 + i].mean() for i in range(present.size)])[:, None]
    targets = list(at)
    return {targets[group - 1]: effect for group, effect in zip(present, mean, strict=True)}


def _group(label: str, head: PerturbationHead, at: dict[Targets, int], index: GeneIndex) -> int:
    try:
        return at.get(head.targets_of(label, index), -1)
    except DataError:
        return -1


def _dose(adata: AnnData, head: PerturbationHead) -> Array:
    key = head.task.get("dose")
    return np.ones(adata.n_obs) if key not in adata.obs else obs_numbers(adata, str(key))
