"""Genes: which genes of the data are modelled, and which columns of other data are the features of a model."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scbioformers.core import DataError, GeneIndex, Match, MissingKeyError, match, plain_ensembl, warn
from scbioformers.data._feature_map import FeatureMap, NameMap
from scbioformers.data._gene_names import best_measured, column_of_names, gene_names

MIN_SHARE = 0.2  # of the depth of the model's features; below it, a cell is read from too few of its counts
DEFAULT_MASK = "highly_variable"


def match_genes(
    features: Sequence[str],
    adata: Any,
    gene_symbols: str | None = None,
    n_cells: Sequence[int] | NDArray[np.int64] | None = None,
    depth_share: NDArray[np.floating] | None = None,
    *,
    feature_map: FeatureMap | None = None,
    feature_share: NDArray[np.floating] | None = None,
) -> Match:
    """Find the features of a model among the genes of ``adata``, by ``var_names`` or by a column of ``var``.

    Parameters
    ----------
    features
        Names of the features of the model, in their order.
    adata
        The data.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. None uses ``adata.var_names``.
    n_cells
        (n_vars,), number of cells that express each gene. Of genes with the same name in the column, the one that most
        cells express is matched. Only required with ``gene_symbols`` and ``feature_map``.
    depth_share
        See :func:`match_features`.
    feature_map
        From the names of the data to those of the model.
    feature_share
        (n_features,) share of the training cells that express each feature. If the map has several names in the model
        for a gene, the one that most training cells express is matched.

    Raises
    ------
    MissingKeyError
        If there is no such column.
    DataError, BioformersWarning
        As in :func:`match_features`. The error names a column of ``adata.var`` that has the names of the model. Also if
        no name of the map is in the data, or none in the model.
    ConfigError
        If ``feature_map`` is empty, or its names are not strings.
    """
    found = find_genes(features, adata, gene_symbols, n_cells, feature_map=feature_map, feature_share=feature_share)
    _require_depth(features, gene_names(adata, gene_symbols).tolist(), found, depth_share, adata.var, gene_symbols)
    return found


def find_genes(
    features: Sequence[str],
    adata: Any,
    gene_symbols: str | None = None,
    n_cells: Sequence[int] | NDArray[np.int64] | None = None,
    *,
    feature_map: FeatureMap | None = None,
    feature_share: NDArray[np.floating] | None = None,
) -> Match:
    """Match genes as :func:`match_genes` does, but do not check whether they are enough."""
    n_cells = np.zeros(adata.n_vars, np.int64) if n_cells is None else n_cells
    if feature_map is None:
        names = gene_names(adata, gene_symbols)
        kept = np.arange(len(names))
        if gene_symbols is not None:
            kept = np.flatnonzero(best_measured(names, n_cells, gene_symbols))
        found = match(features, names[kept].tolist())
        return replace(found, columns=np.where(found.columns >= 0, kept[found.columns], -1))
    name_map = NameMap(feature_map, adata, gene_symbols)
    matched = name_map.match(features, n_cells, feature_share)
    found = match(features, matched.names)
    absent = found.columns < 0
    columns = np.where(absent, -1, matched.columns[found.columns])
    return replace(found, columns=columns, names=tuple(name_map.spell(features, absent, found.names)))


def matching_column(
    features: Sequence[str], adata: Any, *columns: str | None, feature_map: FeatureMap | None = None
) -> str | None:
    """The column of ``adata.var`` with the most names of the features, None for ``var_names``. The first of a tie.

    Parameters
    ----------
    features
        Names of the features of the model.
    adata
        The data.
    columns
        Columns to compare, such as the argument of the call and that of the fit. ``var_names`` are always compared.
    feature_map
        From the names of the data to those of the model.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> var = pd.DataFrame({"symbol": ["CD4", "MS4A1"]}, index=["ENSG00000010610", "ENSG00000156738"])
    >>> matching_column(["CD4"], ad.AnnData(np.ones((1, 2)), var=var), "symbol")
    'symbol'
    """
    candidates = list(dict.fromkeys([*columns, None]))
    if len(candidates) == 1:
        return None
    return candidates[int(np.argmax([_n_found(features, adata, column, feature_map) for column in candidates]))]


def _n_found(features: Sequence[str], adata: Any, column: str | None, feature_map: FeatureMap | None) -> int:
    """Number of the features that are genes of the data by this column, -1 if the map has none of its names."""
    if feature_map is None:
        return int((GeneIndex(gene_names(adata, column).tolist()).positions(features) >= 0).sum())
    try:
        return NameMap(feature_map, adata, column).n_found(features)
    except DataError:
        return -1


def match_features(
    features: Sequence[str],
    var_names: Iterable[Any],
    depth_share: NDArray[np.floating] | None = None,
) -> Match:
    """Find the features of a model among the genes of other data by name. The order of the genes does not matter.

    Parameters
    ----------
    features
        Names of the features of the model, in their order.
    var_names
        Gene names of the data, ``adata.var_names``.
    depth_share
        (n_features,) share of the depth that each feature had in training. By default all features have the same share.
        The features that are found must have at least 20 % of the depth of all features of the model.

    Returns
    -------
    Match
        ``columns`` is the column of each feature, -1 if it is not found. It is the input of :class:`AnnDataSource`.

    Raises
    ------
    DataError
        If too few features are found, or if names are missing, duplicate or ambiguous.

    Warns
    -----
    BioformersWarning
        If some features are missing, or Ensembl ids match only without their version.

    Examples
    --------
    >>> match_features(["CD4", "CD8A"], ["CD8A", "MS4A1", "CD4"]).columns
    array([2, 0])
    """
    names = [str(name) for name in var_names]
    found = match(features, names)
    _require_depth(features, names, found, depth_share)
    return found


def found_depth(found: Match, depth_share: NDArray[np.floating] | None = None) -> float:
    """Share of the depth of the model's features that the features in the data had in training."""
    shares = np.ones(len(found.columns)) if depth_share is None else depth_share.astype(np.float64)
    return float(shares[found.columns >= 0].sum() / shares.sum())


