"""``bf.tl.counterfactual`` of a MuData: all modalities of the samples are decoded under another phenotype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, free_memory
from scbioformers.data import BlockSource
from scbioformers.model import BioFormer
from scbioformers.results import (
    ModalitiesQuery,
    Query,
    check_counterfactual_key,
    check_key_added,
    group_table,
    layer_bytes,
    target,
    warn_of_memory,
    write_counterfactual,
    write_modalities,
)
from scbioformers.tasks import Decoded, Effects, decode_blocks


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for: see the arguments of :func:`scbioformers.tl.counterfactual`."""

    phenotype: Mapping[str, Any]
    changed: Mapping[str, float]
    """Position of each phenotype that is changed."""
    groupby: str | None
    groups: NDArray[np.str_]
    """(K,), names of the groups."""
    codes: NDArray[np.int64]
    """(N,), group of each cell, -1 for none."""
    batch_size: int
    progress_bar: bool

    def blocks(self, model: BioFormer, source: BlockSource) -> Iterator[Decoded]:
        """The cells of a source, decoded under their own phenotypes and under these."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "progress_bar": self.progress_bar}
        return decode_blocks(model, source, self.changed, **options)

    def effects(self, model: BioFormer, n_features: int) -> Effects:
        """Sums over the cells of each group, which are 0."""
        return Effects(len(self.groups), len(model.members), n_features)

    def tables(self, query: Query, effects: Effects) -> list[pd.DataFrame]:
        """Effects, their standard errors and mean profiles, each (n_vars, K)."""
        values = effects.mean(), effects.standard_error(), effects.predicted()
        return [group_table(query, each, self.groups) for each in values]

    def params(self, effects: Effects) -> dict[str, Any]:
        """Parameters of the result."""
        n_cells = dict(zip(self.groups.tolist(), effects.n_cells.tolist(), strict=True))
        return {"phenotype": dict(self.phenotype), "groupby": self.groupby, "n_cells": n_cells}


def refuse_evidence(mdata: MuData, phenotype: Mapping[str, Any], evidence: bool) -> None:
    """Check that no evidence is asked for."""
    if evidence:
        first = next(iter(mdata.mod))
        raise ConfigError(
            f"`evidence=True` is for an AnnData, found a MuData. Leave it out. Or fit one modality for it: copy "
            f"{list(phenotype)} to mdata[{first!r}].obs, then call `bf.tl.fit(mdata[{first!r}], "
            f"phenotype_keys={list(phenotype)})` and `bf.tl.counterfactual(mdata[{first!r}], {dict(phenotype)!r}, "
            "groupby='cell_type', evidence=True)`."
        )


def counterfactual_modalities(
    mdata: MuData,
    query: ModalitiesQuery,
    modalities: Sequence[str] | None,
    request: Request,
    key_added: str,
    copy: bool,
) -> MuData | None:
    """Decode modalities and store the profiles in the MuData and, with the effects, in each modality."""
    model, names = query.model, query.choose_predicted(modalities)
    check_key_added(mdata, key_added, {"obsm": [f"{key_added}_{name}" for name in names]})
    for name in names:
        if name in query.queries:
            check_counterfactual_key(mdata[name], key_added, query.queries[name].layer)
    sizes = {name: len(model.vocabulary.only(name)) for name in names}
    warn_of_memory(2 * sum(layer_bytes((mdata.n_obs, n), n) for n in sizes.values()), free_memory())
    result = target(mdata, copy)
    profiles = {name: np.full((mdata.n_obs, n), np.nan, np.float32) for name, n in sizes.items()}
    effects = {name: request.effects(model, n) for name, n in sizes.items()}
    known = np.any([rows >= 0 for rows in query.rows.values()], axis=0)
    for block in request.blocks(model, query.source):
        rows = slice(block.start, block.start + len(block.differs))
        for name in names:
            own = block.of(model.columns(name))
            profiles[name][rows] = np.where(known[rows, None], own.other.mean(axis=0), np.nan)
            effects[name].add(own, np.where(query.rows[name][rows] >= 0, request.codes[rows], -1))
    tables: dict[str, pd.DataFrame] = {}
    for name in names:
        own_query = query.queries.get(name)
        features = model.of(name).vocabulary.feature_names() if own_query is None else own_query.stored_names
        tables[f"{key_added}_{name}"] = pd.DataFrame(profiles[name], index=mdata.obs_names, columns=features)
        if own_query is not None:
            layer = _layer(own_query, profiles[name], query.rows[name])
            params = request.params(effects[name]) | {"model_hash": model.hash, "layer": own_query.layer}
            own_tables = request.tables(own_query, effects[name])
            write_counterfactual(result[name], key_added, layer, *own_tables, params=params)
    params = {"phenotype": dict(request.phenotype), "groupby": request.groupby}
    write_modalities(result, key_added, tables, params | {"model_hash": model.hash, "modalities": names})
    return result if copy else None


def _layer(query: Query, profiles: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Profiles of the samples that a modality has, in its own order, over all of its features. NaN if not modelled."""
    has = rows >= 0
    layer = np.full(query.data.shape, np.nan, np.float32)
    layer[np.ix_(rows[has], query.columns[query.measured])] = profiles[np.ix_(has, query.measured)]
    return layer
