"""What ``bf.pp.check`` finds in a MuData: each modality, the bins that suit it, and which samples it has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from mudata import MuData

from scbioformers.core import ConfigError, MissingKeyError, short_list
from scbioformers.data import default_binning, find_problems
from scbioformers.pp._costs import Cost, Size, embed_cost, fit_cost

if TYPE_CHECKING:
    from scbioformers.pp._check import CheckReport


@dataclass(frozen=True, eq=False)
class ModalityReport:
    """What :func:`scbioformers.pp.check` finds in one modality of a MuData."""

    report: CheckReport
    """The report of the modality as an AnnData."""
    binning: Literal["value", "quantile"]
    """Kind of bins that suits its values, the default of a fit."""
    reason: str
    """Why: what was found in the modality."""
    problems: tuple[str, ...]
    """Reasons why the modality cannot be fitted with these bins."""

    @classmethod
    def of(cls, name: str, report: CheckReport) -> ModalityReport:
        """Decide for the bins of a modality. That its values are not counts is a problem for value bins alone."""
        found = report.inspection
        binning, reason = default_binning(found)
        problems = list(report.problems) if binning == "value" else find_problems(found)
        if not problems and not found.n_nonzero:
            problems = [f"All values of {found.name} are zero. Leave the modality out, or pass another `layer=`."]
        return cls(report, binning, reason, tuple(_spelled(name, text) for text in problems))


@dataclass(frozen=True, eq=False)
class MuDataReport:
    """Result of :func:`scbioformers.pp.check` for a MuData. Its ``repr`` is a readable report."""

    modalities: dict[str, ModalityReport] = field(repr=False)
    """The report of each modality."""
    n_obs: int
    """Number of samples."""
    n_measured: dict[str, int]
    """Number of samples that each modality has."""
    n_in_all: int
    """Number of samples that all of these modalities have."""
    costs: dict[str, Cost]
    """Estimated cost of ``"fit"`` and ``"embed"``, see :class:`~scbioformers.pp.CheckReport`."""
    problems: tuple[str, ...]
    """Reasons why a fit is not possible. Empty if it is possible."""
    cautions: tuple[str, ...]
    """Properties of the data that do not prevent it but may affect it."""
    next_calls: tuple[str, ...]
    """Suggested calls, in order."""

    @property
    def binning(self) -> dict[str, str]:
        """Kind of bins that suits each modality, as :func:`scbioformers.tl.fit` takes them."""
        return {name: each.binning for name, each in self.modalities.items()}

    def __repr__(self) -> str:
        lines = [f"{self.n_obs:,} samples, {self.n_in_all:,} of them in each of the modalities {list(self.modalities)}"]
        for name, each in self.modalities.items():
            found, n_modelled = each.report.inspection, int(each.report.modelled.sum())
            lines += [
                f"  {name:9s} {self.n_measured[name]:,} samples x {found.n_vars:,} features, {n_modelled:,} modelled",
                f"            {each.reason}: {each.binning} bins",
            ]
        if not self.problems:
            lines.append(f"  {'cost':9s} {'by one thread':14s} {'time':>12s} {'memory':>9s} {'on disk':>9s}")
            lines += [f"            {cost.line(f'bf.tl.{name}')}" for name, cost in self.costs.items()]
        lines += [f"Problem: {text}" for text in self.problems]
        lines += [f"Note: {text}" for text in self.cautions]
        return "\n".join([*lines, "Next:", *(f"  {call}" for call in self.next_calls)])


def chosen_modalities(mdata: MuData, modality: str | Sequence[str] | None) -> list[str]:
    """The modalities to check.

    Raises
    ------
    ConfigError
        If there is none.
    MissingKeyError
        If one of them does not exist.
    """
    names = list(mdata.mod) if modality is None else [modality] if isinstance(modality, str) else list(modality)
    if not names:
        raise ConfigError(f"Expected at least one modality, found none. The MuData has {list(mdata.mod)}.")
    if unknown := [name for name in names if name not in mdata.mod]:
        raise MissingKeyError(f"Did not find mdata[{unknown[0]!r}]. Modalities: {list(mdata.mod)}.")
    return names


def samples_report(mdata: MuData, modalities: dict[str, ModalityReport], sizes: Sequence[Size]) -> MuDataReport:
    """The report of all modalities together."""
    measured = np.array([mdata.obs_names.isin(mdata.mod[name].obs_names) for name in modalities])
    problems = [f"{name}: {text}" for name, each in modalities.items() for text in each.problems]
    cautions = [f"{name}: {_spelled(name, text)}" for name, each in modalities.items() for text in each.report.cautions]
    binning = {name: each.binning for name, each in modalities.items()}
    total = Size(
        n_obs=mdata.n_obs,
        n_vars=sum(size.n_vars for size in sizes),
        n_modelled=sum(size.n_modelled for size in sizes),
        expressed=sum(size.expressed for size in sizes),
        n_nonzero=sum(size.n_nonzero for size in sizes),
        on_disk=any(size.on_disk for size in sizes),
    )
    fit = f"bf.tl.fit(mdata, modalities={list(modalities)}, binning={binning})"
    return MuDataReport(
        modalities=modalities,
        n_obs=mdata.n_obs,
        n_measured={name: int(n) for name, n in zip(modalities, measured.sum(axis=1), strict=True)},
        n_in_all=int(measured.all(axis=0).sum()),
        costs={"fit": fit_cost(total), "embed": embed_cost(total)},
        problems=tuple(problems),
        cautions=(*_cautions(mdata, modalities, measured), *cautions),
        next_calls=("bf.pp.check(mdata)  # again, after the problem is solved" if problems else fit,),
    )


def _cautions(mdata: MuData, modalities: dict[str, ModalityReport], measured: np.ndarray) -> list[str]:
    """Properties of the modalities together."""
    cautions = []
    names = {name: set(map(str, mdata.mod[name].var_names)) for name in modalities}
    for first, second in combinations(names, 2):
        if shared := sorted(names[first] & names[second]):
            cautions.append(
                f"{len(shared)} names are in both {first!r} and {second!r}: {short_list(shared)}. They stay apart: "
                f"the model knows them as '{first}:{shared[0]}' and '{second}:{shared[0]}'."
            )
    cautions += [
        f"{name!r} has one feature, so nothing in this modality can predict it; the other modalities can."
        for name, each in modalities.items()
        if each.report.inspection.n_vars == 1
    ]
    if len(names) > 1 and measured.size and not (measured.sum(axis=0) > 1).any():
        examples = {name: str(mdata.mod[name].obs_names[0]) for name in names if mdata.mod[name].n_obs}
        cautions.append(
            f"No sample is in two of the modalities: their names differ, such as {examples}. If they are the same "
            "samples, give them the same `obs_names` and make the MuData again."
        )
    if n := int((~measured.any(axis=0)).sum()):
        cautions.append(f"{n:,} samples are in none of the modalities {list(names)}. A fit skips them.")
    return cautions


def _spelled(name: str, text: str) -> str:
    """A message on an AnnData as one on a modality."""
    return re.sub(r"\badata\b", f"mdata.mod[{name!r}]", text)
