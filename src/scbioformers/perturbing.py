"""From cells with perturbation labels to a fitted head, and from unperturbed cells to their predicted profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError, tqdm
from scbioformers.data import Block, ObsField, Source, concatenate
from scbioformers.model import BioFormer
from scbioformers.pairing import Pairing
from scbioformers.perturbation import (
    Perturbation,
    PerturbationHead,
    Targets,
    fit_head,
    log1p_rows,
    measure_correlations,
    measure_effects,
    n_trainings,
    parse_label,
    require_known,
    require_singles,
    target_features,
)

N_PROBES = 64  # control cells in which the network is asked


@dataclass(frozen=True)
class Design:
    """What was done to each of N cells."""

    task: Perturbation
    """Where that is written."""
    batch_key: str | None
    """Column with the batch, by which controls are matched."""
    perturbations: tuple[Targets, ...]
    """(P,), distinct, in order."""
    groups: NDArray[np.int64]
    """(N,), 0 for control, 1 + the perturbation, -1 for cells that are left out."""
    strata: NDArray[np.int64]
    """(N,), batch and cell type as one number."""
    labels: dict[str, str]
    """From labels that name no gene to their targets, joined by +."""
    dose: NDArray[np.float64] | None
    """(N,), of each cell."""

    @property
    def controls(self) -> NDArray[np.int64]:
        """Rows of the control cells."""
        return np.flatnonzero(self.groups == 0)


def read_design(
    adata: AnnData, task: Perturbation, batch_key: str | None, genes: Sequence[str], *, counts: bool = True
) -> Design:
    """Read labels, strata and doses; ``counts`` tells whether the data can be taken as such.

    Raises
    ------
    MissingKeyError
        If a column is not there.
    DataError
        If the data is no counts, labels are missing, name unknown genes or cannot be parsed, cells have no control in
        their stratum or no positive dose, or there are fewer than two perturbations of one target.
    """
    if not counts:
        raise DataError("Responses to perturbations are changes of log1p counts: pass a `layer=` of counts.")
    field = ObsField.register(adata, task.key)
    codes = field.transfer(adata)
    if task.control not in field.categories:
        raise DataError(
            f"No cell has the control label {task.control!r} in adata.obs[{task.key!r}]. There: "
            f"{list(field.categories)[:10]}. Name it with `control=`."
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
                f"The group {names[stratum]} has perturbed cells and no control cell ({task.control!r}). Leave out "
                "these cells, or match controls by fewer columns (`batch_key`, `celltype_key`)."
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
        raise MissingKeyError(f"Did not find adata.obs[{task.dose!r}]. There: {[str(key) for key in adata.obs]}.")
    values = np.asarray(adata.obs[task.dose], dtype=np.float64)
    if not (values[groups > 0] > 0).all():
        raise DataError(f"adata.obs[{task.dose!r}] must be positive in every perturbed cell.")
    return values


def _strata(adata: AnnData, keys: Sequence[str]) -> tuple[NDArray[np.int64], dict[int, str]]:
    texts = np.array(["all cells"] * adata.n_obs, dtype=object)
    for i, key in enumerate(keys):
        field = ObsField.register(adata, key)
        values = np.array(field.categories, dtype=object)[field.transfer(adata)]
        texts = values if i == 0 else texts + " / " + values
    names, codes = np.unique(texts.astype(str), return_inverse=True)
    return codes.astype(np.int64), dict(enumerate(names.tolist()))


def fit_perturbation(model: BioFormer, source: Source, design: Design, *, progress_bar: bool = True) -> BioFormer:
    """The model with a head and an external token fitted to the effects in ``source``; all else saw controls only."""
    task, dose = design.task, design.dose
    depth = model.tokenizer.binning.mean_depth or 1.0

    def rows() -> Iterator[sp.csr_matrix]:
        for block in source.blocks():
            yield log1p_rows(block.counts, block.depth, depth)

    effects = measure_effects(rows(), design.groups, design.strata, len(design.perturbations))
    if dose is not None:
        # effects for each unit of dose
        mean = np.array([dose[design.groups == i + 1].mean() for i in range(len(design.perturbations))])
        effects = replace(effects, mean=effects.mean / mean[:, None], se=effects.se / mean[:, None])
    genes = model.vocabulary.molecules()
    single = np.array([i for i, each in enumerate(design.perturbations) if len(each) == 1])
    targets = {i: design.perturbations[i][0] for i in single}
    described = target_features(list(dict.fromkeys([*genes, *targets.values()])), task.features)
    probes = choose_probes(design.controls)
    pairing = Pairing(model, read_cells(source, probes), *described, task.kind)
    chances = pair_chances(design, probes)

    correlations = measure_correlations(rows(), design.groups, design.strata, design.perturbations, genes)
    with tqdm(total=n_trainings(single.size) + 1, desc="Responses, left out in turn", disable=not progress_bar) as bar:

        def train(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            bar.update()
            return pairing.train([targets[i] for i in rows], effects.mean[rows], effects.se[rows], chances[rows])

        def answer(rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
            return pairing.answers(names, train(rows))

        head = fit_head(genes, design.perturbations, effects, correlations, task, float(depth), answer)
        pairing.adopt(train(single))
    told = {name: getattr(task, name) for name in ("key", "control", "kind", "dose", "celltype_key")}
    told |= {"ignore": list(task.ignore), "batch_key": design.batch_key}
    provenance = model.provenance | {"task": told}
    return replace(model, perturbation=replace(head, labels=design.labels), provenance=provenance)


def choose_probes(controls: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of some control cells, evenly spread.

    Raises
    ------
    DataError
        If there is none.
    """
    if not controls.size:
        raise DataError("There is no control cell to start from.")
    return controls[np.linspace(0, controls.size - 1, min(N_PROBES, controls.size)).astype(np.int64)]


