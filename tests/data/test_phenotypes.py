"""Phenotypes: categories, knots of numbers, positions, and columns that cannot be used as they are."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbioformers.core import BioformersWarning, DataError
from scbioformers.data import ObsField, field_codes, positions, register_phenotype


def make(**columns):
    n = len(next(iter(columns.values())))
    return ad.AnnData(np.ones((n, 1)), obs=pd.DataFrame(columns, index=[f"c{i}" for i in range(n)]))


def test_knots_are_the_values_or_their_quantiles():
    few = register_phenotype(make(age=[3, 1, 1, np.nan, 7]), "age")
    assert (few.knots, few.categories) == ((1.0, 3.0, 7.0), ("1", "3", "7"))
    values = np.random.default_rng(0).exponential(size=500)
    many = register_phenotype(make(age=values), "age")
    np.testing.assert_allclose(many.knots, np.quantile(values, np.linspace(0, 1, 10)))
    assert ObsField.from_dict(many.to_dict()) == many


def test_positions_are_linear_between_knots_and_beyond_them():
    field = ObsField("time", ("0", "1", "4"), (0.0, 1.0, 4.0))
    found = positions(field, [0, 0.25, 1, 2.5, 4, -1, 7, None])
    np.testing.assert_allclose(found, [0, 0.25, 1, 1.5, 2, -1, 3, np.nan])


def test_codes_of_cells_and_values_that_are_given():
    adata = make(kind=["b", "a", None, "new"], time=[1.0, 3.0, np.nan, 2.0])
    fields = (ObsField("kind", ("a", "b")), ObsField("time", ("1", "3"), (1.0, 3.0)))
    np.testing.assert_array_equal(field_codes(fields, adata), [[1, 0], [0, 1], [np.nan, np.nan], [np.nan, 0.5]])
    given = field_codes(fields, adata, phenotype={"kind": "a", "time": None})
    np.testing.assert_array_equal(given, [[0, np.nan]] * 4)


@pytest.mark.fault("phenotype-infinite")
def test_an_infinite_number():
    adata = make(age=[1.0, np.inf, 3.0])
    with pytest.raises(DataError, match=r"obs\['age'\] is infinite in 1 of 3 cells. .*not known") as caught:
        register_phenotype(adata, "age")
    exec(str(caught.value).split("`")[1], {"adata": adata, "np": np})
    assert register_phenotype(adata, "age").knots == (1.0, 3.0)


@pytest.mark.fault("phenotype-text")
def test_numbers_as_text():
    adata = make(age=["1", "2", "30"])
    with pytest.warns(BioformersWarning, match="holds numbers as text, such as '1'") as caught:
        assert register_phenotype(adata, "age").knots == ()
    exec(str(caught[0].message).split("`")[1], {"adata": adata})
    assert register_phenotype(adata, "age").knots == (1.0, 2.0, 30.0)


@pytest.mark.fault("phenotype-constant")
@pytest.mark.parametrize("values", [["a", "a", None], [2.0, 2.0, np.nan]])
def test_a_phenotype_that_is_the_same_in_all_cells(values):
    with pytest.warns(BioformersWarning, match=r"in all cells that have a value.*leave it out of `phenotype_keys`"):
        register_phenotype(make(x=values), "x")


@pytest.mark.fault("phenotype-unit")
def test_a_number_in_another_unit(caplog):
    field = ObsField("time", ("1", "4"), (1.0, 4.0))
    with pytest.warns(BioformersWarning, match=r"1 to 4, such as 240. Is this the same unit"):
        field_codes([field], make(time=[60.0, 240.0]))
    with pytest.warns(BioformersWarning, match=r"such as 5. What the model learned is extrapolated"):
        field_codes([field], make(time=[2.0, 5.0]))


def test_a_column_of_text_where_the_model_has_a_number():
    with pytest.raises(DataError, match=r"must hold numbers, found '4h'"):
        field_codes([ObsField("time", ("1", "4"), (1.0, 4.0))], make(time=["4h"]))


def test_unknown_values_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        field_codes([ObsField("kind", ("a", "b"))], make(kind=["a", "x", None]))
    assert "not known in 2 of 3 cells: 1 have no value and 1 have one that the model has not seen: ['x']" in caplog.text
