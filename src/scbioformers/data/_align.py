"""Genes: which of the data are modelled, and where the features of a model are in other data."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import BioformersWarning, DataError, Match, MissingKeyError, match

MIN_SHARE = 0.5  # below this share of a model's features, its input would be mostly zeros that mean "absent"
DEFAULT_MASK = "highly_variable"


def match_features(features: Sequence[str], var_names: Iterable[Any], *, min_share: float = MIN_SHARE) -> Match:
    """Find the features of a model among the genes of other data, by name and in any order.

    Parameters
    ----------
    features
        Plain names of the model's features, in its order.
    var_names
        Gene names of the data, ``adata.var_names``.
    min_share
        Smallest share of the features that has to be there.

    Returns
    -------
    Match
        ``columns`` is what :class:`AnnDataSource` takes as `features`: the column of each feature, -1 where absent.

    Raises
    ------
    DataError
        If fewer features than `min_share` are there, or names are missing, duplicate or ambiguous.

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
            f"Found {counted} in the data; the others, such as {absent}, are read as absent.",
            BioformersWarning,
            stacklevel=2,
        )
    if found.stripped:
        warnings.warn(
            "Ensembl ids of the data and the model have different versions (such as `.5`); matched without them.",
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
        Column of ``adata.var`` with bools, or the bools themselves. None takes all genes, and so does the default,
        "highly_variable", where there is no such column.

    Raises
    ------
    MissingKeyError
        If there is no such column; the message lists those that are bool.
    DataError
        If it is not bool, has another length, or selects no gene.
    """
    if mask_var is None or (isinstance(mask_var, str) and mask_var == DEFAULT_MASK and mask_var not in adata.var):
        return np.ones(adata.n_vars, bool)
    name = "mask_var"
    values: Any = mask_var
    if isinstance(mask_var, str):
        name = f"adata.var[{mask_var!r}]"
        if mask_var not in adata.var:
            there = [str(key) for key in adata.var if pd.api.types.is_bool_dtype(adata.var[key])]
            near = difflib.get_close_matches(mask_var, there, 1)
            raise MissingKeyError(
                f"Did not find {name}.{f' Did you mean {near[0]!r}?' if near else ''} There: {there}."
            )
        values = adata.var[mask_var]
    if not pd.api.types.is_bool_dtype(values) or len(values) != adata.n_vars:
        raise DataError(f"Expected {adata.n_vars} bools in {name}, found {len(values)} of dtype {values.dtype}.")
    if pd.isna(values).any():
        raise DataError(f"{name} has missing values, expected True or False for every gene.")
    mask = np.asarray(values, dtype=bool)
    if adata.n_vars and not mask.any():
        raise DataError(f"{name} selects no gene. Run `sc.pp.highly_variable_genes` again, or pass `mask_var=None`.")
    return mask


def _percent(part: int, whole: int) -> str:
    # rounded down: "100 %" would read as if none were missing
    return f"{np.floor(1000 * part / max(whole, 1)) / 10:.1f} %"
