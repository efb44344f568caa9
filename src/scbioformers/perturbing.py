"""From cells with perturbation labels to a fitted head, and from unperturbed cells to their predicted profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError
from scbioformers.data import Block, ObsField, Source
from scbioformers.model import BioFormer
from scbioformers.perturbation import (
    Perturbation,
    PerturbationHead,
    Targets,
    fit_head,
    log1p_rows,
    measure_correlations,
    measure_effects,
    parse_label,
    require_known,
    require_singles,
)

N_PROBES = 64  # control cells in which the network is asked
_BATCH = 64


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


def fit_perturbation(model: BioFormer, source: Source, design: Design) -> BioFormer:
    """The model with a head fitted to the effects in ``source``; the network itself has seen control cells alone."""
    task, dose = design.task, design.dose
    depth = model.tokenizer.binning.mean_depth or 1.0
    probes = choose_probes(source, design.controls)

    def rows() -> Iterator[sp.csr_matrix]:
        for block in source.blocks():
            yield log1p_rows(block.counts, block.depth, depth)

    effects = measure_effects(rows(), design.groups, design.strata, len(design.perturbations))
    if dose is not None:
        # effects for each unit of dose
        mean = np.array([dose[design.groups == i + 1].mean() for i in range(len(design.perturbations))])
        effects = replace(effects, mean=effects.mean / mean[:, None], se=effects.se / mean[:, None])
    genes = model.vocabulary.molecules()
    head = fit_head(
        genes,
        design.perturbations,
        effects,
        measure_correlations(rows(), design.groups, design.strata, design.perturbations, genes),
        task,
        float(depth),
        lambda names: network_answers(model, probes, names, task.kind),
    )
    described = {name: getattr(task, name) for name in ("key", "control", "kind", "dose", "celltype_key")}
    described |= {"ignore": list(task.ignore), "batch_key": design.batch_key}
    provenance = model.provenance | {"task": described}
    return replace(model, perturbation=replace(head, labels=design.labels), provenance=provenance)


def choose_probes(source: Source, controls: NDArray[np.int64]) -> Block:
    """Some control cells, evenly spread over the rows."""
    if not controls.size:
        raise DataError("There is no control cell to start from.")
    at = controls[np.linspace(0, controls.size - 1, min(N_PROBES, controls.size)).astype(np.int64)]
    blocks = [source.read(int(row), int(row) + 1) for row in at]
    return Block(
        0,
        sp.vstack([block.counts for block in blocks], format="csr"),
        np.concatenate([block.depth for block in blocks]),
        np.concatenate([block.fields for block in blocks]),
        source.absent,
    )


@torch.no_grad()
def network_answers(model: BioFormer, probes: Block, names: Sequence[str], kind: str) -> dict[str, NDArray[np.float64]]:
    """Change of the decoded profile of control cells with a molecule down (or up), for those that are modelled.

    Its count becomes zero (or twice what it was). It carries no external token, which would be untrained: the network
    has seen control cells alone, and trained on pairs with perturbed cells it predicts unseen targets worse
    (experiment 58).
    """
    positions = {name: i for i, name in enumerate(model.vocabulary.molecules())}
    network = model.members[0].eval()

    def profile(block: Block) -> NDArray[np.float64]:
        total = np.zeros(len(positions))
        for batch in model.batches(block, _BATCH):
            total += network.profile(network(batch).latent).double().sum(dim=0).numpy()
        return total / len(block.depth)

    found: dict[str, NDArray[np.float64]] = {}
    if kind == "drug" or not model.counts:
        return found
    before = profile(probes)
    for name in names:
        if name in positions:
            found[name] = profile(_perturb(probes, positions[name], kind)) - before
    return found


def _perturb(block: Block, position: int, kind: str) -> Block:
    counts = block.counts.copy()
    hit = counts.indices == position
    counts.data[hit] = 2 * counts.data[hit] if kind == "activation" else 0
    counts.eliminate_zeros()
    return replace(block, counts=counts)


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
