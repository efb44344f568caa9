"""Figures of perturbations: comparison with stored pictures, for effects that are written by hand."""

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.ticker import NullLocator

import scbioformers as bf
from scbioformers.core import DataError, MissingKeyError
from scbioformers.results import Perturbed, write_perturb

N_GENES = 60
NAMES = ["G0", "G1+G2", *(f"G{i}" for i in range(3, 9))]
OBSERVED = np.sin(np.arange(N_GENES) ** 1.5)
CROSS_VALIDATED = np.cos(np.arange(N_GENES) ** 1.1)
FIGURES = {
    "perturbation": lambda adata, **kwargs: bf.pl.perturbation(adata, OBSERVED, name="G0", **kwargs),
    "perturbation_screen": bf.pl.perturbation_screen,
}


def make(effect_of_first=0.6 * OBSERVED, se=0.1, seen=("G1+G2", "G4"), observed=None) -> ad.AnnData:
    """Eight predicted perturbations. The first has 0.6 times the observed effect. Gene 50 is not modelled."""
    genes = np.arange(N_GENES)
    others = [0.1 * k * np.cos(genes * k) for k in range(1, len(NAMES))]
    effect = np.column_stack([effect_of_first + 0.1 * np.cos(genes), *others])
    effect[50] = np.nan
    adata = ad.AnnData(np.ones((2, N_GENES), np.float32))
    adata.var_names = [f"G{i}" for i in genes]
    modelled = np.delete(genes, 50)
    result = Perturbed(
        names=NAMES,
        own_genes=[["G0"], ["G1", "G2"], *([f"G{i}"] for i in range(3, 9))],
        seen=np.isin(NAMES, seen),
        effect=effect,
        se=se * (1 + 0 * effect),
        genes=[f"G{i}" for i in modelled],
        cross_validated={name: CROSS_VALIDATED[modelled] for name in seen},
        observed={name: values[modelled] for name, values in (observed or {}).items()},
        groups={},
    )
    write_perturb(adata, "perturbed", result, evidence={}, params={}, profiles=None)
    return adata


def draw(name: str, adata, path: Path, **kwargs) -> Path:
    """Draw without text, because fonts differ between machines."""
    ax = FIGURES[name](adata, **kwargs)
    ax.set(xlabel="", ylabel="", title="", xticks=[])
    ax.yaxis.set_major_locator(NullLocator())
    for text in list(ax.texts):
        text.remove()
    for child in ax.child_axes:
        child.set(ylabel="", yticks=[])
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    ax.figure.savefig(path, dpi=60)
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_picture(tmp_path, name, difference):
    assert difference(draw(name, make(), tmp_path / "found.png"), f"{name}.png") is None


@pytest.mark.parametrize(
    ("name", "data", "kwargs"),
    [
        pytest.param("perturbation", {"effect_of_first": -0.6 * OBSERVED}, {}, id="opposite"),
        pytest.param("perturbation", {"effect_of_first": 0.3 * OBSERVED}, {}, id="weaker"),
        pytest.param("perturbation", {}, {"n_top": 3}, id="fewer names"),
        pytest.param("perturbation_screen", {"se": 0.3}, {}, id="wider intervals"),
        pytest.param("perturbation_screen", {"effect_of_first": 1.5 * OBSERVED}, {}, id="another order"),
        pytest.param("perturbation_screen", {}, {"n_top": 5}, id="fewer rows"),
        pytest.param("perturbation_screen", {"seen": ()}, {}, id="none in the training data"),
    ],
)
def test_the_tolerance_can_fail(tmp_path, name, data, kwargs, difference):
    assert difference(draw(name, make(**data), tmp_path / "found.png", **kwargs), f"{name}.png") is not None


def test_points_and_their_names():
    adata = make()
    ax = FIGURES["perturbation"](adata, n_top=20)
    effect = adata.varm["perturb_effect"][:, 0]
    others, own = (collection.get_offsets() for collection in ax.collections)
    np.testing.assert_allclose(own, [[OBSERVED[0], effect[0]]])
    kept = np.delete(np.arange(N_GENES), [0, 50])
    np.testing.assert_allclose(sorted(others.tolist()), sorted(zip(OBSERVED[kept], effect[kept], strict=True)))
    r = np.corrcoef(OBSERVED[kept], effect[kept])[0, 1]
    assert ax.get_title() == f"G0, not in the training data\nr = {r:.2f} (other genes; ◆ perturbed)"
    measured = np.delete(np.arange(N_GENES), 50)
    top = measured[np.argsort(-np.abs(OBSERVED[measured]))[:20]]
    assert {text.get_text() for text in ax.texts} == {f"G{i}" for i in top}


