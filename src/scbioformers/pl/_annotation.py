"""``bf.pl.annotation``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from mudata import MuData

from scbioformers import get
from scbioformers.core import check_arguments
from scbioformers.pl._show import check_number, figure
from scbioformers.results import UNKNOWN

logger = logging.getLogger(__name__)

UMAP = "X_umap"
MAX_CELL_TEXTS = 12  # with more labels, numbers in the cells of the table would be too small to read


@figure
def annotation(
    adata: AnnData | MuData,
    label_key: str,
    *,
    key: str | None = None,
    axes: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> list[Axes]:
    """Evidence of labels: confusion, calibration, and the probability of each cell on the UMAP.

    The first panel shows the share of the cells of each given label (rows) that have each predicted label (columns).
    Its title says which cells these are: ``source`` in :func:`scbioformers.get.annotation_evidence`. The second panel
    groups the same cells by the probability of their label. For calibrated probabilities, the share of right labels is
    on the dashed diagonal. The bars show the number of cells. The third panel shows the cells of ``adata`` on
    ``adata.obsm["X_umap"]``, coloured by the probability of their label; "unknown" cells are grey. It is left out if
    there is no UMAP.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.annotate`.
    label_key
        The column of labels: the value of ``label_key`` in :func:`scbioformers.tl.annotate`.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.annotate`. By default
        ``f"bioformer_{label_key}"``.
    axes
        Axes to draw on, one per panel. By default, a new figure is created.
    %(show_save)s

    Returns
    -------
    list of Axes or None
        Axes with the figure, one per panel, or None with ``show=True``.

    Raises
    ------
    MissingKeyError
        If no labels are stored under ``key``.
    ConfigError
        If the number of axes is not that of the panels.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.annotate(adata, "cell_type")
    >>> [ax.get_xlabel() for ax in bf.pl.annotation(adata, "cell_type", show=False)]
    ['predicted label', 'probability of the label']
    """
    check_arguments(annotation, locals())
    evidence = get.annotation_evidence(adata, label_key, key=key)
    table = get.annotation(adata, label_key, key=key)
    panels = ["confusion", "calibration"]
    if UMAP in adata.obsm:
        panels.append("probability")
    else:
        logger.warning(
            "adata.obsm has no %r, so cells are not drawn. These calls make it: `bf.tl.embed(adata)`, "
            '`sc.pp.neighbors(adata, use_rep="X_bioformer")`, `sc.tl.umap(adata)`.',
            UMAP,
        )
    if axes is None:
        width = 3.4 + 0.22 * evidence["confusion"].shape[1]
        widths = [width, 4.0, 4.4][: len(panels)]
        longest = max(len(str(name)) for name in evidence["confusion"].columns)
        size = (sum(widths), max(3.6, 1.6 + 0.05 * longest + 0.24 * len(evidence["confusion"])))
        wide = ConstrainedLayoutEngine(w_pad=0.12)  # each label beside its own panel
        _, grid = plt.subplots(1, len(panels), figsize=size, layout=wide, squeeze=False, width_ratios=widths)
        axes = list(grid[0])
    check_number(axes, panels)
    source = {"query": "these cells", "reference": "cells of the reference"}.get(evidence["source"], evidence["source"])
    _draw_confusion(axes[0], evidence["confusion"])
    axes[0].set_title(f"{source}: macro-F1 {evidence['macro_f1']:.3f}", fontsize=10)
    _draw_calibration(axes[1], evidence["calibration"])
    axes[1].set_title(f"expected calibration error {evidence['calibration_error']:.3f}", fontsize=10)
    if len(panels) == 3:
        _draw_cells(axes[2], np.asarray(adata.obsm[UMAP]), table["probability"].where(table["label"] != UNKNOWN))
    return list(axes)


def _draw_confusion(ax: Axes, confusion: pd.DataFrame) -> None:
    share = confusion.div(confusion.sum(axis=1), axis=0)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(share.shape) <= MAX_CELL_TEXTS:
        for (i, j), value in np.ndenumerate(share.to_numpy()):
            if value >= 0.005:
                colour = "white" if value > 0.6 else "0.2"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(share.shape[1]), [str(name) for name in share.columns], rotation=45, ha="right", fontsize=8)
    rows = [f"{name} ({n:,})" for name, n in confusion.sum(axis=1).items()]
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set(xlabel="predicted label", ylabel="given label (cells)")
    ax.figure.colorbar(image, ax=ax, label="share of the row", pad=0.02)


def _draw_calibration(ax: Axes, table: pd.DataFrame) -> None:
    bars = ax.twinx()
    bars.bar(table["predicted"], table["n"], width=0.03, color="0.85", zorder=0)
    bars.set_ylabel("number of cells", color="0.5")
    bars.tick_params(axis="y", colors="0.5", labelsize=7)
    ax.set_zorder(bars.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
    ax.plot(table["predicted"], table["observed"], "o-", color="#4c72b0", markersize=4)
    ax.set(xlabel="probability of the label", ylabel="share of right labels", xlim=(0, 1.02), ylim=(0, 1.02))


def _draw_cells(ax: Axes, places: np.ndarray, probability: pd.Series) -> None:
    # uncertain cells last, so that none of them is hidden; unknown cells are grey
    order = np.argsort(-probability.fillna(2).to_numpy(), kind="stable")
    values, size = probability.to_numpy()[order], min(20, 12_000 / max(len(order), 1))
    known = np.isfinite(values)
    x, y = places[order, 0], places[order, 1]
    ax.scatter(x[~known], y[~known], s=size, color="0.6", linewidths=0, label=UNKNOWN)
    image = ax.scatter(x[known], y[known], c=values[known], s=size, cmap="viridis", vmin=0, vmax=1, linewidths=0)
    if not known.all():
        ax.legend(fontsize=8, frameon=False)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.set_title(f"{len(order):,} cells", fontsize=10)
    ax.figure.colorbar(image, ax=ax, pad=0.02, label="probability of the label")
