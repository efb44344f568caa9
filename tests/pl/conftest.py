"""Comparison with stored pictures."""

from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 1.5  # root mean square difference of grey levels; without text, machines differ by less than 1


@pytest.fixture
def difference():
    """A function that describes the difference between a picture and a stored one. None means within the tolerance."""

    def difference(actual: Path, name: str) -> str | None:
        expected = actual.with_name("expected.png")
        # a copy, because compare_images saves the difference in the same folder
        expected.write_bytes((BASELINE / name).read_bytes())
        try:
            return compare_images(str(expected), str(actual), tol=TOLERANCE)
        except ImageComparisonFailure as failure:  # the pictures have different sizes
            return str(failure)

    return difference
