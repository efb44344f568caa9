"""A query: cells with the features of a fitted model. All functions that use a model call :func:`open_query` first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.core import DataError, GeneIndex, Match, as_names, describe_unknown
from scbioformers.data import (
    TOTALS,
    AnnDataSource,
    BlockSource,
    DepthRule,
    FeatureMap,
    GeneNames,
    NameMap,
    check_feature_map,
    choose_depth_rule,
    field_codes,
    find_genes,
    gene_names,
    hash_genes,
    hide,
    inspect,
    match_genes,
    matching_column,
    require_counts,
    require_scale,
    require_valid,
)
from scbioformers.model import BioFormer, on_device
from scbioformers.nn import choose_device, use_threads
from scbioformers.results._model import ModelLike, find_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Query:
    """A model and N cells with its features."""

    model: BioFormer
    """The fitted model, on the device of the query."""
    source: BlockSource
    """The cells, with the M features of the model."""
    layer: str | None
    """Layer that is read, ``None`` for ``X``."""
    columns: NDArray[np.int64]
    """(M,) column of each feature in the data, -1 if it is not measured."""

    names: tuple[str, ...]
    """(M,) name of each feature in the spelling of the data. A feature that is not measured has that of the model."""
    genes: GeneNames
    """Names of all genes of the data."""
    data: AnnData
    """The data that the source reads: those of the user, or a copy without the hidden values."""
    gene_nnz: NDArray[np.int64]
    """(n_vars,) number of cells with a non-zero value of each gene of the data."""
    matched_by: str | None = None
    """Column of ``adata.var`` by which the features were matched, None for ``var_names``."""
    rule: DepthRule = TOTALS
    """How the depth of a cell follows from its counts."""
    model_given: bool = False
    """Whether the model was passed as an argument."""
    map_given: bool = False
    """Whether a map of names was passed as an argument."""
    modality: str | None = None
    """Which modality of a MuData the data are, None for an AnnData."""

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(M,) whether each feature is measured in the data."""
        return self.columns >= 0

    @property
    def stored_names(self) -> list[str]:
        """(M,) names by which results are stored: ``var_names`` of measured features, else :attr:`names`."""
        return np.where(self.measured, self.genes.var_names[self.columns], np.array(self.names, object)).tolist()

    @cached_property
    def index(self) -> GeneIndex:
        """Positions of the features by their names in the data, by ``var_names`` and by their names in the model."""
        return GeneIndex(self.names, self.stored_names, self.model.vocabulary.feature_names())

    def positions(self, genes: Any, *, argument: str = "genes", measured: bool = True) -> NDArray[np.int64]:
        """Positions of genes among the features of the model, each once, in the order of their first occurrence.

        Genes that cannot be used are left out. A log message has their number, and the call that models them.

        Parameters
        ----------
        genes
            Names, or one name, in the spelling of the data or of the model.
        argument
            Name of the argument, for messages.
        measured
            Whether genes that are not measured in the data are left out.

        Raises
        ------
        ConfigError
            If ``genes`` is not a name or a list of names.
        DataError
            If none of the genes can be used (similar names are suggested).
        """
        names = list(dict.fromkeys(as_names(genes, argument)))
        at = self.index.positions(names)
        usable = (at >= 0) & (self.measured[at] | (not measured))
        if not usable.all():
            message = self._left_out(names, at, usable, argument)
            if not usable.any():
                raise DataError(message)
            logger.warning("%s", message)
        return np.array(list(dict.fromkeys(at[usable].tolist())), dtype=np.int64)

    def _left_out(self, names: list[str], at: NDArray[np.int64], usable: NDArray[np.bool_], argument: str) -> str:
        """How many genes are used, not modelled, not measured and unknown, and the call that models more of them."""
        in_data = self.genes.index.positions(names)
        unmodelled = [self.genes.shown[i] for i in in_data[(at < 0) & (in_data >= 0)]]
        unmeasured = [name for name, left_out in zip(names, (at >= 0) & ~usable, strict=True) if left_out]
        unknown = [name for name, i, j in zip(names, at, in_data, strict=True) if max(i, j) < 0]
        parts = [f"`{argument}`: {usable.sum():,} of {len(names):,} name{'s' * (len(names) > 1)} can be used."]
        if unmodelled:
            parts.append(
                f"{len(unmodelled):,} measured but not modelled, such as {unmodelled[:3]}: "
                f"`{self._fit_call(unmodelled, argument)}` fits a model that has them too."
            )
        if unmeasured:
            parts.append(
                f"{len(unmeasured):,} modelled but not measured, such as {unmeasured[:3]}: "
                f"`bf.get.imputed({self._data}, genes={unmeasured[:3]}{self._given})` predicts such genes."
            )
        if unknown:
            hint = self.genes.column_hint(unknown, int(usable.sum()))
            parts.append(f"{len(unknown):,} absent from the data: {describe_unknown(unknown, self.names)}.{hint}")
        return " ".join(parts)

    def _fit_call(self, unmodelled: list[str], argument: str) -> str:
        """The call that fits a model of these genes and of those in ``argument``. A given model is trained further."""
        column = self.genes.gene_symbols
        data = "adata" if self.modality is None else f"mdata[{self.modality!r}]"
        names = f"{data}.var_names.astype(str)" if column is None else f"{data}.var[{column!r}]"
        added = str(unmodelled)[1:-1] if len(unmodelled) <= 3 else f"*{argument}"
        if self.modality is not None:
            symbols, layer, matched_by = (
                {} if value is None else {self.modality: value} for value in (column, self.layer, self.matched_by)
            )
            modelled = f"*bf.get.gene_embeddings({self._data}{_argument('gene_symbols', symbols)}).index, "
            named = f"{'' if self.model_given else modelled}{added}"
            others = _argument("layer", layer) + _argument("gene_symbols", matched_by)
            mask = f"{{{self.modality!r}: np.asarray({names}.isin([{named}]))}}"
            return f"bf.tl.fit(mdata{self._given}, mask_var={mask}{others})"
        others = _argument("layer", self.layer) + _argument("gene_symbols", self.matched_by)
        if self.model_given:
            return f"bf.tl.fit(adata{self._given}, mask_var=np.asarray({names}.isin([{added}])){others})"
        modelled = f"*bf.get.gene_embeddings(adata{_argument('gene_symbols', column)}).index"
        return f"bf.tl.fit(adata, mask_var=np.asarray({names}.isin([{modelled}, {added}])){others})"

    @property
    def _data(self) -> str:
        """The data as arguments of a suggested call."""
        return "adata" if self.modality is None else f"mdata, modality={self.modality!r}"

    @property
    def _given(self) -> str:
        """The arguments of this call that a suggested call needs as well."""
        return ", model=model" * self.model_given + ", feature_map=feature_map" * self.map_given


