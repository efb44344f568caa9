"""``show=``, ``save=``, ``ax=`` and ``axes=`` mean in every function of ``bf.pl`` what they mean in scanpy."""

import inspect
import logging
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from matplotlib.axes import Axes

import scbioformers as bf
from scbioformers.core import ConfigError

NAMES = bf.pl.__all__
CALLS = {
    "annotation": lambda adata, **kwargs: bf.pl.annotation(adata, "cell_type", **kwargs),
    "attention_heatmap": lambda adata, **kwargs: bf.pl.attention_heatmap(adata, "TF1", **kwargs),
    "perturbation": lambda adata, **kwargs: bf.pl.perturbation(adata, np.linspace(-1, 1, 30), name="TF3", **kwargs),
}
PNG, PDF = b"\x89PNG", b"%PDF"


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """Data with every result that a function of bf.pl can draw."""
    adata = bf.datasets.simulate(60, 30, n_regulators=5, perturbations=["TF1", "TF2"], n_conditions=2, rng=0)
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
    task = bf.Perturbation(key="perturbation", control="control")
    bf.tl.fit(adata, task=task, config=config, train=bf.TrainConfig(max_steps=2))
    bf.tl.impute(adata)
    bf.tl.perturb(adata, ["TF3", "TF4"])
    bf.tl.grn(adata, regulators=["TF1", "TF2"])
    bf.tl.gene_programs(adata, min_genes=2)
    bf.tl.annotate(adata, "cell_type")
    bf.tl.fit(adata, phenotype_keys="condition", config=config, train=bf.TrainConfig(max_steps=2), key_added="other")
    bf.tl.counterfactual(adata, {"condition": "condition_2"}, groupby="cell_type", key="other")
    return adata


@pytest.fixture(autouse=True)
def shown(monkeypatch, tmp_path) -> list[list[int]]:
    """The figures that were open at each call of ``plt.show``. Figures are saved below tmp_path."""
    calls: list[list[int]] = []
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: calls.append(plt.get_fignums()))
    monkeypatch.setattr(bf.settings, "autoshow", True)
    monkeypatch.setattr(bf.settings, "figdir", tmp_path / "figures")
    monkeypatch.chdir(tmp_path)
    yield calls
    plt.close("all")


def draw(name: str, adata: ad.AnnData, **kwargs) -> Axes | list[Axes] | None:
    return CALLS.get(name, getattr(bf.pl, name))(adata, **kwargs)


def own_axes(name: str, adata: ad.AnnData) -> dict:
    """Axes of the user, as many as the figure has panels."""
    drawn = draw(name, adata, show=False)
    plt.close("all")
    if isinstance(drawn, Axes):
        return {"ax": plt.subplots()[1]}
    return {"axes": plt.subplots(1, len(drawn), squeeze=False)[1][0]}


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_that_of_scanpy(name):
    ours = inspect.signature(getattr(bf.pl, name)).parameters
    theirs = inspect.signature(sc.pl.embedding).parameters
    assert len({"ax", "axes"} & set(ours)) == 1
    for argument in {"show", "save", "ax", "axes"} & set(ours):
        assert ours[argument].kind is inspect.Parameter.KEYWORD_ONLY
        assert ours[argument].default is (None if argument == "axes" else theirs[argument].default)


@pytest.mark.parametrize("name", NAMES)
def test_by_default_a_figure_is_shown_and_returned(adata, shown, name, monkeypatch):
    monkeypatch.setattr(mpl, "get_backend", lambda: "inline")
    assert draw(name, adata) is not None
    assert shown == [[1]]  # once, when it is drawn
    assert draw(name, adata, show=True) is None
    assert len(shown) == 2


def test_without_a_screen_nothing_is_shown_unless_it_is_asked_for(adata, shown):
    assert isinstance(draw("calibration", adata), Axes)
    assert not shown  # matplotlib would warn that agg cannot show it


@pytest.mark.parametrize("name", NAMES)
def test_show_false_returns_axes_that_a_notebook_does_not_print_as_a_list(adata, shown, name):
    drawn = draw(name, adata, show=False)
    assert not shown
    axes = [drawn] if isinstance(drawn, Axes) else drawn
    assert axes
    assert all(isinstance(ax, Axes) for ax in axes)
    if not isinstance(drawn, Axes):
        display = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
        assert display.format(drawn) == ({}, {})
        assert display.format(list(drawn))[0] != {}


@pytest.mark.parametrize(
    ("name", "save", "file", "start"),
    [
        *((name, True, "figures/{}.png", PNG) for name in NAMES),
        ("training", "_1.pdf", "figures/training_1.pdf", PDF),
        ("calibration", "_v1.2", "figures/calibration_v1.2.png", PNG),
        ("calibration", "mine/x.png", "mine/x.png", PNG),
        ("training", Path("x.pdf"), "x.pdf", PDF),
    ],
)
def test_save(adata, tmp_path, caplog, name, save, file, start):
    file = tmp_path / file.format(name)
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        assert draw(name, adata, save=save, show=False) is not None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_bytes().startswith(start)
    assert file.name in caplog.text
    assert not plt.get_fignums()  # scanpy closes a figure that it has saved: a notebook would show it


@pytest.mark.parametrize("name", NAMES)
def test_axes_of_the_user(adata, tmp_path, name):
    mine = own_axes(name, adata)
    before = plt.get_fignums()
    drawn = draw(name, adata, **mine, show=False, save=tmp_path / "x.png")
    axes = [drawn] if isinstance(drawn, Axes) else drawn
    assert all(ax is own for ax, own in zip(axes, np.ravel(next(iter(mine.values()))), strict=True))
    assert plt.get_fignums() == before  # neither a new figure nor a closed one
    assert (tmp_path / "x.png").exists()


def test_wrong_number_of_axes(adata):
    for name in ("training", "attention_heatmap"):
        mine = [*own_axes(name, adata)["axes"], plt.subplots()[1]]
        with pytest.raises(ConfigError, match=rf"`axes` must have length {len(mine) - 1} .*found {len(mine)}"):
            draw(name, adata, axes=mine)
        with pytest.raises(ConfigError, match=r"found 0.*`plt\.subplots"):
            draw(name, adata, axes=[])


@pytest.mark.parametrize(("dpi", "expected"), [("figure", 150), (40, 40)])
def test_resolution_of_saved_figures(adata, tmp_path, dpi, expected):
    ax = plt.figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    with mpl.rc_context({"savefig.dpi": dpi}):
        bf.pl.calibration(adata, ax=ax, save=tmp_path / "x.png")
    width = plt.imread(tmp_path / "x.png").shape[1] / expected
    assert 4 < width < 6  # inches: the labels lie outside of the axes


def test_the_whole_figure_is_saved_if_the_axes_are_in_a_part_of_it(adata, tmp_path):
    whole = plt.figure(figsize=(8, 3), dpi=100)
    left, right = whole.subfigures(1, 2)
    right.subplots().plot([0, 1])
    bf.pl.calibration(adata, ax=left.subplots(), save=tmp_path / "x.png", show=False)
    assert plt.imread(tmp_path / "x.png").shape[1] > 900  # 8 inches at 150 dots per inch, cut to what is drawn
