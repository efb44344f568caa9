"""The code at the top of the README and of the documentation runs as it is written."""

import re
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scbioformers as bf

ROOT = Path(__file__).parents[1]
TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


@pytest.mark.parametrize(("page", "part"), [("README.md", "## Use it"), ("docs/index.md", "# scbioformers")])
def test_the_first_code_runs_on_real_data(page, part, tiny_config, monkeypatch):
    adata = bf.datasets.pbmc68k()[:100].copy()
    factors = ["SPI1", "IRF8"]
    adata = adata[:, adata.var_names.isin(factors) | (np.arange(adata.n_vars) < 200)].copy()
    adata.obs["donor"] = np.where(np.arange(100) % 2, "a", "b")
    names = {"adata": adata, "other": adata[:20].copy(), "factors": factors}
    monkeypatch.setattr(bf.tl, "fit", partial(bf.tl.fit, config=tiny_config, train=TRAIN))  # two steps
    text = (ROOT / page).read_text().split(f"{part}\n")[1]
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert np.isfinite(adata.obsm["X_bioformer"]).all()
    assert "distances" in adata.obsp
    assert adata.layers["imputed"].shape == adata.shape
    assert len(bf.get.grn(adata))
    if page == "README.md":
        assert adata.var["highly_variable"].any()
        np.testing.assert_allclose(names["other"].obsm["X_bioformer"], adata.obsm["X_bioformer"][:20], atol=1e-5)


def test_the_quick_start_runs_from_top_to_bottom(tiny_config, monkeypatch, tmp_path):
    adata = bf.datasets.pbmc68k()[:120].copy()
    shown = ["CD3D", "CD79A", "LYZ"]
    adata = adata[:, adata.var_names.isin(shown) | (np.arange(adata.n_vars) < 150)].copy()
    adata.obs["cell_type"] = adata.obs["bulk_labels"].where(np.arange(120) % 3 > 0)
    adata[:100].write_h5ad(tmp_path / "cells.h5ad")
    adata[100:].write_h5ad(tmp_path / "other.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bf.tl, "fit", partial(bf.tl.fit, config=tiny_config, train=TRAIN))
    plt.switch_backend("agg")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL):
        exec(code, names)
    plt.close("all")
    assert names["adata"].obs["bioformer_cell_type"].notna().all()
    assert names["other"].obs["bioformer_cell_type"].notna().all()
    assert (tmp_path / "annotated.h5ad").is_file()
