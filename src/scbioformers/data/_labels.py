"""Labels of cells: a column of ``obs`` in which some cells may have none, for classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import DataError, category_text
from scbioformers.data._fields import obs_column

NO_LABEL = ("", "nan", "unassigned", "unknown")
"""Values that mean "no label", in any case, as missing values do. ``"nan"`` is what ``astype(str)`` makes of them."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of N cells: K categories and a code for each cell.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> obs = pd.DataFrame({"type": ["T", "B", "Unknown", None]}, index=list("wxyz"))
    >>> labels = Labels.read(ad.AnnData(np.ones((4, 1)), obs=obs), "type")
    >>> labels.categories, labels.codes.tolist()
    (('B', 'T'), [1, 0, -1, -1])
    """

    codes: NDArray[np.int64]
    """(N,) position of the label of each cell in :attr:`categories`, -1 for cells without a label."""
    categories: tuple[str, ...]
    """(K,) labels as text: in the order of a categorical column, else sorted. Each has at least one cell."""

    @classmethod
    def read(cls, adata: Any, key: str) -> Labels:
        """Read ``adata.obs[key]``. Cells with a missing value, or a text of :data:`NO_LABEL`, have no label.

        Raises
        ------
        MissingKeyError
            If there is no such column.
        DataError
            If the column holds numbers and is not categorical: they are measurements rather than classes.
        """
        column = obs_column(adata, key)
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = column.dropna().unique()
            raise DataError(
                f"adata.obs[{key!r}] holds {len(values):,} different numbers ({column.dtype}), such as "
                f"{values[:3].tolist()}, expected labels. If they name classes, convert them: "
                f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype('category')`."
            )
        codes, distinct = pd.factorize(column)
        texts = [category_text(value) for value in distinct]
        if isinstance(column.dtype, pd.CategoricalDtype):
            order = [category_text(value) for value in column.cat.categories]
        else:
            order = sorted(set(texts))
        used = set(texts)
        categories = tuple(
            dict.fromkeys(name for name in order if name in used and name.strip().lower() not in NO_LABEL)
        )
        position = {name: i for i, name in enumerate(categories)}
        of_value = np.array([*(position.get(name, -1) for name in texts), -1])  # missing values have the code -1
        return cls(of_value[codes].astype(np.int64), categories)

    @classmethod
    def none(cls, n_obs: int) -> Labels:
        """No label for any cell."""
        return cls(np.full(n_obs, -1, np.int64), ())
