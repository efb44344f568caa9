"""Row 71: an argument of a wrong type gets one error of ours that names it, in every public function and class."""

import inspect
import re

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scbioformers as bf
from scbioformers.core import BioformersError, ConfigError, DataError, check_arguments

pytestmark = pytest.mark.fault(71)

NAMESPACES = ("datasets", "get", "metrics", "models", "pl", "pp", "tl")
FUNCTIONS = {
    f"{namespace}.{name}": getattr(getattr(bf, namespace), name)
    for namespace in NAMESPACES
    for name in getattr(bf, namespace).__all__
    if inspect.isfunction(getattr(getattr(bf, namespace), name))
}
CONFIGS = {name: getattr(bf, name) for name in ("Binning", "Masking", "ModelConfig", "Perturbation", "TrainConfig")}


class Unhashable:
    """A value that no argument expects."""

    __hash__ = None


# Values of a wrong type, by the text of the annotation. This table is written by hand, apart from the code it tests.
WRONG = {
    "int": [1.0, "1", True, [1], {}, np.array([1, 2]), np.float32(1)],
    "float": ["0.5", True, [0.5], {"a": 1}],
    "str": [1, True, ["a", "b"], ("a",), b"a", {"a": "b"}, pd.Series(["a"])],
    "bool": [1, 0, "yes", [True], np.array([True, False])],
    "Sequence[str]": [1, b"a", {"a": 1}, [1], [["a"]], np.zeros((2, 2))],
    "Sequence[float]": [0.5, "0.5", [True], ["a"], {0.1: 0.9}],
    "Sequence[int]": [0, "0", [0.5], [True], {1: 2}],
    "ArrayLike": ["text", {"a": 1}, [["a"]], [[1, 2], [3]]],
    "NDArray[np.bool_]": [1, [1, 0], np.array([0.0, 1.0]), {"a": True}],
    "pd.DataFrame": [{"source": ["a"]}, [["a", "b"]], "table", np.zeros((2, 2))],
    "Mapping[str, Collection[str]]": [["a"], "a", {"a": 1}, {1: ["a"]}],
    "Mapping[str, str]": [["a"], "a", {"a": 1}],
    "dict[str, float]": [["profile"], "profile", {"profile": "1"}],
    "tuple[int, int]": [32, "32", (1, 2, 3), (1.0, 2.0)],
    "tuple[str, ...]": ["unassigned", [1], {"a": 1}],
}
CLASSES = ("TrainConfig", "Perturbation", "ModelConfig", "Binning", "Masking", "Generator", "Axes", "ModelLike")


def wrong_values(annotation: str) -> list:
    """Wrong for every alternative of the annotation."""
    alternatives = [part.strip() for part in re.split(r"\|(?![^\[]*\])", annotation)]
    values = [Unhashable(), [Unhashable()], {"a": Unhashable()}]
    if len([part for part in alternatives if part != "None"]) == 1:
        values += WRONG.get(next(part for part in alternatives if part != "None"), [])
    if any(name in annotation for name in CLASSES):
        values += [{"width": 3}, [1.5]]
    if "None" not in annotation and "Any" not in annotation:
        values.append(None)
    return values


def cases(functions: dict) -> list:
    return [
        pytest.param(function, name, str(parameter.annotation), id=f"{label}-{name}")
        for label, function in functions.items()
        for name, parameter in inspect.signature(function).parameters.items()
    ]


CELLS = bf.datasets.simulate(n_cells=20, n_genes=12, n_regulators=3)
REQUIRED = {"adata": CELLS, "rng": 0}


@pytest.mark.parametrize(("function", "name", "annotation"), cases(FUNCTIONS))
def test_every_argument_of_every_function(function, name, annotation):
    parameters = inspect.signature(function).parameters
    # the other arguments are not reached: types are checked in one pass, and the one under test is the only wrong one
    others = {
        other: valid(other, str(parameter.annotation), function)
        for other, parameter in parameters.items()
        if parameter.default is parameter.empty and other != name
    }
    for value in wrong_values(annotation):
        with pytest.raises(BioformersError) as caught:
            function(**others | {name: value})
        assert name in str(caught.value) or "Expected an AnnData" in str(caught.value), repr(value)
        assert "found" in str(caught.value)


