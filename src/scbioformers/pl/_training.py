"""``bf.pl.training``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scbioformers import get
from scbioformers.core import DataError

_TITLES = {
    "masked_bins": ("masked genes", "cross-entropy (nats)"),
    "profile_counts": ("profile from <cls>", "negative log-likelihood\n(nats per expressed gene)"),
    "profile_bins": ("profile from <cls>", "cross-entropy (nats per gene)"),
}


def training(
    adata: AnnData, *, key: str = "bioformer", axes: Sequence[Axes] | None = None, save: str | Path | None = None
) -> list[Axes]:
    """Learning curves of the last fit, one panel per objective, training and held-out cells.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.fit`.
    key
        Where the fit is in ``uns``.
    axes
        Axes to draw on, one per objective; by default a new figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        If nothing was fitted.
    DataError
        If the fit made no step.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> [ax.get_title() for ax in bf.pl.training(adata)]
    ['masked genes', 'profile from <cls>']
    """
    table = get.history(adata, key=key)
    names = [name for name in _TITLES if f"train_{name}" in table]
    if not names:
        raise DataError(f"The fit in adata.uns[{key!r}] made no training step, so there is nothing to draw.")
    if axes is None:
        _, grid = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), layout="constrained", squeeze=False)
        axes = list(grid[0])
    for ax, name in zip(axes, names, strict=True):
        for member, rows in table.groupby("member"):
            only = table["member"].nunique() == 1
            suffix = "" if only else f", member {member}"
            (line,) = ax.plot(rows["epoch"], rows[f"train_{name}"], lw=1.5, label=f"training{suffix}")
            held_out = rows.dropna(subset=f"val_{name}") if f"val_{name}" in rows else rows[:0]
            if len(held_out):
                color = "C1" if only else line.get_color()
                ax.plot(
                    held_out["epoch"],
                    held_out[f"val_{name}"],
                    "o--",
                    ms=3.5,
                    lw=1,
                    color=color,
                    label=f"held-out cells{suffix}",
                )
        title, unit = _TITLES[name]
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize="small")
    if save is not None:
        axes[0].figure.canvas.figure.savefig(save, dpi=150)  # the whole figure, from a subfigure too
    return list(axes)
