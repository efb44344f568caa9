"""``bf.pp.check``: check the data before a fit or before a model is used, and suggest the next calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset
from mudata import MuData
from numpy.typing import NDArray

from scbioformers.core import ConfigError, check_arguments
from scbioformers.data import (
    DEFAULT_MASK,
    FeatureMap,
    Inspection,
    call,
    filter_call,
    find_cautions,
    find_count_problems,
    find_problems,
    fit_call,
    gene_mask,
    get_matrix,
    inspect,
    refuse_dicts,
    split_call,
)
from scbioformers.pp._costs import BYTES_PER_NONZERO, Cost, Size, embed_cost, fit_cost, impute_cost
from scbioformers.pp._model_report import ModelReport
from scbioformers.pp._mudata_report import ModalityReport, MuDataReport, chosen_modalities, samples_report

# Above this number of genes, a selection of highly variable genes is suggested. Most other genes are noise, and each
# expressed gene adds a token.
MANY_GENES = 5000
N_TOP_GENES = 2000

_KINDS = {
    "counts": "raw counts",
    "bool": "booleans",
    "log1p": "log-transformed values (log1p), not raw counts",
    "normalized": "normalised values, not raw counts",
    "estimated": "values that are not integers: estimated counts, or another scale",
    "centered": "negative values (scaled or centred), not raw counts",
}
_IDS = {"ensembl": "Ensembl ids", "symbol": "symbols", "number": "numbers, which cannot be matched to other data"}


@dataclass(frozen=True, eq=False)
class CheckReport:
    """Result of :func:`scbioformers.pp.check`. Its ``repr`` is a readable report."""

    inspection: Inspection = field(repr=False)
    """Properties of the matrix."""
    modelled: NDArray[np.bool_] = field(repr=False)
    """(n_vars,), genes that a fit would model."""
    expressed: float
    """Mean number of modelled genes with a non-zero value per cell."""
    costs: dict[str, Cost]
    """Estimated minutes, memory and disk of ``"fit"``, ``"embed"`` and ``"impute"``, without ``"fit"`` for a model.

    They are those of calls with the default arguments, on a quiet machine with one thread. Each :class:`Cost` has
    ``minutes``, ``gigabytes`` (peak memory) and ``disk`` (size of the result, in GB). They are meant to be right within
    a factor of 1.5.
    """
    problems: tuple[str, ...]
    """Reasons why a default fit, or a verb with the model, is not possible. Empty if it is possible."""
    cautions: tuple[str, ...]
    """Properties of the data that do not prevent it but may affect it."""
    next_calls: tuple[str, ...]
    """Suggested calls, in order."""
    model: ModelReport | None = None
    """How the model would read the data. ``None`` without a model, or if its genes cannot be compared with the data."""

    def __repr__(self) -> str:
        data, n_modelled = self.inspection, int(self.modelled.sum())
        duplicates = f"{len(data.duplicate_vars)} of them duplicated" if data.duplicate_vars else "unique"
        lines = [
            f"{data.n_obs:,} cells x {data.n_vars:,} genes in {data.name}: {_KINDS[data.kind]}",
            f"  values    {data.density:.1%} non-zero, maximum {data.max_value:,.6g}, "
            f"median total per cell {np.median(data.depth) if data.n_obs else 0:,.6g}",
            f"  names     genes: {_IDS[data.id_type]}, {duplicates}; cells: "
            + (f"{data.n_duplicate_obs} duplicated (not a problem)" if data.n_duplicate_obs else "unique"),
            f"  empty     {data.n_empty_cells:,} cells, {data.n_empty_genes:,} genes",
        ]
        if self.model is None:
            lines.append(
                f"  modelled  {'all ' if n_modelled == data.n_vars else ''}{n_modelled:,} genes; "
                f"{self.expressed:,.0f} of them are expressed in an average cell"
            )
        if data.feature_types:
            listed = ", ".join(f"{n:,} {name}" for name, n in data.feature_types.items())
            lines.append(f"  features  {listed}")
        if data.counts is not None:
            lines.append(f"  counts    {data.counts.name} seems to hold the counts")
        if self.model is not None:
            lines += self.model.lines()
        if not self.problems:
            lines.append(f"  {'cost':9s} {'by one thread':14s} {'time':>12s} {'memory':>9s} {'on disk':>9s}")
            lines += [f"            {cost.line(f'bf.tl.{name}')}" for name, cost in self.costs.items()]
        lines += [f"Problem: {text}" for text in self.problems]
        lines += [f"Note: {text}" for text in self.cautions]
        if self.next_calls:
            lines += ["Next:", *(f"  {call}" for call in self.next_calls)]
        return "\n".join(lines)


def check(
    adata: AnnData | MuData,
    *,
    modality: str | Sequence[str] | None = None,
    layer: str | Mapping[str, str] | None = None,
    mask_var: str | NDArray[np.bool_] | Mapping[str, Any] | None = "highly_variable",
    model: Any = None,
    gene_symbols: str | None = None,
    feature_map: FeatureMap | None = None,
) -> CheckReport | MuDataReport:
    """Check the data before a fit, or before a model is used. It reads all values and does not change ``adata``.

    Parameters
    ----------
    adata
        AnnData, in memory or backed, or a MuData.
    modality
        Modality, or modalities, of a MuData to check. None is all of them.
    layer
        Layer to read. None, and ``"X"``, read ``adata.X``. With ``model``, None reads the layer that the model was
        fitted on if ``adata`` has it. For a MuData, a dict by modality, or one that all modalities have.
    mask_var
        Column of ``adata.var`` that is True for the genes to model, or a bool array (n_vars,). None selects all genes.
        The default also selects all genes if ``adata.var`` has no column ``"highly_variable"``. Only for a fit. For a
        MuData, a dict by modality, or a column that all modalities have.
    model
        A :class:`~scbioformers.BioFormer`, the directory of a saved model, or the AnnData that the model was fitted on.
        The report then says what the verbs with this ``model=`` would read, and how well the model knows such cells.
        For this, at most 500 cells are scored, see :func:`scbioformers.model.score_cells`.
    gene_symbols
        Column of ``adata.var`` with the names of the genes, as in :func:`scbioformers.tl.embed`. Only with ``model``.
    feature_map
        Dict or Series from the names of genes in ``adata`` to their names in the model, as in
        :func:`scbioformers.tl.embed`. Only with ``model``.

    Returns
    -------
    CheckReport or MuDataReport
        Type of the values, names, empty cells and genes, estimates of time, memory and disk, problems, and suggested
        calls.
        With ``model``: the genes of the model that are in the data, how the depth is read, which columns of ``obs`` the
        model uses, and the scores of the cells. Data that cannot be used does not raise an error. The reasons are
        listed in ``problems``. No fields are set.
        For a MuData: the same of each modality, the bins that suit its values, and which samples it has.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData, has no matrix of numbers, or is a view of a backed AnnData.
    MissingKeyError
        If the modality, the layer, the column or the model does not exist.
    ModelFormatError
        If the stored model is damaged.
    ConfigError
        If ``model`` has another type, ``feature_map`` is empty or does not hold strings, or one of the last two
        arguments is passed without ``model``. If ``model`` is passed with a MuData, or ``modality`` or a dict with an
        AnnData.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scbioformers as bf
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (50, 20)).astype(np.float32))
    >>> report = bf.pp.check(adata)
    >>> report.inspection.kind, report.problems, report.next_calls
    ('counts', (), ('bf.tl.fit(adata)',))
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> report = bf.pp.check(adata[:, :15].copy(), model=adata)
    >>> report.model.n_found, report.next_calls
    (15, ('bf.tl.embed(adata, model=model)',))
    """
    check_arguments(check, locals())
    if isinstance(adata, MuData):
        if model is not None:
            raise ConfigError("`model` is compared with one modality. Pass that instead, such as `mdata['rna']`.")
        return _check_mudata(adata, modality, layer, mask_var)
    if modality is not None:
        raise ConfigError(f"`modality` names parts of a MuData, found {modality!r} and an AnnData. Leave it out.")
    given: dict[str, Any] = {"layer": layer, "mask_var": mask_var}
    refuse_dicts(**given)
    get_matrix(adata, given["layer"])  # first, because it checks the type of adata
    if model is not None:
        return _check_with_model(adata, **given, model=model, gene_symbols=gene_symbols, feature_map=feature_map)
    for name, value in {"gene_symbols": gene_symbols, "feature_map": feature_map}.items():
        if value is not None:
            raise ConfigError(f"`{name}` names the genes of a model, but found no `model=`. Pass the model as well.")
    return _check(adata, **given)


def _check_with_model(
    adata: AnnData,
    layer: str | None,
    mask_var: Any,
    model: Any,
    gene_symbols: str | None,
    feature_map: FeatureMap | None,
) -> CheckReport:
    from scbioformers.pp._check_model import compare_with_model  # imports torch
    from scbioformers.results import find_model

    fitted = find_model(adata, model)
    default = fitted.reading.layer if fitted.reading.layer in adata.layers else None
    base = _check(adata, default if layer is None else layer, mask_var)
    report, problems, cautions = compare_with_model(adata, fitted, base.inspection, gene_symbols, feature_map)
    given: dict[str, Any] = {}
    if model is not adata:
        given["model"] = str(model) if isinstance(model, str | Path) else _Name("model")
    given |= {} if layer is None else {"layer": layer}
    given |= {} if gene_symbols is None else {"gene_symbols": gene_symbols}
    given |= {} if feature_map is None else {"feature_map": _Name("feature_map")}
    next_calls = [call("bf.tl.embed", **given)]
    if problems:
        next_calls = [f"{call('bf.pp.check', **given)}  # again, after the problem is solved"]
    elif report is not None and report.poorly_known:
        next_calls = [*base.next_calls, f"{next_calls[0]}  # works too, but see the note"]
    found: dict[str, Any] = {"problems": tuple(problems), "cautions": tuple(cautions), "next_calls": tuple(next_calls)}
    expressed, n_members = (0.0 if report is None else report.expressed), len(fitted.members)
    options = {"n_members": n_members, "fitted": model is adata, "on_disk": base.inspection.stored == "disk"}
    size = _size(base.inspection, len(fitted.vocabulary), expressed, **options)
    return replace(base, **found, model=report, costs={"embed": embed_cost(size), "impute": impute_cost(size)})


def _check(adata: AnnData, layer: str | None, mask_var: Any) -> CheckReport:
    modelled = gene_mask(adata, mask_var)
    inspection = inspect(adata, layer)
    n_obs, n_modelled = inspection.n_obs, int(modelled.sum())
    expressed = int(inspection.gene_nnz[modelled].sum()) / max(n_obs, 1)
    by_columns = isinstance(get_matrix(adata, inspection.layer), CSCDataset)
    size = _size(inspection, n_modelled, expressed, on_disk=inspection.stored == "disk" and not by_columns)
    problems = find_problems(inspection) or find_count_problems(inspection)
    cautions = find_cautions(inspection, modelled)
    if by_columns:
        name, held = inspection.name, 1e-9 * BYTES_PER_NONZERO * inspection.n_nonzero
        cautions.append(
            f"{name} is stored by columns (CSC), so every verb reads all of it into memory ({held:.1f} GB). Store it "
            f"by rows once: `adata = adata.to_memory(); {name} = {name}.tocsr(); adata.write_h5ad('by_rows.h5ad'); "
            "adata = ad.read_h5ad('by_rows.h5ad', backed='r')`."
        )
    if inspection.n_empty_cells and n_obs:
        cautions.append(
            f"Empty cells: {inspection.n_empty_cells:,}. A fit skips them. `{filter_call(inspection, 0)}` removes them."
        )
    return CheckReport(
        inspection=inspection,
        modelled=modelled,
        expressed=expressed,
        costs={"fit": fit_cost(size), "embed": embed_cost(size), "impute": impute_cost(size)},
        problems=tuple(problems),
        cautions=tuple(cautions),
        next_calls=tuple(_next_calls(adata, inspection, modelled, mask_var)),
    )


def _check_mudata(mdata: MuData, modality: str | Sequence[str] | None, layer: Any, mask_var: Any) -> MuDataReport:
    names = chosen_modalities(mdata, modality)
    of: dict[str, ModalityReport] = {}
    sizes = []
    for name in names:
        layers, masks = (x.get(name) if isinstance(x, Mapping) else x for x in (layer, mask_var))
        masks = DEFAULT_MASK if isinstance(mask_var, Mapping) and name not in mask_var else masks
        report = _check(mdata.mod[name], layers, masks)
        of[name] = ModalityReport.of(name, report)
        found = report.inspection
        sizes.append(_size(found, int(report.modelled.sum()), report.expressed, on_disk=found.stored == "disk"))
    return samples_report(mdata, of, sizes)


def _size(found: Inspection, n_modelled: int, expressed: float, **options: Any) -> Size:
    return Size(found.n_obs, found.n_vars, n_modelled, expressed, found.n_nonzero, **options)


def _next_calls(adata: AnnData, found: Inspection, modelled: NDArray[np.bool_], mask_var: Any) -> list[str]:
    genes: dict[str, Any] = {}  # the argument mask_var, where it is not the default
    if mask_var is None and DEFAULT_MASK in adata.var:
        genes["mask_var"] = None
    elif isinstance(mask_var, str) and mask_var != DEFAULT_MASK:
        genes["mask_var"] = mask_var
    elif mask_var is not None and not isinstance(mask_var, str):
        genes["mask_var"] = _Name("mask_var")  # an array is named, not printed
    layer = {} if found.layer is None else {"layer": found.layer}
    if found.transposed:
        loaded = ".to_memory()" if found.stored == "disk" else ""
        return [f"adata = adata{loaded}.T.copy()", "bf.pp.check(adata)"]
    if find_problems(found):
        return [f"{_check_call(found.layer, genes)}  # again, after the problem is solved"]
    if split := split_call(found):
        return [split, _check_call(found.layer, {} if "mask_var" in genes and not isinstance(mask_var, str) else genes)]
    if find_count_problems(found):
        if found.counts is None:
            selected = []
            if found.kind == "log1p" and modelled.all() and len(modelled) > MANY_GENES:
                selected, genes = [call("sc.pp.highly_variable_genes", n_top_genes=N_TOP_GENES, **layer)], {}
            segment = f"{fit_call(found, binning='segment', **genes)}  # ranks do not require counts"
            estimated = f"{fit_call(found, allow_non_integer=True, **genes)}  # if these are estimated counts"
            return [*selected, *([estimated] if found.kind == "estimated" else []), segment]
        if found.counts.replaces_genes:
            genes = {}
        return [*([found.counts.call] if found.counts.call else []), _check_call(found.counts.layer, genes)]
    if modelled.all() and len(modelled) > MANY_GENES:
        selection = call("sc.pp.highly_variable_genes", n_top_genes=N_TOP_GENES, flavor="seurat_v3", **layer)
        return [selection, fit_call(found)]
    return [fit_call(found, **genes)]


class _Name:
    """A name in a call that is written as text."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def _check_call(layer: str | None, genes: dict[str, Any]) -> str:
    return call("bf.pp.check", **({} if layer in (None, "X") else {"layer": layer}), **genes)
