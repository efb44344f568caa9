"""Phenotypes of cells: columns of ``obs`` with categories or numbers, as positions in the tables of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, category_text, short_list, warn
from scbioformers.data._fields import ObsField, batch_codes, has_column, obs_column, obs_numbers

logger = logging.getLogger(__name__)

MAX_KNOTS = 10
FAR = 2.0  # spans of the training values beyond which a number is probably in another unit


def register_phenotype(adata: Any, key: str) -> ObsField:
    """Read the categories or, of a numeric column, the knots of a phenotype. Missing values are accepted.

    The knots of a number are its values if these are at most 10, else 10 quantiles from the lowest to the highest.

    Raises
    ------
    MissingKeyError
        If there is no such column.
    DataError
        If all values are missing, if one is infinite, or if two categories have the same text.

    Warns
    -----
    BioformersWarning
        If all cells have the same value, or if numbers are stored as text.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> obs = pd.DataFrame({"time": [0.0, 4.0, np.nan, 1.0]}, index=list("wxyz"))
    >>> register_phenotype(ad.AnnData(np.ones((4, 1)), obs=obs), "time").knots
    (0.0, 1.0, 4.0)
    """
    column = obs_column(adata, key, "Pass names of columns of adata.obs as `phenotype_keys`.")
    if not is_numeric_column(column):
        field = ObsField.register(adata, key, allow_missing=True)
        numbers = pd.to_numeric(pd.Series(field.categories), errors="coerce")
        if len(numbers) > 1 and numbers.notna().all():
            warn(
                f"adata.obs[{key!r}] holds numbers as text, such as {field.categories[0]!r}, which are taken as "
                f"categories. For a number, call `adata.obs[{key!r}] = adata.obs[{key!r}].astype(float)` first."
            )
    else:
        values = finite_numbers(adata, key)
        values = values[~np.isnan(values)]
        if not values.size:
            raise DataError(f"adata.obs[{key!r}] has no value in any cell. Pass another column.")
        knots = np.unique(values)
        if len(knots) > MAX_KNOTS:
            knots = np.unique(np.quantile(values, np.linspace(0, 1, MAX_KNOTS)))
        field = ObsField(key, tuple(category_text(float(knot)) for knot in knots), tuple(knots.tolist()))
    if len(field.categories) == 1:
        warn(
            f"adata.obs[{key!r}] is {field.categories[0]!r} in all cells that have a value. Such a phenotype says "
            "nothing: leave it out of `phenotype_keys`."
        )
    return field


def positions(field: ObsField, values: Any) -> NDArray[np.float32]:
    """Positions of values among the categories or knots of a phenotype, float32 (n,). NaN: missing or unseen.

    Between two knots, and beyond the last one, they are linear in the value.

    Examples
    --------
    >>> positions(ObsField("time", ("0", "1", "4"), (0.0, 1.0, 4.0)), [0.5, 4.0, 7.0]).tolist()
    [0.5, 2.0, 3.0]
    """
    column = pd.Series(values, dtype=object)
    if not field.knots:
        texts = column.map(category_text, na_action="ignore")
        codes = pd.Index(field.categories, dtype=object).get_indexer(pd.Index(texts, dtype=object))
        return np.where(codes < 0, np.nan, codes).astype(np.float32)
    numbers, knots = column.to_numpy(np.float64, na_value=np.nan), np.array(field.knots)
    if len(knots) == 1:
        return np.where(np.isnan(numbers), np.nan, 0.0).astype(np.float32)
    low = np.clip(np.searchsorted(knots, numbers, side="right") - 1, 0, len(knots) - 2)
    return (low + (numbers - knots[low]) / (knots[low + 1] - knots[low])).astype(np.float32)


def field_codes(
    fields: Sequence[ObsField],
    adata: Any,
    *,
    batch: ObsField | None = None,
    phenotype: Mapping[str, Any] | None = None,
) -> NDArray[np.float32]:
    """Codes of the batch and positions of the phenotypes, float32 (n_obs, n_fields), the input of ``AnnDataSource``.

    A phenotype that is missing or unseen is NaN, a batch -1, which is logged.

    Parameters
    ----------
    batch
        Which of the fields is the technical batch.
    phenotype
        Values of phenotypes that are set in all cells, instead of those of ``adata.obs``. None is "not known".

    Raises
    ------
    ConfigError
        If ``phenotype`` has a phenotype or a category that the model does not have.
    """
    given, codes = check_phenotype(fields, batch, phenotype), np.zeros((adata.n_obs, len(fields)), np.float32)
    for i, field in enumerate(fields):
        if field == batch:
            codes[:, i] = batch_codes(field, adata)
        elif field.name in given:
            codes[:, i] = given[field.name]
        else:
            codes[:, i] = _of_cells(field, adata)
    return codes


def check_phenotype_values(phenotype: Mapping[str, Any] | None) -> None:
    """Check that the argument ``phenotype`` holds categories, numbers or None. Nothing else is looked at."""
    for name, value in (phenotype or {}).items():
        if not isinstance(name, str) or not (value is None or isinstance(value, (str, bool)) or _is_number(value)):
            raise ConfigError(
                f"`phenotype` must have names with categories, numbers or None, found {name!r}: {value!r}."
            )


def check_phenotype(
    fields: Sequence[ObsField], batch: ObsField | None, phenotype: Mapping[str, Any] | None
) -> dict[str, float]:
    """Positions of the values of ``phenotype``. NaN stands for "not known"."""
    phenotypes, found = {field.name: field for field in fields if field != batch}, {}
    for name, value in (phenotype or {}).items():
        if name not in phenotypes:
            known = f"Its phenotypes are {sorted(phenotypes)}" if phenotypes else "It has none"
            raise ConfigError(
                f"`phenotype` has {name!r}, which is no phenotype of the model. {known}. Phenotypes are named in "
                f"`bf.tl.fit(..., phenotype_keys=[...])`."
            )
        field = phenotypes[name]
        if field.knots and value is not None and not _is_number(value):
            raise ConfigError(f"`phenotype[{name!r}]` must be a number, found {value!r}.")
        found[name] = float(positions(field, [value])[0])
        if not field.knots and value is not None and np.isnan(found[name]):
            raise ConfigError(
                f"`phenotype[{name!r}]` is {value!r}, which the model has not seen. It knows "
                f"{short_list(field.categories)}."
            )
        if field.knots and value is not None:
            _warn_of_range(field, np.array([value], np.float64))
    return found


def _of_cells(field: ObsField, adata: Any) -> NDArray[np.float32]:
    """Positions of a phenotype in the cells of ``adata``."""
    if not has_column(adata, field.name):
        logger.warning("adata.obs has no column %r, a phenotype of the model. It is read as not known.", field.name)
        return np.full(adata.n_obs, np.nan, np.float32)
    column = obs_column(adata, field.name)
    if field.knots:
        numbers = finite_numbers(adata, field.name)
        _warn_of_range(field, numbers)
        found = positions(field, numbers)
    else:
        found = positions(field, column.astype(object))
    n_missing, unknown = int(column.isna().sum()), np.isnan(found)
    if unknown.any():
        unseen = [] if field.knots else field.unseen(adata)
        logger.warning(
            "The phenotype adata.obs[%r] is read as not known in %d of %d cells: %d have no value and %d have one that "
            "the model has not seen%s.",
            field.name,
            unknown.sum(),
            len(found),
            n_missing,
            unknown.sum() - n_missing,
            f": {short_list(unseen)}" if unseen else "",
        )
    return found


def finite_numbers(adata: Any, key: str) -> NDArray[np.float64]:
    """A numeric column of ``adata.obs``, float64 (n_obs,), NaN for missing values. An infinite value is an error."""
    numbers = obs_numbers(adata, key)
    if n := int(np.isinf(numbers).sum()):
        raise DataError(
            f"adata.obs[{key!r}] is infinite in {n} of {len(numbers)} cells. Set these values to NaN, which is read as "
            f"not known: `adata.obs[{key!r}] = adata.obs[{key!r}].replace([np.inf, -np.inf], np.nan)`."
        )
    return numbers


def _warn_of_range(field: ObsField, numbers: NDArray[np.float64]) -> None:
    """Warn of numbers beyond those of the training data, and more clearly of those that are far beyond."""
    low, high = field.knots[0], field.knots[-1]
    beyond = np.maximum(numbers - high, low - numbers)
    if not (beyond > 0).any():
        return
    most = float(numbers[np.nanargmax(beyond)])
    far = np.nanmax(beyond) > FAR * max(high - low, 1e-9)
    advice = (
        "Is this the same unit? Convert the numbers, or remove these cells."
        if far
        else "What the model learned is extrapolated."
    )
    warn(
        f"The phenotype {field.name!r} has values beyond those that the model was fitted to, {low:g} to {high:g}, "
        f"such as {most:g}. {advice}"
    )


def is_numeric_column(column: pd.Series[Any]) -> bool:
    """Whether a phenotype is a number, rather than a category."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
