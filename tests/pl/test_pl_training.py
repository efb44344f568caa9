"""Learning curves: comparison with stored pictures, for a history that is written by hand."""

import warnings
from itertools import combinations
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.decorators import remove_ticks_and_titles

import scbioformers as bf
from scbioformers.core import DataError, MissingKeyError
from scbioformers.results._slots import params_to_json, set_slot


def make(n_members: int = 1, **changes) -> ad.AnnData:
    """Data with a fit of five epochs. The first epoch has no validation."""
    tables = []
    for member in range(n_members):
        epoch = np.arange(1, 6)
        held_out = np.where(epoch > 1, 1.2 - 0.1 * epoch + 0.05 * member, np.nan)
        table = {
            "member": member,
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 2.0 / epoch,
            "train_masked_bins": 1.0 / epoch + 0.3 * member,
            "train_profile_counts": 3.0 - 0.2 * epoch,
            "val_masked_bins": held_out,
            "val_profile_counts": 2 * held_out,
        }
        tables.append(pd.DataFrame({name: value for name, value in (table | changes).items() if value is not None}))
    adata = ad.AnnData(np.ones((2, 2), np.float32))
    set_slot(adata, "uns", "bioformer", {"params": params_to_json({}), "history": pd.concat(tables, ignore_index=True)})
    return adata


def draw(adata, path: Path) -> Path:
    """Draw without text, because fonts differ between machines."""
    axes = bf.pl.training(adata)
    figure = axes[0].figure
    remove_ticks_and_titles(figure)
    for ax in axes:
        ax.set(xlabel="", ylabel="")
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    figure.savefig(path, dpi=60)
    return path


@pytest.mark.parametrize(("n_members", "name"), [(1, "training.png"), (2, "training_members.png")])
def test_picture(tmp_path, n_members, name, difference):
    found = draw(make(n_members), tmp_path / name)
    assert difference(found, name) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"train_masked_bins": 1.2 / np.arange(1, 6)},
        {"val_masked_bins": np.nan},
        {"val_profile_counts": None},
        {"train_profile_counts": None},
    ],
    ids=["another curve", "no held-out cells", "no such column", "one panel"],
)
def test_the_tolerance_can_fail(tmp_path, changes, difference):
    found = draw(make(**changes), tmp_path / "found.png")
    assert difference(found, "training.png") is not None


def test_curves_and_labels():
    first, second = bf.pl.training(make())
    assert [ax.get_title() for ax in (first, second)] == ["masked genes", "profile from <cls>"]
    assert first.get_xlabel() == "epoch"
    assert "nats" in first.get_ylabel()
    assert "nats" in second.get_ylabel()
    train, held_out = first.lines
    np.testing.assert_allclose(train.get_xydata(), [[1, 1], [2, 1 / 2], [3, 1 / 3], [4, 1 / 4], [5, 1 / 5]])
    np.testing.assert_allclose(held_out.get_xydata(), [[2, 1.0], [3, 0.9], [4, 0.8], [5, 0.7]])
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["training", "held-out cells"]


def test_labels_of_members():
    first, second = bf.pl.training(make(2))
    first.figure.draw_without_rendering()
    legend = second.get_legend()
    assert legend.get_window_extent().x0 >= second.get_window_extent().x1  # beside the curves
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(set(labels)) == 4
    assert sum("member 1" in label for label in labels) == 2
    colors = [line.get_color() for line in first.lines]
    assert colors[0] == colors[1] != colors[2] == colors[3]


def test_each_modality_has_its_curves():
    names = ("masked_bins", "profile_modalities")
    of = {f"{stage}_{name}_{modality}": i + np.arange(5.0) for stage in ("train", "val") for name in names
          for i, modality in enumerate(("rna", "prot"))}  # fmt: skip
    whole = {"train_profile_modalities": np.ones(5), "val_profile_modalities": np.ones(5)}
    left, right = bf.pl.training(make(train_profile_counts=None, val_profile_counts=None, **of, **whole))
    assert [line.get_label() for line in left.lines] == [
        "training, rna", "held-out cells, rna", "training, prot", "held-out cells, prot"
    ]  # fmt: skip
    for ax in (left, right):
        assert [line.get_ydata()[0] for line in ax.lines] == [0, 0, 1, 1]
        assert ax.lines[0].get_color() == ax.lines[1].get_color() != ax.lines[2].get_color()
    assert right.get_legend() is not None
    assert "per feature" in right.get_ylabel()


def test_members_can_be_told_apart_without_red_and_green(deuteranope_distance):
    first, _ = bf.pl.training(make(5))
    colours = {line.get_color() for line in first.lines}
    assert len(colours) == 5
    assert min(deuteranope_distance(a, b) for a, b in combinations(colours, 2)) > 20
    assert deuteranope_distance("C2", "C3") < 10  # neighbours in the default cycle of matplotlib


def test_own_axes():
    figure, mine = plt.subplots(1, 2)
    axes = bf.pl.training(make(), axes=mine)
    assert list(axes) == list(mine)
    assert plt.get_fignums() == [figure.number]


def test_save(tmp_path):
    bf.pl.training(make(), save=tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_real_fit(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = bf.pl.training(fitted)
    assert len(axes) == 2
    assert all(np.isfinite(ax.lines[0].get_ydata()).any() for ax in axes)


def test_key():
    adata = make()
    adata.uns["other"] = adata.uns.pop("bioformer")
    assert len(bf.pl.training(adata, key="other")) == 2
    with pytest.raises(MissingKeyError, match=r"Run `bf\.tl\.fit"):
        bf.pl.training(adata)


def test_nothing_to_draw():
    with pytest.raises(DataError, match="made no training step"):
        bf.pl.training(make(train_masked_bins=None, train_profile_counts=None))
    assert not plt.get_fignums()
