"""Vocabulary: ids that never change, and matching of names."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scbioformers.core import SPECIALS, DataError, ModelFormatError, Vocabulary, match

no_deadline = settings(deadline=None)
NAMES = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=12)


def ensembl(number: int, version: int | None = None) -> str:
    return f"ENSG{number:011d}" + ("" if version is None else f".{version}")


def test_reserved_tokens():
    assert SPECIALS == ("<pad>",)


@no_deadline
@given(NAMES, NAMES)
def test_extending_keeps_positions(first, second):
    before = Vocabulary.from_names(first)
    after = before.extend(second, "protein").extend(second, "rna")
    assert after.names[: len(before)] == before.names
    assert len(after) == len(first) + len(second) + len(set(second) - set(first))
    assert after.index(after.names).tolist() == list(range(len(after)))
    assert after.feature_names("protein") == second
    assert set(after.feature_names("rna")) == set(first) | set(second)


@no_deadline
@given(NAMES)
def test_round_trip_through_json(names):
    vocabulary = Vocabulary.from_names(names).extend(names, "atac")
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_lookup():
    vocabulary = Vocabulary.from_names(["CD4", "HLA:A"])
    assert vocabulary.names == ("rna:CD4", "rna:HLA:A")
    assert vocabulary.feature_names() == ["CD4", "HLA:A"]
    assert vocabulary.feature_names("protein") == []
    positions = vocabulary.index(["rna:HLA:A", "CD4", "protein:CD4"])
    assert positions.tolist() == [1, -1, -1]
    assert positions.dtype == np.int64


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["A", "B", "A"], r"1 feature names occur more than once, such as \['A'\]", id="duplicate"),
        pytest.param(["A", ""], "found '' at position 1", id="empty"),
        pytest.param([float("nan"), "A"], "found nan at position 0", id="NaN"),
    ],
)
def test_bad_names_raise(names, message):
    with pytest.raises(DataError, match=message):
        Vocabulary.from_names(names)
    with pytest.raises(DataError, match=message):
        match(["A"], names)


@pytest.mark.parametrize("modality", ["", "rna:x"])
def test_bad_modality_raises(modality):
    with pytest.raises(DataError, match="A modality needs a name without ':'"):
        Vocabulary.from_names(["A"], modality)


def test_names_without_modality_raise():
    with pytest.raises(DataError, match="start with their modality"):
        Vocabulary(("CD4",))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"names": []}, "has the keys 'names' and 'specials'"),
        ({"names": [], "specials": ["<pad>", "<cls>"]}, "Expected the special tokens"),
    ],
)
def test_dictionary_of_another_format_raises(stored, message):
    with pytest.raises(ModelFormatError, match=message):
        Vocabulary.from_dict(stored)


# --- matching ------------------------------------------------------------------------------------------------------


@no_deadline
@given(NAMES, NAMES)
def test_exact_matching(vocabulary, query):
    found = match(vocabulary, query)
    assert found.columns.tolist() == [query.index(name) if name in query else -1 for name in vocabulary]
    assert found.share == (len(set(vocabulary) & set(query)) / len(vocabulary) if vocabulary else 0)
    assert not found.stripped


def test_permuted_names_match_fully_without_a_hint():
    names = [f"gene{i}" for i in range(30)]
    order = np.random.default_rng(0).permutation(30)
    found = match(names, [names[i] for i in order])
    assert np.array_equal(order[found.columns], np.arange(30))
    assert (found.share, found.hint) == (1.0, "")


@pytest.mark.fault(29)
def test_versions_of_ensembl_ids_are_ignored_without_an_exact_match():
    found = match([ensembl(1, 5), ensembl(2), ensembl(3, 1), ensembl(4)], [ensembl(2, 9), ensembl(1, 6), ensembl(3, 1)])
    assert found.columns.tolist() == [1, 0, 2, -1]
    assert found.stripped
    assert found.share == 0.75


def test_an_exactly_matched_column_is_not_matched_again():
    found = match([ensembl(1), ensembl(1, 2)], [ensembl(1), "CD4"])
    assert found.columns.tolist() == [0, -1]
    assert not found.stripped


def test_suffixes_of_other_names_are_not_removed():
    assert match(["AC012.1", "RP11-34.2"], ["AC012", "RP11-34"]).columns.tolist() == [-1, -1]


def test_several_versions_of_an_id_raise():
    with pytest.raises(DataError, match="Several genes of the data are versions of ENSG00000000001"):
        match([ensembl(1)], [ensembl(1, 1), ensembl(1, 2)])


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("vocabulary", "query", "hint"),
    [
        pytest.param(["CD4", "CD8A"], [ensembl(1), ensembl(2, 3)], "Ensembl ids where the model has", id="query ids"),
        pytest.param([ensembl(1), ensembl(2)], ["CD4", "MS4A1"], "gene symbols where the model has", id="model ids"),
        pytest.param(["CD4", "CD8A"], ["x", "y"], "^$", id="none"),
        pytest.param(["CD4", "CD8A"], [], "^$", id="no names"),
    ],
)
def test_hints_for_poor_overlap(vocabulary, query, hint):
    found = match(vocabulary, query)
    assert found.share == 0
    assert re.search(hint, found.hint)
