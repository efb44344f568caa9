"""Stored pictures."""

from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 1.5  # root mean square of grey levels; without text the renderings of different machines are within 1


@pytest.fixture
def difference():
    """What distinguishes a picture from the stored one of that name; None if it is within the tolerance."""

    def difference(found: Path, name: str) -> str | None:
        expected = found.with_name("expected.png")
        expected.write_bytes((BASELINE / name).read_bytes())  # a copy, since a difference is saved beside it
        try:
            return compare_images(str(expected), str(found), tol=TOLERANCE)
        except ImageComparisonFailure as failure:  # of different sizes
            return str(failure)

    return difference
