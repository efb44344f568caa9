"""External tokens of features: categories in a column of ``var``, such as transcription factor or not (Eq. 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import DataError, MissingKeyError, ModelFormatError, category_text, short_list, warn

if TYPE_CHECKING:
    from scbioformers.data._data_sets import DataSet

MAX_NUMBERS = 20  # distinct numbers in a column; more are a measurement and not categories


@dataclass(frozen=True, eq=False)
class ExternalTokens:
    """External tokens of M features, which a model was fitted with.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> var = pd.DataFrame({"kind": ["factor", None, "receptor"]}, index=["STAT1", "ACTB", "CD4"])
    >>> external = ExternalTokens.register(ad.AnnData(np.ones((1, 3)), var=var), "kind", np.arange(3))
    >>> external.categories, external.codes
    (('kind=factor', 'kind=receptor'), array([1, 0, 2]))
    """

    categories: tuple[str, ...]
    """The tokens, as ``"column=category"``."""
    codes: NDArray[np.int64]
    """int64 (M,), token of each feature: position among the categories plus 1. 0 means none."""

    @classmethod
    def register(cls, adata: Any, key: str, columns: NDArray[np.int64]) -> ExternalTokens:
        """Read the categories of the features at ``columns`` (M,) from ``adata.var[key]``.

        Raises
        ------
        MissingKeyError
            If there is no such column.
        DataError
            If no feature has a category, or the column has numbers or names instead of categories.

        Warns
        -----
        BioformersWarning
            If all features have the same category.
        """
        if key not in adata.var:
            raise MissingKeyError(
                f"Did not find adata.var[{key!r}]. Pass the name of a column of adata.var as `external_key=`. "
                f"Available: {short_list([str(name) for name in adata.var])}."
            )
        if adata.var.columns.tolist().count(key) > 1:
            raise DataError(f"adata.var has several columns named {key!r}, expected one. Rename them.")
        return cls._of_column(key, adata.var[key].iloc[columns])

    @classmethod
    def of_data_sets(cls, data_sets: Sequence[DataSet], key: str, features: Sequence[str]) -> ExternalTokens:
        """Those of ``features``, from the first of the data sets that has a category for them.

        Raises
        ------
        MissingKeyError
            If no data set has the column.
        DataError
            As in :meth:`register`.
        """
        having = [each for each in data_sets if key in each.adata.var]
        if not having:
            columns = sorted({str(name) for each in data_sets for name in each.adata.var})
            raise MissingKeyError(
                f"No data set has the column var[{key!r}] of `external_key`. Their columns are {short_list(columns)}."
            )
        found = pd.Series(None, index=range(len(features)), dtype=object)
        for each in having:
            at = each.columns(features)
            own = each.adata.var[key].astype(object).reset_index(drop=True).reindex(at).reset_index(drop=True)
            found = found.where(found.notna(), own)
        return cls._of_column(key, pd.Series(found.tolist()))  # which finds the type of the values anew

    @classmethod
    def _of_column(cls, key: str, column: pd.Series[Any]) -> ExternalTokens:
        """The categories in a column of the features."""
        codes, values = pd.factorize(column, sort=False)
        if not len(values):
            raise DataError(
                f"adata.var[{key!r}] has no value for any of the {len(column)} modelled features. Pass another "
                "column, or leave out `external_key`."
            )
        _require_categories(key, column.dtype, values, int((codes >= 0).sum()))
        if len(values) == 1 and (codes >= 0).all():
            warn(
                f"adata.var[{key!r}] is {values[0]!r} for all {len(column)} modelled features, so the external token "
                "cannot say anything. Leave out `external_key`, or set the others to NaN."
            )
        texts = [f"{key}={category_text(value)}" for value in values]
        categories = sorted(set(texts))
        position = np.array([categories.index(text) + 1 for text in texts] + [0])  # missing values have the code -1
        return cls(tuple(categories), position[codes])

    @classmethod
    def join(cls, parts: Sequence[tuple[ExternalTokens | None, int]]) -> ExternalTokens | None:
        """The tokens of several modalities, each with its number of features. Equal names are the same token."""
        categories = tuple(sorted({name for part, _ in parts if part is not None for name in part.categories}))
        if not categories:
            return None
        codes = [np.zeros(n, np.int64) if part is None else part.within(categories) for part, n in parts]
        return cls(categories, np.concatenate(codes))

    def within(self, categories: Sequence[str]) -> NDArray[np.int64]:
        """(M,), the codes of the features among other ``categories``. 0 for those that are not among them."""
        position = {name: i for i, name in enumerate(categories, start=1)}
        return np.array([0, *(position.get(name, 0) for name in self.categories)])[self.codes]

    def take(self, columns: slice) -> ExternalTokens:
        """The tokens of some of the features."""
        return ExternalTokens(self.categories, self.codes[columns])

    def extend(self, added: ExternalTokens | None, n_added: int) -> ExternalTokens:
        """The tokens with those of ``n_added`` new features. A category that is not known is read as none.

        Warns
        -----
        BioformersWarning
            If there is such a category.
        """
        if added is None:
            return ExternalTokens(self.categories, np.append(self.codes, np.zeros(n_added, np.int64)))
        if unseen := sorted(set(added.categories) - set(self.categories)):
            warn(
                f"The model has not seen the external tokens {short_list(unseen)}. New features that have them get no "
                f"external token. It knows {short_list(self.categories)}."
            )
        return ExternalTokens(self.categories, np.append(self.codes, added.within(self.categories)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types. The codes are stored with the networks."""
        return {"categories": list(self.categories)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], codes: NDArray[np.floating]) -> ExternalTokens:
        """Inverse of :meth:`to_dict`. Raises :class:`~scbioformers.core.ModelFormatError` for any other input."""
        names = stored.get("categories")
        if set(stored) != {"categories"} or not isinstance(names, list) or len(set(map(str, names))) < len(names):
            raise ModelFormatError(f"Stored external tokens have a list of different 'categories', found {stored}.")
        if not np.isin(codes, np.arange(len(names) + 1)).all():
            raise ModelFormatError(f"Codes of external tokens must be from 0 to {len(names)}.")
        return cls(tuple(map(str, names)), codes.astype(np.int64))


def _require_categories(key: str, dtype: Any, values: Any, n_features: int) -> None:
    """Check that the distinct ``values`` of ``n_features`` features are categories."""
    advice = f"such as `adata.var['{key}_class'] = pd.cut(adata.var[{key!r}], 4).astype(str)`"
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        numbers = np.asarray(values, np.float64)
        if len(numbers) > MAX_NUMBERS or (numbers != np.rint(numbers)).any():
            raise DataError(
                f"adata.var[{key!r}] has {len(numbers)} different numbers, such as {numbers[0]:g}, expected "
                f"categories. Divide them into classes, {advice}."
            )
    elif len(values) == n_features > 2:
        raise DataError(
            f"adata.var[{key!r}] has another value for each of {n_features} features, such as {values[0]!r}, expected "
            "categories that features share. Pass another column."
        )