def _argument(name: str, value: str | dict[str, str] | None) -> str:
    """Text of an argument in a suggested call, empty if it is None or an empty dict."""
    return f", {name}={value!r}" if value else ""


def open_query(
    adata: AnnData,
    model: ModelLike | None,
    *,
    layer: str | None = None,
    gene_symbols: str | None = None,
    feature_map: FeatureMap | None = None,
    key: str = "bioformer",
    device: str = "cpu",
    hidden: csr_matrix | None = None,
    phenotype: Mapping[str, Any] | None = None,
) -> Query:
    """Find the model, and the layer, genes and obs fields that it needs in ``adata``.

    Parameters
    ----------
    adata
        The cells.
    model
        A model, its directory, or the AnnData that it was fitted on. None uses the model in ``adata.uns[key]``.
    layer
        Layer to read. None uses the layer that the model was fitted on if it exists, else ``X``.
        ``"X"`` reads ``X``.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, in arguments and results. Genes are matched by this column,
        by that of the fit or by ``var_names``, whichever has the most of the model's names. None names them by the one
        that is matched.
    feature_map
        From the names of the data, in this column or in ``var_names``, to those of the model. Names that it does not
        have stay as they are. It is used to match genes alone: arguments and results have the names of the data.
    key
        Key of the model in ``uns``.
    device
        Name of the device on which the networks compute.
    hidden
        bool (n_obs, n_vars), positions of the data that are read as 0. Their values are not looked at.
    phenotype
        Values of phenotypes that are set in all cells, instead of those of ``adata.obs``. None is "not known".

    Raises
    ------
    ConfigError
        If the device is not available, or if ``feature_map`` is empty or does not hold strings.
    MissingKeyError
        If there is no model, or if a layer or column that it needs is missing.
    DataError
        If the model needs counts and the data are not counts, or if the data have too few of its genes. Also if
        ``feature_map`` has no gene of the data, or none of the model.
    """
    device = choose_device(device)
    if feature_map is not None:
        check_feature_map(feature_map)
    found = on_device(find_model(adata, model, key), device)
    if found.others:
        raise several_modalities(found)
    use_threads(found.config.width)
    reading = found.reading
    if layer is None and isinstance(adata, AnnData) and reading.layer in adata.layers:
        layer = reading.layer
    if hidden is not None:
        adata = hide(adata, layer, hidden)
    inspection = inspect(adata, layer)
    layer = inspection.layer
    inspection.log_place()
    no_gene = np.zeros(adata.n_vars, dtype=bool)  # in a query, all-zero genes need no warning
    if reading.counts:
        allow = reading.allow_non_integer
        known: dict[str, Any] = {"modelled": no_gene, "inspection": inspection, "caller": "query"}
        require_counts(adata, layer, allow_non_integer=allow, **known)
    else:
        require_valid(adata, layer, modelled=no_gene, inspection=inspection)
        require_scale(adata, inspection, reading.scale)
    features = found.vocabulary.feature_names()
    column = find_column(found, adata, gene_symbols, feature_map)
    mapping: dict[str, Any] = {"feature_map": feature_map, "feature_share": found.gene_share}
    matched = match_genes(features, adata, column, inspection.gene_nnz, found.depth_share, **mapping)
    codes = field_codes(found.fields, adata, batch=found.batch, phenotype=phenotype)
    options: dict[str, Any] = {"layer": layer, "columns": matched.columns, "fields": codes}
    source = AnnDataSource(adata, **options)
    names_in_model = gene_names(adata, column) if feature_map is None else NameMap(feature_map, adata, column).names
    rule = _depth_rule(found, source, names_in_model)
    if rule != TOTALS:
        source = AnnDataSource(adata, **options, rule=rule)
    genes = GeneNames.of(adata, gene_symbols or column)
    names = _spelled(matched, genes)
    given: dict[str, Any] = {"model_given": model is not None, "map_given": feature_map is not None}
    return Query(found, source, layer, matched.columns, names, genes, adata, inspection.gene_nnz, column, rule, **given)


