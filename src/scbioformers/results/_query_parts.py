"""A query about the features of one modality, or of two: networks and gene programs are computed of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError
from scbioformers.data import BlockSource, choose_modalities, refuse_dicts
from scbioformers.model import BioFormer
from scbioformers.results._model import ModelLike
from scbioformers.results._query import Query, open_query
from scbioformers.results._query_modalities import open_modalities

ModalityPair: TypeAlias = str | tuple[str, str]
"""A modality, or two: features of the first as regulators, and those of the second as targets."""


@dataclass(frozen=True, eq=False)
class Part:
    """The features of one modality, and N samples with all that the model reads of them.

    An AnnData is the only modality of its samples.
    """

    model: BioFormer
    """The fitted model, of all modalities."""
    source: BlockSource
    """The samples, with all modalities of the model."""
    own: Query
    """The features of this modality, and the cells that it has."""
    modality: str
    """Its name in the model."""
    measured: NDArray[np.bool_]
    """(N,) whether each sample is measured in this modality."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model and values a result was computed from, for its stored parameters."""
        model, own = self.model, self.own
        return {
            "layer": own.layer,
            "gene_symbols": own.genes.gene_symbols,
            "n_members": len(model.members),
            "n_starts": model.n_starts,
            "model_hash": model.hash,
        }


def open_parts(
    adata: AnnData | MuData,
    model: ModelLike | None,
    modality: ModalityPair | None,
    *,
    layer: Any,
    gene_symbols: Any,
    feature_map: Any,
    key: str,
    device: str,
) -> list[Part]:
    """The query of an AnnData, of one modality of a MuData (None means the only one), or of two.

    Raises
    ------
    ConfigError
        If a modality is named for an AnnData, none is named and there are several, or one is named twice.
    MissingKeyError, DataError
        If the model or the data do not have it, and as in :func:`open_query`.
    """
    names: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map}
    names |= {"key": key, "device": device}
    if not isinstance(adata, MuData):
        refuse_dicts(modality=modality, layer=layer, gene_symbols=gene_symbols)
        query = open_query(adata, model, **names)
        every = np.ones(adata.n_obs, bool)
        return [Part(query.model, query.source, query, query.model.modalities[0], every)]
    samples = open_modalities(adata, model, **names)
    given: Sequence[str | None] = [modality] if modality is None or isinstance(modality, str) else list(modality)
    chosen = [samples.choose(name) for name in given]
    if len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"`modality` must be one modality or two different ones, found {tuple(chosen)}. For features of one, pass "
            f"`modality={chosen[0]!r}`."
        )
    choose_modalities(adata, chosen)
    return [
        Part(samples.model, samples.source, samples.queries[name], name, samples.rows[name] >= 0) for name in chosen
    ]