def absent_features(found: Match, depth_share: NDArray[np.floating] | None = None) -> list[int]:
    """Positions of the features that are not in the data, those with the most counts in training first."""
    shares = np.ones(len(found.columns)) if depth_share is None else depth_share
    return sorted(np.flatnonzero(found.columns < 0).tolist(), key=lambda i: -shares[i])


def _require_depth(
    features: Sequence[str],
    names: Sequence[str],
    found: Match,
    depth_share: NDArray[np.floating] | None,
    var: pd.DataFrame | None = None,
    gene_symbols: str | None = None,
) -> None:
    """Raise an error if the data have too few of the features, or warn of those that are absent.

    ``names`` are those of all genes of the data, in ``var_names`` or in the column ``gene_symbols``.
    """
    present, share = found.columns >= 0, found_depth(found, depth_share)
    counted = (
        f"Found {present.sum()} of the model's {len(features)} genes ({_percent(present.mean())}) in the data. In the "
        f"training data they have {_percent(share)} of the counts of the model's genes"
    )
    absent = [features[i] for i in absent_features(found, depth_share)[:3]]
    if not present.any() or share < MIN_SHARE:
        others = [names[i] for i in sorted(set(range(len(names))) - set(found.columns.tolist()))[:3]]
        hint = found.hint or _case_hint(features, names, int(present.sum()), gene_symbols)
        hint = hint or f"Only the model has {absent}. " + (f"Only the data has {others}." if others else "")
        if var is not None:
            hint = _column_hint(features, var) or hint
        raise DataError(f"{counted}, expected at least {MIN_SHARE:.0%}. {hint.strip()}")
    if not present.all():
        warn(f"{counted}. The others, such as {absent}, are read as absent (not measured).")
    if found.stripped:
        warn("Ensembl ids of the data and the model have different versions (such as `.5`). The versions are ignored.")


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
    elif isinstance(values, pd.Series) and not isinstance(values.index, pd.RangeIndex):
        if set(values.index) != set(adata.var_names) or not values.index.is_unique:
            other = [name for name in values.index if name not in adata.var_names][:3]
            raise DataError(f"The index of `mask_var` differs from adata.var_names, for instance {other}.")
        values = values.reindex(adata.var_names)
    values = values if hasattr(values, "dtype") else np.asarray(values)
    if not pd.api.types.is_bool_dtype(values) or len(values) != adata.n_vars:
        raise DataError(f"Expected {adata.n_vars} bools in {name}, found {len(values)} of dtype {values.dtype}.")
    if pd.isna(values).any():
        raise DataError(f"{name} has missing values, expected True or False for every gene. Fill them first.")
    mask = np.asarray(values, dtype=bool)
    if adata.n_vars and not mask.any():
        raise DataError(f"{name} selects no gene. Run `sc.pp.highly_variable_genes` again, or pass `mask_var=None`.")
    return mask


def _column_hint(features: Sequence[str], var: pd.DataFrame) -> str:
    """Advice to match by the column of ``var`` with the most names of the features, empty if none has half of them."""
    best, n_found = column_of_names(features, var)
    if n_found < 0.5 * len(features):
        return ""
    share = _percent(n_found / len(features))
    return f"adata.var[{best!r}] has {n_found} of them ({share}): pass `gene_symbols={best!r}`."


def _case_hint(features: Sequence[str], names: Sequence[str], n_found: int, gene_symbols: str | None) -> str:
    """Advice to map the names if most of them differ in their case only, as the symbols of two species do."""
    methods = {name: {getattr(str, name)(each) for each in names} for name in ("upper", "capitalize", "lower")}
    n_alike = {name: len(changed.intersection(features)) for name, changed in methods.items()}
    method = max(n_alike, key=lambda name: n_alike[name])
    if n_alike[method] <= max(2 * n_found, n_found + 1):
        return ""
    known = next(name for name in features if name in methods[method] and name not in names)
    other = next(name for name in names if getattr(str, method)(name) == known)
    source = "adata.var_names" if gene_symbols is None else f"adata.var[{gene_symbols!r}].dropna()"
    return (
        f"{n_alike[method]} names match if case is ignored ({other!r} in the data, {known!r} in the model): another "
        f"species? Pass `feature_map={{name: name.{method}() for name in {source}}}`, or a map of orthologues."
    )


def hash_genes(var_names: Iterable[Any]) -> str:
    """SHA-256 of the names of all genes of a data set. Their order and the versions of Ensembl ids do not matter.

    Examples
    --------
    >>> hash_genes(["CD4", "CD8A"]) == hash_genes(["CD8A", "CD4"])
    True
    """
    names = [str(name) for name in var_names]
    return hashlib.sha256("\n".join(sorted(plain_ensembl(name) or name for name in names)).encode()).hexdigest()


def _percent(share: float) -> str:
    # rounded down, so that "100 %" is shown only if nothing is missing
    return f"{np.floor(1000 * share + 1e-9) / 10:.1f} %"
