"""``bf.pl.imputation`` and ``bf.pl.calibration``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from scbioformers import get
from scbioformers.core import check_arguments
from scbioformers.pl._show import figure


@figure
def imputation(
    adata: AnnData,
    *,
    key: str = "imputed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Predicted against measured expression by bin (paper, section 3.2).

    Each measured value was masked before it was predicted. A row contains all values that were measured in one bin.
    Its colours show the mean predicted probability of each bin. The number of values is on the right. The line is the
    mean of the predictions. For a perfect prediction, it is on the dashed diagonal.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.impute` without ``mask`` and without ``posterior=True``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.impute`.
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
        If no imputed values are stored under ``key``, or they were computed with ``mask`` or ``posterior=True``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata)
    >>> bf.pl.imputation(adata, show=False).get_xlabel()
    'predicted bin'
    """
    check_arguments(imputation, locals())
    evidence = get.imputation_evidence(adata, key=key)
    table = evidence["bins"]
    n_values = table.pop("n").to_numpy()
    last = int(np.flatnonzero(n_values > 0)[-1]) + 1
    shares, n_values = table.to_numpy()[:last, :last], n_values[:last]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    image = ax.imshow(shares, origin="lower", aspect="auto", cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    filled = np.flatnonzero(n_values > 0)
    ax.plot([0, last - 1], [0, last - 1], "--", color="0.5", linewidth=1)
    mean = table.to_numpy()[:last] @ np.arange(table.shape[1])
    ax.plot(mean[filled], filled, "o-", color="#c44e52", markersize=3, label="mean prediction")
    ax.set(xlabel="predicted bin", ylabel="measured bin", xlim=(-0.5, last - 0.5), ylim=(-0.5, last - 0.5))
    ax.set_title(f"masked values, {evidence['nll_bits']:.3f} bits each")
    right = ax.secondary_yaxis("right")
    shown = filled[:: max(1, len(filled) // 10)]
    right.set_yticks(shown, [f"{n_values[i]:,.0f}" for i in shown], fontsize=7)
    right.set_ylabel("number of values")
    ax.legend(loc="lower right", frameon=False, fontsize=8)
    ax.figure.colorbar(image, ax=ax, label="mean predicted probability", pad=0.02)
    return ax


@figure
def calibration(
    adata: AnnData,
    *,
    key: str = "imputed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Calibration curve of the predicted probability that a gene is expressed (paper, section 3.2).

    Values are grouped by their predicted probability. The line shows the observed share of expressed values in each
    group. For calibrated predictions, it is on the dashed diagonal. The bars show the number of values in each group,
    on a logarithmic scale. The title shows the expected calibration error: the mean absolute difference between the
    predicted and the observed share, weighted by the number of values.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.impute` without ``mask`` and without ``posterior=True``.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.impute`.
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
        If no imputed values are stored under ``key``, or they were computed with ``mask`` or ``posterior=True``.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata)
    >>> bf.pl.calibration(adata, show=False).get_ylabel()
    'observed share'
    """
    check_arguments(calibration, locals())
    table = get.imputation_evidence(adata, key=key)["calibration"]
    error = float((table["n"] * (table["predicted"] - table["observed"]).abs()).sum() / table["n"].sum())
    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 4.4), layout="constrained")
    bars = ax.twinx()
    bars.bar(table["predicted"], table["n"], width=0.03, color="0.85", zorder=0)
    bars.set_yscale("log")
    bars.set_ylim(bottom=0.5)
    bars.set_ylabel("number of values", color="0.5")
    bars.tick_params(axis="y", colors="0.5", labelsize=7)
    ax.set_zorder(bars.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
    ax.plot(table["predicted"], table["observed"], "o-", color="#4c72b0", markersize=4)
    ax.set(xlabel="predicted probability of expression", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    ax.set_title(f"expected calibration error: {error:.3f}")
    return ax
