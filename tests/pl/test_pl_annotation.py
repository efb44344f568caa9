"""The figure of labels: what its panels show, for results that are written by hand."""

import logging

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError
from scbioformers.results import write_annotation
from scbioformers.tasks.annotation import collect_evidence


@pytest.fixture(autouse=True)
def _agg():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def adata() -> ad.AnnData:
    """12 cells: 8 of "B", of which 2 are taken for "T" and 1 is unknown, and 4 of "T"."""
    adata = ad.AnnData(np.ones((12, 2), np.float32), obs=pd.DataFrame(index=[f"c{i}" for i in range(12)]))
    true = np.array([0] * 8 + [1] * 4)
    codes = np.array([0, 0, 0, 0, 0, 1, 1, -1, 1, 1, 1, 1])
    probability = np.array([0.9] * 5 + [0.6] * 2 + [0.3] + [0.9] * 4)
    evidence = {"source": "query", **collect_evidence(true, codes, probability, ["B", "T"], ["B", "T"])}
    details = {"probabilities": None, "colours": {}, "params": {}, "evidence": evidence}
    write_annotation(adata, "bioformer_type", codes, ["B", "T"], probability.astype(np.float32), **details)
    return adata


def test_confusion_and_calibration(adata, caplog):
    with caplog.at_level(logging.WARNING, logger="scbioformers"):
        confusion, calibration = bf.pl.annotation(adata, "type", show=False)
    assert "sc.tl.umap(adata)" in caplog.text
    shares = confusion.images[0].get_array()
    np.testing.assert_allclose(shares, [[5 / 8, 2 / 8, 1 / 8], [0, 1, 0]])
    assert [label.get_text() for label in confusion.get_xticklabels()] == ["B", "T", "unknown"]
    assert [label.get_text() for label in confusion.get_yticklabels()] == ["B (8)", "T (4)"]
    # B: 2 * 5 / (8 + 5); T: 2 * 4 / (4 + 6)
    assert confusion.get_title() == f"these cells: macro-F1 {(10 / 13 + 0.8) / 2:.3f}"
    x, y = calibration.lines[1].get_data()
    np.testing.assert_allclose(x, [0.6, 0.9])
    np.testing.assert_allclose(y, [0, 1])
    assert calibration.get_title() == f"expected calibration error {(2 * 0.6 + 9 * 0.1) / 11:.3f}"


def test_cells_are_drawn_on_the_umap(adata):
    adata.obsm["X_umap"] = np.arange(24, dtype=float).reshape(12, 2)
    axes = bf.pl.annotation(adata, "type", show=False)
    assert len(axes) == 3
    drawn = axes[2].collections[-1]
    places, values = drawn.get_offsets(), drawn.get_array()
    expected = adata.obs["bioformer_type_probability"].to_numpy()[(places[:, 0] / 2).astype(int)]
    np.testing.assert_allclose(values, expected)
    assert (np.diff(values) <= 0).all()  # the least certain cells are on top
    unknown = axes[2].collections[0]
    np.testing.assert_array_equal(unknown.get_offsets(), [[14, 15]])
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["unknown"]
    assert len(values) == 11


def test_given_axes(adata):
    _, axes = plt.subplots(1, 2)
    assert list(bf.pl.annotation(adata, "type", axes=axes, show=False)) == list(axes)
    with pytest.raises(ConfigError, match=r"confusion and calibration"):
        bf.pl.annotation(adata, "type", axes=axes[:1])


def test_evidence_as_tables(adata):
    evidence = bf.get.annotation_evidence(adata, "type")
    labels = evidence["labels"]
    assert labels["n"].to_dict() == {"B": 8, "T": 4}
    assert labels["precision"].to_dict() == pytest.approx({"B": 1, "T": 4 / 6})
    assert labels["recall"].to_dict() == pytest.approx({"B": 5 / 8, "T": 1})
    assert evidence["accuracy"] == pytest.approx(9 / 12)
    assert evidence["confusion"].loc["B"].to_dict() == {"B": 5, "T": 2, "unknown": 1}
    assert evidence["batches"].empty
