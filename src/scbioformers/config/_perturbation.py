"""Configuration of the perturbation task: what was perturbed, and which columns contain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from scbioformers.core import Category, ConfigError, check_fields

Kind = Literal["knockout", "activation", "drug"]
KINDS = ("knockout", "activation", "drug")


@dataclass(frozen=True)
class Perturbation:
    """The task of predicting responses to perturbations. Pass it as ``task=`` to :func:`scbioformers.tl.fit`.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.Perturbation(key="perturbation", control="control").kind
    'knockout'
    """

    key: str
    """Column of ``adata.obs`` with perturbation labels such as ``"STAT1"``, ``"STAT1+IRF1"`` or ``"ctrl+STAT1"``."""
    control: Category
    """Label of the control (unperturbed) cells. Numbers are compared by value, text without spaces at its ends.

    ``"ctrl"`` and ``"control"`` also mean "no target" as a part of a combined label, such as ``"STAT1+ctrl"``.
    """
    targets: Mapping[Category, str] | None = None
    """Target gene of each label, or part of a label, that is not a gene name.

    Examples are an enhancer and its gene, or ``MYC-A`` and ``MYC``. Labels with the same targets are treated as one
    perturbation. A label that is mapped to itself is kept whole, also if it contains ``+``.
    """
    features: pd.DataFrame | None = None
    """Table of genes x features with prior knowledge about the genes, of any kind.

    It may contain genes that are not measured. See :func:`scbioformers.datasets.gene_features`.
    """
    kind: Kind = "knockout"
    """Kind of perturbation: ``"knockout"`` (also knock-down), ``"activation"`` or ``"drug"``.

    A drug does not change the expression of a target gene directly. Its label is not split at ``+``.
    """
    dose: str | None = None
    """Column of ``adata.obs`` with the dose, which must be positive. Effects are assumed proportional to the dose.

    ``None`` means the same dose for all cells.
    """
    celltype_key: str | None = None
    """Column of ``adata.obs`` with cell types.

    Perturbed cells are compared with control cells of the same cell type and of the same batch (``batch_key`` of the
    fit).
    """
    ignore: tuple[Category, ...] = ("unassigned",)
    """Labels of cells that are not used. Numbers are compared by value."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.features is not None and not self.features.index.is_unique:
            raise ConfigError("The index of `features` has duplicate genes. Keep one row for each gene.")
        if self.control in self.ignore:
            raise ConfigError(f"The control label {self.control!r} is also in `ignore`. Remove it from `ignore`.")
