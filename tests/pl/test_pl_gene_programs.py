"""Figure of gene program scores: comparison with stored pictures, for programs that are written by hand."""

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError, DataError, MissingKeyError

SPECIAL = "CD4+/CD45RA+"


def make(*, swap=False, array=False) -> ad.AnnData:
    """40 cells of 3 types x 12 genes. Programs have 6 and 5 genes. One gene has no program, two cells have no type."""
    random = np.random.default_rng(0)
    labels = np.array(["1"] * 6 + ["2"] * 5 + [None], dtype=object)
    obs = pd.DataFrame(index=["twin"] * 2 + [f"c{i}" for i in range(38)])
    obs["type"] = pd.Categorical([None, None, *random.choice([SPECIAL, "B", "A"], 38)], ["B", SPECIAL, "A", "unused"])
    adata = ad.AnnData(np.ones((40, 12), np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(12)]))
    adata.var["gene_program"] = pd.Categorical(labels)
    scores = random.normal(size=(40, 2)) + 2 * np.column_stack([obs["type"] == "B", obs["type"] == SPECIAL])
    scores = scores[:, ::-1] if swap else scores
    scores = scores * [1, 10]
    adata.obsm["gene_program_scores"] = scores if array else pd.DataFrame(scores, adata.obs_names, ["1", "2"])
    return adata


def draw(adata, path: Path, **kwargs) -> Path:
    """Draw without text, because fonts differ between machines."""
    figure = bf.pl.gene_programs(adata, **kwargs).figure
    for ax in figure.axes:
        ax.set(xlabel="", ylabel="", title="", xticks=[], yticks=[])
    figure.savefig(path, dpi=60)
    return path


@pytest.mark.parametrize(
    ("name", "kwargs"), [("programs_by_group.png", {"groupby": "type"}), ("programs_by_cell.png", {})]
)
def test_picture(tmp_path, difference, name, kwargs):
    assert difference(draw(make(), tmp_path / "found.png", **kwargs), name) is None
    assert difference(draw(make(array=True), tmp_path / "found.png", **kwargs), name) is None
    assert difference(draw(make(swap=True), tmp_path / "found.png", **kwargs), name) is not None


def many() -> ad.AnnData:
    """50 cells x 40 genes in 8 programs. Program "p3" has the most genes, then "p7"."""
    random = np.random.default_rng(1)
    labels = np.repeat([f"p{i}" for i in range(8)], [2, 3, 4, 10, 2, 5, 6, 8])
    adata = ad.AnnData(np.ones((50, 40), np.float32), var=pd.DataFrame(index=[f"G{i}" for i in range(40)]))
    adata.var["gene_program"] = pd.Categorical(labels)
    names = list(adata.var["gene_program"].cat.categories)
    adata.obsm["gene_program_scores"] = pd.DataFrame(random.normal(size=(50, 8)), adata.obs_names, names)
    return adata


def rows(ax) -> list[str]:
    return [tick.get_text().split(":")[0] for tick in ax.get_yticklabels()]


@pytest.mark.parametrize(
    ("kwargs", "expected", "title"),
    [
        ({}, [f"p{i}" for i in range(8)], "gene programs"),
        ({"n_programs": 3}, ["p3", "p6", "p7"], "3 of 8 gene programs"),
        ({"n_programs": None}, [f"p{i}" for i in range(8)], "gene programs"),
        ({"programs": ["p5", "p0", "p5"], "n_programs": 1}, ["p5", "p0"], "2 of 8 gene programs"),
        ({"programs": "p5"}, ["p5"], "1 of 8 gene programs"),
    ],
)
def test_which_programs_are_shown(kwargs, expected, title):
    adata = many()
    ax = bf.pl.gene_programs(adata, **kwargs)
    assert rows(ax) == expected
    assert ax.get_title() == title
    scores = adata.obsm["gene_program_scores"]
    scores = ((scores - scores.mean()) / scores.std(ddof=0))[expected].to_numpy()
    order = np.lexsort((-scores.max(axis=1), scores.argmax(axis=1)))  # cells by their highest program of those shown
    np.testing.assert_allclose(ax.images[0].get_array(), scores[order].T)


def test_programs_are_named_by_number_too():
    assert rows(bf.pl.gene_programs(make(), programs=[2])) == rows(bf.pl.gene_programs(make(), programs=2)) == ["2"]


def test_as_many_programs_as_real_data_have_fit_on_a_page():
    adata = many()
    names = [f"{i}" for i in range(1, 116)]
    scores = np.random.default_rng(0).normal(size=(50, 115))
    adata.obsm["gene_program_scores"] = pd.DataFrame(scores, adata.obs_names, names)
    adata.var["gene_program"] = pd.Categorical(names[:40], names)
    ax = bf.pl.gene_programs(adata)
    assert ax.get_title() == "30 of 115 gene programs"
    assert ax.figure.get_figheight() < 12


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n_programs": 0}, ConfigError, "`n_programs` must be at least 1, or None"),
        ({"programs": []}, ConfigError, "`programs` is empty"),
        (
            {"programs": ["p9"]},
            MissingKeyError,
            r"`programs='p9'` is not among the stored programs\. Pass one of these: \['p0', 'p1'",
        ),
        ({"n_genes": -1}, ConfigError, "`n_genes` must be at least 0, found -1"),
    ],
)
def test_programs_that_are_not_there(kwargs, error, message):
    with pytest.raises(error, match=message):
        bf.pl.gene_programs(many(), **kwargs)
    assert not plt.get_fignums()


