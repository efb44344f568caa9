"""The cells that ``bf.tl.fit`` reads from a MuData: each modality as an AnnData, and the samples of all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mudata import MuData

from scbioformers.config import Binning
from scbioformers.core import DataError, Vocabulary, warn
from scbioformers.data import (
    DEFAULT_MASK,
    ExternalTokens,
    ModalitiesSource,
    choose_modalities,
    default_binning,
    field_codes,
    inspect,
    modality_rows,
    of_modality,
    unmeasured,
    warn_of_samples,
)
from scbioformers.model import BioFormer
from scbioformers.results import common_modalities, target
from scbioformers.tl._fit_cells import (
    Cells,
    check_roles,
    extended_fields,
    obs_fields,
    read_cells,
    read_cells_for,
    warn_of_fields,
)
from scbioformers.tl._fit_settings import frozen_binning, to_binning

logger = logging.getLogger(__name__)


def read_modalities(
    mdata: MuData,
    modalities: Sequence[str] | None,
    given: Mapping[str, Any],
    batch_key: str | None,
    phenotype_keys: str | Sequence[str],
    allow_non_integer: bool,
    copy: bool,
) -> tuple[MuData, Cells, dict[str, Any]]:
    """Check the modalities, and read the samples of the object that the model will be written to.

    ``given`` has the arguments ``layer``, ``mask_var``, ``gene_symbols``, ``binning`` and ``external_key``. Returns
    the object, its cells, and these arguments of each modality.
    """
    names = choose_modalities(mdata, modalities)
    layers, symbols, kinds = (of_modality(key, given[key], names) for key in ("layer", "gene_symbols", "binning"))
    external_keys = of_modality("external_key", given["external_key"], names)
    masks = of_modality("mask_var", given["mask_var"], names, DEFAULT_MASK)
    rows = {name: modality_rows(mdata, name) for name in names}
    warn_of_samples(rows, mdata)
    mdata = target(mdata, copy)
    vocabulary, found, used = Vocabulary(()), {}, {}
    for name in names:
        kind = to_binning(kinds[name]) or _default_binning(mdata, name, layers[name])
        _, cells = read_cells(
            mdata[name], layers[name], masks[name], symbols[name], kind, None, (), allow_non_integer, False,
            external_key=external_keys[name],
        )  # fmt: skip
        vocabulary = vocabulary.extend(cells.vocabulary.feature_names(), name)
        found[name], used[name] = cells, kind
    batch, phenotypes = obs_fields(mdata, batch_key, phenotype_keys)
    fields = (*(() if batch is None else (batch,)), *phenotypes)
    codes = field_codes(fields, mdata, batch=batch)
    warn_of_fields(fields, codes, batch)
    source = ModalitiesSource([cells.source for cells in found.values()], list(rows.values()), codes)
    first, *others = names
    params = {
        name: {
            "layer": found[name].reading.layer,
            "mask_var": masks[name] if isinstance(masks[name], str) else None,
            "gene_symbols": symbols[name],
            "binning": used[name].to_dict(),
            "external_key": external_keys[name],
        }
        for name in names
    }
    read = Cells(
        source,
        vocabulary,
        batch,
        phenotypes,
        found[first].reading,
        binning=used[first],
        others={name: (used[name], found[name].reading) for name in others},
        external=ExternalTokens.join([(cells.external, len(cells.vocabulary)) for cells in found.values()]),
    )
    return mdata, read, params


def read_modalities_for(
    start: BioFormer,
    mdata: MuData,
    modalities: Sequence[str] | None,
    given: Mapping[str, Any],
    batch_key: str | None,
    phenotype_keys: str | Sequence[str],
    copy: bool,
) -> tuple[MuData, Cells, dict[str, Any]]:
    """Read samples for a model that is trained further, each modality as :func:`read_cells_for` reads one.

    ``given`` and the results are as in :func:`read_modalities`, with ``feature_map`` besides. Modalities of the model
    that are not read are not measured.
    """
    names = _choose_known(start, mdata, modalities)
    of = {key: of_modality(key, value, names) for key, value in given.items() if key != "mask_var"}
    masks = of_modality("mask_var", given["mask_var"], names, DEFAULT_MASK)
    kinds = of.pop("binning")
    check_roles(start, mdata, batch_key, phenotype_keys)
    rows = {name: modality_rows(mdata, name) for name in names}
    warn_of_samples(rows, mdata)
    mdata = target(mdata, copy)
    found, params = {}, {}
    for name in start.modalities:
        own = replace(start.of(name), batch=None, phenotypes=())
        frozen = frozen_binning(own, kinds.get(name))
        if name not in names:
            rows[name] = np.full(mdata.n_obs, -1)
            source = unmeasured(len(own.vocabulary))
            found[name] = Cells(source, own.vocabulary, None, (), own.reading, external=own.external)
            continue
        arguments = {key: value[name] for key, value in of.items()}
        _, found[name] = read_cells_for(own, mdata[name], masks[name], None, (), False, **arguments)
        params[name] = {
            "layer": found[name].reading.layer,
            "mask_var": masks[name] if isinstance(masks[name], str) else None,
            "gene_symbols": arguments["gene_symbols"],
            "binning": frozen.to_dict(),
            "external_key": arguments["external_key"],
        }
    batch, phenotypes, codes = extended_fields(start, mdata, batch_key, phenotype_keys)
    sources = [cells.source for cells in found.values()]
    first, *others = start.modalities
    read = Cells(
        ModalitiesSource(sources, [rows[name] for name in found], codes),
        Vocabulary(tuple(name for cells in found.values() for name in cells.vocabulary.names)),
        batch,
        phenotypes,
        found[first].reading,
        others={name: (start.binnings[name], found[name].reading) for name in others},
        external=ExternalTokens.join([(cells.external, len(cells.vocabulary)) for cells in found.values()]),
    )
    return mdata, read, params


def _choose_known(start: BioFormer, mdata: MuData, given: Sequence[str] | None) -> list[str]:
    """The modalities to read: those that are given, or all. The model must have them."""
    known = common_modalities(start, mdata)
    names = choose_modalities(mdata, given)
    if other := [name for name in names if name not in start.modalities]:
        raise DataError(
            f"The model reads the modalities {list(start.modalities)}, and not {other[0]!r}. Pass "
            f"`modalities={known}` to leave it out, or fit a model of all modalities without `model=`."
        )
    if given is None and (lacking := [name for name in start.modalities if name not in known]):
        warn(f"The MuData has no modality {lacking}. The model keeps what it knows of it, and is trained on {known}.")
    return names


def _default_binning(mdata: MuData, name: str, layer: str | None) -> Binning:
    """The binning that suits the values of a modality, which is logged."""
    kind, why = default_binning(inspect(mdata[name], layer))
    logger.info("Modality %r: %s, read as %s bins.", name, why, kind)
    return Binning(kind=kind)
