"""Loading of benchmarks, which are not part of the package."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def load_benchmark(monkeypatch) -> Callable[[str], ModuleType]:
    """Import a benchmark as its command line finds it."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(Path(__file__).parents[2])
        monkeypatch.setattr(sys, "argv", [name])
        return importlib.import_module(f"benchmarks.{name}")

    return load
