"""A query of several modalities: the samples of a MuData, with the features of a fitted model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, DataError, MissingKeyError, warn
from scbioformers.data import (
    BlockSource,
    ModalitiesSource,
    choose_modalities,
    field_codes,
    modality_rows,
    of_modality,
    refuse_dicts,
    unmeasured,
    warn_of_samples,
)
from scbioformers.model import BioFormer, on_device
from scbioformers.nn import choose_device, use_threads
from scbioformers.results._model import ModelLike, find_model
from scbioformers.results._query import Query, feature_names, open_query, several_modalities


@dataclass(frozen=True, eq=False)
class ModalitiesQuery:
    """A model and N samples with the features of all of its modalities."""

    model: BioFormer
    """The fitted model, on the device of the query."""
    source: BlockSource
    """The samples."""
    queries: dict[str, Query]
    """The cells of each modality that is read, by its name."""
    rows: dict[str, NDArray[np.int64]]
    """(N,) for each modality of the model: row of each sample in it, -1 if it is not measured or not read."""
    model_given: bool = False
    """Whether the model was passed as an argument."""

    def choose(self, modality: str | None) -> str:
        """The modality of the model that is meant. None means the only one.

        Raises
        ------
        ConfigError, MissingKeyError
            If there are several and none is named, or there is no such modality.
        """
        names = self.model.modalities
        if modality is None and len(names) > 1:
            raise ConfigError(
                f"The model has the modalities {list(names)}. Pass one of them as `modality=`, such as "
                f"`modality={names[0]!r}`."
            )
        if modality is not None and modality not in names:
            raise MissingKeyError(f"The model has no modality {modality!r}. It has {list(names)}.")
        return names[0] if modality is None else modality

    def choose_predicted(self, modalities: Sequence[str] | None) -> list[str]:
        """The modalities of the model that are to be predicted. None means all. The data may lack them.

        Raises
        ------
        ConfigError
            If the model has no such modality, or none is named.
        """
        known = list(self.model.modalities)
        names = known if modalities is None else list(dict.fromkeys(modalities))
        if not names:
            raise ConfigError(f"`modalities` is empty. Pass some of {known}, or leave it out for all of them.")
        if other := [name for name in names if name not in known]:
            raise ConfigError(f"The model has no modality {other[0]!r}. It predicts {known}.")
        return names

    @property
    def layer(self) -> dict[str, str | None]:
        """Layer that is read of each modality."""
        return {name: query.layer for name, query in self.queries.items()}


def open_modalities(
    mdata: MuData,
    model: ModelLike | None,
    *,
    modalities: Sequence[str] | None = None,
    predicted: Sequence[str] = (),
    layer: Any = None,
    gene_symbols: Any = None,
    feature_map: Any = None,
    key: str = "bioformer",
    device: str = "cpu",
    phenotype: Mapping[str, Any] | None = None,
) -> ModalitiesQuery:
    """Find the model, and what it needs in each modality of ``mdata``. Each is read as :func:`open_query` reads it.

    Parameters
    ----------
    mdata
        The samples. A modality of the model that they lack is read as not measured.
    model, key, device
        As in :func:`open_query`.
    modalities
        Modalities to read. None reads those of the model.
    predicted
        Modalities that are predicted. So nothing is said if the data lack them.
    layer, gene_symbols, feature_map
        Dicts by modality.
    phenotype
        As in :func:`open_query`.

    Raises
    ------
    DataError
        If the data have no modality of the model.
    MissingKeyError, ConfigError
        If a modality that is named does not exist.
    """
    device = choose_device(device)
    found = on_device(find_model(mdata, model, key), device)
    use_threads(found.config.width)
    known = common_modalities(found, mdata)
    names = choose_modalities(mdata, known if modalities is None else modalities)
    if other := [name for name in names if name not in found.modalities]:
        raise DataError(f"The model reads the modalities {list(found.modalities)}, and not {other[0]!r}.")
    if modalities is None and (
        lacking := [name for name in found.modalities if name not in known and name not in predicted]
    ):
        warn(f"The MuData has no modality {lacking}. The model reads them as not measured.")
    given = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map}
    of = {argument: of_modality(argument, value, names) for argument, value in given.items()}
    rows = {name: modality_rows(mdata, name) for name in names}
    warn_of_samples(rows, mdata)
    queries, sources = {}, []
    for name in found.modalities:
        own = replace(found.of(name), batch=None, phenotypes=())
        if name in names:
            read = open_query(mdata[name], own, **{key: each[name] for key, each in of.items()}, device=device)
            queries[name] = replace(read, modality=name, model_given=model is not None)
            sources.append(queries[name].source)
        else:
            rows[name] = np.full(mdata.n_obs, -1)
            sources.append(unmeasured(len(own.vocabulary)))
    in_order = {name: rows[name] for name in found.modalities}
    codes = field_codes(found.fields, mdata, batch=found.batch, phenotype=phenotype)
    source = ModalitiesSource(sources, list(in_order.values()), codes)
    return ModalitiesQuery(found, source, queries, in_order, model is not None)


def common_modalities(model: BioFormer, mdata: MuData) -> list[str]:
    """Names of the modalities of the model that the data have.

    Raises
    ------
    DataError
        If there is none.
    """
    if not (known := [name for name in model.modalities if name in mdata.mod]):
        raise DataError(
            f"The model reads the modalities {list(model.modalities)}, and the MuData has {list(mdata.mod)}. Make a "
            f"MuData with these names, such as `MuData({{{model.modalities[0]!r}: adata}})`."
        )
    return known


def modality_feature_names(
    model: BioFormer, data: AnnData | MuData | None, gene_symbols: Any = None, feature_map: Any = None
) -> dict[str, list[str]]:
    """Names of the features of each modality, as :func:`feature_names` spells those of a model of one.

    Raises
    ------
    DataError
        If ``data`` is an AnnData.
    ConfigError
        If an argument has another modality.
    """
    if data is not None and not isinstance(data, MuData):
        raise several_modalities(model)
    symbols = of_modality("gene_symbols", gene_symbols, model.modalities)
    maps = of_modality("feature_map", feature_map, model.modalities)
    own = {name: None if data is None or name not in data.mod else data[name] for name in model.modalities}
    return {name: feature_names(model.of(name), own[name], symbols[name], maps[name]) for name in model.modalities}


def open_data(
    adata: AnnData | MuData,
    model: ModelLike | None,
    *,
    modalities: Sequence[str] | None,
    layer: Any,
    gene_symbols: Any,
    feature_map: Any,
    key: str,
    device: str,
    phenotype: Mapping[str, Any] | None = None,
) -> Query | ModalitiesQuery:
    """The query of an AnnData (:func:`open_query`) or of a MuData (:func:`open_modalities`)."""
    names = {"layer": layer, "gene_symbols": gene_symbols, "feature_map": feature_map, "key": key, "device": device}
    names |= {"phenotype": phenotype}
    if isinstance(adata, MuData):
        return open_modalities(adata, model, modalities=modalities, **names)
    refuse_dicts(modalities=modalities, layer=layer, gene_symbols=gene_symbols)
    return open_query(adata, model, **names)
