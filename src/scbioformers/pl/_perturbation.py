"""``bf.pl.perturbation`` and ``bf.pl.perturbation_screen``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression

from scbioformers import get
from scbioformers.core import DataError, check_arguments, short_list
from scbioformers.pl._show import figure
from scbioformers.results import Perturbed, perturb_genes, read_perturb

_NAME_HEIGHT = 0.028  # height of a line of text, as a share of the axes of a figure of the default size
_LETTER_WIDTH = 0.0145  # width of a letter, as a share of the same axes
_NAME_WIDTH = (0.16, 0.4)  # limits of the width of the names of genes, as a share of the range of the points
_SMALLEST = 0.1  # smallest change of a labelled gene, as a share of the largest: the others lie together at zero
_BLUE, _ORANGE = "#0072b2", "#d55e00"  # of the palette of Okabe and Ito, which deuteranopes can tell apart


@figure
def perturbation(
    adata: AnnData,
    observed: ArrayLike | None = None,
    *,
    name: str | int | None = None,
    n_top: int = 20,
    gene_symbols: str | None = None,
    key: str = "perturbed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Predicted against observed change of every gene after a perturbation (paper, section 3.3).

    For a perturbation that is in the training data, the figure shows the cross-validated prediction, which was made
    without its cells. The effect in :func:`scbioformers.get.perturb` uses these cells, so it cannot be compared with
    their measured effect. The genes with the largest observed change are labelled. The title shows the
    Pearson correlation over all genes except the perturbed ones.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb`.
    observed
        (n_vars,), observed mean change in log1p units, in the order of ``adata.var_names``. None uses the change that
        :func:`scbioformers.tl.perturb` has measured in ``adata``, if it has cells with this perturbation.
    name
        Name of the predicted perturbation. By default, the one with the largest predicted effect. Without ``observed``,
        the one with the largest predicted effect that was measured in ``adata``.
    n_top
        Largest number of genes to label, those with the largest absolute observed change. Genes with less than a tenth
        of the largest change are not labelled.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.
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
        If no prediction is stored under ``key``, or the perturbation was not predicted.
    DataError
        If ``observed`` does not have one value per gene, or is None and ``adata`` has no cells with the perturbation.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.perturb(adata, "TF3")
    >>> bf.pl.perturbation(adata, show=False).get_ylabel()
    'predicted change, cross-validated (log1p)'
    """
    check_arguments(perturbation, locals())
    stored = read_perturb(adata, key)
    genes = perturb_genes(adata, key, gene_symbols)
    name = None if name is None else genes.spelled([str(name)], stored.names).get(str(name), str(name))
    ranked = get.perturb(adata, key=key)["perturbation"]
    if observed is None:
        ranked = ranked[ranked.isin(list(stored.observed))]
        _require_observed(stored, name)
    shown = name if name is not None else str(ranked.iloc[0])
    table = get.perturb(adata, perturbation=shown, gene_symbols=gene_symbols, key=key).set_index("gene")
    if observed is not None:
        values = np.asarray(observed, dtype=np.float64)
        if values.shape != (adata.n_vars,):
            raise DataError(
                f"`observed` must have one value for each of {adata.n_vars} genes, found an array of shape "
                f"{values.shape}."
            )
        table["observed"] = values[genes.index.positions(table.index)]
    table = table[np.isfinite(table["observed"])]
    seen, own = bool(stored.seen[stored.names.index(shown)]), stored.own_genes[stored.names.index(shown)]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 4.8), layout="constrained")
    is_own = table.index.isin(list(genes.spelled(own, table.index).values()))
    x, y = table["observed"].to_numpy(), table["predicted"].to_numpy()
    _draw_points(ax, x, y, is_own)
    top = np.argsort(-np.abs(x), kind="stable")[:n_top]
    top = top[np.abs(x[top]) >= _SMALLEST * np.abs(x).max()]
    _name_points(ax, x[top], y[top], [str(gene) for gene in table.index[top]])
    x, y = x[~is_own], y[~is_own]
    r = float(np.corrcoef(x, y)[0, 1]) if x.size > 1 and x.std() > 0 and y.std() > 0 else 0.0
    how = "cross-validated" if seen else "not in the training data"
    ax.set(xlabel="observed change (log1p)")
    ax.set(ylabel="predicted change, cross-validated (log1p)" if seen else "predicted change (log1p)")
    without = " (other genes; ◆ perturbed)" if is_own.any() else ""
    ax.set_title(f"{shown}, {how}\nr = {r:.2f}{without}", fontsize="medium")
    return ax


