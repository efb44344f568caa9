"""What was perturbed, and where it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from scbioformers.core import ConfigError

Kind = Literal["knockout", "activation", "drug"]
KINDS = ("knockout", "activation", "drug")


@dataclass(frozen=True)
class Perturbation:
    """The task of predicting responses to perturbations; pass it as ``task=`` to :func:`scbioformers.tl.fit`.

    Examples
    --------
    >>> import scbioformers as bf
    >>> bf.Perturbation(key="perturbation", control="control").kind
    'knockout'
    """

    key: str
    """Column of ``adata.obs`` with labels such as ``"STAT1"``, ``"STAT1+IRF1"`` or ``"ctrl+STAT1"``."""
    control: str
    """Label of the unperturbed cells."""
    targets: Mapping[str, str] | None = None
    """From labels, or parts of them, that name no gene to the gene they hit: an enhancer to its gene, ``MYC-A`` to
    ``MYC``. Labels with the same targets are one perturbation."""
    features: pd.DataFrame | None = None
    """Genes x features, of any kind: what is known of the genes, measured or not; see
    :func:`scbioformers.pp.gene_features`."""
    kind: Kind = "knockout"
    """A knock-out or knock-down, an activation, or a drug, which has no target gene that falls."""
    dose: str | None = None
    """Column of ``adata.obs`` with the dose, positive; effects are proportional to it. None: the same for all."""
    celltype_key: str | None = None
    """Column of ``adata.obs`` with cell types: controls are matched by it, as they are by ``batch_key`` of the fit."""
    ignore: tuple[str, ...] = ("unassigned",)
    """Labels of cells that are left out."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"`kind` is one of {KINDS}, got {self.kind!r}.")
        if self.features is not None and not isinstance(self.features, pd.DataFrame):
            raise ConfigError(f"`features` is a DataFrame, genes x features, got {type(self.features).__name__}.")
        if self.features is not None and not self.features.index.is_unique:
            raise ConfigError("`features` has genes more than once in its index; keep one row for each.")
        if self.control in self.ignore:
            raise ConfigError(f"The control label {self.control!r} is among those to `ignore`.")
