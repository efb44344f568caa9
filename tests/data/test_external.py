"""External tokens of features, from a column of ``var``."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbioformers.core import BioformersWarning, DataError, MissingKeyError, ModelFormatError
from scbioformers.data import ExternalTokens


def adata_with(values, name="kind"):
    var = pd.DataFrame({name: values}, index=[f"g{i}" for i in range(len(values))])
    return ad.AnnData(np.ones((1, len(values)), np.float32), var=var)


def register(values, columns=None, name="kind"):
    adata = adata_with(values, name)
    return ExternalTokens.register(adata, name, np.arange(adata.n_vars) if columns is None else np.array(columns))


@pytest.mark.parametrize(
    ("values", "categories", "codes"),
    [
        pytest.param(["b", None, "a", "b"], ("kind=a", "kind=b"), [2, 0, 1, 2], id="text"),
        pytest.param([True, False, False, True], ("kind=False", "kind=True"), [2, 1, 1, 2], id="bool"),
        pytest.param([1, 0, 0, 1], ("kind=0", "kind=1"), [2, 1, 1, 2], id="integers"),
        pytest.param([np.nan, 1.0, 1.0, np.nan], ("kind=1",), [0, 1, 1, 0], id="one-and-missing"),
        pytest.param(pd.Categorical(["a", None, "a", "b"], ["z", "b", "a"]), ("kind=a", "kind=b"), [1, 0, 1, 2],
                     id="categorical-with-unused"),
    ],
)  # fmt: skip
def test_categories_and_codes(values, categories, codes):
    external = register(values)
    assert external.categories == categories
    np.testing.assert_array_equal(external.codes, codes)


def test_only_the_modelled_features_have_categories():
    external = register(["a", "b", None, "c"], columns=[3, 2, 0])
    assert external.categories == ("kind=a", "kind=c")
    np.testing.assert_array_equal(external.codes, [2, 0, 1])


def test_modalities_share_equal_tokens_and_keep_others_apart():
    rna, prot = register(["a", None, "b"]), register(["b", "c", "b"])
    other = register([True, False], name="receptor")
    joined = ExternalTokens.join([(rna, 3), (None, 2), (prot, 3), (other, 2)])
    assert joined.categories == ("kind=a", "kind=b", "kind=c", "receptor=False", "receptor=True")
    np.testing.assert_array_equal(joined.codes, [1, 0, 2, 0, 0, 2, 3, 2, 5, 4])
    assert ExternalTokens.join([(None, 3), (None, 2)]) is None


def test_new_features_get_the_known_category_and_none_without_a_column():
    known = register(["a", "b", None])
    np.testing.assert_array_equal(known.extend(register(["b", None]), 2).codes, [1, 2, 0, 2, 0])
    np.testing.assert_array_equal(known.extend(None, 2).codes, [1, 2, 0, 0, 0])


@pytest.mark.fault("external-unseen")
def test_a_new_category_is_no_token_and_is_said():
    known = register(["a", "b", "a"])
    with pytest.warns(BioformersWarning, match=r"not seen the external tokens \['kind=new'\].*It knows \['kind=a', "):
        extended = known.extend(register(["new", "b"]), 2)
    assert extended.categories == known.categories
    np.testing.assert_array_equal(extended.codes, [1, 2, 1, 0, 2])


@pytest.mark.fault("external-missing")
def test_a_missing_column():
    with pytest.raises(MissingKeyError, match=r"Did not find adata.var\['tf'\].*Available: \['kind'\]"):
        ExternalTokens.register(adata_with(["a", "b"]), "tf", np.arange(2))


@pytest.mark.fault("external-numbers")
@pytest.mark.parametrize("values", [[0.1, 0.2, 0.5, 0.1], list(range(21)) * 2], ids=["fractions", "many"])
def test_numbers_are_not_categories_and_the_advice_works(values):
    adata = adata_with(values)
    with pytest.raises(DataError, match=r"different numbers, such as 0.*categories. Divide them into") as raised:
        ExternalTokens.register(adata, "kind", np.arange(adata.n_vars))
    exec(str(raised.value).split("`")[1], {"adata": adata, "pd": pd})
    found = ExternalTokens.register(adata, "kind_class", np.arange(adata.n_vars))
    assert 1 < len(found.categories) <= 4


@pytest.mark.fault("external-numbers")
def test_names_are_not_categories():
    with pytest.raises(DataError, match=r"another value for each of 3 features, such as 'x', expected categories that"):
        register(["x", "y", None, "z"])
    assert register(["x", "y"]).categories == ("kind=x", "kind=y")  # a panel of two


@pytest.mark.fault("external-empty")
def test_no_value_for_a_modelled_feature():
    with pytest.raises(DataError, match=r"no value for any of the 2 modelled features. Pass another column"):
        register([None, "a", np.nan], columns=[0, 2])


@pytest.mark.fault("external-one")
def test_the_same_category_for_all():
    with pytest.warns(BioformersWarning, match=r"is 'gene' for all 3 modelled features.*cannot say anything"):
        external = register(["gene"] * 3)
    np.testing.assert_array_equal(external.codes, [1, 1, 1])


def test_several_columns_of_the_same_name():
    adata = adata_with(["a", "b"])
    adata.var = pd.concat([adata.var, adata.var], axis=1)
    with pytest.raises(DataError, match="several columns named 'kind'"):
        ExternalTokens.register(adata, "kind", np.arange(2))


@pytest.mark.parametrize(
    ("stored", "codes"),
    [
        pytest.param({"categories": ["a", "a"]}, [0, 1], id="repeated"),
        pytest.param({"categories": "a"}, [0, 1], id="text"),
        pytest.param({"categories": ["a"]}, [0, 2], id="code-too-high"),
        pytest.param({"categories": ["a"]}, [0, 0.5], id="code-not-an-integer"),
    ],
)
def test_what_is_stored_is_checked(stored, codes):
    with pytest.raises(ModelFormatError):
        ExternalTokens.from_dict(stored, np.array(codes, np.float32))
