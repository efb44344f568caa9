"""Try an installed wheel (`make dist`): run the quick start as it is written, on cells that are embedded."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

import scbioformers as bf
from scbioformers.__main__ import main

SOURCE = Path(__file__).resolve().parents[1]


def write_cells(folder: Path) -> None:
    """The two files that the quick start reads: cells of which half have a label, and others."""
    cells = bf.datasets.pbmc68k()
    cells.obs["cell_type"] = cells.obs["bulk_labels"].where(np.arange(cells.n_obs) % 2 == 0)
    cells[:600].write_h5ad(folder / "cells.h5ad")
    cells[600:].write_h5ad(folder / "other.h5ad")


def run() -> None:
    """Run the quick start and the demo in an empty folder, and check what they leave."""
    installed = Path(bf.__file__).resolve()
    if SOURCE / "src" in installed.parents:
        raise SystemExit(f"This is the source, not the wheel: {installed}")
    mpl.use("agg")
    code = re.findall(r"```python\n(.*?)```", (SOURCE / "docs" / "quickstart.md").read_text(), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_cells(Path(folder))
        names: dict[str, object] = {}
        exec("\n".join(code), names)
        adata, other = names["adata"], names["other"]
        if not np.isfinite(other.obsm["X_bioformer"]).all() or adata.obs["bioformer_cell_type"].isna().any():
            raise SystemExit("The quick start left cells without an embedding or a label.")
        if main(["demo", "--max-epochs", "2", "--out", "demo"]) or not os.path.exists("demo/umap.png"):
            raise SystemExit("The demo drew no figure.")
    print(f"The wheel of {bf.__version__} works: {installed.parent}")


if __name__ == "__main__":
    run()
