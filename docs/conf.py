"""Sphinx configuration. ``make docs`` builds the site in ``docs/_build/html``; it needs no network."""

import re
import shutil
import sys
from pathlib import Path
from types import GenericAlias
from typing import Any

import numpy.typing

# Sphinx would write out these unions, a line for each argument. Classes keep their names. They must be in place before
# the package is imported.
for alias in ("ArrayLike", "NDArray"):
    members = {"__module__": "numpy.typing", "__class_getitem__": classmethod(GenericAlias)}
    setattr(numpy.typing, alias, type(alias, (), members))

import scbioformers  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for _mathml

# Sphinx reads pages below its own folder only
shutil.copytree(
    HERE.parent / "tutorials",
    HERE / "tutorials",
    dirs_exist_ok=True,
    ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
)

project = "scbioformers"
author = "The scbioformers authors"
copyright = author
version = release = scbioformers.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "myst_nb",
    "_mathml",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

default_role = "literal"
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False

nitpicky = True
# types of other packages, whose documentation is not read: the build needs no network
OTHERS = (
    "anndata", "collections", "lightning", "matplotlib", "mudata", "networkx", "numpy", "pandas", "pathlib", "scipy",
    "torch",
)  # fmt: skip
nitpick_ignore_regex = [("py:.*", rf"{package}\..*") for package in OTHERS]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # log lines of a fit, which may name folders of this machine

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"
html_math_renderer = "mathml"  # MathJax would need a network
copybutton_selector = "div:not(.output_area) > div.highlight > pre"

html_theme = "sphinx_book_theme"
html_title = project
html_context = {"default_mode": "auto"}
html_logo = "images/logo.svg"
html_favicon = "images/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_navbar_depth": 1,
    "max_navbar_depth": 3,
    "logo": {"text": project, "alt_text": "scbioformers, start page"},
    "navbar_persistent": [],  # the side bar has the search
    "use_fullscreen_button": False,
    "use_download_button": False,
}


def literal_fields(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Undo napoleon's bold around the names of returned fields that are literals, which would show their backticks."""
    lines[:] = [re.sub(r"\*\*(`+)(.+?)\1\*\*", r"``\2``", line) for line in lines]


def untyped_attributes(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading the words before the first colon of the text on an attribute as its type."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"


def link_files(app: Any, docname: str, source: list[str]) -> None:
    """Offer files beside the documentation, such as the experiment log, for download: they are no pages of the site."""
    source[0] = re.sub(r"\]\(((?:\.\./)+dev/[\w.]+)(#[^)]*)?\)", r"](path:\1)", source[0])


def setup(app: Any) -> None:
    """Register what is defined here."""
    app.connect("autodoc-process-docstring", untyped_attributes, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", literal_fields, priority=600)  # after napoleon, at 500
    app.connect("source-read", link_files)