def several_modalities(model: BioFormer) -> DataError:
    """The error for an AnnData where a model of several modalities needs a MuData."""
    return DataError(
        f"The model reads the modalities {list(model.modalities)}. Pass a MuData with at least one of them, such as "
        f"`MuData({{{model.modalities[0]!r}: adata}})`."
    )


def feature_names(
    model: BioFormer,
    adata: AnnData | None,
    gene_symbols: str | None = None,
    feature_map: FeatureMap | None = None,
) -> list[str]:
    """(M,) names of the features of a model in the spelling of ``adata``, or of its training data if it is None.

    Features that are not in ``adata`` are named as in :attr:`Query.names`.

    Raises
    ------
    MissingKeyError
        If ``adata.var`` has no column ``gene_symbols``.
    ConfigError, DataError
        If ``feature_map`` cannot be used, as in :func:`open_query`.
    """
    features = model.vocabulary.feature_names()
    if feature_map is not None:
        check_feature_map(feature_map)
    if adata is None:
        return features
    column = find_column(model, adata, gene_symbols, feature_map)
    matched = find_genes(features, adata, column, feature_map=feature_map, feature_share=model.gene_share)
    return list(_spelled(matched, GeneNames.of(adata, gene_symbols or column)))


def find_column(
    model: BioFormer, adata: AnnData, gene_symbols: str | None, feature_map: FeatureMap | None = None
) -> str | None:
    """The column to match by: the given one, that of the fit if the data have it, or None for ``var_names``."""
    fitted = model.reading.gene_symbols
    known = [fitted] if fitted is not None and fitted in adata.var else []
    given = [] if gene_symbols is None else [gene_symbols]
    return matching_column(model.vocabulary.feature_names(), adata, *given, *known, feature_map=feature_map)


def _spelled(matched: Match, genes: GeneNames) -> tuple[str, ...]:
    """(M,) shown name of each feature that is in the data, and the matched spelling of the others."""
    stored = genes.var_names[matched.columns]
    shown = genes.shown_by_stored(stored[matched.columns >= 0])
    names = zip(matched.columns, stored, matched.names, strict=True)
    return tuple(shown[name] if column >= 0 else other for column, name, other in names)


def _depth_rule(model: BioFormer, source: AnnDataSource, genes: NDArray[np.object_]) -> DepthRule:
    """How the depth of a cell follows from its counts. It is the total if the genes are those of the fit."""
    if not model.reading.counts or hash_genes(genes) == model.reading.genes_hash:
        return TOTALS
    sums = [(block.total, block.counts.sum(axis=1, dtype=np.float64).A1) for block in source.some_blocks()]
    total, modelled = map(np.concatenate, zip(*sums, strict=True))
    modelled_share = float(model.depth_share[source.present].sum(dtype=np.float64))
    # features that are not measured are read as masked ones are: at their mean
    # features that were added to the model were not part of the depth that it learned
    original = np.arange(len(source.present)) < model.n_original_features
    absent = float(model.gene_mean[~source.present & original].sum(dtype=np.float64))
    absent_share = absent / float(model.binning.mean_depth or 1.0)
    return choose_depth_rule(total, modelled, modelled_share, absent_share)
