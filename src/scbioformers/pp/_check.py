"""A look at the data before a fit: what is in it, what a fit will take, and what to call next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scbioformers.core import default_epochs
from scbioformers.data import (
    COUNTS_FROM_RAW,
    Inspection,
    find_cautions,
    find_count_problems,
    find_problems,
    gene_mask,
    get_matrix,
    inspect,
)

# What a default fit takes, measured on 2 CPU cores
FIXED_SECONDS = 10.0  # imports, compilation, the embedding's components
SECONDS_PER_TOKEN = 8e-6
SECONDS_PER_GENE = 3e-7  # predicting the profile of a cell
MEAN_CONTEXT, MAX_MASKED = 58, 32  # tokens of a training step
MASKED_PER_EXPRESSED = 0.3  # masked genes and masked zeros
FIXED_BYTES = 700e6  # Python with torch
BYTES_PER_TOKEN = 40e3  # activations of the default model
BATCH_SIZE = 64
BYTES_PER_NONZERO = 8  # float32 value and int32 index

# From here on a choice of genes pays: most of the others are noise, and each expressed one costs a token
MANY_GENES = 5000
N_TOP_GENES = 2000

_KINDS = {
    "counts": "raw counts",
    "bool": "booleans",
    "log1p": "log-transformed (log1p), not counts",
    "normalized": "not integers (normalised or estimated), not raw counts",
    "centered": "with negative values (scaled or centred), not counts",
}
_IDS = {"ensembl": "Ensembl ids", "symbol": "symbols", "number": "numbers, which match no other data"}


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What :func:`check` found; its ``repr`` is a text to read."""

    inspection: Inspection = field(repr=False)
    """All that is known about the matrix."""
    modelled: NDArray[np.bool_] = field(repr=False)
    """(n_vars,) genes that a fit would model."""
    expressed: float
    """Mean number of modelled genes with a non-zero value, per cell."""
    minutes: float
    """Estimated minutes of a default fit on 2 CPU cores."""
    gigabytes: float
    """Estimated peak memory of a default fit, in GB (1e9 bytes)."""
    problems: tuple[str, ...]
    """What stops a default fit; empty if it can start."""
    cautions: tuple[str, ...]
    """What a fit can handle but should be known."""
    next_calls: tuple[str, ...]
    """Calls to make next, in order."""

    def __repr__(self) -> str:
        found, n_modelled = self.inspection, int(self.modelled.sum())
        duplicates = f"{len(found.duplicate_vars)} of them duplicate" if found.duplicate_vars else "unique"
        lines = [
            f"{found.n_obs:,} cells x {found.n_vars:,} genes in {found.name}: {_KINDS[found.kind]}",
            f"  values    {found.density:.1%} non-zero, the largest {found.max_value:,.6g}, "
            f"median sum of a cell {np.median(found.depth) if found.n_obs else 0:,.6g}",
            f"  names     genes: {_IDS[found.id_type]}, {duplicates}; cells: "
            + (f"{found.n_duplicate_obs} duplicate (harmless)" if found.n_duplicate_obs else "unique"),
            f"  empty     {found.n_empty_cells:,} cells, {found.n_empty_genes:,} genes",
            f"  to model  {'all ' if n_modelled == found.n_vars else ''}{n_modelled:,} genes, "
            f"{self.expressed:,.0f} of them expressed in a cell",
        ]
        if found.counts_at is not None:
            where = "layers" if found.counts_at == "layer" else found.counts_at
            suffix = f"[{found.counts_layer!r}]" if found.counts_at == "layer" else ""
            lines.append(f"  counts    seem to be in adata.{where}{suffix} as well")
        if not self.problems:
            lines.append(
                f"  a fit     about {_minutes(self.minutes)} on 2 CPU cores, {self.gigabytes:.1f} GB of memory"
            )
        lines += [f"Problem: {text}" for text in self.problems]
        lines += [f"Note: {text}" for text in self.cautions]
        if self.next_calls:
            lines += ["Next:", *(f"  {call}" for call in self.next_calls)]
        return "\n".join(lines)


