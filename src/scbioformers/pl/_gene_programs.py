"""``bf.pl.gene_programs``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from scbioformers.core import DataError, MissingKeyError
from scbioformers.results import has_program_genes, read_program_genes, read_program_labels, read_program_scores

_NO_GROUP = "0.82"
_STRONGEST = 3.0  # else a few rare cells, far from all others, would leave them pale


def gene_programs(
    adata: AnnData,
    *,
    groupby: str | None = None,
    n_genes: int = 4,
    key: str = "gene_program",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Which cells use which gene program: the mean score of each program in each group of cells.

    Scores are in standard deviations over all cells, 0 being their mean, so that programs can be compared. Colours end
    at three of them.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.gene_programs`.
    groupby
        Column of ``adata.obs``; cells without a value are left out. By default every cell is a column, sorted by the
        program in which it stands out.
    n_genes
        Genes of each program to name.
    key
        The name given as ``key_added``.
    ax
        Axes to draw on; by default a new figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        If there are no programs, or no such column.
    DataError
        If there is no program, or no cell has a value in the column.

    Examples
    --------
    See :func:`scbioformers.tl.gene_programs`.
    """
    programs = read_program_labels(adata, key)
    scores = _standardised(read_program_scores(adata, key))
    if not scores.shape[1]:
        raise DataError(f"adata.var[{key!r}] names no program. Run `bf.tl.gene_programs(adata)` on more genes.")
    shown = _by_cell(scores) if groupby is None else _by_group(adata, scores, groupby)
    if ax is None:
        width = 5.0 if groupby is None else 1.2 + 0.34 * shown.shape[1]
        longest = 0 if groupby is None else max(len(str(name)) for name in shown.columns)
        size = (2.6 + 0.45 * n_genes + width, 1.2 + 0.3 * len(shown) + 0.055 * longest)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    values = np.ma.masked_invalid(shown.to_numpy(np.float64))
    limit = float(np.quantile(np.abs(values.compressed()), 0.99)) if values.count() else 1.0
    limit = min(limit or 1.0, _STRONGEST)
    colours = plt.get_cmap("RdBu_r").with_extremes(bad=_NO_GROUP)
    image = ax.imshow(values, aspect="auto", cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    names = [_name(program, genes, n_genes) for program, genes in _central_first(adata, key, programs, shown.index)]
    ax.set_yticks(range(len(shown)), names, fontsize=8)
    if groupby is None:
        ax.set(xlabel=f"{shown.shape[1]:,} cells", xticks=[])
    else:
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(range(shown.shape[1]), shown.columns, fontsize=8, **turned)
        ax.set_xlabel(groupby)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("gene programs", fontsize=10)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label(f"{'score' if groupby is None else 'mean score'} (standard deviations)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    if save is not None:
        ax.figure.savefig(save, dpi=150)  # type: ignore[union-attr]
    return ax


def _central_first(
    adata: AnnData, key: str, programs: pd.Series[Any], shown: pd.Index[Any]
) -> Iterator[tuple[str, pd.Index[Any]]]:
    """The genes of each program, those nearest to its centroid first if that is known."""
    weight = pd.Series(0.0, programs.index)
    if has_program_genes(adata, key):
        table = read_program_genes(adata, key)
        weight = pd.Series(table["weight"].to_numpy(), table["gene"]).reindex(programs.index).fillna(0.0)
    for program in shown:
        yield program, weight[programs == program].sort_values(ascending=False, kind="stable").index


def _standardised(scores: pd.DataFrame) -> pd.DataFrame:
    spread = scores.std(ddof=0)
    return (scores - scores.mean()) / spread.where(spread > 0, 1.0)


def _by_cell(scores: pd.DataFrame) -> pd.DataFrame:
    """Programs x cells, sorted by the highest program and its score."""
    scores = scores.dropna()
    values = scores.to_numpy()
    order = np.lexsort((-values.max(axis=1), values.argmax(axis=1)))
    return scores.iloc[order].T


def _by_group(adata: AnnData, scores: pd.DataFrame, groupby: str) -> pd.DataFrame:
    """Programs x groups, the groups in the order of the categories; those without cells are left out."""
    if groupby not in adata.obs:
        there = [str(name) for name in adata.obs]
        raise MissingKeyError(f"Did not find adata.obs[{groupby!r}]. Pass the name of a column. There: {there}.")
    groups = adata.obs[groupby].astype("category").cat.remove_unused_categories()
    if not len(groups.cat.categories):
        raise DataError(f"adata.obs[{groupby!r}] has no value in any cell. Pass another `groupby=`.")
    return scores.groupby(groups.array, observed=True).mean().T


def _name(program: str, genes: pd.Index[Any], n_genes: int) -> str:
    shown, more = ", ".join(genes[:n_genes]), len(genes) - n_genes
    return f"{program}: {shown}{f' +{more}' if more > 0 else ''}" if len(genes) else program
