"""Registered obs fields: validate, register, transfer."""

import json
import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scbioformers.core import BioformersWarning, DataError, MissingKeyError, ModelFormatError
from scbioformers.data import ObsField, field_codes, obs_column, obs_numbers


def make(**columns) -> ad.AnnData:
    n = len(next(iter(columns.values())))
    return ad.AnnData(np.ones((n, 1)), obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(n)]))


@pytest.mark.fault(35, 53)
@pytest.mark.parametrize(
    ("values", "categories", "codes"),
    [
        pytest.param(["b", "a", "b"], ("a", "b"), [1, 0, 1], id="text"),
        pytest.param(pd.Categorical(["b", "a", "b"], ["b", "a"]), ("b", "a"), [0, 1, 0], id="own_order"),
        pytest.param(pd.Categorical(["b", "b"], ["a", "b", "c"]), ("b",), [0, 0], id="row35_unused"),
        pytest.param([True, False], ("False", "True"), [1, 0], id="bool"),
        pytest.param(["β/γ", "/", ""], ("", "/", "β/γ"), [2, 1, 0], id="row53_slash"),
        pytest.param(pd.array(["x", "y"], dtype="string"), ("x", "y"), [0, 1], id="string_dtype"),
        pytest.param(pd.Categorical([10, 9, 10]), ("9", "10"), [1, 0, 1], id="numeric_categories"),
        pytest.param(np.array([2, "a", 2], dtype=object), ("2", "a"), [0, 1, 0], id="mixed"),
    ],
)
def test_register_and_transfer(values, categories, codes):
    adata = make(x=values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = ObsField.register(adata, "x")
    assert field.categories == categories
    found = field.transfer(adata)
    assert found.tolist() == codes and found.dtype == np.int32


@pytest.mark.fault(35)
def test_row35_the_input_keeps_its_unused_categories():
    adata = make(x=pd.Categorical(["b", "b"], ["a", "b"]))
    ObsField.register(adata, "x")
    assert list(adata.obs["x"].cat.categories) == ["a", "b"]


@pytest.mark.fault(31)
def test_row31_missing_column_lists_what_is_there():
    with pytest.raises(MissingKeyError, match=r"Did not find adata.obs\['batch'\].*Available: \['donor', 'x'\]"):
        ObsField.register(make(donor=["a"], x=["b"]), "batch")


@pytest.mark.fault(32)
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_row32_missing_values(missing):
    adata = make(x=np.array(["a", missing, "b", missing], dtype=object))
    with pytest.raises(DataError, match=r"obs\['x'\] has no value in 2 of 4 cells"):
        ObsField.register(adata, "x")
    field = ObsField.register(adata, "x", allow_missing=True)
    assert field.transfer(adata, allow_missing=True).tolist() == [0, -1, 1, -1]
    with pytest.raises(DataError, match="no value in 2 of 4 cells"):
        field.transfer(adata)


@pytest.mark.fault(32)
def test_row32_nothing_but_missing_values():
    with pytest.raises(DataError, match="no value in any cell"):
        ObsField.register(make(x=np.array([None, None], dtype=object)), "x", allow_missing=True)


@pytest.mark.fault(33)
def test_row33_unseen_category():
    field = ObsField.register(make(x=["a", "b"]), "x")
    query = make(x=["b", "c", "d", "c"])
    with pytest.raises(
        DataError, match=r"2 categories that the model has not seen: \['c', 'd'\]\. It knows \['a', 'b'\]"
    ):
        field.transfer(query)
    assert field.transfer(query, allow_missing=True).tolist() == [1, -1, -1, -1]


@pytest.mark.fault(33)
def test_row33_long_lists_are_cut():
    field = ObsField("x", tuple(f"c{i}" for i in range(500)))
    with pytest.raises(DataError, match="and 480 more"):
        field.transfer(make(x=["new"]))


@pytest.mark.fault(34)
def test_row34_absent_at_query():
    field = ObsField.register(make(batch=["a"]), "batch")
    with pytest.raises(MissingKeyError, match=r"obs\['batch'\]. The model was trained with this column.*\['other'\]"):
        field.transfer(make(other=["a"]))


@pytest.mark.fault(36)
@pytest.mark.parametrize("values", [[10, 9, 9], [10.0, 9.0, 9.0], np.array([10, 9, 9], np.float32)])
def test_row36_numeric_column(values):
    with pytest.warns(BioformersWarning, match=r"obs\['x'\] is numeric: each of its 2 values") as caught:
        field = ObsField.register(make(x=values), "x")
    assert [w.filename for w in caught if w.category is BioformersWarning] == [__file__]
    assert field.categories == ("9", "10")  # in the order of numbers
    for query in ([9, 10], [9.0, 10.0], ["9", "10"], pd.Categorical([9, 10])):
        assert field.transfer(make(x=query)).tolist() == [0, 1]


def test_categories_of_one_text():
    with pytest.raises(DataError, match="same text"):
        ObsField.register(make(x=pd.Categorical([1, "1"], [1, "1"])), "x")


def test_dict_round_trip_of_real_labels():
    adata = sc.datasets.pbmc68k_reduced()
    field = ObsField.register(adata, "bulk_labels")
    again = ObsField.from_dict(json.loads(json.dumps(field.to_dict())))
    assert again == field and "CD4+/CD45RA+/CD25- Naive T" in again.categories
    labels = np.array(again.categories)[again.transfer(adata)]
    assert labels.tolist() == adata.obs["bulk_labels"].astype(str).tolist()


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"name": "x"},
        {"name": 1, "categories": []},
        {"name": "x", "categories": "ab"},
        {"name": "x", "categories": [1]},
        {"name": "x", "categories": ["a", "a"]},
        {"name": "x", "categories": ["a"], "more": 1},
    ],
)
def test_from_dict_refuses(stored):
    with pytest.raises(ModelFormatError, match="obs field"):
        ObsField.from_dict(stored)