def read_cells(source: Source, rows: NDArray[np.int64]) -> Block:
    """Some rows as a block."""
    return concatenate([source.read(int(row), int(row) + 1) for row in rows])


def pair_chances(design: Design, probes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P, probes), how often each control cell is paired with cells of a perturbation: as its stratum is perturbed."""
    strata, n = design.strata, int(design.strata.max()) + 1
    there = np.maximum(np.bincount(strata[probes], minlength=n), 1)
    found = np.zeros((len(design.perturbations), probes.size))
    for i in range(len(found)):
        cells = np.bincount(strata[design.groups == i + 1], minlength=n)
        # of a stratum without a probe the others speak
        share = (cells / there)[strata[probes]]
        found[i] = share / share.sum() if share.sum() > 0 else 1 / probes.size
    return found


def require_head(model: BioFormer) -> PerturbationHead:
    """The part that predicts responses.

    Raises
    ------
    MissingKeyError
        If the model was fitted without such a task.
    """
    if model.perturbation is None:
        raise MissingKeyError(
            "The model was fitted without perturbations. Run `bf.tl.fit(adata, task=bf.Perturbation(key=…, "
            "control=…))` first."
        )
    return model.perturbation


def asked_targets(head: PerturbationHead, perturbations: str | Sequence[str]) -> dict[str, Targets]:
    """Targets by label; ``"all"`` are all measured genes and all targets of the training data.

    Raises
    ------
    ConfigError
        If nothing is asked for.
    DataError
        If a label cannot be parsed or names what is not known.
    """
    if isinstance(perturbations, str) and perturbations == "all":
        seen = [name for each in head.perturbations for name in each]
        return {name: (name,) for name in dict.fromkeys([*head.genes, *seen])}
    names = [perturbations] if isinstance(perturbations, str) else [str(name) for name in perturbations]
    if not names:
        raise ConfigError("`perturbations` is empty: name a gene, a combination such as 'STAT1+IRF1', or 'all'.")
    found = {name: parse_label(name, "", head.labels) for name in names}
    if empty := [name for name, targets in found.items() if not targets]:
        raise DataError(f"{empty[:5]} name no perturbed gene.")
    head.resolve(list(found.values()))
    return found
