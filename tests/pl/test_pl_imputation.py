"""Figures of imputation and calibration: comparison with stored pictures, for results that are written by hand."""

import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.ticker import NullLocator

import scbioformers as bf
from scbioformers.core import DataError, MissingKeyError
from scbioformers.results._slots import params_to_json, set_slot

FIGURES = {"imputation": bf.pl.imputation, "calibration": bf.pl.calibration}


def make(**changes) -> ad.AnnData:
    """Data with results for 8 bins. Few values were measured in bins 5 and 7."""
    number = np.array([1000, 400, 200, 100, 50, 19, 25, 10])
    bins = np.arange(8)
    spread = np.exp(-np.abs(bins - (0.8 * bins[:, None] + 0.3)))
    evidence = {
        "joint": number[:, None] * spread / spread.sum(axis=1, keepdims=True),
        "predicted": np.zeros(20),
        "observed": np.zeros(20),
        "count": np.zeros(20),
        "nll_bits": np.array([1.25]),
        "level": np.array([0, 1, 2, 3, 4, 6, 12, 24.0]),
    }
    evidence["count"][2:18:3] = [1000, 300, 200, 150, 80, 30]
    evidence["predicted"] = evidence["count"] * (np.arange(20) + 0.5) / 20
    evidence["observed"] = evidence["count"] * ((np.arange(20) + 0.5) / 20) ** 1.3
    adata = ad.AnnData(np.ones((2, 2), np.float32))
    set_slot(adata, "uns", "imputed", {"params": params_to_json({}), "evidence": evidence | changes})
    return adata


def draw(name: str, adata, path: Path) -> Path:
    """Draw without text, because fonts differ between machines."""
    figure = FIGURES[name](adata).figure
    for ax in figure.axes:
        ax.set(xlabel="", ylabel="", title="", xticks=[])
        ax.yaxis.set_major_locator(NullLocator())
        ax.yaxis.set_minor_locator(NullLocator())
        ax.tick_params(which="both", length=0)
        for child in ax.child_axes:
            child.set(ylabel="", yticks=[])
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    figure.savefig(path, dpi=60)
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_picture(tmp_path, name, difference):
    assert difference(draw(name, make(), tmp_path / "found.png"), f"{name}.png") is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("imputation", {"joint": np.diag([1000.0, 400, 200, 100, 50, 19, 25, 10])}, id="perfect"),
        pytest.param("imputation", {"joint": make().uns["imputed"]["evidence"]["joint"].T}, id="transposed"),
        pytest.param(
            "imputation",
            {"joint": make().uns["imputed"]["evidence"]["joint"][:5, :5], "level": np.arange(5.0)},
            id="fewer bins",
        ),
        pytest.param("calibration", {"observed": make().uns["imputed"]["evidence"]["predicted"]}, id="calibrated"),
        pytest.param("calibration", {"count": make().uns["imputed"]["evidence"]["count"] * 10}, id="more values"),
    ],
)
def test_the_tolerance_can_fail(tmp_path, name, changes, difference):
    assert difference(draw(name, make(**changes), tmp_path / "found.png"), f"{name}.png") is not None


def test_predictions_by_bin():
    adata = make()
    ax = bf.pl.imputation(adata, show=False)
    (image,) = ax.images
    joint, level = (adata.uns["imputed"]["evidence"][name] for name in ("joint", "level"))
    shares = joint / joint.sum(axis=1, keepdims=True)
    filled = np.array([0, 1, 2, 3, 4, 6])  # fewer than 20 values were measured in bins 5 and 7
    np.testing.assert_allclose(image.get_array()[filled], shares[filled, :7])
    assert np.ma.getmaskarray(image.get_array())[5].all()
    assert image.origin == "lower"
    diagonal, mean = ax.lines
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [6, 6]])
    found = np.interp(mean.get_xdata(), np.arange(8), level)
    np.testing.assert_allclose(found, (shares @ level)[filled])  # the mean count, at its place between the bins
    assert mean.get_ydata().tolist() == filled.tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted count at mean depth", "measured count at mean depth")
    for axis in (ax.xaxis, ax.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["0", "1", "2", "5", "10"]
        np.testing.assert_allclose(axis.get_ticklocs(), [0, 1, 2, 4.5, 5 + 4 / 6])
    assert "1.250 bits" in ax.get_title()
    (right,) = ax.child_axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["1,000", "400", "200", "100", "50", "25"]
    assert right.get_yticks().tolist() == filled.tolist()


def test_segment_bins_are_shown_as_bins():
    adata = make()
    del adata.uns["imputed"]["evidence"]["level"]
    ax = bf.pl.imputation(adata, show=False)
    assert ax.get_xlabel() == "predicted bin"
    np.testing.assert_allclose(ax.get_xticks(), [0, 1, 2, 5])


def test_too_few_values():
    with pytest.raises(DataError, match=r"No bin has 20 measured values.*Impute more cells"):
        bf.pl.imputation(make(joint=np.eye(8) * 19.0), show=False)


def test_calibration_curve():
    adata = make()
    ax = bf.pl.calibration(adata)
    evidence = adata.uns["imputed"]["evidence"]
    filled = evidence["count"] > 0
    predicted, observed = (evidence[name][filled] / evidence["count"][filled] for name in ("predicted", "observed"))
    _, line = ax.lines
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([predicted, observed]))
    error = np.average(np.abs(predicted - observed), weights=evidence["count"][filled])
    assert ax.get_title() == f"expected calibration error: {error:.3f}"
    (bars,) = (other for other in ax.figure.axes if other is not ax)
    assert [bar.get_height() for bar in bars.patches] == evidence["count"][filled].tolist()
    assert bars.get_yscale() == "log"
    assert ax.get_xlim() == ax.get_ylim() == (0, 1)
    assert ax.get_xlabel() == "predicted probability of expression"


def test_calibration_of_quantile_bins_says_what_is_predicted():
    ax = bf.pl.calibration(make(threshold=np.array([3.0])))
    assert ax.get_xlabel() == "predicted probability of a value above the median"


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
def test_real_predictions(fitted, tmp_path, name):
    bf.tl.impute(fitted, key_added="a/b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = FIGURES[name](fitted, key="a/b", save=tmp_path / "x.png")
    assert np.isfinite(ax.lines[-1].get_xydata()).all()


@pytest.mark.parametrize("name", FIGURES)
def test_no_evidence(name):
    adata = make()
    del adata.uns["imputed"]["evidence"]
    with pytest.raises(MissingKeyError, match=r"holds no evidence.*Run `bf\.tl\.impute\(adata\)` first"):
        FIGURES[name](adata)
    with pytest.raises(MissingKeyError, match=r"uns\['other'\].*Run `bf\.tl\.impute"):
        FIGURES[name](adata, key="other")
    assert not plt.get_fignums()
