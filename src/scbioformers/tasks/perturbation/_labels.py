"""Conversion of perturbation labels to target genes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from scbioformers.core import DataError, near_names

Targets = tuple[str, ...]
_NONE = ("ctrl", "control")  # parts that mean no target, such as in "STAT1+ctrl" of GEARS


def parse_label(label: str, control: str, targets: Mapping[str, str] | None = None) -> Targets:
    """Target genes of a label, sorted. The control label has no targets.

    Raises
    ------
    DataError
        If the label has an empty part, such as ``"STAT1+"``.

    Examples
    --------
    >>> parse_label("ctrl+STAT1", "ctrl"), parse_label("MYC-A", "ctrl", {"MYC-A": "MYC"}), parse_label("ctrl", "ctrl")
    (('STAT1',), ('MYC',), ())
    """
    mapping = dict(targets or {})
    if label == control:
        return ()
    if label in mapping:
        return parse_label(mapping[label], control) if mapping[label] != label else (label,)
    parts = [part.strip() for part in label.split("+")]
    if not all(parts):
        raise DataError(
            f"The label {label!r} cannot be parsed: expected a gene or genes joined by '+', such as 'STAT1+IRF1'. "
            "Define its genes with `targets=`, or leave its cells out with `ignore=`."
        )
    return tuple(sorted({mapping.get(part, part) for part in parts if part != control and part not in _NONE}))


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
        f"data ({len(known)} names).{f' Similar names: {near}.' if near else ''}"
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
