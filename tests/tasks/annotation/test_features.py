"""Embeddings that are kept in memory or in a temporary file until all cells are labelled."""

import numpy as np
import pytest

from scbioformers.tasks.annotation import _features


@pytest.mark.parametrize("max_held", [2**26, 100], ids=["memory", "file"])
def test_what_is_added_is_read_back(monkeypatch, max_held):
    monkeypatch.setattr(_features, "_MAX_HELD", max_held)
    monkeypatch.setattr(_features, "READ_CHUNK", 4)
    values = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    features = _features.Features()
    for start in range(0, 23, 7):
        features.add(values[start : start + 7])
    for _ in range(2):
        blocks = list(features.blocks())
        assert [start for start, _ in blocks] == [0, 4, 8, 12, 16, 20]
        assert np.array_equal(np.vstack([block for _, block in blocks]), values)
    rows = np.array([0, 3, 4, 11, 22])
    assert np.array_equal(features.take(rows), values[rows])
