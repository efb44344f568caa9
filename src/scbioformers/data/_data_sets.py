"""Data sets from which one model is trained: opened from memory and files, and checked, for each modality."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.config import Binning, Reading
from scbioformers.core import BioformersError, ConfigError, DataError, MissingKeyError, short_list, warn
from scbioformers.data._check import require_counts, require_valid
from scbioformers.data._gene_names import best_measured, gene_names
from scbioformers.data._inspect import Inspection, inspect
from scbioformers.data._matrix import get_matrix, reads_disk
from scbioformers.data._modalities import FEATURE_TYPES, default_binning, modality_of
from scbioformers.data._mudata import choose_modalities, modality_rows, of_modality
from scbioformers.data._open_sources import Opened, StoredSamples, name_sources, open_source, size_of
from scbioformers.data._source_phenotypes import require_columns
from scbioformers.data._variable_features import SampledRows, variable_ranks

logger = logging.getLogger(__name__)

MAX_BYTES = 500e6  # files above this size, all together, are read in blocks of rows
_UNUSABLE = (BioformersError, OSError, ValueError, KeyError, TypeError, RuntimeError)  # of data sets to leave out
Problems = list[tuple[int, str]]  # number of the source, and what is wrong with it


@dataclass(frozen=True, eq=False)
class Part:
    """One modality of a source."""

    source: str
    """Name of the source: that of its file, or as given."""
    position: int
    """Number of the source among those that were given."""
    modality: str
    """Name of the modality."""
    adata: AnnData
    """The data, in memory or on disk."""
    samples: Opened
    """The source. Its ``obs`` has a row for each sample."""
    rows: NDArray[np.int64] | None = None
    """(N,) row of each sample of a MuData in ``adata``, -1 if it has none. None: the source is an AnnData."""

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.source if self.rows is None else f"{self.source}[{self.modality!r}]"

    @property
    def sample_rows(self) -> NDArray[np.int64]:
        """(N,) row of each sample in ``adata``, -1 if it has none."""
        return np.arange(self.adata.n_obs) if self.rows is None else self.rows

    def of_rows(self, codes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Codes (n_obs, P) of the rows of ``adata``, from those of the samples (N, P)."""
        found = np.empty((self.adata.n_obs, codes.shape[1]), np.float32)
        found[self.sample_rows[self.sample_rows >= 0]] = codes[self.sample_rows >= 0]
        return found


@dataclass(frozen=True, eq=False)
class DataSet(Part):
    """One modality of a source, checked."""

    inspection: Inspection = field(kw_only=True)
    """Properties of the matrix that is read."""
    names: NDArray[np.object_] = field(kw_only=True)
    """(n_vars,) names of the features. One that is not used, because another one of its name is, has the name ""."""
    ranks: pd.Series[Any] | None = field(default=None, kw_only=True)
    """Ranks of the features by their variance, if they were computed while the file was inspected."""

    def columns(self, features: Sequence[str]) -> NDArray[np.int64]:
        """Column of each feature, -1 if it is not measured."""
        return pd.Index(self.names).get_indexer(pd.Index(features))


@dataclass(frozen=True, eq=False)
class ModalitySets:
    """The data sets that have one modality, and how they are read."""

    data_sets: list[DataSet]
    """The data sets, in the order of their sources."""
    binning: Binning
    """Binning of the values."""
    gene_symbols: str | None = None
    """Column of ``var`` with the names of the features. A data set without it has its names in ``var_names``."""
    allow_non_integer: bool = False
    """Whether values that are not integers are accepted as counts."""
    features: Sequence[str] | None = None
    """Features to model. None: they are not chosen yet."""

    @property
    def reading(self) -> Reading:
        """How the model reads the values."""
        first = self.data_sets[0].inspection
        counts = self.binning.kind == "value" or (self.allow_non_integer and not first.n_negative)
        return Reading(first.layer, "counts" if counts else first.scale, self.allow_non_integer, self.gene_symbols)


@dataclass(frozen=True)
class _Given:
    """The arguments for one modality."""

    layer: str | None
    gene_symbols: str | None
    binning: Binning | None
    features: Sequence[str] | None
    allow_non_integer: bool
    seed: int | None
    several: bool
    """Whether there may be several modalities. If not, all sources are AnnData."""


