"""Registered obs fields: columns whose categories are stored in a model, so that other data get the same codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import DataError, MissingKeyError, ModelFormatError, category_text, short_list, warn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObsField:
    """A column of ``adata.obs`` that a model uses: the batch, or a phenotype, which may be a number.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> adata = ad.AnnData(np.ones((3, 1)), obs=pd.DataFrame({"batch": ["b", "a", "b"]}, index=list("xyz")))
    >>> field = ObsField.register(adata, "batch")
    >>> field.categories, field.transfer(adata)
    (('a', 'b'), array([1, 0, 1], dtype=int32))
    """

    name: str
    """Name of the column."""
    categories: tuple[str, ...]
    """Categories in the training data, as text. The code of a category is its position."""
    knots: tuple[float, ...] = ()
    """Of a number: the values, in ascending order, between which what the model learns is interpolated. The categories
    are these values as text."""

    @classmethod
    def register(cls, adata: Any, key: str, *, allow_missing: bool = False) -> ObsField:
        """Read the categories of ``adata.obs[key]``. They are sorted unless the column is categorical.

        Parameters
        ----------
        adata
            AnnData or MuData.
        key
            Name of the column. Categories without cells are not used.
        allow_missing
            Whether cells without a value are accepted, such as cells whose label is predicted later.

        Raises
        ------
        MissingKeyError
            If there is no such column.
        DataError
            If all values are missing, if some are missing without ``allow_missing``, or if two categories have the same
            text.

        Warns
        -----
        BioformersWarning
            If the column is numeric, because each of its values becomes a category.
        """
        column = obs_column(adata, key, "Pass the name of a column of adata.obs.")
        texts, n_missing = texts_of(column), int(column.isna().sum())
        if n_missing and not allow_missing:
            raise DataError(
                f"adata.obs[{key!r}] has no value in {n_missing} of {len(column)} cells, expected a category for each. "
                f"Remove these cells, `adata = adata[adata.obs[{key!r}].notna()].copy()`, or set a category."
            )
        if n_missing == len(column):
            raise DataError(f"adata.obs[{key!r}] has no value in any cell. Pass another column.")
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if numeric:
            warn(f"adata.obs[{key!r}] is numeric: each of its {texts.nunique()} values is taken as a category.")
        if isinstance(column.dtype, pd.CategoricalDtype):
            values = list(column.cat.remove_unused_categories().cat.categories)
        elif numeric:
            values = sorted(column.dropna().unique())
        else:
            values = sorted(column.dropna().unique(), key=category_text)
        categories = tuple(category_text(value) for value in values)
        if len(set(categories)) < len(categories):
            raise DataError(
                f"adata.obs[{key!r}] has categories of different types with the same text: {values}. "
                f"Convert them, `adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)`."
            )
        return cls(key, categories)

    def transfer(self, adata: Any, *, allow_missing: bool = False) -> NDArray[np.int32]:
        """Return the code of each cell of `adata`, int32 (n_obs,).

        Parameters
        ----------
        adata
            AnnData or MuData with the column. Its dtype may differ from that in the training data.
        allow_missing
            Whether cells without a value, or with a category that is not in the training data, get the code -1.

        Raises
        ------
        MissingKeyError
            If there is no such column.
        DataError
            If values are missing or categories are unknown, without ``allow_missing``.
        """
        column = obs_column(adata, self.name, "The model was trained with this column; add it to adata.obs.")
        texts = texts_of(column)
        codes = pd.Index(self.categories, dtype=object).get_indexer(pd.Index(texts, dtype=object)).astype(np.int32)
        if allow_missing or not (codes < 0).any():
            return codes
        n_missing = int(column.isna().sum())
        if n_missing:
            raise DataError(
                f"adata.obs[{self.name!r}] has no value in {n_missing} of {len(column)} cells, expected a category for "
                "each. Set the missing values, or remove these cells."
            )
        unseen = self.unseen(adata)
        raise DataError(
            f"adata.obs[{self.name!r}] has {len(unseen)} categories that the model has not seen: {short_list(unseen)}. "
            f"It knows {short_list(self.categories)}. Rename or remove these cells, or fit the model again."
        )

    def unseen(self, adata: Any) -> list[str]:
        """Values of the column in ``adata.obs`` that are not among the categories, without missing values."""
        if self.knots:
            return []  # every number has a position
        column = obs_column(adata, self.name, "The model was trained with this column; add it to adata.obs.")
        return sorted(set(texts_of(column).dropna()) - set(self.categories))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        stored: dict[str, Any] = {"name": self.name, "categories": list(self.categories)}
        return stored | ({"knots": list(self.knots)} if self.knots else {})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ObsField:
        """Inverse of :meth:`to_dict`. Raises :class:`~scbioformers.core.ModelFormatError` for any other input."""
        name, categories, knots = stored.get("name"), stored.get("categories"), stored.get("knots", [])
        known = {"name", "categories", "knots"} if knots else {"name", "categories"}
        if set(stored) != known or not isinstance(name, str) or not isinstance(categories, list):
            raise ModelFormatError(
                f"A stored obs field must have a 'name' and a list of 'categories', found {dict(stored)}."
            )
        if not all(isinstance(category, str) for category in categories) or len(set(categories)) < len(categories):
            raise ModelFormatError(
                f"Categories of the obs field {name!r} must be different strings, found {categories}."
            )
        if knots and not (
            isinstance(knots, list)
            and len(knots) == len(categories)
            and all(isinstance(knot, float) for knot in knots)
            and np.isfinite(knots).all()
            and (np.diff(knots) > 0).all()
        ):
            raise ModelFormatError(f"Knots of the obs field {name!r} must be ascending numbers, found {knots}.")
        return cls(name, tuple(categories), tuple(knots))


def batch_codes(batch: ObsField, adata: Any) -> NDArray[np.int32]:
    """Codes of the technical batch, int32 (n_obs,). -1, the average batch, where it is not known, which is logged."""
    if batch.name not in adata.obs:
        logger.warning(
            "adata.obs has no column %r, the batch of the model. All cells are read as cells of the average batch.",
            batch.name,
        )
        return np.full(adata.n_obs, -1, np.int32)
    codes = batch.transfer(adata, allow_missing=True)
    unknown = codes < 0
    if unknown.any():
        texts = texts_of(adata.obs[batch.name])[unknown]
        unseen = batch.unseen(adata)
        logger.warning(
            "%d of %d cells are read as cells of the average batch. In adata.obs[%r], %d of them have no value and %d "
            "have one that the model has not seen%s.",
            unknown.sum(),
            len(codes),
            batch.name,
            texts.isna().sum(),
            texts.notna().sum(),
            f": {short_list(unseen)}" if unseen else "",
        )
    return codes


def obs_column(adata: Any, key: str, hint: str = "Pass the name of a column of adata.obs.") -> pd.Series[Any]:
    """Return ``adata.obs[key]``. In a MuData, ``"rna:age"`` is the column ``age`` of the modality ``rna``.

    Raises
    ------
    MissingKeyError
        If there is no such column. The message ends with ``hint`` and the names of the columns.
    DataError
        If several columns have this name, or if the columns are read lazily.
    """
    if not has_column(adata, key):
        raise MissingKeyError(
            f"Did not find adata.obs[{key!r}].{in_modality(adata, key)} {hint} Available: "
            f"{short_list([str(k) for k in adata.obs])}."
        )
    if key not in adata.obs:
        modality, _, own = key.partition(":")
        return obs_column(adata.mod[modality], own, hint).reindex(adata.obs_names)
    column: Any = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        raise DataError(
            f"adata.obs has {column.shape[1]} columns named {key!r}, expected one. Keep the first of each name with "
            "`adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]`."
        )
    if not isinstance(column, pd.Series):
        raise DataError(
            f"adata.obs[{key!r}] is a {type(column).__name__}, expected a column of a data frame. If the data are "
            "those of `ad.experimental.read_lazy`, call `adata.obs, adata.var = adata.obs.to_memory(), "
            "adata.var.to_memory()`. The matrix stays on disk."
        )
    return column


def has_column(adata: Any, key: str) -> bool:
    """Whether ``adata.obs`` has a column, or for ``"rna:age"`` that of the modality ``rna`` of a MuData."""
    modality, _, own = key.partition(":")
    return key in adata.obs or own in getattr(getattr(adata, "mod", {}).get(modality), "obs", ())


def in_modality(adata: Any, key: str) -> str:
    """Advice to copy a column of ``obs`` from a modality of a MuData that has it, to the MuData. Else empty."""
    own = [name for name, part in getattr(adata, "mod", {}).items() if key in part.obs]
    return f" Copy it: `mdata.obs[{key!r}] = mdata[{own[0]!r}].obs[{key!r}]`." if own else ""


def obs_numbers(adata: Any, key: str) -> NDArray[np.float64]:
    """Return ``adata.obs[key]`` as float64 (n_obs,), NaN for missing values.

    Raises
    ------
    MissingKeyError, DataError
        As in :func:`obs_column`, and if a value is not a number.
    """
    column = obs_column(adata, key)
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = column[np.isnan(numbers) & column.notna().to_numpy()]
    if len(wrong):
        raise DataError(
            f"adata.obs[{key!r}] must hold numbers, found {wrong.iloc[0]!r} in cell {str(wrong.index[0])!r}. Convert "
            "the column to numbers, all in one unit."
        )
    return numbers


def texts_of(column: pd.Series[Any]) -> pd.Series[Any]:
    """Values as text (object dtype), and None for missing values. Each distinct value is converted once."""
    codes, values = pd.factorize(column)
    texts = np.array([*(category_text(value) for value in values), None], dtype=object)
    return pd.Series(texts[codes], index=column.index, dtype=object)  # missing values have the code -1: the last text
