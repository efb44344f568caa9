"""Figure of effects of a phenotype: comparison with a stored picture, for a result that is written by hand."""

from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.results import write_counterfactual

GROUPS = ["B", "CD4+ T"]


def make(*, sign: float = 1.0) -> ad.AnnData:
    """4 cells x 6 genes in 2 groups. Gene "G5" was not modelled, "G4" changes most."""
    adata = ad.AnnData(np.ones((4, 6), np.float32), var=pd.DataFrame(index=[f"G{i}" for i in range(6)]))
    values = sign * np.array([[0.1, -0.1], [0.5, 0.4], [-0.3, 0.0], [0.0, -0.6], [-1.0, -0.8], [np.nan, np.nan]])
    table = pd.DataFrame(values, adata.var_names, GROUPS)
    evidence = pd.DataFrame(
        [
            (group, method, score)
            for group, scores in zip(GROUPS, ([0.9, 0.7, 0.6], [0.5, 0.8, -0.2]), strict=True)
            for method, score in zip(["model", "mean of the other groups", "linear"], scores, strict=True)
        ],
        columns=["group", "method", "pearson"],
    )
    params = {"phenotype": {"condition": "stim"}, "groupby": "type"}
    profiles = np.ones((4, 6), np.float32)
    write_counterfactual(adata, "counterfactual", profiles, table, table, table, params=params, evidence=evidence)
    return adata


def draw(adata: ad.AnnData, path: Path) -> Path:
    """Draw without text, because fonts differ between machines. The handles of the legend stay."""
    figure = bf.pl.counterfactual(adata, n_top=4, show=False)[0].figure
    for text in figure.findobj(mpl.text.Text):
        text.set_text("")
    for ax in figure.axes:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=60)
    return path


def test_picture(tmp_path, difference):
    assert difference(draw(make(), tmp_path / "found.png"), "counterfactual.png") is None
    assert difference(draw(make(sign=-1), tmp_path / "found.png"), "counterfactual.png") is not None


def test_what_the_panels_say():
    effects, evidence = bf.pl.counterfactual(make(), n_top=4, show=False)
    assert [label.get_text() for label in effects.get_yticklabels()] == ["G4", "G1", "G3", "G2"]
    assert effects.get_title() == "effect of condition = stim"
    # the colour bar is as high as the heat map, and 0 is in its middle
    bar = effects.images[0].colorbar
    assert bar.ax.get_ylabel() == "difference of log1p counts"
    assert (bar.vmin, bar.vmax) == (-1, 1)
    effects.figure.draw_without_rendering()
    assert bar.ax.get_position().height == pytest.approx(effects.get_position().height, rel=0.01)
    assert evidence.get_xlim() == (-0.2, 1)
    assert [text.get_text() for text in evidence.get_legend().get_texts()] == [
        "model",
        "mean of the other groups",
        "linear",
    ]
    widths = {patch.get_facecolor()[:3]: [] for patch in evidence.patches}
    for patch in evidence.patches:
        widths[patch.get_facecolor()[:3]].append(patch.get_width())
    assert list(widths.values()) == [[0.9, 0.5], [0.7, 0.8], [0.6, -0.2]]
