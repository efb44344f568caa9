"""Figures of networks: comparison with stored pictures, and their labels, for networks that are written by hand."""

import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.patches import ArrowStyle, FancyArrowPatch

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError
from scbioformers.pl._layout import border, boxes, place, push_apart
from scbioformers.results._slots import params_to_json, set_slot

SPECIAL = "CD4+/CD45RA+"
NAMES = [SPECIAL, "B cell"]
GENES = ["TF1", "TF2", *(f"G{i}" for i in range(1, 15))]
KNOWN = pd.DataFrame({"source": ["TF1", "TF2", "TF2"], "target": ["G1", "G3", "TF1"]})


def weights(seed: int) -> np.ndarray:
    """(genes, genes), rows are targets. There are two regulators. G14 has no weight for TF1 in the first condition."""
    values = np.full((16, 16), np.nan)
    values[:, :2] = np.random.default_rng(seed).normal(scale=0.3, size=(16, 2))
    values[15, 0] = np.nan if seed == 0 else 2.0
    values[[0, 1], [0, 1]] = np.nan
    return values


def sparse(values: np.ndarray) -> sp.csr_matrix:
    rows, columns = np.nonzero(np.isfinite(values))
    return sp.csr_matrix((values[rows, columns].astype(np.float32), (rows, columns)), shape=values.shape)


