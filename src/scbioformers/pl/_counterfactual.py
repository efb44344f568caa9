"""``bf.pl.counterfactual``."""

from __future__ import annotations

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
from scbioformers.core import MissingKeyError, check_arguments, check_integer
from scbioformers.data import names_modality, open_modality
from scbioformers.pl._show import check_number, figure
from scbioformers.results import read_counterfactual, read_counterfactual_params

COLOURS = {"model": "#0072B2", "mean of the other groups": "#999999", "linear": "#E69F00"}


@figure
@names_modality
def counterfactual(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    n_top: int = 20,
    key: str = "counterfactual",
    axes: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> list[Axes]:
    """Effects of a phenotype on the genes that it changes most, by group of cells, and the evidence for them.

    The first panel shows the effects on the ``n_top`` genes with the largest mean square over the groups. The second
    one, if there is evidence, shows for each group the correlation of the predicted with the measured effect, where the
    cells of this group with the phenotype were not in the fit, beside two simple methods.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.counterfactual`.
    modality
        The modality of a MuData that has the result. None is the only one.
    n_top
        Number of genes to show.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.counterfactual`.
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
        If there is no such result.
    ConfigError
        If the number of axes is not that of the panels.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40, n_conditions=2)
    >>> bf.tl.fit(adata, phenotype_keys="condition", train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.counterfactual(adata, {"condition": "condition_2"}, groupby="cell_type")
    >>> len(bf.pl.counterfactual(adata, show=False))
    1
    """
    check_arguments(counterfactual, locals())
    check_integer("n_top", n_top, 1)
    adata = open_modality(adata, modality)
    effects = read_counterfactual(adata, key)[0].dropna(axis="columns", how="all").dropna()
    params = read_counterfactual_params(adata, key)
    try:
        evidence: pd.DataFrame | None = get.counterfactual_evidence(adata, key=key)
    except MissingKeyError:
        evidence = None
    top = effects.loc[effects.pow(2).mean(axis=1).sort_values(ascending=False).index[:n_top]]
    n_panels = 1 if evidence is None else 2
    if axes is None:
        height = max(3.0, 1.6 + 0.19 * len(top), (1.2 + 0.35 * effects.shape[1]) * (n_panels - 1))
        ratios = [2.6 + 0.32 * effects.shape[1], 4.0][:n_panels]
        wide = ConstrainedLayoutEngine(w_pad=0.08)  # the label of the colour bar is not that of the second panel
        _, drawn = plt.subplots(
            1, n_panels, figsize=(sum(ratios), height), width_ratios=ratios, squeeze=False, layout=wide
        )
        axes = list(drawn[0])
    check_number(axes, ["effects", "evidence"][:n_panels])
    _draw_effects(axes[0], top, " and ".join(f"{name} = {value}" for name, value in params["phenotype"].items()))
    if evidence is not None:
        _draw_evidence(axes[1], evidence)
    return list(axes)


def _draw_effects(ax: Axes, top: pd.DataFrame, asked: str) -> None:
    limit = float(np.abs(top.to_numpy()).max()) or 1.0
    image = ax.imshow(top, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(top.shape[1]), list(map(str, top)), rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(top)), list(top.index), fontsize=7)
    ax.set_title(f"effect of {asked}", fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03)
    bar.set_label("difference of log1p counts", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _draw_evidence(ax: Axes, evidence: pd.DataFrame) -> None:
    table = evidence.pivot(index="group", columns="method", values="pearson").loc[evidence["group"].unique()]
    places, height = np.arange(len(table)), 0.8 / len(COLOURS)
    for i, (method, colour) in enumerate(COLOURS.items()):
        ax.barh(places + (i - 1) * height, table[method], height, color=colour, label=method)
    ax.set_yticks(places, list(table.index), fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("correlation with the measured effect", fontsize=8)
    ax.set_xlim(min(0.0, float(table.min().min())), 1.0)
    ax.tick_params(axis="x", labelsize=7)
    legend = {"ncols": 3, "columnspacing": 1.2, "handlelength": 1.0, "handletextpad": 0.5}
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0.2, **legend)
