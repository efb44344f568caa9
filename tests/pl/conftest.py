"""The style of figures in tests, and comparison with stored pictures."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 1.5  # root mean square difference of grey levels; without text, machines differ by less than 1


@pytest.fixture(autouse=True)
def _style():
    """The default style of matplotlib, and no figure that stays open."""
    with mpl.rc_context():
        mpl.rcdefaults()
        plt.switch_backend("agg")
        yield
    plt.close("all")


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


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as somebody without the green receptor sees it
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _lab(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(DEUTERANOPIA @ linear, 0, 1) / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(scope="session")
def deuteranope_distance() -> Callable[[str, str], float]:
    """Distance of two colours in CIELAB as a deuteranope sees them. 2 is just noticeable, 20 is clear."""
    return lambda a, b: float(np.linalg.norm(_lab(a) - _lab(b)))