def edges(values: np.ndarray, condition: str) -> pd.DataFrame:
    rows, columns = np.nonzero(np.isfinite(values))
    table = pd.DataFrame(
        {
            "source": np.array(GENES)[columns],
            "target": np.array(GENES)[rows],
            "weight": values[rows, columns],
            "support": 1.0,
            "count": 20,
            "condition": condition,
        }
    )
    table = table.sort_values("weight", key=np.abs, ascending=False, ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


def make(method="knockout", names=NAMES, reference="B cell", scale=1.0, directed=True) -> ad.AnnData:
    adata = ad.AnnData(np.ones((2, 16), np.float32), var=pd.DataFrame(index=GENES))
    by_condition = {name: scale * weights(i) for i, name in enumerate(names or ["all cells"])}
    if method == "attention":
        by_condition = {name: np.abs(values) for name, values in by_condition.items()}
    for name, values in by_condition.items():
        set_slot(adata, "varp", f"grn.{name}" if names else "grn", sparse(values))
        if reference not in (None, name):
            set_slot(adata, "varp", f"grn_difference.{name}", sparse(values - by_condition[reference]))
    params = {"method": method, "groupby": "x" if names else None, "reference": reference, "directed": directed}
    params["conditions"] = list(by_condition)
    tables = [edges(values, name) for name, values in by_condition.items()]
    set_slot(adata, "uns", "grn", {"edges": pd.concat(tables, ignore_index=True), "params": params_to_json(params)})
    return adata


def draw_heatmap(adata, path: Path, regulator="TF1") -> Path:
    """Draw without text, because fonts differ between machines."""
    figure = bf.pl.attention_heatmap(adata, regulator, n_top=8)[0].figure
    for ax in figure.axes:
        ax.set(xlabel="", ylabel="", title="", xticks=[], yticks=[])
    figure.savefig(path, dpi=60)
    return path


def draw_network(adata, path: Path, **kwargs) -> Path:
    """Draw on axes of a fixed size, without text."""
    figure = plt.figure(figsize=(5, 4))
    ax = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    names = adata.uns["grn"]["edges"]["condition"]
    bf.pl.grn_network(adata, condition=names.iloc[0], **({"n_top": 18, "known": KNOWN} | kwargs), ax=ax)
    ax.set_title("")
    ax.get_legend().remove()
    for text in ax.texts:
        text.set_color("none")
    figure.savefig(path, dpi=60)
    return path


# pictures


@pytest.mark.parametrize(
    ("name", "adata"),
    [
        pytest.param("heatmap_signed.png", make(), id="signed, with a difference and a missing weight"),
        pytest.param("heatmap_attention.png", make("attention", None, None), id="unsigned, one condition"),
    ],
)
def test_picture_of_a_heatmap(tmp_path, difference, name, adata):
    assert difference(draw_heatmap(adata, tmp_path / "found.png"), name) is None


@pytest.mark.parametrize(
    ("name", "adata"),
    [
        pytest.param("network_signed.png", make(), id="signed"),
        pytest.param("network_attention.png", make("attention", None, None), id="unsigned"),
    ],
)
def test_picture_of_a_network(tmp_path, difference, name, adata):
    assert difference(draw_network(adata, tmp_path / "found.png"), name) is None


@pytest.mark.parametrize(
    "adata",
    [
        pytest.param(make(scale=-1.0), id="other signs"),
        pytest.param(make("attention"), id="no signs"),
        pytest.param(make(names=NAMES[::-1]), id="another order"),
        pytest.param(make(reference=None), id="no difference"),
    ],
)
def test_the_tolerance_can_fail_for_a_heatmap(tmp_path, difference, adata):
    assert difference(draw_heatmap(adata, tmp_path / "found.png"), "heatmap_signed.png") is not None


@pytest.mark.parametrize(
    ("adata", "kwargs"),
    [
        pytest.param(make(scale=-1.0), {}, id="other signs"),
        pytest.param(make(), {"known": None}, id="no known edges"),
        pytest.param(make(), {"n_top": 17}, id="one edge less"),
        pytest.param(make("attention"), {}, id="no signs"),
    ],
)
def test_the_tolerance_can_fail_for_a_network(tmp_path, difference, adata, kwargs):
    assert difference(draw_network(adata, tmp_path / "found.png", **kwargs), "network_signed.png") is not None


# heat map


def bar(ax):
    """Axes of the colour bar."""
    return ax.images[0].colorbar.ax


def test_heatmap_shows_the_strongest_targets():
    axes = bf.pl.attention_heatmap(make(), "TF1", n_top=3)
    first, second = (pd.Series(weights(i)[:, 0], GENES) for i in (0, 1))
    strongest = pd.concat([first.abs(), second.abs()], axis=1).max(axis=1).dropna().nlargest(3).index
    shown = [label.get_text() for label in axes[0].get_yticklabels()]
    assert shown == list(strongest)
    assert shown[0] == "G14"  # no weight in one condition, but the strongest in the other
    assert [label.get_text() for label in axes[0].get_xticklabels()] == NAMES
    assert [label.get_text() for label in axes[1].get_xticklabels()] == [SPECIAL]
    colours, differences = (ax.images[0].get_array() for ax in axes)
    expected = pd.concat([first, second], axis=1).loc[shown].to_numpy()
    np.testing.assert_allclose(colours.filled(np.nan), expected, rtol=1e-6)
    np.testing.assert_allclose(differences.filled(np.nan)[:, 0], expected[:, 0] - expected[:, 1], rtol=1e-5)
    assert "grey: no weight" in bar(axes[0]).get_ylabel()
    assert [ax.get_title() for ax in axes] == ["targets of TF1", "difference from B cell"]


def test_zero_has_the_neutral_colour():
    for ax in bf.pl.attention_heatmap(make(), "TF1"):
        low, high = ax.images[0].get_clim()
        assert low == -high
        np.testing.assert_allclose(ax.images[0].cmap(0.5)[:3], 0.97, atol=0.01)


@pytest.mark.parametrize(
    ("method", "word"), [("knockout", "knock-out"), ("embedding", "cosine"), ("attention", "attention")]
)
def test_the_colour_bar_names_the_weight(method, word):
    (ax,) = bf.pl.attention_heatmap(make(method, None, None), "TF2")
    assert word in bar(ax).get_ylabel()
    assert (ax.images[0].get_clim()[0] < 0) == (method != "attention")
    assert "grey" not in bar(ax).get_ylabel()  # all pairs have a weight


@pytest.mark.parametrize("method", ["knockout", "embedding"])
def test_the_colour_bar_says_what_a_positive_weight_means(method):
    (ax,) = bf.pl.attention_heatmap(make(method, None, None), "TF2")
    assert "positive: activates, a knock-out lowers the target" in bar(ax).get_ylabel()
    red, blue = ax.images[0].cmap(1.0), ax.images[0].cmap(0.0)
    assert red[0] > red[2] and blue[2] > blue[0]
    (ax,) = bf.pl.attention_heatmap(make("embedding", None, None, directed=False), "TF2")
    assert "positive: both genes rise and fall together" in bar(ax).get_ylabel()
    assert ax.get_title() == "genes linked to TF2"


def test_one_condition_has_no_difference():
    adata = make()
    assert len(bf.pl.attention_heatmap(adata, "TF1", conditions=["B cell"])) == 1  # it is the reference
    assert len(bf.pl.attention_heatmap(adata, "TF1", conditions=SPECIAL)) == 2
    assert len(bf.pl.attention_heatmap(make(names=[SPECIAL], reference=None), "TF1")) == 1


def test_heatmap_of_a_subset():
    adata = make()[:, [g for g in GENES if g != "G14"]].copy()
    (ax, _) = bf.pl.attention_heatmap(adata, "TF1", n_top=50)
    assert len(ax.get_yticklabels()) == 14
    assert "grey" not in bar(ax).get_ylabel()


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (["tf1"], {}, DataError, r"'tf1' is not a gene of the data. Similar names: \['TF1'"),
        (["G1"], {}, DataError, r"'G1' has no weights.*Run `bf\.tl\.grn\(adata, regulators=\['G1'\]\)`"),
        (["TF1"], {"conditions": ["T cell"]}, MissingKeyError, r"`conditions='T cell'` is not .*CD4\+/CD45RA\+"),
        (["TF1"], {"conditions": []}, ConfigError, "empty.*B cell"),
        (["TF1"], {"n_top": 0}, ConfigError, "`n_top` must be at least 1"),
        (
            ["TF1"],
            {"axes": [object.__new__(Axes)]},
            ConfigError,
            r"must have length 2 \(weights and differences\), found 1",
        ),
        (["TF1"], {"key": "other"}, MissingKeyError, r"uns\['other'\].*Run `bf\.tl\.grn\(adata\)` first"),
    ],
)
def test_heatmap_errors(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        bf.pl.attention_heatmap(make(), *args, **kwargs)
    assert not plt.get_fignums()


# network


def arrows(ax, zorder=2) -> list[FancyArrowPatch]:
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch) and patch.get_zorder() == zorder]


