"""The cells that ``bf.tl.fit`` reads, with the genes and the columns of ``obs`` that a model uses."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.config import Binning, Reading
from scbioformers.core import ConfigError, DataError, Vocabulary, short_list, warn
from scbioformers.data import (
    DEFAULT_MASK,
    AnnDataSource,
    BlockSource,
    DepthRule,
    ExternalTokens,
    ObsField,
    Survey,
    SurveyTally,
    best_measured,
    field_codes,
    gene_mask,
    gene_names,
    get_matrix,
    hash_genes,
    inspect,
    layer_key,
    reads_disk,
    register_phenotype,
    require_counts,
    require_valid,
)
from scbioformers.model import BioFormer
from scbioformers.results import Query, open_query, target
from scbioformers.training import extended_field

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cells:
    """What a fit reads: the cells, over the genes to model, and how they are read."""

    source: BlockSource
    vocabulary: Vocabulary
    batch: ObsField | None
    phenotypes: tuple[ObsField, ...]
    reading: Reading
    surveyed: Survey | None = None
    """The survey of the cells, if they were read from disk and are not to be read again."""
    binning: Binning | None = None
    """Binning of the first modality of a MuData."""
    others: Mapping[str, tuple[Binning, Reading]] = dataclasses.field(default_factory=dict)
    """Binning and reading of the modalities after the first."""
    external: ExternalTokens | None = None
    """External tokens of the features of the vocabulary."""


def read_cells(
    adata: AnnData,
    layer: str | None,
    mask_var: str | NDArray[np.bool_] | None,
    gene_symbols: str | None,
    binning: Binning,
    batch_key: str | None,
    phenotype_keys: str | Sequence[str],
    allow_non_integer: bool,
    copy: bool,
    split: tuple[float, int] | None = None,
    external_key: str | None = None,
) -> tuple[AnnData, Cells]:
    """Check the data, and read the cells of the object that the model will be written to.

    ``split`` are the share of the validation cells and the seed. With it, data on disk are read once, for the checks
    and for the survey.
    """
    on_disk, layer = reads_disk(get_matrix(adata, layer)), layer_key(adata, layer)
    names = gene_names(adata, gene_symbols)
    genes = gene_mask(adata, mask_var)
    keys = check_keys(batch_key, phenotype_keys)
    tally: SurveyTally | None = None
    if split is not None and on_disk and not copy:
        source, batch, phenotypes = _source(adata, layer, genes, batch_key, keys)
        tally = SurveyTally(source, *split)
    inspection = inspect(adata, layer, also=None if tally is None else _adds(tally, source))
    inspection.log_place()
    if gene_symbols is not None:
        # in a query the best measured gene is read, also if the mask has another one of the same name
        best = np.isin(names, names[genes]) & best_measured(names, inspection.gene_nnz, gene_symbols)
        if (best != genes).any():  # several genes have one symbol: which is read is known only now
            genes, tally = best, None
    if binning.kind == "value":
        require_counts(adata, layer, allow_non_integer=allow_non_integer, modelled=genes, inspection=inspection)
    else:
        require_valid(adata, layer, modelled=genes, inspection=inspection)
    external = _external(adata, external_key, np.flatnonzero(genes))
    adata = target(adata, copy)
    if tally is None:
        source, batch, phenotypes = _source(adata, layer, genes, batch_key, keys)
    vocabulary = Vocabulary.from_names(names[genes])
    estimated_counts = allow_non_integer and not inspection.n_negative
    scale = "counts" if estimated_counts else inspection.scale
    reading = Reading(layer, scale, allow_non_integer, gene_symbols, hash_genes(names))
    surveyed = None if tally is None else tally.result()
    return adata, Cells(source, vocabulary, batch, phenotypes, reading, surveyed, external=external)


def _external(adata: AnnData, key: str | None, columns: NDArray[np.int64]) -> ExternalTokens | None:
    """The external tokens of the features at ``columns``, if a column of ``var`` is named."""
    return None if key is None else ExternalTokens.register(adata, key, columns)


def _source(
    adata: AnnData, layer: str | None, genes: NDArray[np.bool_], batch_key: str | None, keys: Sequence[str]
) -> tuple[AnnDataSource, ObsField | None, tuple[ObsField, ...]]:
    """The cells over the genes to model, the batch and the phenotypes."""
    batch, phenotypes = obs_fields(adata, batch_key, keys)
    fields = (*(() if batch is None else (batch,)), *phenotypes)
    codes = field_codes(fields, adata, batch=batch)
    warn_of_fields(fields, codes, batch)
    return AnnDataSource(adata, layer=layer, columns=np.flatnonzero(genes), fields=codes), batch, phenotypes


def obs_fields(
    adata: Any, batch_key: str | None, phenotype_keys: str | Sequence[str]
) -> tuple[ObsField | None, tuple[ObsField, ...]]:
    """The batch and the phenotypes, which are columns of ``adata.obs``."""
    keys = check_keys(batch_key, phenotype_keys)
    return _batch_field(adata, batch_key), tuple(register_phenotype(adata, name) for name in keys)


def _adds(tally: SurveyTally, source: AnnDataSource) -> Callable[[int, Any], None]:
    """Adds rows to the survey, which may be any numbers: they are checked only afterwards."""

    def add(start: int, rows: Any) -> None:
        with np.errstate(all="ignore"):
            tally.add(source.block(start, rows))

    return add


def _batch_field(adata: Any, batch_key: str | None, former: ObsField | None = None) -> ObsField | None:
    """The technical batch. A column with one category is used only if a model knows ``former`` batches."""
    field = None if batch_key is None else ObsField.register(adata, batch_key)
    if field is None or former is not None or len(field.categories) > 1:
        return field
    logger.info("adata.obs[%r] has one category, so it is not used as a batch.", batch_key)
    return None


def check_keys(batch_key: str | None, phenotype_keys: str | Sequence[str]) -> list[str]:
    """Names of the phenotypes. No column may be named twice."""
    keys = [phenotype_keys] if isinstance(phenotype_keys, str) else list(phenotype_keys)
    if len(set(keys)) < len(keys):
        raise ConfigError(f"A column is named twice in `phenotype_keys`, {keys}. Pass each column once.")
    if batch_key in keys:
        raise ConfigError(
            f"A column is named twice: `batch_key` is {batch_key!r} and `phenotype_keys` is {keys}. Pass each column "
            "once, as `batch_key=` if it is technical, or as one of `phenotype_keys=` if the embedding should keep it."
        )
    return keys


def check_roles(start: BioFormer, adata: Any, batch_key: str | None, phenotype_keys: str | Sequence[str]) -> None:
    """A batch of the model cannot become a phenotype, or the reverse. New categories are added only where named."""
    keys = check_keys(batch_key, phenotype_keys)
    roles = {field.name: "phenotype_keys" for field in start.phenotypes}
    roles |= {} if start.batch is None else {start.batch.name: "batch_key"}
    given = dict.fromkeys(keys, "phenotype_keys") | ({} if batch_key is None else {batch_key: "batch_key"})
    if changed := [name for name in given if roles.get(name, given[name]) != given[name]]:
        name = changed[0]
        raise ConfigError(
            f"adata.obs[{name!r}] is one of `{roles[name]}` in the model, found as `{given[name]}`. Pass it as "
            f"`{roles[name]}=`, or fit a model without `model=`."
        )
    for field in start.phenotypes:
        if field.name in adata.obs and field.name not in keys and (unseen := field.unseen(adata)):
            raise DataError(
                f"adata.obs[{field.name!r}] has {len(unseen)} categories that the model has not seen: "
                f"{short_list(unseen)}. `phenotype_keys={[*keys, field.name]}` adds them to the model."
            )


def read_cells_for(
    start: BioFormer,
    adata: AnnData,
    mask_var: str | NDArray[np.bool_] | None,
    batch_key: str | None,
    phenotype_keys: str | Sequence[str],
    copy: bool,
    external_key: str | None = None,
    **names: Any,
) -> tuple[AnnData, Cells]:
    """Read cells for a model that is trained further: its genes by name, and other genes of ``mask_var`` after them.

    They are the cells of an AnnData, or those of a modality, of which ``start`` has the state alone.
    """
    check_roles(start, adata, batch_key, phenotype_keys)
    query = open_query(adata, replace(start, batch=None, phenotypes=()), **names)
    none_chosen = isinstance(mask_var, str) and mask_var == DEFAULT_MASK and DEFAULT_MASK not in adata.var
    modelled = np.zeros(adata.n_vars, bool) if none_chosen else gene_mask(adata, mask_var)
    taken = set(start.vocabulary.feature_names())
    measured = gene_names(adata, query.matched_by)
    modelled = modelled & best_measured(measured, query.gene_nnz, query.matched_by)
    modelled[query.columns[query.columns >= 0]] = False
    modelled &= np.array([name not in taken for name in measured], bool)
    new = np.flatnonzero(modelled)
    external = _extended_external(start, adata, external_key, new)
    adata = target(adata, copy)
    batch, phenotypes, codes = extended_fields(start, adata, batch_key, phenotype_keys)
    columns = np.concatenate([query.columns, new])
    rule = _depth_rule(query, new)
    source = AnnDataSource(adata, layer=query.layer, columns=columns, fields=codes, rule=rule)
    vocabulary = start.vocabulary.extend(measured[new], start.modalities[0])
    logger.info(
        "%s%d of the %d genes of the model are measured; %d genes are added to it.",
        "" if start.part is None else f"Modality {start.modalities[0]!r}: ",
        int(query.measured.sum()),
        len(start.vocabulary),
        len(new),
    )
    reading = replace(start.reading, layer=query.layer, gene_symbols=query.matched_by)
    return adata, Cells(source, vocabulary, batch, phenotypes, reading, external=external)


def extended_fields(
    start: BioFormer, data: Any, batch_key: str | None, phenotype_keys: str | Sequence[str]
) -> tuple[ObsField | None, tuple[ObsField, ...], NDArray[np.float32]]:
    """The batch and the phenotypes of the model with the categories of the data, and the codes of the cells."""
    keys = check_keys(batch_key, phenotype_keys)
    batch = extended_field(start.batch, _batch_field(data, batch_key, start.batch))
    former = {phenotype.name: phenotype for phenotype in start.phenotypes}
    found = {name: extended_field(former.get(name), register_phenotype(data, name)) for name in keys}
    phenotypes = tuple(field for field in (former | found).values() if field is not None)
    fields = (*(() if batch is None else (batch,)), *phenotypes)
    codes = field_codes(fields, data, batch=batch)
    named = [i for i, field in enumerate(fields) if field.name in (batch_key, *keys)]
    warn_of_fields([fields[i] for i in named], codes[:, named], batch)
    return batch, phenotypes, codes


def _extended_external(
    start: BioFormer, adata: AnnData, key: str | None, new: NDArray[np.int64]
) -> ExternalTokens | None:
    """The external tokens of the model, and of the new features at the columns ``new``."""
    if start.external is None:
        if key is None:
            return None
        raise ConfigError(
            f"`external_key` is {key!r}, and the model was fitted without external tokens. Leave it out, or fit a "
            "model without `model=`."
        )
    return start.external.extend(_external(adata, key, new) if new.size else None, len(new))


def _depth_rule(query: Query, new: NDArray[np.int64]) -> DepthRule:
    """The rule of the query. If it is a total of the modelled genes, the new genes add to it, and to its share."""
    rule = query.rule
    if not rule.modelled_only or not new.size:
        return rule
    added = AnnDataSource(query.data, layer=query.layer, columns=new, rule=rule)
    known, more = (sum(block.total.sum() for block in source.some_blocks()) for source in (query.source, added))
    return replace(rule, share=rule.share * float(1 + more / known))


def warn_of_fields(fields: Sequence[ObsField], codes: NDArray[np.float32], batch: ObsField | None) -> None:
    """Warn of categories with one cell, and of phenotypes that cannot be told from another column.

    ``codes`` (n_obs, n_fields) are those of the fields.
    """
    for i, field in enumerate(fields):
        known = codes[codes[:, i] >= 0, i]
        size = np.bincount(known.astype(np.int64), minlength=len(field.categories))
        if not field.knots and (single := [name for name, n in zip(field.categories, size, strict=True) if n == 1]):
            warn(
                f"{len(single)} of the {len(size)} categories of adata.obs[{field.name!r}] have one cell, such as "
                f"{single[:3]}. The model cannot tell the state of such a cell from its category. Pass a column with "
                "larger groups, or merge these categories."
            )
    table = pd.DataFrame(codes, columns=range(len(fields)))
    for i, j in permutations(range(len(fields)), 2):
        if fields[j] == batch or table[i].nunique() < 2 or table[j].nunique() < 2:
            continue
        if (table.groupby(i)[j].nunique() > 1).any():
            continue
        one, other = fields[i].name, fields[j].name
        if fields[i] == batch:
            warn(
                f"The batch adata.obs[{one!r}] fixes the phenotype adata.obs[{other!r}]: all cells of a batch have the "
                "same value. What the phenotype does cannot be told from what the batches do. Leave out `batch_key`, "
                "or read results for this phenotype as differences between batches."
            )
        elif i < j and not (table.groupby(j)[i].nunique() > 1).any():
            warn(
                f"The phenotypes adata.obs[{one!r}] and adata.obs[{other!r}] hold the same: each value of one goes "
                "with one value of the other. Leave out one of them."
            )