def _require_observed(stored: Perturbed, name: str | None) -> None:
    """Check that there is a measured effect. Otherwise say why not, and for which perturbations there is one."""
    if (name is None and stored.observed) or name in stored.observed or (name is not None and name not in stored.names):
        return
    what = "the predicted perturbations" if name is None else repr(name)
    others = f"There are cells of {short_list(list(stored.observed), 5)}. " if stored.observed else ""
    raise DataError(
        f"The data have no cells with {what}, so there is no observed change. {others}Pass the observed change as "
        "`observed=`, or use `bf.pl.perturbation_screen(adata)`, which needs none."
    )


def _draw_points(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], own: NDArray[np.bool_]) -> None:
    """Draw the genes, the lines at zero, and the line on which predicted and observed change are equal."""
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, "--", color="0.6", linewidth=1)
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.scatter(x[~own], y[~own], s=10, color=_BLUE, alpha=0.7, linewidths=0)
    ax.scatter(x[own], y[own], s=30, color=_ORANGE, marker="D", linewidths=0)


def _name_points(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], names: list[str]) -> None:
    """Write names in two columns, left and right of the points, sorted by height, with lines to the points."""
    ax.margins(0.05)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    letters = _LETTER_WIDTH * max(map(len, names), default=0)
    # the axes hold the points and 1.4 such widths on both sides
    width = np.clip(letters / max(1 - 2.8 * letters, 0.1), *_NAME_WIDTH)
    room, line = width * (right - left), _NAME_HEIGHT * (high - low)
    for side, sign in ((np.flatnonzero(x < 0), -1), (np.flatnonzero(x >= 0), 1)):
        order = side[np.argsort(y[side], kind="stable")]
        heights = _spread(y[order], line, low + line / 2, high - line / 2)
        end = right + 0.3 * room if sign > 0 else left - 0.3 * room
        for i, height in zip(order, heights, strict=True):
            ax.plot([x[i], end], [y[i], height], color="0.75", linewidth=0.5, zorder=1)
            align = "left" if sign > 0 else "right"
            ax.text(end + sign * 0.03 * room, height, names[i], ha=align, va="center", fontsize=6.5)
    ax.set(xlim=(left - 1.4 * room, right + 1.4 * room), ylim=(low, high))


def _spread(heights: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move sorted heights as little as possible, such that they are ``gap`` apart (less if there is no room)."""
    n = len(heights)
    if n < 2:
        return heights
    gap = min(gap, (high - low) / (n - 1))
    steps = gap * np.arange(n)
    # after the steps are subtracted, the only constraint is that the heights do not decrease
    level = IsotonicRegression().fit_transform(np.arange(n), heights - steps)
    spread: NDArray[np.float64] = np.clip(level, low, high - steps[-1]) + steps
    return spread


@figure
def perturbation_screen(
    adata: AnnData,
    *,
    n_top: int = 30,
    gene_symbols: str | None = None,
    key: str = "perturbed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Predicted perturbations ranked by the size of their effect, with 95 % intervals (paper, section 3.3).

    The size is the root mean square of the effects over all genes that are not perturbed. The right axis names the gene
    with the largest predicted change, and its change. Filled points are perturbations that are in the training data.
    Their effects are mainly measured, so they have narrow intervals. Open points are predicted.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb`, for example with ``"all"``.
    n_top
        Number of perturbations to show.
    gene_symbols
        Column of ``adata.var`` with the names of the genes. By default, the column of the call that stored the result,
        else ``adata.var_names``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.
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
        If no prediction is stored under ``key``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.perturb(adata, "all")
    >>> bf.pl.perturbation_screen(adata, n_top=5, show=False).get_xlabel()
    'predicted effect size (root mean square, log1p)'
    """
    check_arguments(perturbation_screen, locals())
    table = get.perturb(adata, gene_symbols=gene_symbols, key=key).head(n_top)
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 1.5 + 0.2 * len(table)), layout="constrained")
    y, seen = np.arange(len(table)), table["seen"].to_numpy(dtype=bool)
    for kind, color, fill, label in (
        (seen, _ORANGE, _ORANGE, "in the training data"),
        (~seen, _BLUE, "white", "predicted"),
    ):
        part = table[kind]
        ax.errorbar(
            part["size"],
            y[kind],
            xerr=1.96 * part["size_se"],
            fmt="o",
            color=color,
            markerfacecolor=fill,
            ecolor="0.6",
            markersize=4,
            label=label,
        )
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=8)
    ax.set_yticks(y, table["perturbation"], fontsize=7)
    ax.invert_yaxis()
    ax.set(xlabel="predicted effect size (root mean square, log1p)", xlim=(0, None))
    right = ax.secondary_yaxis("right")
    changes = [f"{gene} {value:+.2f}" for gene, value in zip(table["gene"], table["effect"], strict=True)]
    right.set_yticks(y, changes, fontsize=7)
    right.set_ylabel("largest change (log1p)")
    return ax
