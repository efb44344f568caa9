"""``bf.pl.training``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from mudata import MuData

from scbioformers import get
from scbioformers.core import DataError, check_arguments
from scbioformers.pl._show import check_number, figure

_TITLES = {
    "masked_bins": ("masked genes", "cross-entropy\n(nats per masked gene)"),
    "profile_counts": ("profile from <cls>", "negative log-likelihood\n(nats per expressed gene)"),
    "profile_bins": ("profile from <cls>", "cross-entropy\n(nats per gene)"),
    "profile_modalities": ("profile from <cls>", "loss\n(nats per feature)"),
}
_COLOURS = ("C0", "C1", "0.35", "#8ecae6", "#8c2d04")  # distinct also without red and green


@figure
def training(
    adata: AnnData | MuData,
    *,
    key: str = "bioformer",
    axes: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> list[Axes]:
    """Learning curves of a fit: the loss of each objective on training cells and on held-out cells.

    Each member of an ensemble has its own curves. With several modalities and one member, each modality has.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.fit`.
    key
        Key of the model in ``adata.uns``.
    axes
        Axes to draw on, one per objective. By default, a new figure is created.
    %(show_save)s

    Returns
    -------
    list of Axes or None
        Axes with the figure, one per objective, or None with ``show=True``.

    Raises
    ------
    MissingKeyError
        If no fit is stored under ``key``.
    ConfigError
        If the number of axes is not that of the objectives.
    DataError
        If the fit made no training step.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> [ax.get_title() for ax in bf.pl.training(adata, show=False)]
    ['masked genes', 'profile from <cls>']
    """
    check_arguments(training, locals())
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
    check_number(axes, [_TITLES[name][0] for name in names])
    several = "profile_modalities" in names
    for ax, name in zip(axes, names, strict=True):
        for curve in _curves(table, name):
            rows, trained = curve.rows, curve.rows.dropna(subset=f"train_{curve.column}")
            # some rows are of a validation alone
            ax.plot(trained["epoch"], trained[f"train_{curve.column}"], lw=1.5, color=curve.colours[0],
                    label=f"training{curve.suffix}")  # fmt: skip
            validated = f"val_{curve.column}"
            held_out = rows.dropna(subset=validated) if validated in rows else rows[:0]
            if len(held_out):
                ax.plot(held_out["epoch"], held_out[validated], "o--", ms=3.5, lw=1, color=curve.colours[1],
                        label=f"held-out cells{curve.suffix}")  # fmt: skip
        title, unit = (text.replace("gene", "feature") if several else text for text in _TITLES[name])
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.spines[["top", "right"]].set_visible(False)
    if len(_curves(table, names[0])) == 1:
        axes[0].legend(frameon=False, fontsize="small")
    else:  # the legend would cover the curves
        axes[-1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return list(axes)


@dataclass(frozen=True)
class _Curve:
    """One curve of training cells and one of held-out cells."""

    rows: pd.DataFrame
    column: str
    suffix: str
    colours: tuple[str, str]


def _curves(table: pd.DataFrame, name: str) -> list[_Curve]:
    """The curves of an objective: of each modality if there are several, of each member, or one."""
    if table["member"].nunique() > 1:
        shown = [(rows, name, f", member {member}") for member, rows in table.groupby("member")]
    else:
        prefix = f"train_{name}_"
        modalities = [str(column).removeprefix(prefix) for column in table if str(column).startswith(prefix)]
        shown = [(table, f"{name}_{modality}", f", {modality}") for modality in modalities]
    if not shown:
        return [_Curve(table, name, "", (_COLOURS[0], _COLOURS[1]))]
    return [_Curve(*each, (_COLOURS[i % len(_COLOURS)],) * 2) for i, each in enumerate(shown)]
