"""Write ``docs/faults.md`` from ``tests/faults.toml`` and the markers of the tests: ``python docs/draw_faults.py``."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
TESTS = ROOT / "tests"
Row = int | str

GETS = {"E": "error", "W": "warning", "H": "silent"}
HEAD = """\
# Faults

What bad input and broken machines get. An *error* comes before any work. It names what was found, what was expected and
the next call. *Warning* means that the input is handled, with one warning or log line. *Silent* means that it is
handled without a message.
The last column also names the tests that hold a row. [Contributing](contributing.md#how-to-add) says how to add one.

This page is made from `tests/faults.toml` and the markers of the tests by `python docs/draw_faults.py`.
"""
SECTIONS = {
    "Input": lambda row: row in range(54),
    "Input, from reports on similar tools": lambda row: isinstance(row, int) and row >= 54,
    "Machines, files and processes": lambda row: isinstance(row, str),
}


def read_faults() -> dict[Row, dict[str, str]]:
    """The rows of ``tests/faults.toml``, in their order."""
    rows = tomllib.loads((TESTS / "faults.toml").read_text())["fault"]
    return {row["row"]: row for row in rows}


def read_markers(folder: Path = TESTS) -> dict[Row, list[str]]:
    """The tests that hold each row, as ``file::function``, by the markers ``pytest.mark.fault`` in the test files."""
    tests = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        shared = {
            target.id: list(_rows_in(node))
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                rows = [*shared.get("pytestmark", []), *(row for each in node.decorator_list for row in _rows_in(each))]
                for name in ast.walk(ast.Module(node.decorator_list, [])):  # parameters that stand in a list above
                    rows += shared.get(name.id, []) if isinstance(name, ast.Name) else []
                for row in dict.fromkeys(rows):
                    tests[row].append(f"{path.relative_to(folder)}::{node.name}")
    return dict(tests)


def _rows_in(node: ast.AST) -> Iterator[Row]:
    """The arguments of all calls of ``pytest.mark.fault`` below a node."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "pytest.mark.fault":
            yield from (ast.literal_eval(argument) for argument in each.args)


def render(faults: dict[Row, dict[str, str]], tests: dict[Row, list[str]]) -> str:
    """The page."""
    lines = [HEAD]
    for title, belongs in SECTIONS.items():
        lines += [f"## {title}\n", "| row | input | gets | how it is handled, and the tests |", "|---|---|---|---|"]
        for row in filter(belongs, faults):
            fault = faults[row]
            how = "<br>".join([_how(fault), *(f"`{test}`" for test in tests.get(row, []))])
            cells = [str(row), fault["input"], GETS[fault["gets"]], how]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _how(fault: dict[str, str]) -> str:
    planned = f"*Planned:* {fault['planned']}" if "planned" in fault else ""
    return f"{fault.get('handled', '')} {planned}".strip()


if __name__ == "__main__":
    PAGE.write_text(render(read_faults(), read_markers()))
