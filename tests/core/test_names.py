"""Names that users pass, and positions of genes by name."""

import numpy as np
import pandas as pd
import pytest

from scbioformers.core import ConfigError, GeneIndex, as_names, match

ID = "ENSG{:011d}".format


@pytest.mark.fault(68, 65)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("STAT1", ["STAT1"], id="a-string-is-one-name"),
        pytest.param(7, ["7"], id="integer"),
        pytest.param(np.int64(7), ["7"], id="numpy-integer"),
        pytest.param(np.array("STAT1"), ["STAT1"], id="array-without-dimension"),
        pytest.param(("b", "a"), ["b", "a"], id="tuple"),
        pytest.param({"b", "a"}, ["a", "b"], id="set-in-a-fixed-order"),
        pytest.param(pd.Index([2, 1]), ["2", "1"], id="index-of-integers"),
        pytest.param(pd.Series(["b", "a"]), ["b", "a"], id="series"),
        pytest.param(pd.Categorical(["b", "a"]), ["b", "a"], id="categorical"),
        pytest.param((name for name in "ab"), ["a", "b"], id="generator"),
    ],
)
def test_names_that_users_pass(given, expected):
    assert as_names(given, "genes") == expected


@pytest.mark.fault(68, 30)
@pytest.mark.parametrize(
    ("given", "match"),
    [
        pytest.param([], "`genes` is empty", id="empty"),
        pytest.param(None, "list of names, found NoneType", id="none"),
        pytest.param({"a": 1}, "list of names, found dict", id="dict"),
        pytest.param(pd.DataFrame({"a": [1]}), "found DataFrame", id="table"),
        pytest.param([True, False], r"found bools.*adata\.var_names\[mask\]", id="mask"),
        pytest.param(["a", None], "found None among them", id="missing"),
        pytest.param(["a", float("nan")], "found nan among them", id="nan"),
        pytest.param(["a", ""], "found '' among them", id="no-letters"),
        pytest.param([["a", "b"]], "found \\['a', 'b'\\] among them", id="nested"),
    ],
)
def test_what_is_no_list_of_names(given, match):
    with pytest.raises(ConfigError, match=match):
        as_names(given, "genes")


@pytest.mark.fault(55)
def test_a_gene_is_found_by_each_of_its_names():
    index = GeneIndex(["A", "B", ID(3)], [ID(1), f"{ID(2)}.4", ID(3)])
    given = ["B", ID(2), f"{ID(2)}.9", f"{ID(3)}.1", ID(1), "b", ID(4)]
    assert index.positions(given).tolist() == [1, 1, 1, 2, 0, -1, -1]


@pytest.mark.fault(55)
def test_the_first_spelling_has_priority_and_an_ambiguous_id_is_not_guessed():
    assert GeneIndex(["A", "B"], ["B", "C"]).positions(["A", "B", "C"]).tolist() == [0, 1, 1]
    versions = GeneIndex([f"{ID(1)}.1", f"{ID(1)}.2"])
    assert versions.positions([f"{ID(1)}.2", ID(1), f"{ID(1)}.3"]).tolist() == [1, -1, -1]


@pytest.mark.fault(55, 29)
def test_features_are_named_as_in_the_data():
    versions = [f"{ID(i)}.{i}" for i in range(4)]
    plain = [ID(i) for i in range(4)]
    assert match(versions, plain[:3]).names == tuple(plain)  # also the one that is missing
    assert match(plain, versions[1:]).names == (plain[0], *versions[1:])  # a version cannot be guessed
    assert match(["CD4", "CD8A"], ["CD8A"]).names == ("CD4", "CD8A")
    assert match(versions, [plain[0], *versions[1:3]]).names == (plain[0], *versions[1:])


@pytest.mark.fault(29)
def test_two_versions_in_the_model_do_not_share_a_column():
    found = match([f"{ID(1)}.1", f"{ID(1)}.2"], [ID(1)])
    assert found.columns.tolist() == [0, -1]
    assert len(set(found.names)) == 2
