"""Every public verb keeps the same promises: its signature, its docstring, its examples, what it writes and returns."""

import ast
import dataclasses
import doctest
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import pytest

import scbioformers as bf

NAMESPACES = ("datasets", "get", "metrics", "models", "pl", "pp", "tl")
FUNCTIONS = {
    f"{namespace}.{name}": getattr(getattr(bf, namespace), name)
    for namespace in NAMESPACES
    for name in getattr(bf, namespace).__all__
    if inspect.isfunction(getattr(getattr(bf, namespace), name))
}
CLASSES = {name: getattr(bf, name) for name in bf.__all__ if inspect.isclass(getattr(bf, name))}
CONFIGS = {name: each for name, each in CLASSES.items() if name not in ("BioFormer", "RowReader")}
# verbs that return something new instead of writing to `adata`: they have no `copy` and no `key_added`
MAKERS = {"tl.generate": bf.tl.generate, "tl.pretrain": bf.tl.pretrain}
VERBS = {name: each for name, each in FUNCTIONS.items() if name.split(".")[0] in ("get", "pl", "pp", "tl")}
ON_ADATA = {name: each for name, each in VERBS.items() if name not in MAKERS}
WRITERS = {name: each for name, each in ON_ADATA.items() if "copy" in inspect.signature(each).parameters}
MODULES = [
    module.name for module in pkgutil.walk_packages(bf.__path__, "scbioformers.") if "__main__" not in module.name
]


