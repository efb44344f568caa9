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
    "masked_bins": ("masked genes", "cross-entropy\n(nats per masked gene)"),
    "profile_counts": ("profile from <cls>", "negative log-likelihood\n(nats per expressed gene)"),
    "profile_bins": ("profile from <cls>", "cross-entropy\n(nats per gene)"),
}


def training(
    adata: AnnData, *, key: str = "bioformer", axes: Sequence[Axes] | None = None, save: str | Path | None = None
) -> list[Axes]:
    """Learning curves of a fit: the loss of each objective on training cells and on held-out cells.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.fit`.
    key
        Key of the model in ``adata.uns``.
    axes
        Axes to draw on, one per objective. By default, a new figure is created.
    save
        Path of the file to which the figure is saved.

    Returns
    -------
    list of Axes
        Axes with the figure, one per objective.

    Raises
    ------
    MissingKeyError
        If no fit is stored under ``key``.
    DataError
        If the fit made no training step.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> [ax.get_title() for ax in bf.pl.training(adata)]
    ['masked genes', 'profile from <cls>']
    """
    table = get.history(adata, key=key)
    names = [name for name in _TITLES if f"train_{name}" in table]
    if not names:
        raise DataError(
            f"The fit in adata.uns[{key!r}] made no training step, so its history is empty. Run `bf.tl.fit` with "
            "`max_steps` above 0 in `train=bf.TrainConfig(...)`."
        )
    if axes is None:
        _, grid = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), layout="constrained", squeeze=False)
        axes = list(grid[0])
    for ax, name in zip(axes, names, strict=True):
        for member, rows in table.groupby("member"):
            single = table["member"].nunique() == 1
            suffix = "" if single else f", member {member}"
            (line,) = ax.plot(rows["epoch"], rows[f"train_{name}"], lw=1.5, label=f"training{suffix}")
            held_out = rows.dropna(subset=f"val_{name}") if f"val_{name}" in rows else rows[:0]
            if len(held_out):
                color = "C1" if single else line.get_color()
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
        axes[0].figure.canvas.figure.savefig(save, dpi=150)  # the whole figure, also if the axes are in a subfigure
    return list(axes)