def valid(name: str, annotation: str, function) -> object:
    by_name = {
        "adata": CELLS,
        "data": CELLS,
        "genes": ["a", "b"],
        "weights": np.zeros((2, 2)),
        "train": None,
        "table": pd.DataFrame({"gene": ["a"], "term": ["b"]}),
        "truth": pd.DataFrame({"source": ["a"], "target": ["b"]}),
        "counts": sparse.csr_matrix(np.ones((2, 2))),
        "held": sparse.csr_matrix(np.ones((2, 2))),
    }
    if annotation in ("TrainingCells", "MaskedCells"):
        kind = getattr(bf.metrics, annotation)
        return object.__new__(kind)
    if name == "X":
        return np.ones((2, 2))
    if name == "genes" and function is bf.metrics.masked_scores:
        return ["a", "b"]
    by_type = {"int": 1, "float": 0.5, "str": "a", "ArrayLike": np.zeros((2, 2)), "Collection[str]": ["a"]}
    by_type |= {"Mapping[str, Collection[str]]": {"a": ["b"]}, "str | Path": "a", "Matrix": np.ones((2, 2))}
    by_type |= {"Mapping[str, Any]": {"a": 1}}
    return (
        by_name.get(name)
        if name in by_name and by_name[name] is not None
        else by_type.get(annotation.split(" | ")[0], ["a"])
    )


@pytest.mark.parametrize(("config", "name", "annotation"), cases(CONFIGS))
def test_every_field_of_every_configuration(config, name, annotation):
    required = {"key": "a", "control": "b"} if config is bf.Perturbation else {}
    for value in wrong_values(annotation.removeprefix("<class '").removesuffix("'>")):
        with pytest.raises(ConfigError, match=name) as caught:
            config(**required | {name: value})
        assert "found" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 1.0}, "`max_epochs` must be an integer or None, found 1.0 (float)."),
        ({"batch_key": ["a", "b"]}, "`batch_key` must be a string or None, found ['a', 'b'] (list)."),
        ({"train": {"lr": 1}}, "`train` must be a TrainConfig or None, found {'lr': 1} (dict)."),
        (
            {"binning": "rank"},
            "`binning` must be 'value', 'segment', 'quantile', a Binning, a dict or None, found 'rank'.",
        ),
        ({"n_models": True}, "`n_models` must be an integer or None, found True (bool)."),
        ({"mask_var": [1, 0]}, "`mask_var` must be a string, a bool array, a dict or None, found [1, 0] (list)."),
        ({"phenotype_keys": {"a": 1}}, "`phenotype_keys` must be a string or a list of strings, found {'a': 1}"),
    ],
)
def test_the_message(arguments, message):
    with pytest.raises(ConfigError) as caught:
        bf.tl.fit(CELLS, **arguments)
    assert str(caught.value).startswith(message)


def test_a_long_value_is_not_printed():
    with pytest.raises(ConfigError, match=r"found an ndarray of float64 with shape \(1000, 20\)\.$"):
        bf.tl.fit(CELLS, batch_key=np.zeros((1000, 20)))


def test_numpy_scalars_and_lists_are_what_they_stand_for():
    train = bf.TrainConfig(max_epochs=np.int64(3), lr=np.float32(0.5), n_context=[4, 8])
    assert train == bf.TrainConfig(max_epochs=3, lr=0.5, n_context=(4, 8))
    assert type(train.max_epochs) is int and type(train.lr) is float
    assert bf.Perturbation("a", "b", ignore=["x"]).ignore == ("x",)

    def function(adata: ad.AnnData, names: list[str], size: float = 1, flag: bool = False) -> None:
        check_arguments(function, locals())

    for names in (["a"], ("a",), {"a"}, np.array(["a"]), pd.Index(["a"]), pd.Series(["a"])):
        function(CELLS, names, np.int32(1), np.True_)


def test_a_list_of_bools_is_a_mask():
    chosen = [True, False] * 6
    for mask in (chosen, np.array(chosen), pd.Series(chosen), pd.array(chosen, dtype="boolean")):
        np.testing.assert_array_equal(bf.pp.check(CELLS, mask_var=mask).modelled, chosen)
    named = pd.Series(chosen, index=CELLS.var_names)
    np.testing.assert_array_equal(bf.pp.check(CELLS, mask_var=named).modelled, chosen)
    # a Series has names: it is not read by position where they are in another order
    np.testing.assert_array_equal(bf.pp.check(CELLS, mask_var=named[::-1]).modelled, chosen)
    with pytest.raises(DataError, match=r"index of `mask_var`.*'other'"):
        bf.pp.check(CELLS, mask_var=named.rename({"G1": "other"}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault(70)
def test_the_modalities_of_a_mudata_are_named():
    message = r"found mudata.*MuData\. Pass one of its modalities \['gex', 'prot'\], such as `mdata\['gex'\]`"
    both = mudata.MuData({"gex": CELLS, "prot": CELLS.copy()})
    for verb in (bf.tl.perturb, bf.get.perturb, bf.pl.perturbation_screen):
        with pytest.raises(DataError, match=message):
            verb(both, "all") if verb is bf.tl.perturb else verb(both)
