"""Warnings: at the line of the user's code, as text alone, and once."""

import inspect
import logging
import warnings

import numpy as np
import pytest

import scbioformers as bf
from scbioformers.core import BioformersWarning


@pytest.fixture
def adata(simulated):
    """Data that raise one warning in a fit: a gene without counts."""
    x = simulated.X.toarray()
    x[:, 3] = 0
    simulated.X = x
    return simulated


def test_a_warning_is_at_the_line_of_the_user(adata):
    with pytest.warns(BioformersWarning, match="All-zero genes: 1 of 40") as caught:
        bf.tl.fit(adata, train=bf.TrainConfig(max_steps=0))
    (found,) = caught
    assert found.filename == __file__
    source, start = inspect.getsourcelines(test_a_warning_is_at_the_line_of_the_user)
    assert "bf.tl.fit" in source[found.lineno - start]


def test_a_warning_is_text_alone_and_is_shown_once(adata, caplog):
    """The standard library logs what it would print."""
    format_before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default", BioformersWarning)
        logging.captureWarnings(True)
        try:
            bf.tl.fit(adata, train=bf.TrainConfig(max_steps=0))
            bf.tl.embed(adata)
        finally:
            logging.captureWarnings(False)
    (text,) = [record.getMessage() for record in caplog.records if record.name == "py.warnings"]
    assert text.startswith("BioformersWarning: All-zero genes: 1 of 40")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert warnings.formatwarning is format_before


def test_warnings_of_others_are_shown_as_before():
    text = warnings.formatwarning("text", UserWarning, __file__, 1)
    assert "UserWarning: text" in text
    assert "Warnings: at the line" in text  # the first line of this file


def test_an_error_that_a_filter_makes_of_a_warning_leaves_the_format(adata):
    before = warnings.formatwarning
    with pytest.raises(BioformersWarning):  # pyproject.toml has this filter
        bf.tl.fit(adata, train=bf.TrainConfig(max_steps=0))
    assert warnings.formatwarning is before
    assert np.isfinite(adata.X).all()
