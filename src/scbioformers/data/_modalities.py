"""The name of a modality by the type of its features, and which binning suits its values."""

from __future__ import annotations

import re
from typing import Literal

from scbioformers.data._inspect import Inspection

FEATURE_TYPES = "feature_types"  # column of var in the files of 10x
_NAMES = {"Gene Expression": "rna", "Antibody Capture": "prot", "Peaks": "atac"}  # the names of muon
FEW_FEATURES = 500  # a panel of proteins has 10 to 300
MOSTLY_MEASURED = 0.5  # share of non-zero counts: 0.9 to 1 in proteins, whose antibodies have background; 0.05 in RNA


def modality_of(feature_type: str) -> str:
    """Name of the modality of the features that a file of 10x gives this type.

    Examples
    --------
    >>> modality_of("Antibody Capture"), modality_of("CRISPR Guide Capture")
    ('prot', 'crispr_guide_capture')
    """
    return _NAMES.get(feature_type, re.sub(r"\W+", "_", feature_type.lower()))


def default_binning(found: Inspection) -> tuple[Literal["value", "quantile"], str]:
    """The kind of bins that suits the values of one modality of a MuData, and why.

    Value bins are for counts with many zeros, as of RNA: they keep small counts apart. Quantile bins are for values
    that have no natural unit (centred, or on a log scale) and for features that nearly every cell has in large numbers,
    as proteins: what matters is how much of a protein a cell has among all cells. Many features on a log scale get
    value bins, although these refuse them: such values were computed from counts, which the message helps to find.

    Examples
    --------
    >>> import numpy as np, anndata as ad
    >>> from scbioformers.data import inspect
    >>> default_binning(inspect(ad.AnnData(np.array([[310.0, 52], [12, 890]]))))
    ('quantile', 'counts of 2 features, of which nearly no cell has none')
    """
    features = f"{found.n_vars:,} feature{'s' * (found.n_vars != 1)}"
    few = found.n_vars <= FEW_FEATURES
    if found.kind == "centered":
        return "quantile", f"centred values of {features}"
    if found.kind in ("counts", "bool"):
        if few and found.density >= MOSTLY_MEASURED:
            return "quantile", f"counts of {features}, of which nearly no cell has none"
        return "value", f"counts of {features}, {1 - found.density:.0%} of them zero"
    return ("quantile" if few else "value"), f"values of {features} that are not counts"
