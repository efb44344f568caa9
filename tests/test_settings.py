"""``bf.settings``: what an assignment does, and where messages go."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import scbioformers as bf
from scbioformers.core import BioformersError

NAMES = ["error", "warning", "info", "hint", "debug"]
LOGGER = logging.getLogger("scbioformers")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    for name in ("autoshow", "figdir", "progress_bar", "verbosity"):
        monkeypatch.setattr(bf.settings, name, getattr(bf.settings, name))


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_verbosity_is_the_level_of_the_logger(number, name):
    for value in (number, name, name.upper()):
        bf.settings.verbosity = value
        assert bf.settings.verbosity == number
        assert LOGGER.level == [40, 30, 20, 15, 10][number]


def test_the_folder_of_figures_is_a_path():
    bf.settings.figdir = "some/where"
    assert bf.settings.figdir == Path("some/where")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("verbosity", "loud", r"one of \['error'.*found 'loud'"),
        ("verbosity", 5, "from 0 to 4, found 5"),
        ("verbosity", True, "found True"),
        ("verbosity", None, "found None"),
        ("progress_bar", 1, "must be True or False, found 1"),
        ("autoshow", "no", "must be True or False, found 'no'"),
        ("figdir", None, "the path of a folder, found None"),
        ("verbosty", 1, r"no setting 'verbosty'. The settings are \['autoshow', 'figdir'"),
    ],
)
def test_a_wrong_setting_is_an_error_and_changes_nothing(name, value, expected):
    before = dict(vars(bf.settings))
    with pytest.raises(BioformersError, match=expected):
        setattr(bf.settings, name, value)
    assert vars(bf.settings) == before


SHOWN = """
import logging, sys
import scbioformers as bf
logger = logging.getLogger("scbioformers.tl._fit")
logger.info("%d steps", 3)
logger.warning("beware")
bf.settings.verbosity = "warning"
logger.info("not shown")
logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")
logger.warning("once")
"""


def test_messages_are_shown_on_the_standard_error_unless_the_program_configures_logging():
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr.splitlines() == ["3 steps", "WARNING: beware"]
    assert done.stdout.splitlines() == ["scbioformers.tl._fit once"]


def test_in_a_notebook_messages_are_shown_on_the_standard_output():
    code = "import builtins; builtins.__IPYTHON__ = True" + SHOWN
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[:2] == ["3 steps", "WARNING: beware"]