def test_width_is_strength_and_colour_is_sign():
    adata = make()
    ax = bf.pl.grn_network(adata, condition=SPECIAL, n_top=10, known=KNOWN)
    graph = bf.get.grn_graph(adata, condition=SPECIAL, n_top=10, known=KNOWN)
    weight = np.array([edge["weight"] for edge in graph.edges.values()])
    width = np.array([arrow.get_linewidth() for arrow in arrows(ax)])
    np.testing.assert_allclose(np.corrcoef(width, np.abs(weight))[0, 1], 1.0)
    colours = {arrow.get_edgecolor() for arrow in arrows(ax)}
    assert len(colours) == 2
    assert {(arrow.get_edgecolor(), w > 0) for arrow, w in zip(arrows(ax), weight, strict=True)} == set(
        zip(sorted(colours), [False, True], strict=True)
    )  # blue (negative) sorts first, because it has less red
    assert len(arrows(ax, zorder=1)) == sum(edge["known"] for edge in graph.edges.values()) > 0
    assert [text.get_text() for text in ax.texts] == list(graph.nodes)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"regulator", "target", "activation", "repression", "known"} < set(labels)
    assert f"{np.abs(weight).max():.2g}" in labels[-1]
    assert ax.get_title() == f"10 strongest edges in {SPECIAL}"


@pytest.mark.parametrize("figsize", [(6, 5), (3, 3)])
def test_labels_do_not_overlap(figsize):
    figure, ax = plt.subplots(figsize=figsize)
    bf.pl.grn_network(make(), condition=SPECIAL, n_top=30, ax=ax)
    figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    assert len(boxes) == 16
    for i, box in enumerate(boxes):
        assert not box.overlaps(ax.get_legend().get_window_extent())
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_layout_is_deterministic(tmp_path):
    pictures = [draw_network(make(), tmp_path / f"{i}.png").read_bytes() for i in range(2)]
    assert pictures[0] == pictures[1]
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    draw_network(make(), tmp_path / "x.png")
    assert np.array_equal(np.random.get_state()[1], state)


def test_network_without_signs():
    ax = bf.pl.grn_network(make("attention", None, None), regulators="TF2", n_top=5)
    assert len({arrow.get_edgecolor() for arrow in arrows(ax)}) == 1
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["regulator", "target"]
    assert not {"activation", "repression", "known"} & set(labels)
    assert ax.get_title() == "5 strongest edges of TF2"


def test_network_without_directions():
    ax = bf.pl.grn_network(make("embedding", None, None, directed=False), n_top=10, known=KNOWN)
    assert {type(arrow.get_arrowstyle()) for arrow in arrows(ax)} == {ArrowStyle.Curve}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:4] == ["gene", "positive", "negative", "known"]
    assert len({text.get_bbox_patch().get_facecolor() for text in ax.texts}) == 1
    directed = bf.pl.grn_network(make("embedding", None, None), n_top=10)
    assert ArrowStyle.CurveFilledB in {type(arrow.get_arrowstyle()) for arrow in arrows(directed)}


