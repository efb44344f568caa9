"""The design of a perturbation experiment: the perturbation, dose and stratum of each cell."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.config import Perturbation
from scbioformers.core import DataError, category_text, near_names, short_list, warn
from scbioformers.data import ObsField, obs_numbers
from scbioformers.tasks.perturbation._labels import (
    LabelReader,
    Targets,
    genes_in,
    is_control_like,
    require_control,
    require_singles,
)

logger = logging.getLogger(__name__)
FEW_CONTROLS = 500  # with fewer control cells, and more other cells, a fit says that the network is fitted to few cells


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
    labels: dict[str, Targets]
    """Targets of each label, and of each name in ``targets`` of the task, that is not just its targets joined by +."""
    dose: NDArray[np.float64] | None
    """(N,), dose of each cell. None if there is no dose."""

    @property
    def controls(self) -> NDArray[np.int64]:
        """Rows of the control cells."""
        return np.flatnonzero(self.groups == 0)


def read_design(
    adata: AnnData,
    task: Perturbation,
    batch_key: str | None,
    genes: Sequence[str],
    *,
    measured: Sequence[str] | None = None,
    counts: bool = True,
) -> Design:
    """Read labels, strata and doses.

    Parameters
    ----------
    adata
        The cells.
    task
        Columns and labels.
    batch_key
        Column with the batch.
    genes
        The modelled genes.
    measured
        All genes of the data, by default ``adata.var_names``. A label that names none of them gives a warning.
    counts
        Whether the data are counts.

    Raises
    ------
    MissingKeyError
        If a column is missing.
    DataError
        If the data are not counts, if labels are missing, if there is no control label, if a stratum has perturbed
        cells but no control cell, if a dose is not positive, or if fewer than two perturbations have a single target.

    Warns
    -----
    BioformersWarning
        If labels name no known gene, or look like another label for control cells.
    """
    if not counts:
        raise DataError(
            "The data are not counts. Responses to perturbations are changes of log1p counts. "
            "Pass a `layer=` of counts."
        )
    field = ObsField.register(adata, task.key)
    codes = field.transfer(adata)
    described = () if task.features is None else [str(name) for name in task.features.index]
    measured = adata.var_names.astype(str).tolist() if measured is None else measured
    named = frozenset((*genes, *measured, *described))
    reader = label_reader(task, named)
    require_control(field.categories, reader, task.key)
    parsed = _parse(field.categories, reader, task, named)
    perturbations = tuple(sorted({each for each in parsed.values() if each}))
    require_singles(perturbations)
    at = {targets: i + 1 for i, targets in enumerate(perturbations)} | {(): 0, None: -1}
    groups = np.array([at[parsed[label]] for label in field.categories], dtype=np.int64)[codes]
    strata, names = read_strata(adata, [key for key in (batch_key, task.celltype_key) if key is not None])
    for stratum in np.unique(strata[groups > 0]):
        if not ((strata == stratum) & (groups == 0)).any():
            raise DataError(
                f"The group {names[stratum]} has perturbed cells and no control cell ({reader.control!r}). Remove "
                "these cells, or use fewer columns to match controls (`batch_key`, `celltype_key`)."
            )
    _tell_of_few_controls(groups)
    undescribed = {name for each in perturbations for name in each}.intersection(named).difference(genes, described)
    if undescribed and task.kind != "drug":
        logger.info(
            "%d targets are measured but not modelled, and have no features, such as %s. Only their measured effects "
            "are used. To model them, select them with `mask_var=`.",
            len(undescribed),
            short_list(sorted(undescribed), 3),
        )
    labels = {label: each for label, each in parsed.items() if each and not _is_plain(label, each)}
    for name in reader.targets:
        labels.setdefault(name, reader.read(name) or ())
    return Design(task, batch_key, perturbations, groups, strata, labels, read_dose(adata, task.dose, groups))


def label_reader(task: Perturbation, named: Collection[str]) -> LabelReader:
    """The reader of the labels of a task. Numbers are compared by value with the text of the categories."""
    targets = {category_text(label).strip(): str(name) for label, name in (task.targets or {}).items()}
    ignore = [category_text(label) for label in task.ignore]
    return LabelReader(category_text(task.control), targets, task.kind != "drug", named, ignore)


def _parse(
    labels: Sequence[str], reader: LabelReader, task: Perturbation, named: frozenset[str]
) -> dict[str, Targets | None]:
    """Targets of each label, None for cells that are not used. Warns of labels that need the attention of the user."""
    parsed: dict[str, Targets | None] = {}
    controls, unknown = [], []
    for label in labels:
        try:
            each = reader.read(label)
        except DataError:  # "CD4+" is not a combination: a name as it is
            each = (label.strip(),)
        if each and is_control_like(label) and label.strip() not in reader.targets and not named.intersection(each):
            controls.append(label)
            each = None
        elif each and not named.issuperset(each) and not (task.kind == "drug" and task.features is None):
            unknown.append(label)
        parsed[label] = each
    place = f"adata.obs[{task.key!r}]"
    if controls:
        warn(
            f"{place}: {short_list(controls)} look like labels of control cells, but the control label is "
            f"{reader.control!r}. Their cells are not used. If they are controls, give them this label. If they are a "
            f"perturbation, pass `targets={ {controls[0]: controls[0]} }`. To leave them out without this warning, "
            f"pass `ignore={(*reader.ignore, *controls[:5])}`."
        )
    # a name that the user has mapped to itself is known to the user
    unknown = [label for label in unknown if reader.targets.get(label.strip()) != label.strip()]
    if unknown:
        warn(_describe_unknown(place, unknown, reader, task, named))
    return parsed


def _describe_unknown(
    place: str, unknown: Sequence[str], reader: LabelReader, task: Perturbation, named: frozenset[str]
) -> str:
    """Text about labels that name no known gene, with the arguments that name their genes or leave them out."""
    if task.kind == "drug":
        return (
            f"{place}: {len(unknown)} drugs are not in `features`: {short_list(unknown)}. Their measured effects are "
            "used, but no similarity to other drugs."
        )
    folded = {name.casefold(): name for name in sorted(named)}
    found = {label: "+".join(genes_in(label, folded)) for label in unknown}
    mapped = {label: genes for label, genes in found.items() if genes}
    rest = tuple(label for label, genes in found.items() if not genes)
    near = near_names(rest[0], named) if rest else []
    advice = [f"Similar names: {near}."] if near else []
    if mapped:
        advice.append(f"If they stand for genes, pass `targets={mapped}`.")
    if rest:
        advice.append(f"To leave cells out, pass `ignore={(*reader.ignore, *rest)}`. To keep a label as the name of a "
                      f"target, and without this warning, pass `targets={ {rest[0]: rest[0]} }`.")  # fmt: skip
    return (
        f"{place}: {len(unknown)} labels name no known gene: {short_list(unknown)}. Each is taken as a target that is "
        f"not measured and has no features. {' '.join(advice)} Both are arguments of `bf.Perturbation`."
    )


def _tell_of_few_controls(groups: NDArray[np.int64]) -> None:
    """Say to how many cells the network is fitted; a warning if they are few."""
    n_controls, n_cells = int((groups == 0).sum()), int((groups >= 0).sum())
    few = n_controls < min(FEW_CONTROLS, n_cells / 2)
    advice = (
        " These are few. Effects of perturbations are measured on all cells, but embeddings and imputed values of this "
        "model rest on the control cells. For those, fit a second model without `task=` and with "
        '`key_added="all_cells"`.'
    )
    logger.log(
        logging.WARNING if few else logging.INFO,
        "The network is fitted to the %s control cells alone, of %s cells.%s",
        f"{n_controls:,}",
        f"{n_cells:,}",
        advice if few else "",
    )


def _is_plain(label: str, targets: Targets) -> bool:
    """Whether a label gives its targets without any knowledge of the data."""
    return label == "+".join(targets) and (len(targets) > 1 or "+" not in label)


def read_dose(adata: AnnData, key: str | None, groups: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """(N,), dose of each cell. Raises an error if the column is missing, or not positive in every perturbed cell."""
    if key is None:
        return None
    values = obs_numbers(adata, key)
    if not (values[groups > 0] > 0).all():
        raise DataError(f"adata.obs[{key!r}] must be positive in every perturbed cell. Correct these doses.")
    return values


def read_strata(adata: AnnData, keys: Sequence[str]) -> tuple[NDArray[np.int64], Mapping[int, str]]:
    """(N,), stratum of each cell, and a text for each stratum. Cells of a stratum agree in all columns.

    The columns are compared one by one: texts joined by a separator could be equal for different strata.
    """
    fields = [ObsField.register(adata, key) for key in keys]
    codes = np.column_stack([np.zeros(adata.n_obs, np.int64), *(field.transfer(adata) for field in fields)])
    distinct, strata = np.unique(codes, axis=0, return_inverse=True)
    names = {
        i: ", ".join(f"{field.name} {field.categories[code]!r}" for field, code in zip(fields, row[1:], strict=True))
        or "of all cells"
        for i, row in enumerate(distinct)
    }
    return strata.ravel().astype(np.int64), names
