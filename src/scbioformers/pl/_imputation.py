"""``bf.pl.imputation`` and ``bf.pl.calibration``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from scbioformers import get


def imputation(adata: AnnData, *, key: str = "imputed", ax: Axes | None = None, save: str | Path | None = None) -> Axes:
    """Predicted against measured expression, bin by bin: each measured value was masked from its own prediction.

    A row is all values measured in one bin, its colours how the predictions were spread over the bins (the number of
    values stands at the right), the line their mean: on the dashed diagonal if it were perfect.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.impute` without a mask.
    key
        Name of the imputed layer.
    ax
        Axes to draw on; by default a new figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        If there is no evidence stored.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.impute(adata, progress_bar=False)
    >>> bf.pl.imputation(adata).get_xlabel()
    'predicted bin'
    """
    evidence = get.imputation_evidence(adata, key=key)
    table = evidence["bins"]
    number = table.pop("n").to_numpy()
    last = int(np.flatnonzero(number > 0)[-1]) + 1
    shares, number = table.to_numpy()[:last, :last], number[:last]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    image = ax.imshow(shares, origin="lower", aspect="auto", cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    filled = np.flatnonzero(number > 0)
    ax.plot([0, last - 1], [0, last - 1], "--", color="0.5", linewidth=1)
    mean = table.to_numpy()[:last] @ np.arange(table.shape[1])
    ax.plot(mean[filled], filled, "o-", color="#c44e52", markersize=3, label="mean prediction")
    ax.set(xlabel="predicted bin", ylabel="measured bin", xlim=(-0.5, last - 0.5), ylim=(-0.5, last - 0.5))
    ax.set_title(f"masked values, {evidence['nll_bits']:.3f} bits each")
    right = ax.secondary_yaxis("right")
    shown = filled[:: max(1, len(filled) // 10)]
    right.set_yticks(shown, [f"{number[i]:,.0f}" for i in shown], fontsize=7)
    right.set_ylabel("values")
    ax.legend(loc="lower right", frameon=False, fontsize=8)
    ax.figure.colorbar(image, ax=ax, label="share of predictions", pad=0.02)
    if save is not None:
        ax.figure.savefig(save, dpi=150)  # type: ignore[union-attr]
    return ax


def calibration(
    adata: AnnData, *, key: str = "imputed", ax: Axes | None = None, save: str | Path | None = None
) -> Axes:
    """Reliability: of the values that were predicted to be expressed with probability p, which share was.

    The bars show how many values there are at each p, on a logarithmic scale.

    Parameters
    ----------
    adata
        After :func:`scbioformers.tl.impute` without a mask.
    key
        Name of the imputed layer.
    ax
        Axes to draw on; by default a new figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        If there is no evidence stored.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2, progress_bar=False))
    >>> bf.tl.impute(adata, progress_bar=False)
    >>> bf.pl.calibration(adata).get_ylabel()
    'observed share'
    """
    table = get.imputation_evidence(adata, key=key)["calibration"]
    error = float((table["n"] * (table["predicted"] - table["observed"]).abs()).sum() / table["n"].sum())
    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 4.4), layout="constrained")
    bars = ax.twinx()
    bars.bar(table["predicted"], table["n"], width=0.03, color="0.85", zorder=0)
    bars.set_yscale("log")
    bars.set_ylim(bottom=0.5)
    bars.set_ylabel("values", color="0.5")
    bars.tick_params(axis="y", colors="0.5", labelsize=7)
    ax.set_zorder(bars.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
    ax.plot(table["predicted"], table["observed"], "o-", color="#4c72b0", markersize=4)
    ax.set(xlabel="predicted probability of being expressed", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    ax.set_title(f"calibration error {error:.3f}")
    if save is not None:
        ax.figure.savefig(save, dpi=150)  # type: ignore[union-attr]
    return ax
