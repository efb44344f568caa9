"""The cells that ``bf.tl.fit`` reads from a MuData: each modality as an AnnData, and the samples of all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mudata import MuData

from scbioformers.config import Binning
from scbioformers.core import Vocabulary
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
    warn_of_samples,
)
from scbioformers.results import target
from scbioformers.tl._fit_cells import Cells, obs_fields, read_cells, warn_of_fields

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
        kind: Any = kinds[name] or _default_binning(mdata, name, layers[name])
        kind = kind if isinstance(kind, Binning) else Binning(kind=kind)
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


def _default_binning(mdata: MuData, name: str, layer: str | None) -> Binning:
    """The binning that suits the values of a modality, which is logged."""
    kind, why = default_binning(inspect(mdata[name], layer))
    logger.info("Modality %r: %s, read as %s bins.", name, why, kind)
    return Binning(kind=kind)