def test_a_regulator_without_an_edge_is_left_out_with_a_warning():
    with pytest.warns(BioformersWarning, match=r"\['G1'\] have no edge in the network.*The others are shown"):
        ax = bf.pl.grn_network(make(), condition=SPECIAL, regulators=["TF2", "G1", "TF1"], n_top=3)
    assert len(arrows(ax)) == 6
    assert ax.get_title() == f"6 strongest edges of TF2, TF1 in {SPECIAL}"


@pytest.mark.parametrize("n_regulators", [2, 5, 12])
def test_no_edge_runs_under_the_label_of_another_node(n_regulators):
    """Networks of 40 edges with one to many components, drawn on a square of 500 points."""
    random = np.random.default_rng(n_regulators)
    graph = nx.DiGraph([(f"TF{i % n_regulators}", f"GENE{random.integers(30)}") for i in range(40)])
    size = boxes(list(graph), 8.0)
    centres = place(graph, size, np.array([500.0, 500.0]), 16.0)
    at = {name: i for i, name in enumerate(graph)}
    for source, target in graph.edges:
        line = centres[at[source]] + np.linspace(0, 1, 200)[:, None] * (centres[at[target]] - centres[at[source]])
        inside = (np.abs(line[:, None] - centres) < size / 2).all(axis=2).any(axis=0)
        assert set(np.flatnonzero(inside)) <= {at[source], at[target]}


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"condition": None}, ConfigError, r"`condition=`: .*CD4\+/CD45RA\+"),
        ({"condition": "T cell"}, MissingKeyError, r"`condition='T cell'` is not among"),
        ({"regulators": ["TF11"]}, DataError, r"Not genes of the data: \['TF11'\]. Similar names: \['TF1'"),
        ({"regulators": ["G1"]}, DataError, r"\['G1'\] have no edge in.*`bf\.tl\.grn\(adata, regulators=\['G1'\]"),
        ({"known": pd.DataFrame({"from": []})}, DataError, "'source' and 'target'"),
        ({"key": "other"}, MissingKeyError, r"uns\['other'\].*Run `bf\.tl\.grn\(adata\)` first"),
    ],
)
def test_network_errors(kwargs, error, message):
    with pytest.raises(error, match=message):
        bf.pl.grn_network(make(), **({"condition": SPECIAL} | kwargs))
    assert not plt.get_fignums()


def test_no_edge_left():
    adata = make()[:, ["G1", "G2"]].copy()
    with pytest.raises(DataError, match=r"no edge between the genes of adata. Run `bf\.tl\.grn\(adata\)`"):
        bf.pl.grn_network(adata, condition=SPECIAL)
    assert not plt.get_fignums()


# both


def test_own_axes_and_saving(tmp_path):
    figure, mine = plt.subplots(1, 3)
    adata = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bf.pl.attention_heatmap(adata, "TF1", axes=mine[:2], save=tmp_path / "1.png") == list(mine[:2])
        assert bf.pl.grn_network(adata, condition=SPECIAL, ax=mine[2], save=tmp_path / "2.png") is mine[2]
    assert plt.get_fignums() == [figure.number]
    assert all((tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG") for i in (1, 2))


def test_push_apart():
    random = np.random.default_rng(0)
    for at in (np.zeros((12, 2)), random.normal(scale=10, size=(40, 2))):
        size = random.uniform(5, 30, size=at.shape)
        centres = push_apart(at, size)
        distance = np.abs(centres[:, None] - centres[None])
        free = (distance >= (size[:, None] + size[None]) / 2 - 1e-6).any(axis=-1)
        assert free[np.triu_indices(len(at), k=1)].all()
    far = np.array([[0.0, 0.0], [100.0, 0.0]])
    # boxes without overlap do not move
    np.testing.assert_allclose(push_apart(far, np.full((2, 2), 10.0)), far, atol=1e-5)


@pytest.mark.parametrize(
    ("towards", "expected"),
    [((10.0, 0.0), (2.0, 0.0)), ((0.0, -9.0), (0.0, -1.0)), ((4.0, 4.0), (1.0, 1.0)), ((0.5, 0.5), (0.5, 0.5))],
)
def test_border(towards, expected):
    np.testing.assert_allclose(border(np.zeros(2), np.array([4.0, 2.0]), np.array(towards)), expected)
