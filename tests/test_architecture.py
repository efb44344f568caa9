"""The house rules that a machine can check: who imports whom, and what never appears in the source."""

import ast
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import scbioformers as bf

ROOT = Path(__file__).parents[1]
PACKAGE = Path(bf.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = {"_demo", "__main__", "__init__"}  # they use the package as a user does


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"


@pytest.mark.skipif(find_spec("importlinter") is None, reason="import-linter is not installed")
def test_imports_go_one_way():
    # in a process of its own, since import-linter switches off the loggers that are already there
    command = [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_module_has_its_place_in_the_chain():
    """A new module that no contract names could import anything."""
    contracts = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    placed = {module.strip() for layer in contracts["layers"]["layers"] for module in layer.split("|")}
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__pycache__")}
    assert {f"scbioformers.{module}" for module in there - TOP - {"py.typed"}} == placed


def private_imports(path: Path) -> list[str]:
    """Private modules and names of scbioformers that a file imports from a package which is not its own."""
    own = ".".join(["scbioformers", *path.relative_to(PACKAGE).parts[:-1]]) if path.is_relative_to(PACKAGE) else ""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "scbioformers":
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names if alias.name.split(".")[0] == "scbioformers"]
        else:
            continue
        private = [each for each in paths if any(part.startswith("_") for part in each.split("."))]
        found += [each for each in private if each.rpartition("._")[0].partition("._")[0] != own]
    return found


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py"))], ids=lambda path: path.name)
def test_private_names_are_used_by_their_own_package_alone(path):
    if path.name != "__main__.py":  # it runs the demo, which is no part of the package's interface
        assert not private_imports(path)


SLOTS = {"set_slot", "get_slot"}


def test_only_results_builds_keys():
    """What is stored under which name is said in one place: others call the writers and readers of results."""
    for path in SOURCES:
        if path.parent.name != "results":
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not names & SLOTS, path


@pytest.fixture(scope="module", params=SOURCES, ids=name)
def tree(request) -> ast.Module:
    return ast.parse(request.param.read_text())


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK_MODULES = {"urllib", "requests", "httpx", "socket", "ftplib", "aiohttp"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "print", "breakpoint", "input"}
UNSAFE_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}


def test_nothing_unsafe_is_imported(tree):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that the contracts can be read off"
            found.add(str(node.module).split(".")[0])
            found |= {alias.name for alias in node.names}
    assert not found & (UNSAFE_MODULES | NETWORK_MODULES)


def test_nothing_unsafe_is_called(tree):
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in UNSAFE_CALLS, f"line {node.lineno}"
        if isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "os.system"}, f"line {node.lineno}"
            assert node.func.attr not in {"load_from_checkpoint", "read_pickle", "to_pickle"}, f"line {node.lineno}"
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Constant):
                assert (keyword.arg, keyword.value.value) not in UNSAFE_KEYWORDS, f"line {node.lineno}"


def test_house_style(tree):
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert vanishes under -O"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            assert "Exception" not in ast.unparse(node.type).split("."), f"line {node.lineno}: broad except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=name)
def test_packages_say_what_is_public(path):
    body = ast.parse(path.read_text()).body
    assigned = [
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(assigned) == 1
    public = ast.literal_eval(assigned[0])
    assert public == sorted(public, key=lambda each: (not each.isupper(), each[0].islower(), each))
    imported = {alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(public) == imported


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
