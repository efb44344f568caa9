"""Labels: from some cells to the others, from a reference to a query, and what they are stored as."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scbioformers as bf
from scbioformers.core import BioformersWarning
from scbioformers.results._slots import params_from_json
from scbioformers.tl._annotate_labels import warn_of_unknown

CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=2, batch_size=32)


@pytest.fixture(scope="module")
def _labelled_once() -> ad.AnnData:
    adata = bf.datasets.simulate(150, 60, n_regulators=8, n_types=3, n_batches=2, rng=0)
    adata.obs["truth"] = adata.obs["cell_type"].copy()
    adata.obs["some"] = adata.obs["cell_type"].where(np.arange(150) % 3 > 0)
    bf.tl.fit(adata, config=CONFIG, train=TRAIN, batch_key="batch")
    return adata


@pytest.fixture
def adata(_labelled_once) -> ad.AnnData:
    """150 cells of 3 types in 2 batches, with a model. "some" has the types of 100 of them."""
    return _labelled_once.copy()


@pytest.fixture(scope="module")
def _reference_once(_labelled_once) -> ad.AnnData:
    return bf.tl.annotate(_labelled_once, "some", copy=True)


@pytest.fixture
def reference(_reference_once) -> ad.AnnData:
    """The same, after ``annotate`` of "some"."""
    return _reference_once.copy()


@pytest.fixture
def query() -> ad.AnnData:
    """Other cells of the same types, without labels."""
    adata = bf.datasets.simulate(220, 60, n_regulators=8, n_types=3, n_batches=2, rng=0)[150:].copy()
    del adata.obs["batch"]
    return adata


def with_empty_cell(adata: ad.AnnData) -> ad.AnnData:
    """The first cell has no counts."""
    x = adata.X.tolil()
    x[0] = 0
    adata.X = x.tocsr()
    return adata


# from some cells to the others


def test_fields(adata):
    before = adata.copy()
    hash_before = bf.get.model(adata).hash
    assert bf.tl.annotate(adata, "some") is None
    found, probability = adata.obs["bioformer_some"], adata.obs["bioformer_some_probability"]
    given = adata.obs["some"].notna().to_numpy()
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert set(found.cat.categories) <= {"type_1", "type_2", "type_3", "unknown"}
    assert (found[given] == adata.obs["some"][given]).all()
    assert found.notna().all()
    assert probability.dtype == np.float32
    assert probability.between(0, 1).all()
    assert set(adata.obs) == {*before.obs, "bioformer_some", "bioformer_some_probability"}
    assert set(adata.uns) == {*before.uns, "bioformer_some"}
    assert "bioformer_some_probabilities" not in adata.obsm
    pd.testing.assert_series_equal(adata.obs["some"], before.obs["some"])
    params = params_from_json(adata.uns["bioformer_some"]["params"])
    assert params["model_hash"] == hash_before == bf.get.model(adata).hash
    assert params["head_hash"] == bf.get.model(adata).heads["annotation:some"].hash
    assert params["label_key"] == "some"
    assert params["learned"] is True


def test_labels_and_probabilities_are_right(adata):
    bf.tl.annotate(adata, "some", probabilities=True)
    rest = adata.obs["some"].isna().to_numpy()
    right = (adata.obs["bioformer_some"].astype(str) == adata.obs["truth"].astype(str))[rest]
    assert right.mean() > 0.85  # one in three by chance
    table = adata.obsm["bioformer_some_probabilities"]
    assert list(table.columns) == ["type_1", "type_2", "type_3"]
    assert (table.dtypes == np.float32).all()
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
    known = rest & (adata.obs["bioformer_some"] != "unknown").to_numpy()
    assert (table.idxmax(axis=1)[known] == adata.obs["bioformer_some"].astype(str)[known]).all()
    np.testing.assert_array_equal(table.max(axis=1)[rest], adata.obs["bioformer_some_probability"][rest])
    read = bf.get.annotation(adata, "some")
    assert list(read) == ["label", "probability", "type_1", "type_2", "type_3"]
    assert (read["label"] == adata.obs["bioformer_some"]).all()
    bf.tl.annotate(adata, "some")
    assert "bioformer_some_probabilities" not in adata.obsm  # nothing of the former result


def test_a_wrong_label_has_a_low_probability(adata):
    wrong = np.flatnonzero(adata.obs["truth"] == "type_1")[:4]
    adata.obs["errors"] = adata.obs["truth"].astype(str)
    adata.obs.iloc[wrong, adata.obs.columns.get_loc("errors")] = "type_2"
    bf.tl.annotate(adata, "errors")
    of_label = adata.obs[adata.obs["errors"] == "type_2"]["bioformer_errors_probability"]
    assert (adata.obs["bioformer_errors"] == adata.obs["errors"]).all()
    assert len(set(of_label.sort_values().index[:6]) & set(adata.obs_names[wrong])) >= 3


@pytest.mark.fault(32)
@pytest.mark.parametrize("nothing", [None, np.nan, "", "unassigned", "Unknown", " UNASSIGNED ", "nan"])
@pytest.mark.parametrize("categorical", [True, False])
def test_values_that_mean_no_label(adata, reference, nothing, categorical):
    values = adata.obs["some"].astype(object).where(adata.obs["some"].notna(), nothing)
    adata.obs["some"] = values.astype("category") if categorical else values
    bf.tl.annotate(adata, "some")
    pd.testing.assert_frame_equal(bf.get.annotation(adata, "some"), bf.get.annotation(reference, "some"))


def test_several_columns_side_by_side(adata):
    bf.tl.annotate(adata, "some")
    alone = bf.get.annotation(adata, "some")
    bf.tl.annotate(adata, "batch")
    assert set(bf.get.model(adata).heads) == {"annotation:some", "annotation:batch"}
    pd.testing.assert_frame_equal(bf.get.annotation(adata, "some"), alone)
    bf.tl.annotate(adata, "truth", key_added="other")
    assert {"other", "other_probability"} <= set(adata.obs)
    assert bf.get.annotation_evidence(adata, "truth", key="other")["labels"]["n"].sum() == 150


def test_names_of_columns_that_begin_alike(adata):
    """The head "some.fine" must not add to the head "some" when a model is saved."""
    adata.obs["some.fine"] = adata.obs["truth"]
    bf.tl.annotate(adata, "some.fine")
    bf.tl.annotate(adata, "some")
    model = bf.get.model(adata)
    again = bf.BioFormer.from_bytes(model.to_bytes())
    assert {name: head.hash for name, head in again.heads.items()} == {n: h.hash for n, h in model.heads.items()}


def test_the_seed_decides_and_batches_of_cells_do_not(adata, reference):
    again = bf.tl.annotate(adata, "some", copy=True)
    pd.testing.assert_frame_equal(
        bf.get.annotation(again, "some"), bf.get.annotation(reference, "some"), check_exact=True
    )
    other = bf.tl.annotate(adata, "some", rng=1, copy=True)
    assert (bf.get.annotation(other, "some")["probability"] != bf.get.annotation(again, "some")["probability"]).any()
    order = np.random.default_rng(0).permutation(150)
    for rows in (order, order[:7]):
        part = adata[rows].copy()
        del part.obs["some"]
        bf.tl.annotate(part, "some", model=reference)
        whole = bf.tl.annotate(adata[:, ::-1].copy(), "some", model=reference, copy=True)
        a, b = bf.get.annotation(part, "some"), bf.get.annotation(whole[rows], "some")
        assert (a["label"].astype(str) == b["label"].astype(str)).all()
        np.testing.assert_allclose(a["probability"], b["probability"], atol=1e-4)


def test_colours_and_order_are_those_of_the_reference(adata, query):
    adata.obs["some"] = adata.obs["some"].cat.reorder_categories(["type_2", "type_3", "type_1"])
    adata.uns["some_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    bf.tl.annotate(adata, "some")
    assert list(adata.obs["bioformer_some"].cat.categories)[:3] == ["type_2", "type_3", "type_1"]
    assert list(adata.uns["bioformer_some_colors"])[:3] == ["#ff0000", "#00ff00", "#0000ff"]
    bf.tl.annotate(with_empty_cell(query), "some", model=adata)
    assert list(query.obs["bioformer_some"].cat.categories) == ["type_2", "type_3", "type_1", "unknown"]
    assert list(query.uns["bioformer_some_colors"]) == ["#ff0000", "#00ff00", "#0000ff", "#b3b3b3"]


def test_cells_of_a_type_without_labels_are_unknown(adata, query):
    known = (adata.obs["truth"] != "type_1").to_numpy()
    adata.obs["two"] = adata.obs["truth"].where(known)
    bf.tl.annotate(adata, "two")
    assert (adata.obs["bioformer_two"][~known] == "unknown").mean() > 0.8
    bf.tl.annotate(query, "two", model=adata)
    known = (query.obs["cell_type"] != "type_1").to_numpy()
    unknown = (query.obs["bioformer_two"] == "unknown").to_numpy()
    assert unknown[~known].mean() > 0.8
    assert unknown[known].mean() < 0.1
    assert list(query.obs["bioformer_two"].cat.categories) == ["type_2", "type_3", "unknown"]
    evidence = bf.get.annotation_evidence(adata, "two")
    assert list(evidence["confusion"].columns) == ["type_2", "type_3"]


@pytest.mark.fault("annotation-far")
def test_a_query_of_which_most_cells_are_unknown(adata, query):
    labels = adata.obs["truth"].cat.rename_categories({"type_2": "2+/X"})
    adata.obs["a/b"] = labels.where(labels != "type_1")
    bf.tl.annotate(adata, "a/b")
    far = with_empty_cell(query[query.obs["cell_type"] == "type_1"].copy())
    with pytest.warns(BioformersWarning) as caught:
        bf.tl.annotate(far, "a/b", model=adata)
    n_unknown = int((far.obs["bioformer_a%2Fb"] == "unknown").sum()) - 1
    table = "bf.get.annotation(adata, 'a/b').iloc[:, 2:].idxmax(axis=1)"
    said = (
        f"{n_unknown} of the {far.n_obs - 1} cells with counts are 'unknown'. So the data differ from the labelled "
        "cells as a whole, for instance by technique or tissue, and 'unknown' says little about a single cell. For the "
        "most probable label of each cell, "
    )
    last = " Check these labels with marker genes."
    again = "call `bf.tl.annotate` again with `probabilities=True`, and then "
    assert [str(each.message) for each in caught] == [f"{said}{again}call `{table}`.{last}"]
    with pytest.warns(BioformersWarning) as caught:
        bf.tl.annotate(far, "a/b", model=adata, probabilities=True, key_added="new")
    key = table.replace("'a/b'", "'a/b', key='new'")
    assert [str(each.message) for each in caught] == [f"{said}call `{key}`.{last}"]
    best = eval(key, {"bf": bf, "adata": far})
    assert set(best) <= {"2+/X", "type_3"}
    np.testing.assert_array_equal(
        far.obsm["new_probabilities"].max(axis=1), bf.get.annotation(far, "a/b", key="new")["probability"]
    )


def test_no_warning_if_half_of_the_cells_are_unknown():
    warn_of_unknown(np.array([-1, 0, -1, 2]), "type", "bioformer_type", False)
    warn_of_unknown(np.array([], np.int64), "type", "bioformer_type", False)
    with pytest.warns(BioformersWarning, match=r"^2 of the 3 cells with counts are 'unknown'"):
        warn_of_unknown(np.array([-1, -1, 2]), "type", "bioformer_type", False)


@pytest.mark.fault(20)
def test_cells_without_counts_are_unknown_and_not_learned_from(adata, query):
    x = adata.X.tolil()
    x[:2] = 0
    adata.X = x.tocsr()
    assert adata.obs["some"].isna().iloc[0] and adata.obs["some"].notna().iloc[1]
    bf.tl.annotate(adata, "some")
    assert adata.obs["bioformer_some"].iloc[0] == "unknown"
    assert adata.obs["bioformer_some"].iloc[1] == adata.obs["some"].iloc[1]
    assert bf.get.annotation_evidence(adata, "some")["labels"]["n"].sum() == 99


def test_evidence_by_batch(reference):
    evidence = bf.get.annotation_evidence(reference, "some")
    given = reference.obs["some"].notna()
    assert evidence["source"] == "cross-validation"
    assert evidence["batches"]["n"].to_dict() == reference.obs["batch"][given].value_counts().to_dict()
    assert evidence["labels"]["n"].to_dict() == reference.obs["some"].value_counts().to_dict()
    assert evidence["confusion"].to_numpy().sum() == given.sum()
    weighted = (evidence["batches"]["n"] * evidence["batches"]["accuracy"]).sum() / given.sum()
    assert evidence["accuracy"] == pytest.approx(weighted)
    assert evidence["accuracy"] > 0.8
    assert evidence["macro_f1"] == pytest.approx(evidence["labels"]["f1"].mean())


# from a reference to a query


def test_a_query_is_labelled_and_its_own_labels_are_not_used(reference, query):
    alone = query.copy()
    truth = alone.obs.pop("cell_type")
    bf.tl.annotate(alone, "some", model=reference)
    assert "bioformer" not in alone.uns
    assert (alone.obs["bioformer_some"].astype(str) == truth.astype(str)).mean() > 0.85
    assert bf.get.annotation_evidence(alone, "some")["source"] == "reference"
    query.obs["some"] = "type_1"
    bf.tl.annotate(query, "some", model=reference)
    pd.testing.assert_frame_equal(bf.get.annotation(query, "some"), bf.get.annotation(alone, "some"))


def test_labels_of_a_query_are_compared_with_the_predictions(reference, query):
    query.obs["some"] = query.obs["cell_type"].astype(str)
    query.obs.iloc[:4, query.obs.columns.get_loc("some")] = ["foreign", "foreign", "unassigned", ""]
    bf.tl.annotate(query, "some", model=reference)
    evidence = bf.get.annotation_evidence(query, "some")
    used = np.arange(query.n_obs) != 2
    used[3] = False
    expected = pd.crosstab(query.obs["some"][used], query.obs["bioformer_some"][used].astype(str))
    assert evidence["source"] == "query"
    table = evidence["confusion"].loc[expected.index, expected.columns]
    assert np.array_equal(table.to_numpy(), expected.to_numpy())
    assert evidence["labels"].loc["foreign", "f1"] == 0
    right = query.obs["some"][used] == query.obs["bioformer_some"][used].astype(str)
    assert evidence["accuracy"] == pytest.approx(right.mean())


def test_the_message_says_which_cells_the_score_is_of(reference, query, caplog):
    learned = bf.get.annotation_evidence(reference, "some")["macro_f1"]
    caplog.set_level(logging.INFO, logger="scbioformers")
    bf.tl.annotate(query, "some", model=reference)
    unknown = (query.obs["bioformer_some"] == "unknown").sum()
    of_which = f", of which {unknown} are unlike all cells with a known label (unknown)" if unknown else ""
    assert caplog.messages[-1] == (
        f"adata.obs['bioformer_some']: 70 cells are labelled by the reference{of_which}. "
        "These cells have no 'some' to compare with. In a cross-validation over the "
        f"cells of the reference, the macro-F1 was {learned:.3f}; in other data it can be much lower. "
        "The next call can be `bf.pl.annotation(adata, 'some')`."
    )
    query.obs["some"] = query.obs["cell_type"].where(np.arange(70) < 60)
    bf.tl.annotate(query, "some", model=reference)
    own = bf.get.annotation_evidence(query, "some")["macro_f1"]
    assert f"Compared with the 60 labels in adata.obs['some'], the macro-F1 is {own:.3f}." in caplog.messages[-1]
    query.obs["some"] = query.obs["some"].cat.rename_categories({"type_1": "B"})
    bf.tl.annotate(query, "some", model=reference)
    own = bf.get.annotation_evidence(query, "some")["macro_f1"]
    message = f"the macro-F1 is {own:.3f}. The reference has no label ['B'], so these cells count as wrong."
    assert message in caplog.messages[-1]
    query.obs["some"] = query.obs["cell_type"].cat.rename_categories(str.upper)
    bf.tl.annotate(query, "some", model=reference)
    assert caplog.messages[-1] == (
        f"adata.obs['bioformer_some']: 70 cells are labelled by the reference{of_which}. "
        "adata.obs['some'] has other names, ['TYPE_1', 'TYPE_2', 'TYPE_3'], than the reference, "
        "['type_1', 'type_2', 'type_3']. So they are not compared. In a cross-validation over the "
        f"cells of the reference, the macro-F1 was {learned:.3f}; in other data it can be much lower. "
        "The next call can be `bf.pl.annotation(adata, 'some')`."
    )
    assert bf.get.annotation_evidence(query, "some")["source"] == "reference"
    bf.tl.annotate(reference, "some")
    assert "100 cells keep their label, 50 are labelled" in caplog.messages[-1]
    assert f"In a cross-validation over the labelled cells, the macro-F1 is {learned:.3f}." in caplog.messages[-1]


def test_a_query_with_numbers_in_the_column(reference, query, caplog):
    query.obs["some"] = 1.5
    with caplog.at_level(logging.WARNING, logger="scbioformers"):
        bf.tl.annotate(query, "some", model=reference)
    assert "not compared with adata.obs['some']" in caplog.text
    assert bf.get.annotation_evidence(query, "some")["source"] == "reference"


@pytest.mark.fault(77)
def test_cells_of_a_new_donor(reference, query, caplog):
    with caplog.at_level(logging.WARNING, logger="scbioformers"):
        bf.tl.annotate(query, "some", model=reference)
    assert "adata.obs has no column 'batch'" in caplog.text
    without = bf.get.annotation(query, "some")
    query.obs["batch"] = "new"
    bf.tl.annotate(query, "some", model=reference)
    pd.testing.assert_frame_equal(bf.get.annotation(query, "some"), without)


@pytest.mark.fault(14)
def test_on_disk(reference, query, tmp_path):
    expected = bf.get.annotation(bf.tl.annotate(query, "some", model=reference, copy=True), "some")
    query.write_h5ad(tmp_path / "x.h5ad")
    opened = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    bf.tl.annotate(opened, "some", model=reference)
    found = bf.get.annotation(opened, "some")
    opened.file.close()
    assert (found["label"] == expected["label"]).all()
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-5)


@pytest.mark.fault(17)
def test_view(adata, reference, query):
    view = adata[:149]
    bf.tl.annotate(view, "some")
    assert "annotation:some" in bf.get.model(view).heads
    assert "heads" not in adata.uns["bioformer"]
    part = query[:20]
    bf.tl.annotate(part, "some", model=reference)
    assert "bioformer_some" not in query.obs


def test_labels_of_few_cells_are_learned_with_a_warning(adata):
    values = adata.obs["truth"].astype(str).to_numpy()
    values[:3], values[3] = "rare", "single"
    adata.obs["few"] = values
    with pytest.warns(BioformersWarning, match=r"2 of 5 labels .* fewer than 5 cells .*'rare \(3\)', 'single \(1\)'"):
        bf.tl.annotate(adata, "few")
    table = bf.get.annotation(adata, "few")
    assert np.isnan(table["probability"].iloc[3])  # no other cell has this label
    assert table["probability"].drop(adata.obs_names[3]).notna().all()
    assert list(bf.get.annotation_evidence(adata, "few")["labels"].index) == [
        "rare",
        "single",
        "type_1",
        "type_2",
        "type_3",
    ]
