"""From labels to the genes that they perturb."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from scbioformers.core import DataError, near_names

Targets = tuple[str, ...]
_NONE = ("ctrl", "control")  # parts that stand for nothing, as in GEARS' "STAT1+ctrl"


def parse_label(label: str, control: str, targets: Mapping[str, str] | None = None) -> Targets:
    """Genes that a label perturbs, sorted; none for the control.

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
            "Name its genes with `targets=`, or leave its cells out with `ignore=`."
        )
    return tuple(sorted({mapping.get(part, part) for part in parts if part != control and part not in _NONE}))


def require_known(names: Iterable[str], known: Collection[str], where: str) -> None:
    """Refuse names that are not known, with near ones.

    Raises
    ------
    DataError
        If there are any.
    """
    unknown = sorted({name for name in names if name not in known})
    if not unknown:
        return
    near = near_names(unknown[0], known)
    raise DataError(
        f"{where}: {unknown[:5]} unknown, neither genes of the model, nor rows of its features, nor perturbed in its "
        f"training data ({len(known)} names).{f' Near names: {near}.' if near else ''}"
    )


def require_singles(perturbations: Sequence[Targets]) -> list[int]:
    """Places of the perturbations of one target.

    Raises
    ------
    DataError
        If there are fewer than two: nothing can be learned for others.
    """
    single = [i for i, targets in enumerate(perturbations) if len(targets) == 1]
    if len(single) < 2:
        raise DataError(
            f"Found {len(single)} perturbations of one target; responses to others are learned from at least two."
        )
    return single
