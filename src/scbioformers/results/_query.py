"""A query: cells with the features of a fitted model. All functions that use a model call :func:`open_query` first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import DataError, near_names
from scbioformers.data import (
    AnnDataSource,
    BlockSource,
    field_codes,
    inspect,
    match_features,
    require_counts,
    require_valid,
)
from scbioformers.model import BioFormer, on_device
from scbioformers.nn import choose_device
from scbioformers.results._model import ModelLike, find_model


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

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(M,) whether each feature is measured in the data."""
        return self.columns >= 0

    def positions(self, genes: str | Sequence[str], *, measured: bool = True) -> NDArray[np.int64]:
        """Positions of genes among the features of the model.

        Parameters
        ----------
        genes
            Names, or one name.
        measured
            Whether to raise an error for genes that are not measured in the data.

        Raises
        ------
        DataError
            If there is no gene, or a gene is unknown to the model (similar names are suggested) or not measured.
        """
        names = self.model.vocabulary.feature_names()
        at = {name: i for i, name in enumerate(names)}
        genes = [genes] if isinstance(genes, str) else list(genes)
        if not genes:
            raise DataError("`genes` is empty. Pass at least one gene, or None.")
        if unknown := [gene for gene in genes if gene not in at]:
            near = near_names(unknown[0], names)
            hint = f" Similar names: {near}." if near else ""
            raise DataError(f"The model does not know {unknown[:5]}; it models {len(names)} genes.{hint}")
        found = np.array([at[gene] for gene in genes], dtype=np.int64)
        if measured and not self.measured[found].all():
            absent = [gene for gene, present in zip(genes, self.measured[found], strict=True) if not present]
            raise DataError(
                f"{absent[:5]} are not among the genes of the data; `bf.get.imputed(adata, genes=…)` predicts them."
            )
        return found


def open_query(
    adata: AnnData, model: ModelLike | None, *, layer: str | None = None, key: str = "bioformer", device: str = "cpu"
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
    key
        Key of the model in ``uns``.
    device
        Name of the device on which the networks compute.

    Raises
    ------
    ConfigError
        If the device is not available.
    MissingKeyError
        If there is no model, or if a layer or column that it needs is missing.
    DataError
        If the model needs counts and the data are not counts, or if fewer than half of its genes are in the data.
    """
    device = choose_device(device)
    found = on_device(find_model(adata, model, key), device)
    reading = found.reading
    if layer is None and isinstance(adata, AnnData) and reading.layer in adata.layers:
        layer = reading.layer
    inspection = inspect(adata, layer)
    no_gene = np.zeros(adata.n_vars, dtype=bool)  # in a query, all-zero genes need no warning
    if reading.counts:
        allow = reading.allow_non_integer
        require_counts(adata, layer, allow_non_integer=allow, modelled=no_gene, inspection=inspection)
    else:
        require_valid(adata, layer, modelled=no_gene, inspection=inspection)
    columns = match_features(found.vocabulary.feature_names(), adata.var_names).columns
    source = AnnDataSource(adata, layer=layer, columns=columns, fields=field_codes(found.fields, adata))
    return Query(found, source, layer, columns)