@contextmanager
def open_data_sets(
    sources: Any,
    modalities: Sequence[str] | None = None,
    *,
    layer: Any = None,
    gene_symbols: Any = None,
    binning: Any = None,
    features: Any = None,
    allow_non_integer: bool = False,
    phenotype_keys: Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[dict[str, ModalitySets]]:
    """Open and check data sets. Those that cannot be used are left out with a warning that says why.

    Files that are read block by block are open inside of the context, and closed after it.

    Parameters
    ----------
    sources
        A folder, or AnnData, MuData, readers of rows, and paths of h5ad and h5mu files and zarr stores: one, a list, or
        a mapping from their names.
    modalities
        Modalities to read. None reads all. If no source is a MuData, None reads all of them as ``"rna"``.
    layer, gene_symbols, binning, features
        As in :func:`scbioformers.tl.pretrain`: one value if there is one modality, or a dict by modality.
    allow_non_integer
        Whether estimated counts are accepted as counts.
    phenotype_keys
        Columns of ``obs``, each of which a source must have.
    seed
        Seed of :func:`choose_features`, for which a file on disk is then not read again.

    Yields
    ------
    For each modality, its data sets.

    Raises
    ------
    ConfigError
        If ``sources`` is empty or has something else, a path does not exist, or an argument must be a dict.
    MissingKeyError
        If no data set has a modality of ``modalities``, the column ``gene_symbols``, or one of ``phenotype_keys``.
    DataError
        If no data set can be used.
    """
    given = {"layer": layer, "gene_symbols": gene_symbols, "binning": binning, "features": features}
    named = name_sources(sources)
    total = sum(size_of(source) for source in named.values() if isinstance(source, Path))
    if total > MAX_BYTES:
        logger.info("The files have %.1f GB together. They are read in blocks of cells.", total / 1e9)
    with ExitStack() as files:
        opened: list[tuple[int, str, Opened]] = []
        problems: Problems = []
        for i, (name, source) in enumerate(named.items()):
            with _noting(problems, i, name):
                opened.append(
                    (i, name, open_source(source, files, in_memory=total <= MAX_BYTES, obs_keys=phenotype_keys))
                )
        several = modalities is not None or any(isinstance(data, MuData | StoredSamples) for *_, data in opened)
        if several:
            parts, problems = _parts_of_several(opened, modalities, problems), []
        else:  # what could not be opened is named together with what cannot be read
            parts = {"rna": [Part(name, i, "rna", data, data) for i, name, data in opened if isinstance(data, AnnData)]}
        require_columns([part.samples for own in parts.values() for part in own], phenotype_keys)
        of_each = {key: of_modality(key, value, list(parts)) for key, value in given.items()}
        options = {}
        for name in parts:
            values: Any = {key: each[name] for key, each in of_each.items()}
            if isinstance(values["binning"], str):
                values["binning"] = Binning(kind=values["binning"])  # type: ignore[arg-type]
            options[name] = _Given(**values, allow_non_integer=allow_non_integer, seed=seed, several=several)
        yield {name: _read_modality(own, options[name], problems) for name, own in parts.items()}


@contextmanager
def _noting(problems: Problems, position: int, name: str) -> Iterator[None]:
    """Add an error to the problems, instead of raising it."""
    try:
        yield
    except _UNUSABLE as error:
        problems.append((position, f"{name}: {str(error) or type(error).__name__}"))


def _parts_of_several(
    opened: Sequence[tuple[int, str, Opened]], modalities: Sequence[str] | None, problems: Problems
) -> dict[str, list[Part]]:
    """The data sets of each modality. A source that has none of those to read is left out with a warning."""
    n_given, found, present = len(opened) + len(problems), [], []
    if modalities is not None and (not modalities or len(set(modalities)) < len(modalities)):
        raise ConfigError(f"`modalities` must be different names, at least one, found {list(modalities)}.")
    for i, name, data in opened:
        with _noting(problems, i, name):
            names = _modality_names(data)
            present += names
            found.append(_parts(i, name, data, names, modalities))
    if present and (lacking := [name for name in modalities or () if name not in present]):
        raise MissingKeyError(f"No source has the modality {lacking[0]!r}. They have {sorted(set(present))}.")
    if not found:
        raise DataError(f"None of the {n_given} sources can be used. " + _texts(problems))
    if problems:
        warn(f"{len(problems)} of {n_given} sources are left out. " + _texts(problems))
    parts = [part for own in found for part in own]
    read = modalities or [name for name, _ in Counter(part.modality for part in parts).most_common()]
    return {name: [part for part in parts if part.modality == name] for name in read}


def _modality_names(data: Opened) -> list[str]:
    """Names of the modalities of a source. That of an AnnData follows from the type of its features."""
    if isinstance(data, AnnData):
        types = [] if FEATURE_TYPES not in data.var else list(map(str, data.var[FEATURE_TYPES].dropna().unique()))
        if len(types) > 1:
            raise DataError(
                f"adata.var[{FEATURE_TYPES!r}] has the types {types}, expected one modality. Pass "
                "`bf.pp.to_mudata(adata)` instead of it."
            )
        return [modality_of(types[0]) if types else "rna"]
    return list(data.mod)


def _parts(
    position: int, source: str, data: Opened, names: Sequence[str], modalities: Sequence[str] | None
) -> list[Part]:
    """The modalities of a source that are to be read."""
    read = [name for name in names if modalities is None or name in modalities]
    if not read:
        raise DataError(
            f"It has the modalities {list(names)}, and `modalities` are {list(modalities or ())}. If it has one of "
            f"these under another name, pass `MuData({{{(modalities or ['rna'])[0]!r}: adata}})` instead of it."
        )
    if isinstance(data, AnnData):
        return [Part(source, position, read[0], data, StoredSamples({read[0]: data}, data.obs))]
    return [
        Part(source, position, name, data[name], data, modality_rows(data, name))
        for name in choose_modalities(data, read)
    ]


def _read_modality(parts: Sequence[Part], given: _Given, problems: Problems) -> ModalitySets:
    """Inspect and check the data sets of one modality. ``problems`` are those of files."""
    problems, inspected = list(problems), []
    for part in parts:
        with _noting(problems, part.position, part.name):
            inspected.append((part, *_inspect(part, given)))
    binning = given.binning or _default_binning(parts, [found for _, found, _ in inspected], given)
    data_sets = []
    for part, found, sample in inspected:
        with _noting(problems, part.position, part.name):
            data_sets.append(_check(part, found, sample, given, counts=binning.kind == "value"))
    if data_sets and binning.kind != "value":
        data_sets, other = _of_one_scale(data_sets)
        problems += other
    _require_usable(data_sets, problems, given, parts[0].modality if parts else "rna")
    return ModalitySets(data_sets, binning, given.gene_symbols, given.allow_non_integer, given.features)


def _inspect(part: Part, given: _Given) -> tuple[Inspection, SampledRows | None]:
    """Properties of the matrix, and some rows if they are on disk and features are to be chosen."""
    sampled = given.seed is not None and given.features is None and reads_disk(get_matrix(part.adata, given.layer))
    sample = SampledRows(part.adata.n_obs, int(given.seed or 0)) if sampled else None
    return inspect(part.adata, given.layer, also=None if sample is None else sample.add), sample


def _default_binning(parts: Sequence[Part], found: Sequence[Inspection], given: _Given) -> Binning:
    """Value bins for AnnData. For a modality of several, those that suit the values of most cells, which is logged."""
    if not given.several or not found:
        return Binning()
    suited, cells = [default_binning(each) for each in found], Counter[Any]()
    for (kind, _), each in zip(suited, found, strict=True):
        cells[kind] += each.n_obs
    ((most, _),) = cells.most_common(1)
    why = next(why for kind, why in suited if kind == most)
    logger.info("Modality %r: %s, read as %s bins.", parts[0].modality, why, most)
    return Binning(kind=most)


def _check(part: Part, found: Inspection, sample: SampledRows | None, given: _Given, *, counts: bool) -> DataSet:
    """Check the values, and name the features."""
    adata, none = part.adata, np.zeros(part.adata.n_vars, bool)
    if counts:
        options: dict[str, Any] = {"allow_non_integer": given.allow_non_integer, "caller": "pretrain"}
        require_counts(adata, found.layer, modelled=none, inspection=found, **options)
    else:
        require_valid(adata, found.layer, modelled=none, inspection=found)
    column = given.gene_symbols if given.gene_symbols in adata.var else None
    names = gene_names(adata, column)
    kept = best_measured(names, found.gene_nnz, column)
    names = np.where(kept, names, "")
    ranks = None if sample is None else variable_ranks(AnnData(sample.counts()), None, names)
    own = part.source, part.position, part.modality, adata, part.samples, part.rows
    return DataSet(*own, inspection=found, names=names, ranks=ranks)


def _of_one_scale(data_sets: list[DataSet]) -> tuple[list[DataSet], Problems]:
    """The data sets whose values are on the most frequent scale, and what is wrong with the others."""
    scales = [each.inspection.scale for each in data_sets]
    most = max(scales, key=scales.count)
    kept = [each for each in data_sets if each.inspection.scale == most]
    other = [
        (
            each.position,
            f"{each.name}: {each.inspection.name} has the scale {each.inspection.scale!r}, that of most data sets is "
            f"{most!r}; pass `layer=`, or data of one scale.",
        )
        for each in data_sets
        if each.inspection.scale != most
    ]
    return kept, other


def _require_usable(found: list[DataSet], problems: Problems, given: _Given, modality: str) -> None:
    """Check that there are data sets. Those with problems are named."""
    n_given, symbols = len(found) + len(problems), given.gene_symbols
    texts, of, hint = _texts(problems), "", ""
    if given.several:
        texts, of = _in_modality(texts, modality), f" of {modality!r}"
        hint = " Without this modality, name the others as `modalities=`."
    if not found:
        raise DataError(f"None of the {n_given} data sets{of} can be used. {texts}{hint}")
    if symbols is not None and all(symbols not in each.adata.var for each in found):
        columns = sorted({str(key) for each in found for key in each.adata.var})
        raise MissingKeyError(
            f"No data set{of} has the column var[{symbols!r}] of `gene_symbols`. Their columns are "
            f"{short_list(columns)}. Without `gene_symbols`, genes are named by `var_names`."
        )
    if problems:
        warn(f"{len(problems)} of {n_given} data sets{of} are left out. {texts}")


def _texts(problems: Problems) -> str:
    return " ".join(text for _, text in sorted(problems, key=lambda each: each[0]))


def _in_modality(text: str, modality: str) -> str:
    """A message with calls whose arguments are dicts by modality.

    Examples
    --------
    >>> _in_modality("Pass `layer='counts'`.", "rna")
    "Pass `layer={'rna': 'counts'}`."
    """
    text = re.sub(r"\b(layer|binning)=('\w+')", rf"\1={{{modality!r}: \2}}", text)
    return text.replace("`layer=`", f"`layer={{{modality!r}: ...}}`")