def test_a_seen_perturbation_shows_its_cross_validated_prediction():
    """The effect of a seen perturbation contains the measured one, so it is not what is compared."""
    adata = make(effect_of_first=OBSERVED, seen=("G0", "G4"), observed={"G0": OBSERVED, "G3": OBSERVED})
    ax = bf.pl.perturbation(adata, show=False)
    kept = np.delete(np.arange(N_GENES), [0, 50])
    others, own = (collection.get_offsets() for collection in ax.collections)
    expected = sorted(zip(OBSERVED[kept], CROSS_VALIDATED[kept], strict=True))
    np.testing.assert_allclose(sorted(others.tolist()), expected)
    np.testing.assert_allclose(own, [[OBSERVED[0], CROSS_VALIDATED[0]]])
    r = np.corrcoef(OBSERVED[kept], CROSS_VALIDATED[kept])[0, 1]
    assert ax.get_title() == f"G0, cross-validated\nr = {r:.2f} (other genes; ◆ perturbed)"
    assert ax.get_ylabel() == "predicted change, cross-validated (log1p)"
    ax = bf.pl.perturbation(adata, name="G3", show=False)
    assert ax.get_title().startswith("G3, not in the training data")
    with pytest.raises(DataError, match=r"no cells with 'G4'.*cells of \['G0', 'G3'\].*`observed=`"):
        bf.pl.perturbation(adata, name="G4")
    with pytest.raises(DataError, match="no cells with the predicted perturbations"):
        bf.pl.perturbation(make())


def test_genes_near_zero_have_no_names():
    """Their names would all point to the same place."""
    observed = np.full(N_GENES, 0.01)
    observed[[3, 7, 9]] = 1, -0.8, 0.101
    ax = bf.pl.perturbation(make(), observed, name="G0", show=False)
    assert {text.get_text() for text in ax.texts} == {"G3", "G7", "G9"}


@pytest.mark.parametrize("n_top", [2, 20, 40])
@pytest.mark.parametrize("name", ["G{}", "LINC{:05d}-AS1"], ids=["short", "long"])
def test_names_do_not_overlap(n_top, name):
    adata = make()
    adata.var["symbol"] = [name.format(i) for i in range(adata.n_vars)]
    ax = FIGURES["perturbation"](adata, n_top=n_top, gene_symbols="symbol")
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == n_top
    frame = ax.get_window_extent()
    line = 6.5 / 72 * ax.figure.dpi  # the height of a line is larger than that of its letters
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            assert abs(box.y0 + box.y1 - other.y0 - other.y1) / 2 > line or box.x1 < other.x0 or other.x1 < box.x0
        assert frame.y0 <= (box.y0 + box.y1) / 2 <= frame.y1
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1


def test_screen_is_ranked():
    adata = make()
    ax = bf.pl.perturbation_screen(adata, n_top=6)
    table = bf.get.perturb(adata).head(6)
    assert [label.get_text() for label in ax.get_yticklabels()] == table["perturbation"].tolist()
    for container, part in zip(ax.containers, (table[table["seen"]], table[~table["seen"]]), strict=True):
        (marks, _, (bars,)) = container
        np.testing.assert_allclose(np.asarray(marks.get_xdata(), float), part["size"])
        np.testing.assert_array_equal(marks.get_ydata(), part.index)
        ends = np.array([segment[:, 0] for segment in bars.get_segments()], dtype=float)
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * 1.96 * part["size_se"])
    assert [container.get_label() for container in ax.containers] == ["in the training data", "predicted"]
    assert set(table.loc[table["seen"], "perturbation"]) <= {"G1+G2", "G4"}
    assert ax.yaxis_inverted()  # the largest is at the top
    # root mean square of the last effect, without the perturbed gene and the gene that is not modelled
    effect = np.delete(adata.varm["perturb_effect"][:, -1], [8, 50])
    assert table.set_index("perturbation").loc["G8", "size"] == pytest.approx(np.sqrt((effect**2).mean()))


@pytest.mark.parametrize("name", FIGURES)
def test_own_axes(name):
    figure, mine = plt.subplots()
    assert FIGURES[name](make(), ax=mine) is mine
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", FIGURES)
def test_save(tmp_path, name):
    FIGURES[name](make(), save=tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_predicted(name):
    adata = make()
    del adata.uns["perturb"]
    with pytest.raises(MissingKeyError, match=r"Run `bf\.tl\.perturb"):
        FIGURES[name](adata)
    assert not plt.get_fignums()


def test_errors():
    with pytest.raises(DataError, match="one value for each of 60 genes"):
        bf.pl.perturbation(make(), OBSERVED[:5], name="G0")
    with pytest.raises(MissingKeyError, match="'G9' was not predicted"):
        bf.pl.perturbation(make(), OBSERVED, name="G9")
    assert not plt.get_fignums()