def test_field_codes():
    adata = make(x=["a", "b"], y=["d", "c"])
    fields = [ObsField.register(adata, key) for key in ("x", "y")]
    codes = field_codes(fields, adata)
    assert codes.tolist() == [[0, 1], [1, 0]] and codes.dtype == np.float32
    assert field_codes([], adata).shape == (2, 0)


@pytest.mark.fault(71)
def test_two_columns_of_one_name():
    adata = make(x=["a", "b"], y=["c", "d"])
    adata.obs.columns = ["x", "x"]
    with pytest.raises(DataError, match=r"adata.obs has 2 columns named 'x', expected one") as caught:
        ObsField.register(adata, "x")
    scope = {"adata": adata}
    exec(str(caught.value).split("`")[1], scope)
    assert obs_column(scope["adata"], "x").tolist() == ["a", "b"]


@pytest.mark.fault(71)
def test_a_column_of_numbers():
    adata = make(dose=["1uM", "2", "3"], text=["1", None, "2.5"], number=pd.Categorical([1, 2, 1]))
    with pytest.raises(DataError, match=r"obs\['dose'\] must hold numbers, found '1uM' in cell 'c0'"):
        obs_numbers(adata, "dose")
    np.testing.assert_array_equal(obs_numbers(adata, "text"), [1, np.nan, 2.5])
    np.testing.assert_array_equal(obs_numbers(adata, "number"), [1, 2, 1])
    with pytest.raises(MissingKeyError, match=r"'dose', 'text', 'number'"):
        obs_numbers(adata, "x")


def test_columns_that_are_read_lazily_name_the_call():
    lazy = SimpleNamespace(obs={"batch": np.array(["a", "b"])})  # as `read_lazy` gives columns that are no Series
    with pytest.raises(
        DataError, match=r"is a ndarray, expected .*adata\.obs\.to_memory\(\).*The matrix stays on disk"
    ):
        obs_column(lazy, "batch")
