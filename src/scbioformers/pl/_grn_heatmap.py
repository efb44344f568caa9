"""``bf.pl.attention_heatmap``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from mudata import MuData

from scbioformers import get
from scbioformers.core import Category, ConfigError, DataError, check_arguments, near_names, short_list
from scbioformers.data import GeneNames, names_modality
from scbioformers.pl._grn_words import condition_label, is_signed, weight_label
from scbioformers.pl._show import check_number, figure
from scbioformers.results import ModalityPair, find_condition, open_grn, read_grn_params, result_genes

_MISSING = "0.82"


@figure
@names_modality
def attention_heatmap(
    adata: AnnData | MuData,
    regulator: str | int | None = None,
    *,
    modality: ModalityPair | None = None,
    n_top: int = 10,
    conditions: Category | Sequence[Category] | None = None,
    gene_symbols: str | None = None,
    key: str = "grn",
    axes: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> list[Axes]:
    """Heat map of the strongest targets of one regulator in each condition (paper, section 3.4 and Fig. 2).

    Without ``regulator``, it shows the regulators with the highest weights (columns) and their strongest targets (rows)
    in one condition.

    The figure works with every method of :func:`scbioformers.tl.grn`, not only with attention. The label of the colour
    bar says which weights are shown, and what a positive weight means. Positive weights are red: the regulator
    activates the target, so a knock-out of the regulator lowers the target. Between two modalities, with
    ``method="embedding"``, it says only that both rise and fall together. Negative weights are blue. If the network
    has a reference condition, a second heat map shows the difference of the other conditions from it. Pairs without a
    weight are grey.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.grn`.
    regulator
        Name of the regulator, a gene. By default, the ``n_top`` regulators with the highest weights.
    modality
        The modality of a MuData that has the network, or the two modalities of a network between them, such as
        ``("rna", "prot")``. None is the only one.
    n_top
        Number of targets. They are sorted by their largest weight over the conditions (by the absolute weight if
        weights are signed).
    conditions
        Conditions to show. By default, all. Without ``regulator``, the one to show.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.grn`.
    axes
        Axes to draw on: one for the weights, and one for the differences if the network has a reference. By default, a
        new figure is created.
    %(show_save)s

    Returns
    -------
    list of Axes or None
        Axes of the weights, and of the differences if there are any. None if the figure is shown.

    Raises
    ------
    MissingKeyError
        If no network is stored under ``key``, or none for a condition.
    ConfigError
        If ``n_top`` is less than 1, ``conditions`` is empty, the number of axes is wrong, or there are several
        conditions and no ``regulator``.
    DataError
        If the regulator is not a gene of the data (the message suggests similar names), or has no weights.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, n_types=2)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.grn(adata, groupby="cell_type", reference="type_1", regulators=["TF1"])
    >>> [ax.get_title() for ax in bf.pl.attention_heatmap(adata, "TF1", show=False)]
    ['targets of TF1', 'difference from type_1']
    """
    check_arguments(attention_heatmap, locals())
    adata = open_grn(adata, modality, key)
    params = read_grn_params(adata, key)
    shown = _conditions(params, conditions)
    if n_top < 1:
        raise ConfigError(f"`n_top` must be at least 1, found {n_top}.")
    signed, reference = is_signed(params), params["reference"]
    genes = result_genes(adata, key, gene_symbols)
    if regulator is None:
        return _strongest(adata, params, shown, n_top, genes, key, axes)
    name, weight = _column(adata, str(regulator), shown, key, genes)
    strength = (weight.abs() if signed else weight).max(axis=1).dropna()
    weight = weight.loc[strength.sort_values(ascending=False, kind="stable").index[:n_top]]
    others = [] if reference is None else [name for name in shown if name != reference]
    tables = [weight]
    if others:
        tables.append(_column(adata, name, others, key, genes, difference=True)[1].reindex(weight.index))
    if axes is None:
        axes = _panels(tables)
    check_number(axes, ["weights", "differences"][: len(tables)])
    titles = [f"{'targets of' if params['directed'] else 'genes linked to'} {name}"]
    titles += [f"difference from {condition_label(name)}" for name in [reference] if name is not None]
    missing = "\n(grey: no weight)" if weight.isna().any(axis=None) else ""
    labels = [weight_label(params) + missing, "difference of weights"]
    for ax, table, title, label in zip(axes, tables, titles, labels, strict=False):
        diverging = signed or table is not weight or bool((table < 0).any(axis=None))
        _heat(ax, table, title, label, diverging)
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    return list(axes)


def _strongest(
    adata: AnnData,
    params: dict[str, Any],
    conditions: list[str],
    n_top: int,
    genes: GeneNames,
    key: str,
    axes: Sequence[Axes] | None,
) -> list[Axes]:
    """The regulators with the highest weights in one condition, and their strongest targets."""
    if len(conditions) > 1:
        raise ConfigError(
            f"There are several conditions, {short_list(conditions)}. Pass one of them as `conditions=`, or a "
            "regulator to compare them."
        )
    condition = conditions[0] if params["groupby"] is not None else None
    weight = get.grn_matrix(adata, condition=condition, gene_symbols=genes.gene_symbols, key=key)
    strength = weight.abs() if is_signed(params) else weight
    columns = strength.max().sort_values(ascending=False, kind="stable").index[:n_top]
    rows = strength[columns].max(axis=1).dropna().sort_values(ascending=False, kind="stable").index[:n_top]
    table = weight.loc[rows, columns]
    if axes is None:
        size = (2.6 + 0.32 * table.shape[1], 1.9 + 0.26 * len(table))
        axes = [plt.subplots(figsize=size, layout="constrained")[1]]
    check_number(axes, ["weights"])
    title = "highest weights" if condition is None else f"highest weights in {condition_label(condition)}"
    missing = "\n(grey: no weight)" if table.isna().any(axis=None) else ""
    diverging = is_signed(params) or bool((table < 0).any(axis=None))
    _heat(axes[0], table, title, weight_label(params) + missing, diverging)
    if params["directed"]:
        axes[0].set(xlabel="regulator", ylabel="target")
    return list(axes)


def _conditions(params: dict[str, Any], conditions: Category | Sequence[Category] | None) -> list[str]:
    """Names of the chosen conditions. A single value is one condition, of any type."""
    if conditions is None:
        return list(params["conditions"])
    given: list[Any] = [conditions] if np.ndim(conditions) == 0 else list(conditions)  # type: ignore[arg-type]
    chosen = [find_condition(params, name, "conditions") for name in given]
    if not chosen:
        raise ConfigError(
            f"`conditions` is empty. Pass one or more of {short_list(params['conditions'])}, or None for all."
        )
    return list(dict.fromkeys(chosen))


def _column(
    adata: AnnData, regulator: str, conditions: Sequence[str], key: str, genes: GeneNames, *, difference: bool = False
) -> tuple[str, pd.DataFrame]:
    """Shown name of a regulator and its weights: genes (in the order of ``adata.var``) x conditions, or NaN."""
    options: dict[str, Any] = {"difference": difference, "gene_symbols": genes.gene_symbols, "key": key}
    tables = {name: get.grn_matrix(adata, condition=name, **options) for name in conditions}
    all_regulators = {name for table in tables.values() for name in table.columns}
    shown = genes.spelled([regulator], all_regulators).get(regulator)
    if not difference and shown not in all_regulators:
        if shown is not None:
            column = "" if genes.gene_symbols is None else f", gene_symbols={genes.gene_symbols!r}"
            raise DataError(
                f"{regulator!r} has no weights in this network: it was not among the regulators, or fewer than "
                f"`min_count` cells express it. Run `bf.tl.grn(adata, regulators=[{regulator!r}]{column})`."
            )
        near = near_names(regulator, all_regulators)
        raise DataError(
            f"{regulator!r} is not a gene of the data.{f' Similar names: {near}.' if near else ''}"
            f"{genes.column_hint([regulator], 0)}"
        )
    columns = {name: table[shown] if shown in table else pd.Series(dtype=np.float64) for name, table in tables.items()}
    names = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    order = [names[i] for i in np.argsort(genes.index.positions(names), kind="stable")]
    return str(shown), pd.DataFrame({name: column.reindex(order) for name, column in columns.items()})


def _panels(tables: Sequence[pd.DataFrame]) -> list[Axes]:
    widths = [1.5 + 0.55 * table.shape[1] for table in tables]
    longest = max(len(str(name)) for name in tables[0].columns)
    height = 1.5 + 0.26 * len(tables[0]) + 0.06 * longest
    ratios = {"width_ratios": widths}
    figsize = (1.2 + sum(widths), height)
    _, grid = plt.subplots(1, len(tables), figsize=figsize, gridspec_kw=ratios, layout="constrained", squeeze=False)
    return list(grid[0])


def _heat(ax: Axes, table: pd.DataFrame, title: str, label: str, diverging: bool) -> None:
    values = np.ma.masked_invalid(table.to_numpy(np.float64))
    largest = float(np.abs(values).max()) if values.count() else 1.0
    colours = plt.get_cmap("RdBu_r" if diverging else "Reds").with_extremes(bad=_MISSING)
    limit = largest or 1.0
    image = ax.imshow(values, aspect="auto", cmap=colours, vmin=-limit if diverging else 0.0, vmax=limit)
    ax.set_yticks(range(len(table)), table.index, fontsize=8)
    names = [condition_label(name) for name in table.columns]
    longest = max(len(name) for name in names)
    rotated: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if table.shape[1] > 1 or longest > 12 else {}
    )
    ax.set_xticks(range(table.shape[1]), names, fontsize=8, **rotated)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=10)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