def each(functions: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", functions.values(), ids=functions)


def sections(text: str) -> dict[str, str]:
    """A numpydoc docstring, by heading."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", inspect.cleandoc(text), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


# signatures


@each(ON_ADATA)
def test_adata_comes_first(function):
    first = next(iter(inspect.signature(function).parameters.values()))
    assert first.name == "adata"
    assert first.kind is first.POSITIONAL_OR_KEYWORD


@each(VERBS)
def test_few_positional_arguments(function):
    parameters = inspect.signature(function).parameters.values()
    assert sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) <= 3
    # `pl.perturbation(adata, observed)`: what is drawn comes second, also if it may be left out
    plain = ("adata", "observed", "sources", "regulator")
    assert all(p.default is p.empty or p.kind is p.KEYWORD_ONLY for p in parameters if p.name not in plain)


@each(FUNCTIONS)
def test_no_catch_all_arguments(function):
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


@each(FUNCTIONS)
def test_every_argument_is_typed(function):
    signature = inspect.signature(function)
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty


SHARED = {
    "layer": None,
    "copy": False,
    "key": "bioformer",
    "model": None,
    "show": None,
    "save": None,
    "ax": None,
    "axes": None,
    "device": "auto",
    "batch_size": 64,
    "progress_bar": None,
}
RESULTS = {
    inspect.signature(each).parameters["key_added"].default for name, each in WRITERS.items() if name.startswith("tl.")
}


@each(VERBS)
def test_arguments_mean_the_same_everywhere(function):
    parameters = inspect.signature(function).parameters
    for name, default in SHARED.items():
        if name in parameters:
            # what reads a result names that instead of the model
            reads_result = name == "key" and not {"model", "key_added"} & set(parameters)
            assert parameters[name].default in (RESULTS if reads_result else {default})
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert not {"seed", "random_state", "inplace", "key_name"} & set(parameters)


def test_every_tool_can_copy_and_name_its_result():
    for name, function in FUNCTIONS.items():
        if name.startswith("tl."):
            both = {"copy", "key_added"} & set(inspect.signature(function).parameters)
            assert len(both) == (0 if name in MAKERS else 2), name


@each(MAKERS)
def test_verbs_that_return_something_new_write_nothing(function):
    parameters = inspect.signature(function).parameters
    assert next(iter(parameters.values())).kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert "adata" not in parameters
    assert inspect.signature(function).return_annotation not in ("None", None)
    returned = sections(function.__doc__)["Returns"].strip()
    assert returned.startswith(":class:`~")
    assert "Sets the following fields:" not in returned


TO_DISK = {name: each for name, each in VERBS.items() if "out" in inspect.signature(each).parameters}


def test_results_that_grow_with_the_cells_can_be_written_to_disk():
    """``tests/tl/test_out.py`` holds that such a verb returns None and sets nothing in ``adata``."""
    assert set(TO_DISK) == {"tl.embed", "tl.impute"}
    for function in TO_DISK.values():
        out = inspect.signature(function).parameters["out"]
        assert (out.default, out.kind) == (None, inspect.Parameter.KEYWORD_ONLY)
        assert {"ConfigError", "StorageError"} <= set(sections(function.__doc__)["Raises"].split())


COMPUTING = {name: each for name, each in ON_ADATA.items() if "model" in inspect.signature(each).parameters}
BRIEF = ("get.gene_embeddings", "pp.check")  # they compute nothing, or score a few cells


@each(MAKERS | {name: each for name, each in COMPUTING.items() if name not in BRIEF})
def test_every_verb_that_computes_takes_a_device_and_a_progress_bar(function):
    assert {"device", "progress_bar"} <= set(inspect.signature(function).parameters)


@each(COMPUTING)
def test_every_verb_that_reads_cells_by_a_model_takes_other_names_of_genes(function):
    names = list(inspect.signature(function).parameters)
    assert names[names.index("gene_symbols") + 1] == "feature_map"
    assert inspect.signature(function).parameters["feature_map"].default is None


@each({name: each for name, each in ON_ADATA.items() if name.startswith("pl.")})
def test_every_figure_can_be_shown_saved_and_drawn_on_given_axes(function):
    assert len({"show", "save", "ax", "axes"} & set(inspect.signature(function).parameters)) == 3


# docstrings


@each(FUNCTIONS)
def test_docstring(function):
    found = sections(function.__doc__ or "")
    summary = found[""].split("\n\n")[0]
    assert summary
    assert summary[0].isupper()
    assert summary.endswith((".", ":"))
    documented = []
    for line in found.get("Parameters", "").splitlines():
        if line and not line.startswith(" "):
            documented += [name.strip() for name in line.split(":")[0].split(",")]
    assert documented == list(inspect.signature(function).parameters)
    assert "Returns" in found
    order = [heading for heading in ("Parameters", "Returns", "Raises", "Warns", "Examples") if heading in found]
    assert [heading for heading in found if heading in order] == order


@each(VERBS)
def test_errors_are_documented(function):
    raised = [line for line in sections(function.__doc__)["Raises"].splitlines() if line and not line.startswith(" ")]
    assert raised
    for name in (each.strip() for line in raised for each in line.split(",")):
        assert issubclass(getattr(bf.core, name), bf.core.BioformersError)


@each(FUNCTIONS | CLASSES)
def test_there_is_an_example(function):
    example = sections(function.__doc__)["Examples"]
    assert ">>> " in example or "See :func:" in example


def raises(function) -> set[str]:
    """The errors of this package that the body of a public function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    return {name for name in names if hasattr(bf.core, name)}


@each(FUNCTIONS)
def test_errors_that_a_function_raises_itself_are_documented(function):
    assert raises(function) <= set(re.findall(r"\w+", sections(function.__doc__).get("Raises", "")))


SHAPED = ("NDArray", "ArrayLike", "ndarray", "spmatrix", "sparray", "csr_matrix")


@each(FUNCTIONS)
def test_arrays_have_a_shape_or_a_length(function):
    """Of each argument that is an array, and of what is returned if it is one."""
    found = sections(function.__doc__)
    entries = re.split(r"\n(?=\S)", found.get("Parameters", "").strip())
    texts = {name.strip(): entry for entry in entries for name in entry.partition("\n")[0].partition(":")[0].split(",")}
    texts["return"] = found["Returns"]
    for name, annotation in inspect.get_annotations(function).items():
        if any(word in str(annotation) for word in SHAPED):
            assert re.search(r"\([^()]*,[^()]*\)|\(\w+,?\)|length|shape|See :func:", texts[name]), name


UNITS = r"log1p|count|float|share|bool|str|categor|uint8|JSON|DataFrame|bin|standard|dict|int|nats|weight|: as ``"


@each(WRITERS)
def test_what_is_written_has_a_type_or_a_unit(function):
    returned = sections(function.__doc__)["Returns"]
    for entry in re.split(r"\n(?=`)", returned)[1:]:
        assert " : " not in entry.partition("\n")[0] or re.search(UNITS, entry), entry


CITED = {  # what the paper describes, and where
    "tl.fit": "section 2", "tl.embed": "section 2.3", "tl.impute": "section 3.2", "tl.perturb": "section 3.3",
    "tl.grn": "section 3.4", "tl.gene_programs": "section 3.4", "tl.program_enrichment": "section 3.4",
    "tl.regulators": "section 3.4", "tl.counterfactual": "section 1", "pp.bin_value": "Eq", "pp.bin_segment": "Eq",
    "pl.grn_network": "section 3.4", "pl.attention_heatmap": "section 3.4",
}  # fmt: skip


@pytest.mark.parametrize("name", CITED)
def test_the_source_is_given(name):
    assert CITED[name] in FUNCTIONS[name].__doc__


@each(WRITERS)
def test_what_is_written_is_documented(function):
    returned = sections(function.__doc__)["Returns"]
    assert "Sets the following fields:" in returned
    fields = re.findall(r"^`+adata\.(\w+)\[.+\]`+ : (.+)$", returned, flags=re.MULTILINE)
    assert fields, "name the slot, then its type"
    assert {slot for slot, _ in fields} <= {"obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"}


@each(CONFIGS)
def test_configurations_are_frozen_and_each_field_is_explained(function):
    assert function.__dataclass_params__.frozen
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert explained, ast.unparse(node.target)
    assert {p.name for p in inspect.signature(function).parameters.values()} == {
        field.name for field in dataclasses.fields(function)
    }


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(import_module(name), optionflags=flags)
    plt.close("all")
    assert not failed, capsys.readouterr().out
    assert not list(tmp_path.iterdir())


ROOT = Path(__file__).parents[1]
TEXTS = [
    *Path(bf.__file__).parent.rglob("*.py"),
    ROOT / "README.md",
    *(page for folder in ("", "benchmarks", "guide", "reference") for page in (ROOT / "docs" / folder).glob("*.md")),
    *(ROOT / "tutorials").glob("*.ipynb"),
]
NAME = r"((?:\.[A-Za-z_]\w*)+)(?![\w*])"


def exists(name: str) -> bool:
    value = bf
    for part in name.split(".")[1:]:
        if not hasattr(value, part):
            return part in getattr(value, "__annotations__", {})  # a field of a dataclass
        value = getattr(value, part)
    return True


def test_every_name_that_a_text_mentions_exists():
    """``bf.tl.fit`` in a message or on a page, and the targets of links in docstrings."""
    for path in TEXTS:
        names = re.findall(rf"(?:\bbf|`~?scbioformers){NAME}", path.read_text())
        assert not {name for name in names if not exists(name)}, path.name


# behaviour

ARGUMENTS: dict[str, tuple] = {
    "tl.fit": (),
    "tl.annotate": ("cell_type",),
    "tl.counterfactual": ({"condition": "condition_2"},),
    "tl.perturb": ("G1",),
    "tl.program_enrichment": ({"set": [f"G{i}" for i in range(1, 21)]},),
    "pl.perturbation": ([0.0],),
    "pl.annotation": ("cell_type",),
    "get.annotation": ("cell_type",),
    "get.annotation_evidence": ("cell_type",),
    "pl.attention_heatmap": ("G1",),
}
KEYWORDS = {
    "tl.fit": {
        "config": bf.ModelConfig(width=16, n_layers=1, n_heads=2),
        "train": bf.TrainConfig(max_steps=1),
    }
}


AFTER = {"tl.program_enrichment": bf.tl.gene_programs, "tl.regulators": bf.tl.grn}


def with_task() -> ad.AnnData:
    adata = bf.datasets.simulate(60, 30, n_regulators=5, perturbations=["TF1", "TF2"])
    task = bf.Perturbation(key="perturbation", control="control")
    bf.tl.fit(adata, task=task, **KEYWORDS["tl.fit"])
    return adata


def with_phenotype() -> ad.AnnData:
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_conditions=2)
    bf.tl.fit(adata, phenotype_keys="condition", **KEYWORDS["tl.fit"])
    return adata