def test_means_by_group():
    adata = make()
    ax = bf.pl.gene_programs(adata, groupby="type")
    scores = adata.obsm["gene_program_scores"].to_numpy()
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    names = ["B", SPECIAL, "A"]  # in the order of the categories, without the unused category
    assert [label.get_text() for label in ax.get_xticklabels()] == names
    expected = [[scores[adata.obs["type"] == name, i].mean() for name in names] for i in (0, 1)]
    np.testing.assert_allclose(ax.images[0].get_array(), expected, rtol=1e-6)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1: G0, G1, G2, G3 +2", "2: G6, G7, G8, G9 +1"]
    assert ax.get_xlabel() == "type"


def test_colour_scale_is_limited_for_outliers():
    adata = make()
    adata.obsm["gene_program_scores"] *= np.where(np.arange(40) == 39, 1000, 1)[:, None]
    adata.obs["type"] = pd.Categorical(np.where(np.arange(40) == 39, "rare", "A"))
    image = bf.pl.gene_programs(adata, groupby="type").images[0]
    assert np.abs(image.get_array()).max() > 6
    assert image.get_clim() == (-3, 3)


def test_cells_are_sorted_by_their_highest_program():
    ax = bf.pl.gene_programs(make(), n_genes=6)
    values = np.asarray(ax.images[0].get_array())
    assert values.shape == (2, 40)
    best = values.argmax(axis=0)
    assert (np.diff(best) >= 0).all()
    for program in (0, 1):
        assert (np.diff(values[program, best == program]) <= 0).all()
    assert ax.get_yticklabels()[0].get_text() == "1: G0, G1, G2, G3, G4, G5"
    assert "40 cells" in ax.get_xlabel()


def test_labels_of_a_gene_subset():
    ax = bf.pl.gene_programs(make()[:, ["G1", "G7", "G8", "G11"]].copy(), groupby="type")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1: G1", "2: G7, G8"]


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_round_trip(tmp_path, format, difference):
    adata, path = make(), tmp_path / f"x.{format}"
    adata.obs_names_make_unique()
    getattr(adata, f"write_{format}")(path)
    found = draw(getattr(ad, f"read_{format}")(path), tmp_path / "found.png", groupby="type")
    assert difference(found, "programs_by_group.png") is None


def test_own_axes_and_saving(tmp_path):
    figure, mine = plt.subplots()
    assert bf.pl.gene_programs(make(), groupby="type", ax=mine, save=tmp_path / "x.png") is mine
    assert plt.get_fignums() == [figure.number]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_errors():
    adata = make()
    with pytest.raises(MissingKeyError, match=r"var\['other'\].*Run `bf\.tl\.gene_programs\(adata\)` first"):
        bf.pl.gene_programs(adata, key="other")
    with pytest.raises(MissingKeyError, match=r"Did not find adata.obs\['types'\].*`groupby=`.*\['type'\]"):
        bf.pl.gene_programs(adata, groupby="types")
    adata.obs["empty"] = np.nan
    with pytest.raises(DataError, match="no value in any cell"):
        bf.pl.gene_programs(adata, groupby="empty")
    adata.obsm["gene_program_scores"] = np.ones((40, 3))
    with pytest.raises(DataError, match=r"\(40, 3\), expected one column for each of \['1', '2'\]"):
        bf.pl.gene_programs(adata)
    del adata.obsm["gene_program_scores"]
    with pytest.raises(MissingKeyError, match=r"obsm\['gene_program_scores'\].*Run `bf\.tl\.gene_programs"):
        bf.pl.gene_programs(adata)
    assert not plt.get_fignums()


def test_no_program():
    adata = make()
    adata.var["gene_program"] = pd.Categorical([None] * 12, [])
    adata.obsm["gene_program_scores"] = pd.DataFrame(index=adata.obs_names)
    with pytest.raises(DataError, match="No gene is in a program"):
        bf.pl.gene_programs(adata, groupby="type")


def test_a_key_with_a_slash_keeps_the_order_of_the_genes():
    """The genes of each program by their weight, read by the name that was given, not by the escaped one."""
    adata = bf.datasets.simulate(200, 60, n_regulators=6, rng=0)
    bf.tl.fit(adata, config=bf.ModelConfig(width=16, n_heads=2), train=bf.TrainConfig(max_steps=20))
    bf.tl.gene_programs(adata, key_added="T/B", resolution=1.0)
    labels = [tick.get_text() for tick in bf.pl.gene_programs(adata, key="T/B", n_genes=3).get_yticklabels()]
    table = bf.get.gene_programs(adata, key="T/B")
    for label in labels:
        program, genes = label.split(": ")
        strongest = table[table["program"] == program].nlargest(3, "weight")["gene"].tolist()
        assert genes.split(" +")[0].split(", ") == strongest
