"""``docs/faults.md`` lists each row of ``tests/faults.toml`` with the tests that hold it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DRAW = Path(__file__).parents[1] / "docs" / "draw_faults.py"
NAMES = [
    *range(1, 86),
    *("kill-9", "sigterm", "checkpoint-dir", "checkpoint-disk-full", "checkpoint-damaged", "checkpoint-other-fit"),
    *("disk-full", "truncation", "byte-flip", "pickle", "header", "sigint", "two-fits", "random-state"),
    *("memory-backed-zarr", "lost-rank", "read", "fuzzing", "disk-full-result", "out-exists"),
    *("modality-lacking", "modality-model-lacking", "modality-model-other", "modality-map", "modality-none"),
    *("modality-names", "modality-apart", "modality-one-feature"),
    *("modality-centred", "modality-large", "modality-anndata", "modality-obs", "modality-column", "modality-which"),
    *("modality-pair", "sources-scale", "sources-modalities"),
    *("external-missing", "external-numbers", "external-empty", "external-one", "external-type", "external-model"),
    "external-unseen",
    *("phenotype-infinite", "phenotype-text", "phenotype-constant", "phenotype-unit", "phenotype-batch"),
    *("phenotype-sources", "counterfactual-unknown", "counterfactual-evidence"),
    "annotation-far",
]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_faults", DRAW)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_there_and_complete(page):
    faults = page.read_faults()
    assert list(faults) == NAMES
    for row, fault in faults.items():
        assert set(fault) <= {"row", "input", "gets", "handled", "planned"}, row
        assert fault["gets"] in page.GETS, row
        assert fault["input"], row
        assert "handled" in fault or "planned" in fault, row


def test_every_row_that_is_handled_has_a_test(page):
    tests = page.read_markers()
    missing = [row for row, fault in page.read_faults().items() if "handled" in fault and row not in tests]
    assert not missing


def test_every_marker_names_a_row(page):
    assert not set(page.read_markers()) - set(NAMES)


def test_the_page_is_up_to_date(page):
    assert page.PAGE.read_text() == page.render(page.read_faults(), page.read_markers()), (
        f"Run `{Path(sys.executable).name} docs/draw_faults.py`."
    )


EXAMPLE = """
import pytest
ROWS = [pytest.param(1, marks=pytest.mark.fault(3)), pytest.param(2, marks=[pytest.mark.fault(4, "sigint")])]

@pytest.mark.fault(1, 2)
def test_one(): ...

@pytest.mark.parametrize("x", ROWS)
@pytest.mark.fault(1)
def test_listed(x): ...

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.fault(5)), 2])
def test_in_place(x): ...

@pytest.fixture
@pytest.mark.fault(6)
def no_test(): ...

def test_unmarked(): ...
"""


def test_markers_are_found_wherever_pytest_finds_them(page, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "test_a.py").write_text(EXAMPLE)
    (tmp_path / "test_b.py").write_text("import pytest\npytestmark = pytest.mark.fault(7)\ndef test_c(): ...\n")
    assert page.read_markers(tmp_path) == {
        1: ["sub/test_a.py::test_one", "sub/test_a.py::test_listed"],
        2: ["sub/test_a.py::test_one"],
        3: ["sub/test_a.py::test_listed"],
        4: ["sub/test_a.py::test_listed"],
        "sigint": ["sub/test_a.py::test_listed"],
        5: ["sub/test_a.py::test_in_place"],
        7: ["test_b.py::test_c"],
    }