@pytest.mark.parametrize("name", WRITERS)
def test_copy(fitted, name):
    if name == "tl.perturb":
        fitted = with_task()
    elif name == "tl.counterfactual":
        fitted = with_phenotype()
    elif name in AFTER:
        AFTER[name](fitted)

    def call(**kwargs):
        return WRITERS[name](fitted, *ARGUMENTS.get(name, ()), **KEYWORDS.get(name, {}), **kwargs)

    before = fitted.copy()
    copied = call(copy=True)
    assert isinstance(copied, ad.AnnData)
    assert copied is not fitted
    for slot in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"):
        assert set(getattr(fitted, slot)) == set(getattr(before, slot)), slot
    assert call() is None
    for slot in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"):
        assert set(getattr(fitted, slot)) == set(getattr(copied, slot)), slot


@pytest.mark.fault(46)
@pytest.mark.parametrize("name", ON_ADATA)
def test_what_is_no_adata_is_refused(name):
    with pytest.raises(bf.core.DataError, match="Expected an AnnData"):
        ON_ADATA[name]([[1, 2], [3, 4]], *ARGUMENTS.get(name, ()))


# the package


def test_names():
    assert sorted(bf.__all__) == bf.__all__
    assert set(bf.__all__) < set(dir(bf))
    assert all(getattr(bf, name) is not None for name in bf.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", bf.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = bf.nonsense


LIGHT = """
import sys
for name in ("", ".settings", ".core", ".config", ".data", ".baselines", ".metrics", ".datasets", ".pp"):
    __import__("scbioformers" + name)
    if name == ".config":
        import scbioformers as bf
        bf.TrainConfig(), bf.ModelConfig(), bf.Binning(), bf.Masking(), bf.Perturbation("key", "control")
    heavy = {"torch", "lightning"} & set(sys.modules)
    if not name:
        heavy |= {"anndata", "scanpy", "numba", "matplotlib", "pandas"} & set(sys.modules)
        dir(sys.modules["scbioformers"])
    if heavy:
        sys.exit(f"scbioformers{name} imports {heavy}")
"""


def test_importing_is_light():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


STATES = """
import random, sys
import numpy as np, scbioformers as bf
before = random.getstate(), np.random.get_state()[1].tolist()
bf.settings.progress_bar = False
adata = bf.datasets.simulate(20, 20, n_regulators=3)
bf.tl.fit(adata, config=bf.ModelConfig(width=16, n_heads=2), train=bf.TrainConfig(max_steps=1))
sys.exit(before != (random.getstate(), np.random.get_state()[1].tolist()))
"""


def test_the_first_fit_of_a_process_leaves_the_global_generators_alone():
    assert subprocess.run([sys.executable, "-c", STATES], capture_output=True, timeout=600, check=False).returncode == 0
