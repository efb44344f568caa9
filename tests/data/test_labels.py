"""Labels in a column of ``obs``."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbioformers.core import DataError, MissingKeyError
from scbioformers.data import Labels


def make(values) -> ad.AnnData:
    index = [f"c{i}" for i in range(len(values))]
    return ad.AnnData(np.ones((len(values), 1)), obs=pd.DataFrame({"x": list(values)}, index=index))


def test_text_is_sorted_and_categories_keep_their_order():
    adata = make(["b", "a", None, "b"])
    assert Labels.read(adata, "x").categories == ("a", "b")
    assert Labels.read(adata, "x").codes.tolist() == [1, 0, -1, 1]
    adata.obs["x"] = pd.Categorical(["b", "a", None, "b"], ["c", "b", "a"])
    assert Labels.read(adata, "x").categories == ("b", "a")  # "c" has no cell
    assert Labels.read(adata, "x").codes.tolist() == [0, 1, -1, 0]


def test_values_that_mean_no_label():
    labels = Labels.read(make(["UNKNOWN", "", " ", "Unassigned", "nan", np.nan, None, "unknown T cell"]), "x")
    assert labels.categories == ("unknown T cell",)
    assert labels.codes.tolist() == [-1] * 7 + [0]


def test_bools_and_categories_that_are_numbers_are_classes():
    assert Labels.read(make([True, False, True]), "x").categories == ("False", "True")
    adata = make(["0"] * 3)
    adata.obs["x"] = pd.Categorical([10, 2, 10])
    assert Labels.read(adata, "x").categories == ("2", "10")
    assert Labels.read(adata, "x").codes.tolist() == [1, 0, 1]


@pytest.mark.fault(82)
@pytest.mark.parametrize("values", [[1, 2, 1], [1.0, np.nan, 2.0], [0.25, 3.5, 1e6]])
def test_numbers_are_refused_with_a_call_that_makes_labels_of_them(values):
    adata = make(values)
    with pytest.raises(DataError, match=r"adata.obs\['x'\] holds [23] different numbers") as caught:
        Labels.read(adata, "x")
    exec(str(caught.value).split("`")[1], {"adata": adata})
    distinct = sorted({value for value in values if value == value})
    expected = [distinct.index(value) if value == value else -1 for value in values]
    assert Labels.read(adata, "x").codes.tolist() == expected


@pytest.mark.fault(31)
def test_a_column_that_is_not_there():
    with pytest.raises(MissingKeyError, match=r"Did not find adata.obs\['type'\].*Available: \['x'\]"):
        Labels.read(make(["a"]), "type")
