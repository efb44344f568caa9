"""``bf.pl.gene_programs``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from mudata import MuData

from scbioformers.core import Category, ConfigError, DataError, MissingKeyError, check_arguments, find_category
from scbioformers.data import names_modality, obs_column, open_modality
from scbioformers.pl._show import figure
from scbioformers.results import (
    has_program_genes,
    read_program_genes,
    read_program_labels,
    read_program_scores,
    result_genes,
)

_MISSING = "0.82"
_MAX_LIMIT = 3.0  # upper bound of the colour scale, so that a few outlier cells do not dominate it


@figure
@names_modality
def gene_programs(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    groupby: str | None = None,
    n_programs: int | None = 30,
    programs: Category | Sequence[Category] | None = None,
    n_genes: int = 4,
    gene_symbols: str | None = None,
    key: str = "gene_program",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Heat map of the scores of gene programs, by group of cells or by cell.

    Scores are standardised over all cells: 0 is the mean, and the unit is one standard deviation. The colour scale ends
    at 3 standard deviations or less.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.gene_programs`.
    modality
        The modality of a MuData that has the result. None is the only one.
    groupby
        Column of ``adata.obs``. The figure shows the mean score of each category. Cells without a value are left out.
        By default, each cell is one column, and the cells are sorted by their highest program.
    n_programs
        Number of programs, those with the most genes. None shows all.
    programs
        Names of the programs to show, in this order, instead of the largest ones.
    n_genes
        Number of genes of each program in its label.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.gene_programs`.
    ax
        Axes to draw on. By default, a new figure is created.
    %(show_save)s

    Returns
    -------
    Axes or None
        Axes with the figure, or None with ``show=True``.

    Raises
    ------
    MissingKeyError
        If no programs are stored under ``key``, or the column ``groupby`` or ``gene_symbols`` or one of ``programs``
        does not exist.
    ConfigError
        If ``n_programs`` is less than 1, ``programs`` is empty, or ``n_genes`` is negative.
    DataError
        If no gene is in a program, or no cell has a value in the column.

    Examples
    --------
    See :func:`scbioformers.tl.gene_programs`.
    """
    check_arguments(gene_programs, locals())
    adata = open_modality(adata, modality)
    labels = read_program_labels(adata, key)
    shown_names = result_genes(adata, key, gene_symbols).shown_by_stored(labels.index)
    scores = _standardised(read_program_scores(adata, key))
    n_all = scores.shape[1]
    if not n_all:
        raise DataError(
            f"No gene is in a program (adata.var[{key!r}] has no category). Run `bf.tl.gene_programs` on more genes "
            "or with a smaller `min_genes`."
        )
    if n_genes < 0:
        raise ConfigError(f"`n_genes` must be at least 0, found {n_genes}.")
    scores = scores[_chosen([str(name) for name in scores], labels, n_programs, programs)]
    shown = _by_cell(scores) if groupby is None else _by_group(adata, scores, groupby)
    if ax is None:
        width = 5.0 if groupby is None else 1.2 + 0.34 * shown.shape[1]
        longest = 0 if groupby is None else max(len(str(name)) for name in shown.columns)
        size = (2.6 + 0.45 * n_genes + width, 1.2 + 0.3 * len(shown) + 0.055 * longest)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    values = np.ma.masked_invalid(shown.to_numpy(np.float64))
    limit = float(np.quantile(np.abs(values.compressed()), 0.99)) if values.count() else 1.0
    limit = min(limit or 1.0, _MAX_LIMIT)
    colours = plt.get_cmap("RdBu_r").with_extremes(bad=_MISSING)
    image = ax.imshow(values, aspect="auto", cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    names = [
        _name(program, genes.map(shown_names), n_genes)
        for program, genes in _central_first(adata, key, labels, shown.index)
    ]
    ax.set_yticks(range(len(shown)), names, fontsize=8)
    if groupby is None:
        ax.set(xlabel=f"{shown.shape[1]:,} cells", xticks=[])
    else:
        rotated: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(range(shown.shape[1]), shown.columns, fontsize=8, **rotated)
        ax.set_xlabel(groupby)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("gene programs" if len(shown) == n_all else f"{len(shown)} of {n_all} gene programs", fontsize=10)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label(f"{'score' if groupby is None else 'mean score'}\n(standard deviations)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return ax


def _chosen(
    names: list[str], labels: pd.Series[Any], n_programs: int | None, programs: Category | Sequence[Category] | None
) -> list[str]:
    """The programs to show: the named ones, or the largest ones in the order in which they are stored."""
    if programs is not None:
        listed = [programs] if isinstance(programs, str | int | float) else list(programs)
        if not listed:
            raise ConfigError("`programs` is empty. Pass one or more programs, or None for the largest ones.")
        place = "the stored programs"
        found = [find_category(each, names, argument="programs", place=place, error=MissingKeyError) for each in listed]
        return list(dict.fromkeys(found))
    if n_programs is not None and n_programs < 1:
        raise ConfigError(f"`n_programs` must be at least 1, or None for all programs, found {n_programs}.")
    sizes = labels.value_counts().reindex(names, fill_value=0).sort_values(ascending=False, kind="stable")
    largest = set(sizes.index[:n_programs])
    return [name for name in names if name in largest]


def _central_first(
    adata: AnnData, key: str, labels: pd.Series[Any], shown: pd.Index[Any]
) -> Iterator[tuple[str, pd.Index[Any]]]:
    """Genes of each program, sorted by their weight (cosine with the centroid) if the weights are stored."""
    weight = pd.Series(0.0, labels.index)
    if has_program_genes(adata, key):
        table = read_program_genes(adata, key)
        weight = pd.Series(table["weight"].to_numpy(), table["gene"]).reindex(labels.index).fillna(0.0)
    for program in shown:
        yield program, weight[labels == program].sort_values(ascending=False, kind="stable").index


def _standardised(scores: pd.DataFrame) -> pd.DataFrame:
    spread = scores.std(ddof=0)
    return (scores - scores.mean()) / spread.where(spread > 0, 1.0)


def _by_cell(scores: pd.DataFrame) -> pd.DataFrame:
    """Programs x cells. Cells are sorted by their highest program, then by its score."""
    scores = scores.dropna()
    values = scores.to_numpy()
    order = np.lexsort((-values.max(axis=1), values.argmax(axis=1)))
    return scores.iloc[order].T


def _by_group(adata: AnnData, scores: pd.DataFrame, groupby: str) -> pd.DataFrame:
    """Programs x groups. Groups are in the order of the categories, without categories that have no cell."""
    groups = (
        obs_column(adata, groupby, "Pass one of these columns as `groupby=`.")
        .astype("category")
        .cat.remove_unused_categories()
    )
    if not len(groups.cat.categories):
        raise DataError(f"adata.obs[{groupby!r}] has no value in any cell. Pass another column as `groupby=`.")
    return scores.groupby(groups.array, observed=True).mean().T


def _name(program: str, genes: pd.Index[Any], n_genes: int) -> str:
    shown, more = ", ".join(genes[:n_genes]), len(genes) - n_genes
    return f"{program}: {shown}{f' +{more}' if more > 0 else ''}" if len(genes) else program
