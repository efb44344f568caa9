"""Genes: which genes of the data are modelled, and which columns of other data are the features of a model."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import BioformersWarning, DataError, Match, MissingKeyError, match

MIN_SHARE = 0.5  # below this share, most features of the model would not be measured
DEFAULT_MASK = "highly_variable"


def match_features(features: Sequence[str], var_names: Iterable[Any], *, min_share: float = MIN_SHARE) -> Match:
    """Find the features of a model among the genes of other data by name. The order of the genes does not matter.

    Parameters
    ----------
    features
        Names of the features of the model, in their order.
    var_names
        Gene names of the data, ``adata.var_names``.
    min_share
        Minimum share of the features that must be found.

    Returns
    -------
    Match
        ``columns`` is the column of each feature, -1 if it is not found. It is the input of :class:`AnnDataSource`.

    Raises
    ------
    DataError
        If the share of features found is below `min_share`, or if names are missing, duplicate or ambiguous.

    Warns
    -----
    BioformersWarning
        If some features are missing, or Ensembl ids match only without their version.

    Examples
    --------
    >>> match_features(["CD4", "CD8A"], ["CD8A", "MS4A1", "CD4"]).columns
    array([2, 0])
    """
    names = list(var_names)
    found = match(features, names)
    n_found = int((found.columns >= 0).sum())
    counted = f"{n_found} of the model's {len(features)} genes ({_percent(n_found, len(features))})"
    if n_found == 0 or found.share < min_share:
        raise DataError(
            f"Found {counted} among the {len(names)} genes of the data, expected at least {min_share:.0%}. {found.hint}"
        )
    if n_found < len(features):
        absent = [features[i] for i in np.flatnonzero(found.columns < 0)[:3]]
        warnings.warn(
            f"Found {counted} in the data. The others, such as {absent}, are read as absent (not measured).",
            BioformersWarning,
            stacklevel=2,
        )
    if found.stripped:
        warnings.warn(
            "Ensembl ids of the data and the model have different versions (such as `.5`). The versions are ignored.",
            BioformersWarning,
            stacklevel=2,
        )
    return found


def gene_mask(adata: Any, mask_var: str | NDArray[np.bool_] | None = DEFAULT_MASK) -> NDArray[np.bool_]:
    """Return bool (n_vars,): the genes to model.

    Parameters
    ----------
    adata
        The data.
    mask_var
        Bool column of ``adata.var``, or a bool array. None uses all genes. The default is "highly_variable", which also
        uses all genes if there is no such column.

    Raises
    ------
    MissingKeyError
        If there is no such column. The message lists the bool columns.
    DataError
        If the mask is not bool, has another length, or selects no gene.
    """
    if mask_var is None or (isinstance(mask_var, str) and mask_var == DEFAULT_MASK and mask_var not in adata.var):
        return np.ones(adata.n_vars, bool)
    name = "mask_var"
    values: Any = mask_var
    if isinstance(mask_var, str):
        name = f"adata.var[{mask_var!r}]"
        if mask_var not in adata.var:
            bool_columns = [str(key) for key in adata.var if pd.api.types.is_bool_dtype(adata.var[key])]
            near = difflib.get_close_matches(mask_var, bool_columns, 1)
            raise MissingKeyError(
                f"Did not find {name}.{f' Did you mean {near[0]!r}?' if near else ''} Bool columns: {bool_columns}."
            )
        values = adata.var[mask_var]
    if not pd.api.types.is_bool_dtype(values) or len(values) != adata.n_vars:
        raise DataError(f"Expected {adata.n_vars} bools in {name}, found {len(values)} of dtype {values.dtype}.")
    if pd.isna(values).any():
        raise DataError(f"{name} has missing values, expected True or False for every gene. Fill them first.")
    mask = np.asarray(values, dtype=bool)
    if adata.n_vars and not mask.any():
        raise DataError(f"{name} selects no gene. Run `sc.pp.highly_variable_genes` again, or pass `mask_var=None`.")
    return mask


def _percent(part: int, whole: int) -> str:
    # rounded down, so that "100 %" is shown only if no gene is missing
    return f"{np.floor(1000 * part / max(whole, 1)) / 10:.1f} %"