def check(
    adata: AnnData,
    *,
    layer: str | None = None,
    mask_var: str | NDArray[np.bool_] | None = "highly_variable",
) -> CheckReport:
    """Look at the data before a fit. Reads all of it once, in chunks; changes nothing.

    Parameters
    ----------
    adata
        Annotated data, in memory or backed.
    layer
        Layer to look at; None looks at ``adata.X``.
    mask_var
        Column of ``adata.var`` with the genes to model, or bools (n_vars,). None means all genes, and so does the
        default where there is no such column.

    Returns
    -------
    CheckReport
        Type of numbers, names, empty cells and genes, an estimate of time and memory, problems and next calls. Data
        that cannot be used is described under ``problems`` and raises no error. No fields are set.

    Raises
    ------
    DataError
        If `adata` is not an AnnData, has no matrix of numbers, or is a view of a backed one.
    MissingKeyError
        If there is no such layer or column.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scbioformers as bf
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (50, 20)).astype(np.float32))
    >>> report = bf.pp.check(adata)
    >>> report.inspection.kind, report.problems, report.next_calls
    ('counts', (), ('bf.tl.fit(adata)',))
    """
    get_matrix(adata, layer)  # what is not an AnnData has no var to look for the mask in
    modelled = gene_mask(adata, mask_var)
    found = inspect(adata, layer)
    n_nonzero = int(found.gene_nnz[modelled].sum())
    expressed = n_nonzero / max(found.n_obs, 1)
    tokens = min(expressed, MEAN_CONTEXT) + min(MASKED_PER_EXPRESSED * expressed, MAX_MASKED) + 1  # <cls>
    seconds_per_cell = SECONDS_PER_TOKEN * tokens + SECONDS_PER_GENE * int(modelled.sum())
    seconds = FIXED_SECONDS + seconds_per_cell * default_epochs(found.n_obs, BATCH_SIZE) * found.n_obs
    n_bytes = FIXED_BYTES + BYTES_PER_TOKEN * tokens * min(BATCH_SIZE, found.n_obs) + BYTES_PER_NONZERO * n_nonzero
    problems = find_problems(found) or find_count_problems(found)
    cautions = find_cautions(found, modelled)
    if found.n_empty_cells and found.n_obs:
        cautions.append(
            f"Empty cells: {found.n_empty_cells:,}, which a fit skips. "
            "`sc.pp.filter_cells(adata, min_counts=1)` removes them."
        )
    return CheckReport(
        inspection=found,
        modelled=modelled,
        expressed=expressed,
        minutes=seconds / 60,
        gigabytes=n_bytes / 1e9,
        problems=tuple(problems),
        cautions=tuple(cautions),
        next_calls=tuple(_next_calls(found, modelled, mask_var)),
    )


def _next_calls(found: Inspection, modelled: NDArray[np.bool_], mask_var: Any) -> list[str]:
    if found.transposed:
        return ["adata = adata.T.copy()", "bf.pp.check(adata)"]
    if find_problems(found):
        return [f"bf.pp.check({_arguments(found.layer, mask_var)})  # again, after mending the problem"]
    if find_count_problems(found):
        if found.counts_at is None:
            return [f"bf.tl.fit({_arguments(found.layer, mask_var, binning='segment')})  # ranks need no counts"]
        if found.counts_at == "raw":
            return [COUNTS_FROM_RAW, f"bf.pp.check({_arguments('counts', mask_var)})"]
        return [f"bf.pp.check({_arguments(found.counts_layer, mask_var)})"]
    calls = []
    if modelled.all() and len(modelled) > MANY_GENES:
        arguments = _arguments(found.layer, None, n_top_genes=N_TOP_GENES, flavor="seurat_v3")
        calls.append(f"sc.pp.highly_variable_genes({arguments})")
    return [*calls, f"bf.tl.fit({_arguments(found.layer, mask_var)})"]


def _arguments(layer: str | None, mask_var: Any, **others: Any) -> str:
    """Arguments of a call as text; those that have their default are left out."""
    given = dict(others)
    if layer is not None:
        given["layer"] = layer
    if isinstance(mask_var, str) and mask_var != "highly_variable":
        given["mask_var"] = mask_var
    return ", ".join(["adata", *(f"{name}={value!r}" for name, value in given.items())])


def _minutes(minutes: float) -> str:
    if minutes < 1.5:
        return f"{max(round(minutes * 6) * 10, 10)} seconds" if minutes < 0.95 else "1 minute"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
