"""The simulated cells of the benchmark of any size."""

import anndata as ad
import numpy as np
import scipy.sparse as sp

from benchmarks import _scale_cells as scale


def test_cells_on_disk_are_the_simulated_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "BLOCK", 300)
    monkeypatch.setattr(scale, "N_GENES", 50)
    scale.write_cells(tmp_path / "1000.zarr", 1000)
    expected = sp.vstack(list(scale.simulate_blocks(1000, 50)), format="csr")
    assert 0.02 < expected.nnz / 50_000 < 0.1
    read, opened = ad.read_zarr(tmp_path / "1000.zarr"), scale.open_cells(tmp_path / "1000.zarr")
    for found in (read.X, opened.X[:]):
        assert (found != expected).nnz == 0
    assert read.obs_names[-1] == opened.obs_names[-1] == "cell999"
    fewer = sp.vstack(list(scale.simulate_blocks(400, 50)), format="csr")
    assert np.array_equal(fewer.toarray(), expected[:400].toarray())
    assert [path.name for path in tmp_path.iterdir()] == ["1000.zarr"]
