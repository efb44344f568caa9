"""Phenotypes of the samples of several sources: columns of ``obs`` that have the same name, and meaning, in all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, MissingKeyError, short_list, warn
from scbioformers.data._fields import ObsField, has_column, in_modality, obs_column
from scbioformers.data._phenotypes import finite_numbers, is_numeric_column, positions, register_phenotype

logger = logging.getLogger(__name__)


def require_columns(sources: Sequence[Any], keys: Sequence[str]) -> None:
    """Check that each column is in a source, before anything else is read. A source may lack it.

    Raises
    ------
    MissingKeyError
        If no source has a column. The message names those that there are.
    """
    for key in keys:
        if not sources or any(has_column(each, key) for each in sources):
            continue
        columns = {str(name) for each in sources for name in each.obs}
        of_modalities = {
            f"{modality}:{name}" for each in sources for modality, own in _modalities(each) for name in own.obs
        }
        copies = [text for each in sources if (text := in_modality(each, key))]
        raise MissingKeyError(
            f"No source has the column obs[{key!r}] of `phenotype_keys`.{copies[0] if copies else ''} Their "
            f"columns are {short_list(sorted(columns | of_modalities))}."
        )


def _modalities(samples: Any) -> list[tuple[str, AnnData]]:
    return list(getattr(samples, "mod", {}).items())


def register_phenotypes(sources: Mapping[str, Any], keys: Sequence[str]) -> tuple[ObsField, ...]:
    """Read the categories or knots of each column over the samples of all sources, see :func:`register_phenotype`.

    They are those of one AnnData with the samples of all sources. So the order of categories is that of a categorical
    column, if it is the same in all sources, else they are sorted.

    Parameters
    ----------
    sources
        From the names of the sources to their samples: AnnData, MuData, or what has the same attributes.

    Raises
    ------
    MissingKeyError
        If no source has a column.
    DataError
        If a column holds numbers in one source and text in another, has no value in any of them, or cannot be used.

    Examples
    --------
    >>> first, second = (
    ...     AnnData(np.ones((2, 1)), obs=pd.DataFrame({"time": times}, index=["x", "y"])) for times in ([0, 4], [1, 4])
    ... )
    >>> register_phenotypes({"a": first, "b": second}, ["time"])[0].knots
    (0.0, 1.0, 4.0)
    """
    require_columns(list(sources.values()), keys)
    return tuple(_register(sources, key) for key in keys)


def _register(sources: Mapping[str, Any], key: str) -> ObsField:
    columns = {name: _values(name, samples, key) for name, samples in sources.items() if has_column(samples, key)}
    columns = {name: column for name, column in columns.items() if len(column)}
    if not columns:
        raise DataError(f"obs[{key!r}] has no value in any cell of any source. Leave it out of `phenotype_keys`.")
    _require_one_kind(columns, key)
    # categories are needed once each, numbers of all cells for their quantiles
    parts = [column if is_numeric_column(column) else column.drop_duplicates() for column in columns.values()]
    joined = pd.DataFrame({key: pd.concat(parts, ignore_index=True)})
    return register_phenotype(AnnData(obs=joined.set_axis(joined.index.astype(str))), key)


def _values(name: str, samples: Any, key: str) -> pd.Series[Any]:
    """The values of a column of a source, without missing ones."""
    try:
        column = obs_column(samples, key)
        if is_numeric_column(column):
            finite_numbers(samples, key)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return column.dropna()


def _require_one_kind(columns: Mapping[str, pd.Series[Any]], key: str) -> None:
    """Check that a column holds numbers in all sources, or in none."""
    numbers = [name for name, column in columns.items() if is_numeric_column(column)]
    texts = [name for name in columns if name not in numbers]
    if not numbers or not texts:
        return
    number, text = columns[numbers[0]].iloc[0], columns[texts[0]].iloc[0]
    converts = all(pd.to_numeric(columns[name].astype(object), errors="coerce").notna().all() for name in texts)
    source, kind = (texts[0], "float") if converts else (numbers[0], "str")
    raise DataError(
        f"The phenotype obs[{key!r}] must mean the same in all sources, found numbers in {short_list(numbers)}, such "
        f"as {number:g}, and categories in {short_list(texts)}, such as {text!r}. Convert it, for {source!r} "
        f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype({kind})`, or give it another name there."
    )


def phenotype_codes(fields: Sequence[ObsField], sources: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Positions of the phenotypes in the samples of each source, float32 (n, P). NaN: not known, which is logged."""
    codes = {}
    for name, samples in sources.items():
        own = codes[name] = np.full((len(samples.obs), len(fields)), np.nan, np.float32)
        for i, field in enumerate(fields):
            if not has_column(samples, field.name):
                logger.warning(
                    "%s has no column obs[%r]. This phenotype of its %d cells is not known.",
                    name, field.name, len(own),
                )  # fmt: skip
                continue
            if field.knots:
                own[:, i] = positions(field, finite_numbers(samples, field.name))
            else:
                found = field.transfer(samples, allow_missing=True)
                own[:, i] = np.where(found < 0, np.nan, found)
            if n := int(np.isnan(own[:, i]).sum()):
                logger.warning(
                    "%s: the phenotype obs[%r] is not known in %d of %d cells, which have no value.",
                    name, field.name, n, len(own),
                )  # fmt: skip
    return codes


def warn_of_sources(fields: Sequence[ObsField], codes: Mapping[str, NDArray[np.float32]]) -> None:
    """Warn of phenotypes that name the source: each source has one value of it."""
    for i, field in enumerate(fields):
        values = {name: np.unique(own[~np.isnan(own[:, i]), i]) for name, own in codes.items()}
        known = {name: float(each[0]) for name, each in values.items() if each.size == 1}
        if any(each.size > 1 for each in values.values()) or len(set(known.values())) < 2:
            continue
        warn(
            f"The source fixes the phenotype obs[{field.name!r}]: all cells of a source have the same value. Its "
            "effect cannot be told from other differences between the sources, such as their technique. "
            "Leave it out of `phenotype_keys`, or read results for this phenotype as differences between sources."
        )
