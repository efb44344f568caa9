"""The scale of the values of a query, which must be that of the training data."""

from __future__ import annotations

from typing import Any

from anndata import AnnData
from anndata.abc import CSCDataset

from scbioformers.config import ValueScale
from scbioformers.core import DataError, warn
from scbioformers.data._counts import own_layers
from scbioformers.data._inspect import Inspection, inspect
from scbioformers.data._matrix import layer_names, to_csr

_PEEK_ROWS = 256  # rows of another layer that are read to find its scale
_SCALES = {
    "counts": "counts",
    "log1p": "values on a log scale",
    "normalized": "normalised values that are not on a log scale",
    "centered": "centred values (some are negative)",
}
_RANKED_ALIKE = {"log1p", "normalized"}  # the scale of such values is guessed, and their ranks within a cell are alike


def require_scale(adata: AnnData, found: Inspection, expected: ValueScale) -> None:
    """Check that the values are on the scale of the training data, if these are not counts.

    Segment bins are ranks within a cell. A z-score ranks the genes of a cell in another order than its counts do.

    Raises
    ------
    DataError
        If they are on another scale. The message names a layer with the right scale, if there is one.

    Warns
    -----
    BioformersWarning
        If the values seem to be normalised but not on a log scale, and the training data on a log scale, or the
        reverse. The ranks within a cell are then the same.
    """
    if found.scale == expected:
        return
    text = f"{found.name} has {_SCALES[found.scale]}, and the model was fitted to {_SCALES[expected]}."
    if {found.scale, expected} == _RANKED_ALIKE:
        warn(f"{text} The model only uses the ranks of the values within each cell, so it reads both in the same way.")
        return
    layers = [key for key in layer_names(adata) if key not in own_layers(adata)]
    places = [key for key in layers if _scale_of(adata.layers[key], found) == expected]
    if places:
        call = f"adata.layers[{places[0]!r}] has values on the right scale: pass `layer={places[0]!r}`."
    elif found.layer is not None and adata.X is not None and _scale_of(adata.X, found) == expected:
        call = "adata.X has values on the right scale: pass `layer='X'`."
    else:
        call = "Pass a layer with the same kind of values as `layer=`, or fit a model to these values."
    raise DataError(f"{text} {call}")


def _scale_of(matrix: Any, found: Inspection) -> ValueScale | None:
    """Scale of the first rows of a matrix. None if they cannot be read or hold only zeros."""
    if matrix.dtype.kind not in "biuf" or isinstance(matrix, CSCDataset):
        return None
    first = inspect(AnnData(to_csr(matrix[: min(_PEEK_ROWS, found.n_obs)])))
    return None if first.n_non_finite or not first.n_nonzero else first.scale
