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
from scbioformers.core import DataError, check_arguments
from scbioformers.pl._show import figure

_NAME_HEIGHT = 0.028  # height of a line of text, as a share of the axes of a figure of the default size
_NAME_WIDTH = 0.16  # width of the name of a gene, as a share of the range of the points


@figure
def perturbation(
    adata: AnnData,
    observed: ArrayLike,
    *,
    name: str | None = None,
    n_top: int = 20,
    key: str = "perturbed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Predicted against observed change of every gene after a perturbation (paper, section 3.3).

    The genes with the largest observed change are labelled. The title shows the Pearson correlation over all genes
    except the perturbed ones.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb`.
    observed
        (n_vars,), observed mean change in log1p units, in the order of ``adata.var_names``.
    name
        Name of the predicted perturbation. By default, the one with the largest predicted effect.
    n_top
        Number of genes to label, those with the largest absolute observed change.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.
    ax
        Axes to draw on. By default, a new figure is created.
    show
        Show the figure, and return None. By default, ``bf.settings.autoshow``.
    save
        Save the figure. With True or the end of a name such as ``"_1.pdf"``, the file is in ``bf.settings.figdir``, and
        its name starts with the name of this function. A path, or text with a folder, is used as it is.

    Returns
    -------
    Axes or None
        Axes with the figure, or None if the figure is shown.

    Raises
    ------
    MissingKeyError
        If no prediction is stored under ``key``, or the perturbation was not predicted.
    DataError
        If ``observed`` does not have one value per gene.

    Examples
    --------
    >>> import numpy as np
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=200, n_genes=40, n_regulators=6, perturbations=["TF1", "TF2", "TF3"])
    >>> task = bf.Perturbation(key="perturbation", control="control")
    >>> bf.tl.fit(adata, task=task, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.perturb(adata, "TF4")
    >>> bf.pl.perturbation(adata, np.linspace(-1, 1, 40), show=False).get_xlabel()
    'observed change (log1p)'
    """
    check_arguments(perturbation, locals())
    shown = name if name is not None else str(get.perturb(adata, key=key)["perturbation"].iloc[0])
    table = get.perturb(adata, perturbation=shown, key=key).set_index("gene")
    values = np.asarray(observed, dtype=np.float64)
    if values.shape != (adata.n_vars,):
        raise DataError(
            f"`observed` must have one value for each of {adata.n_vars} genes, found an array of shape {values.shape}."
        )
    table["observed"] = [values[adata.var_names.get_loc(gene)] for gene in table.index]
    table = table[np.isfinite(table["observed"])]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 4.8), layout="constrained")
    own = table.index.isin(shown.split("+"))
    x, y = table["observed"].to_numpy(), table["effect"].to_numpy()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, "--", color="0.6", linewidth=1)
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.scatter(x[~own], y[~own], s=10, color="#4c72b0", alpha=0.7, linewidths=0)
    ax.scatter(x[own], y[own], s=30, color="#c44e52", marker="D", label="perturbed gene", linewidths=0)
    top = np.argsort(-np.abs(x), kind="stable")[:n_top]
    _name_points(ax, x[top], y[top], [str(gene) for gene in table.index[top]])
    r = float(np.corrcoef(x[~own], y[~own])[0, 1]) if x[~own].std() > 0 and y[~own].std() > 0 else 0.0
    ax.set(xlabel="observed change (log1p)", ylabel="predicted change (log1p)")
    ax.set_title(f"{shown}: r = {r:.2f} (other genes)")
    if own.any():
        ax.legend(loc="lower center", frameon=False, fontsize=8)
    return ax


def _name_points(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], names: list[str]) -> None:
    """Write names in two columns, left and right of the points, sorted by height, with lines to the points."""
    ax.margins(0.05)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    room, line = _NAME_WIDTH * (right - left), _NAME_HEIGHT * (high - low)
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
    key: str = "perturbed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Predicted perturbations ranked by the size of their effect, with 95 % intervals (paper, section 3.3).

    The size is the root mean square of the effects over all genes that are not perturbed. The right axis names the gene
    with the largest predicted change, and its change.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.perturb`, for example with ``"all"``.
    n_top
        Number of perturbations to show.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.perturb`.
    ax
        Axes to draw on. By default, a new figure is created.
    show
        Show the figure, and return None. By default, ``bf.settings.autoshow``.
    save
        Save the figure. With True or the end of a name such as ``"_1.pdf"``, the file is in ``bf.settings.figdir``, and
        its name starts with the name of this function. A path, or text with a folder, is used as it is.

    Returns
    -------
    Axes or None
        Axes with the figure, or None if the figure is shown.

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
    table = get.perturb(adata, key=key).head(n_top)
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 1.2 + 0.2 * len(table)), layout="constrained")
    y = np.arange(len(table))
    ax.errorbar(table["size"], y, xerr=1.96 * table["size_se"], fmt="o", color="#4c72b0", ecolor="0.6", markersize=4)
    ax.set_yticks(y, table["perturbation"], fontsize=7)
    ax.invert_yaxis()
    ax.set(xlabel="predicted effect size (root mean square, log1p)", xlim=(0, None))
    right = ax.secondary_yaxis("right")
    changes = [f"{gene} {value:+.2f}" for gene, value in zip(table["gene"], table["effect"], strict=True)]
    right.set_yticks(y, changes, fontsize=7)
    right.set_ylabel("largest change (log1p)")
    return ax
