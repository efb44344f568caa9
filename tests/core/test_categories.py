"""Arguments that name a category, where the column holds text, numbers or bools."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbioformers.core import DataError, category_text, find_category
from scbioformers.data import ObsField


@pytest.mark.fault(69)
@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        pytest.param([0, 1], 0, "0", id="integers"),
        pytest.param([0, 1], "0", "0", id="text for integers"),
        pytest.param([0, 1], np.int64(1), "1", id="numpy integer"),
        pytest.param([0, 1], 1.0, "1", id="float for integers"),
        pytest.param([0.0, 1.0], 1, "1", id="integer for floats"),
        pytest.param([0.5, 1.0], 0.5, "0.5", id="floats"),
        pytest.param(["0", "1"], 0, "0", id="integer for text"),
        pytest.param(["0", "1"], 1.0, "1", id="float for text"),
        pytest.param(["1", "1.0"], 1.0, "1.0", id="as it is written comes first"),
        pytest.param(["1", "1.0"], 1, "1", id="as it is written, integer"),
        pytest.param([True, False], True, "True", id="bools"),
        pytest.param([True, False], "False", "False", id="text for bools"),
        pytest.param(["True", "False"], np.True_, "True", id="bool for text"),
        pytest.param(["ctrl", "stim"], "stim", "stim", id="text"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is numeric")
def test_a_category_is_found_by_value(column, value, expected):
    adata = ad.AnnData(np.ones((2, 1)), obs=pd.DataFrame({"x": column}, index=["a", "b"]))
    field = ObsField.register(adata, "x")
    assert find_category(value, field.categories, argument="reference", place="adata.obs['x']") == expected
    row = [category_text(each) for each in column].index(expected)
    assert field.transfer(adata)[row] == field.categories.index(expected)


@pytest.mark.fault(69)
@pytest.mark.parametrize("value", [2, "2", 1, None, ["False"], {"a": 1}, float("nan"), float("inf"), "true"])
def test_what_is_not_there_is_shown_as_python_writes_it(value):
    with pytest.raises(DataError) as caught:
        find_category(value, ["False", "True"], argument="condition", place="the categories of x")
    assert f"`condition={value!r}` is not among the categories of x." in str(caught.value)
    assert "Pass one of these: ['False', 'True']." in str(caught.value)


def test_many_categories_are_cut():
    with pytest.raises(DataError, match=r"'c19'\] and 480 more\.$"):
        find_category("x", [f"c{i}" for i in range(500)], argument="control", place="adata.obs['x']")
