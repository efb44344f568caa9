"""Conversion of perturbation labels to target genes. Here alone is decided which cells are controls."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scbioformers.core import DataError, near_names, short_list

Targets = tuple[str, ...]
_NO_TARGET = ("ctrl", "control")  # parts of a combined label that mean no target, such as in "STAT1+ctrl" of GEARS
# labels that other data sets use for control cells; the short ones count only as a whole
_CONTROL_WORDS = re.compile(
    r"ctrl|control|non[-_ ]?target|scrambl|safe[-_ ]?target|unperturb|untreat|unstim|vehicle|dmso|no[-_ ]?(guide|drug)",
    re.IGNORECASE,
)
_CONTROL_LABELS = re.compile(r"(nt|ntc|nc|neg|negative|wt|wild[-_ ]?type|mock|none|pbs)([-_ ]?\d+)?", re.IGNORECASE)
_AFFIXES = re.compile(r"^(sg|grna|crispr|ko|oe|sh|si)[-_.]?|[-_.](sg|g|guide|rep)?\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class LabelReader:
    """Reads the targets of labels, in the same way at the fit and later."""

    control: str
    """Label of the control cells."""
    targets: Mapping[str, str | Targets] = field(default_factory=dict)
    """Targets of labels, or of parts of labels, as text or as names. A label that stands for itself is kept whole."""
    split: bool = True
    """Whether a label may be several targets joined by ``+``. Names of drugs are never split."""
    whole: Collection[str] = ()
    """Known names, which are not split either."""
    ignore: Collection[str] = ()
    """Labels of cells that are not used."""

    def read(self, label: str) -> Targets | None:
        """Targets of a label, sorted; none for control cells. None if the cells are not used.

        Raises
        ------
        DataError
            If the label has an empty part, such as ``"STAT1+"``.
        """
        label = label.strip()
        if label in {name.strip() for name in self.ignore}:
            return None
        return self._targets(label)

    def is_control(self, label: str) -> bool:
        """Whether cells with this label are controls.

        These are the cells with the control label, compared without spaces at its ends, and those with a combined label
        that names no target, such as ``"ctrl+ctrl"``. ``"ctrl"`` alone is a control only if it is the control label.
        """
        try:
            return self.read(label) == ()
        except DataError:
            return False

    def _targets(self, label: str) -> Targets:
        if label == self.control.strip():
            return ()
        if label in self.targets:
            given = self.targets[label]
            if not isinstance(given, str):
                return tuple(given)
            if given.strip() == label:
                return (label,)
            kept = {name: value for name, value in self.targets.items() if name == value}
            return replace(self, targets=kept)._targets(given.strip())
        if not self.split or label in self.whole:
            return (label,)
        parts = [part.strip() for part in label.split("+")]
        if not all(parts):
            raise DataError(
                f"The label {label!r} cannot be parsed: expected a gene or genes joined by '+', such as 'STAT1+IRF1'. "
                "Define its genes with `targets=`, or leave its cells out with `ignore=`."
            )
        if len(parts) == 1:
            return (label,)
        return tuple(sorted({name for part in parts if part not in _NO_TARGET for name in self._targets(part)}))


def parse_label(label: str, control: str, targets: Mapping[str, str | Targets] | None = None) -> Targets:
    """Target genes of a label, sorted. The control label has no targets. See :class:`LabelReader`.

    Examples
    --------
    >>> parse_label("ctrl+STAT1", "ctrl"), parse_label("MYC-A", "ctrl", {"MYC-A": "MYC"}), parse_label("ctrl", "ctrl")
    (('STAT1',), ('MYC',), ())
    """
    return LabelReader(control, targets or {}).read(label) or ()


def is_control_like(label: str) -> bool:
    """Whether cells with this label are probably controls of some kind.

    Examples
    --------
    >>> is_control_like("Non-Targeting"), is_control_like("NT_1"), is_control_like("NT5E"), is_control_like("A+ctrl")
    (True, True, False, False)
    """
    text = label.strip()
    return "+" not in text and bool(_CONTROL_WORDS.search(text) or _CONTROL_LABELS.fullmatch(text))


def controls_first(labels: Iterable[str], control: str) -> list[str]:
    """Labels in an order in which a mistyped control label is found: control-like ones, similar ones, the others."""
    labels = list(labels)
    near = near_names(control, labels)
    return sorted(labels, key=lambda label: (not is_control_like(label), label not in near, label))


def require_control(labels: Sequence[str], reader: LabelReader, key: str, otherwise: str | None = None) -> None:
    """Check that some label is a control. Raises :class:`DataError`, which lists control-like labels first.

    ``otherwise`` is what to do then. By default, to pass another label to the task.
    """
    if any(reader.is_control(label) for label in labels):
        return
    ordered = controls_first(labels, reader.control)
    like = [label for label in ordered if is_control_like(label)]
    hint = f" Likely control labels: {short_list(like, 5)}." if like else ""
    if otherwise is None:
        call = f" For the first one, pass `task={task_call(key, like[0])}`." if like else ""
        otherwise = f"Pass the label of the control cells as `control` of the task.{call}"
    raise DataError(
        f"No cell has the control label {reader.control!r} in adata.obs[{key!r}].{hint} Labels: "
        f"{short_list(ordered, 10)}. {otherwise}"
    )


def task_call(key: str, control: str) -> str:
    """The text of a task, for messages."""
    return f"bf.Perturbation(key={key!r}, control={control!r})"


def likely_task(columns: Mapping[str, Sequence[str]], genes: Collection[str]) -> str | None:
    """The task of the column with the most labels that name genes and a control-like label, as text for messages.

    Examples
    --------
    >>> columns = {"sample": ["ctrl", "stim"], "guide": ["NT", "STAT1", "sgIRF1"]}
    >>> likely_task(columns, ["STAT1", "IRF1"])
    "bf.Perturbation(key='guide', control='NT')"
    """
    folded = {name.casefold(): name for name in genes}
    counts: dict[str, int] = {}
    for key, labels in columns.items():
        if any(map(is_control_like, labels)):
            counts[key] = sum(bool(genes_in(label, folded)) for label in labels if not is_control_like(label))
    best = max(counts, key=lambda key: counts[key], default=None)
    if best is None or counts[best] < 2:
        return None
    return task_call(best, next(label for label in columns[best] if is_control_like(label)))


def genes_in(label: str, known: Mapping[str, str]) -> list[str]:
    """Known genes that a label contains. ``known`` has their names by casefolded name.

    Examples
    --------
    >>> known = {"tf1": "TF1", "tf2": "TF2"}
    >>> genes_in("sgTF1", known), genes_in("TF1_TF2", known), genes_in("tf1-2", known), genes_in("nan", known)
    (['TF1'], ['TF1', 'TF2'], ['TF1'], [])
    """
    found: dict[str, None] = {}
    for part in [label] if label.casefold() in known else re.split(r"[_+,;|&/\s]+", label):
        for form in (part, _AFFIXES.sub("", part), _AFFIXES.sub("", _AFFIXES.sub("", part))):
            if form.casefold() in known and not form.isdigit():
                found[known[form.casefold()]] = None
                break
    return list(found)


def require_known(names: Iterable[str], known: Collection[str], where: str) -> None:
    """Check that all names are known.

    Raises
    ------
    DataError
        If a name is unknown. The message suggests similar names.
    """
    unknown = sorted({name for name in names if name not in known})
    if not unknown:
        return
    near = near_names(unknown[0], known)
    raise DataError(
        f"{where}: {unknown[:5]} unknown. Expected genes of the model, rows of `features` or targets of the training "
        f"data.{f' Similar names: {near}.' if near else ''}"
    )


def require_singles(perturbations: Sequence[Targets]) -> list[int]:
    """Positions of the perturbations with a single target.

    Raises
    ------
    DataError
        If there are fewer than two. At least two are needed to predict effects of other targets.
    """
    single = [i for i, targets in enumerate(perturbations) if len(targets) == 1]
    if len(single) < 2:
        raise DataError(
            f"Found {len(single)} perturbations of one target, expected at least two. "
            "Add perturbed cells, or check `key` and `control` of the task."
        )
    return single
