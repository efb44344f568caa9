"""``bf.pl.imputation`` and ``bf.pl.calibration``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from mudata import MuData
from numpy.typing import NDArray

from scbioformers import get
from scbioformers.core import DataError, check_arguments
from scbioformers.data import names_modality, open_modality
from scbioformers.pl._show import figure

MIN_VALUES = 20  # bins with fewer values are not drawn
MEAN_COLOR = "#c44e52"


@figure
@names_modality
def imputation(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    key: str = "imputed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Predicted against measured expression by bin (paper, section 3.2).

    Each measured value was masked before it was predicted. A row contains all values that were measured in one bin.
    Its colours show the mean predicted probability of each bin. The axes show the counts at the mean depth for which
    the bins stand. For segment bins, which are ranks, they show the bins. The number of values is on the right. Bins
    with fewer than 20 values are left out. The line is the mean of the predictions. For a perfect prediction, it is on
    the dashed diagonal.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.impute`.
    modality
        The modality of a MuData that has the result. None is the only one.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.impute`.
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
        If no imputed values are stored under ``key``.
    DataError
        If no bin has 20 values.

    Examples
    --------
    >>> import scbioformers as bf
    >>> adata = bf.datasets.simulate(n_cells=60, n_genes=40)
    >>> bf.tl.fit(adata, train=bf.TrainConfig(max_steps=2))
    >>> bf.tl.impute(adata)
    >>> bf.pl.imputation(adata, show=False).get_xlabel()
    'predicted count at mean depth'
    """
    check_arguments(imputation, locals())
    adata = open_modality(adata, modality)
    evidence = get.imputation_evidence(adata, key=key)
    table = evidence["bins"]
    n_values = table.pop("n").to_numpy()
    filled = np.flatnonzero(n_values.round() >= MIN_VALUES)
    if not filled.size:
        raise DataError(
            f"No bin has {MIN_VALUES} measured values, so there is nothing to draw. Impute more cells or more genes: "
            "`bf.tl.impute(adata)`."
        )
    last = int(filled[-1]) + 1
    shares = np.full((last, last), np.nan)
    shares[filled] = table.to_numpy()[filled, :last]
    level = evidence["counts"]
    counts = level if np.isfinite(level).all() else np.arange(len(table), dtype=np.float64)
    mean = np.interp(table.to_numpy()[filled] @ counts, counts, np.arange(len(counts)))
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    image = ax.imshow(shares, origin="lower", aspect="auto", cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    ax.plot([0, last - 1], [0, last - 1], "--", color="0.5", linewidth=1)
    ax.plot(mean, filled, "o-", color=MEAN_COLOR, markersize=3, label="mean prediction")
    unit = "count at mean depth" if np.isfinite(level).all() else "bin"
    ax.set(xlabel=f"predicted {unit}", ylabel=f"measured {unit}", xlim=(-0.5, last - 0.5), ylim=(-0.5, last - 0.5))
    at, labels = _count_ticks(counts[:last])
    ax.set_xticks(at, labels)
    ax.set_yticks(at, labels)
    ax.set_title(f"masked values, {evidence['nll_bits']:.3f} bits each")
    right = ax.secondary_yaxis("right")
    shown = filled[:: max(1, len(filled) // 10)]
    right.set_yticks(shown, [f"{n_values[i]:,.0f}" for i in shown], fontsize=7)
    right.set_ylabel("number of values")
    ax.legend(loc="lower right", frameon=False, fontsize=8)
    ax.figure.colorbar(image, ax=ax, label="mean predicted probability", pad=0.02)
    return ax


def _count_ticks(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """Positions, in bins, of round counts, and their labels. Neighbours are at least a fifteenth of the axis apart."""
    rounded = [0, *(factor * 10**power for power in range(7) for factor in (1, 2, 5))]
    at: list[float] = []
    labels: list[str] = []
    for count in rounded:
        place = float(np.interp(count, counts, np.arange(len(counts))))
        if count <= counts[-1] and (not at or place - at[-1] >= len(counts) / 15):
            at.append(place)
            labels.append(f"{count:,}")
    return np.array(at), labels


@figure
@names_modality
def calibration(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    key: str = "imputed",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
) -> Axes:
    """Calibration curve of the predicted probability that a gene is expressed (paper, section 3.2).

    With quantile bins, such as those of proteins, nearly every value is above 0. There it is the probability of a value
    above the median of the feature in the training cells.

    Values are grouped by their predicted probability. The line shows the observed share of such values in each
    group. For calibrated predictions, it is on the dashed diagonal. The bars show the number of values in each group,
    on a logarithmic scale. The title shows the expected calibration error: the mean absolute difference between the
    predicted and the observed share, weighted by the number of values.

    Parameters
    ----------
    adata
        Data after :func:`scbioformers.tl.impute`.
    modality
        The modality of a MuData that has the result. None is the only one.
    key
        Key of the result: the value of ``key_added`` in :func:`scbioformers.tl.impute`.
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
        If no imputed values are stored under ``key``.

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
    adata = open_modality(adata, modality)
    evidence = get.imputation_evidence(adata, key=key)
    table, event = evidence["calibration"], "a value above the median" if evidence["threshold"] else "expression"
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
    ax.set(xlabel=f"predicted probability of {event}", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    ax.set_title(f"expected calibration error: {error:.3f}")
    return ax
