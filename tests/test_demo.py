"""The command line, on data small enough for a test."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scbioformers as bf
from scbioformers import _demo
from scbioformers.__main__ import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def cells():
    return bf.datasets.simulate(80, 40, n_types=3, n_batches=2, n_regulators=5)


@pytest.fixture
def file(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def run(*arguments):
    return main(["demo", *map(str, arguments)])


def test_writes_table_figures_and_annotated_data(file, cells, tmp_path, capsys):
    out = tmp_path / "new" / "directory"
    assert run("--data", file, "--label-key", "cell_type", "--max-epochs", 1, "--out", out) == 0

    assert sorted(path.name for path in out.iterdir()) == ["annotated.h5ad", "scores.csv", "training.png", "umap.png"]
    for name in ("training.png", "umap.png"):
        assert (out / name).read_bytes().startswith(PNG)
    adata = ad.read_h5ad(out / "annotated.h5ad")
    assert (adata.X != cells.X).nnz == 0
    assert {"X_bioformer", "X_pca", "X_umap", "X_umap_pca"} <= set(adata.obsm)
    assert not {"X_blood", "X_blood_tuned"} & set(adata.obsm)  # these cells may be no blood
    assert "leiden" in adata.obs
    assert bf.get.params(adata)["train"]["max_epochs"] == 1

    table = pd.read_csv(out / "scores.csv", index_col="embedding")
    assert list(table.index) == ["raw HVG", "PCA (39)", "PCA (32)", "BioFormer"]
    expected = {
        "BioFormer": adata.obsm["X_bioformer"],
        "PCA (32)": bf.metrics.pca_log1p(cells.X, 32),
        "raw HVG": bf.metrics.log1p_normalize(cells.X),
    }
    for name, embedding in expected.items():
        scores = bf.metrics.embedding_scores(embedding, cells.obs["cell_type"]).to_dict()
        for column in ("avg_bio", "linear_f1"):
            assert table.loc[name, column] == pytest.approx(scores[column]), (name, column)

    shown = capsys.readouterr().out
    assert "80 cells x 40 genes in adata.X: raw counts" in shown
    for name in table.index:
        assert name in shown
    ours, pca = table.loc["BioFormer", "avg_bio"], table.loc[["PCA (39)", "PCA (32)"], "avg_bio"].max()
    flat = " ".join(shown.split())
    assert f"AvgBIO of {ours:.3f}; PCA has {pca:.3f}" in flat
    assert f"The 80 cells form {adata.obs['leiden'].nunique()} Leiden clusters" in flat
    assert f"with {bf.get.history(adata)['val_masked_bins'].min():.2f} nats in cells that the fit has not seen" in flat
    # the paths are whole, so that they can be copied
    assert f"Figure: {out / 'umap.png'}\n" in shown
    assert f"  adata = anndata.read_h5ad({str(out / 'annotated.h5ad')!r})\n" in shown
    assert "blood" not in shown
    assert "--data cells.h5ad" not in shown  # these are the user's own cells


def test_counts_layer_without_labels(cells, tmp_path):
    adata = cells.copy()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert run("--data", tmp_path / "cells.h5ad", "--max-epochs", 1, "--batch-key", "batch", "--out", tmp_path) == 0
    assert not (tmp_path / "scores.csv").exists()
    assert (tmp_path / "umap.png").read_bytes().startswith(PNG)
    params = bf.get.params(ad.read_h5ad(tmp_path / "annotated.h5ad"))
    assert params["layer"] == "counts"
    assert params["batch_key"] == "batch"


@pytest.mark.filterwarnings("ignore::scbioformers.core.BioformersWarning")  # genes that are missing or all zero
def test_default_is_the_embedded_data(tmp_path, monkeypatch, capsys):
    """Every seventh cell of scanpy: fitted, and embedded by the blood model as it is and trained further."""
    blood = bf.datasets.pbmc68k()[::7].copy()
    monkeypatch.setattr(bf.datasets, "pbmc68k", blood.copy)
    assert run("--max-epochs", 1, "--out", tmp_path) == 0
    table = pd.read_csv(tmp_path / "scores.csv", index_col="embedding")
    assert list(table.index) == ["raw HVG", "PCA (50)", "PCA (32)", "BioFormer", "blood model", "blood, tuned"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "python -m scbioformers demo --data cells.h5ad --label-key cell_type" in shown
    scores = table.loc["blood model", "avg_bio"], table.loc["blood, tuned", "avg_bio"]
    assert "AvgBIO of {:.3f} without a fit, and {:.3f} after training on these cells".format(*scores) in shown

    written = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert set(written.obs["bulk_labels"]) == set(blood.obs["bulk_labels"])
    bf.tl.embed(blood, model=bf.models.blood())
    np.testing.assert_array_equal(written.obsm["X_blood"], blood.obsm["X_bioformer"])
    bf.tl.embed(blood, model=bf.get.model(written, key="bioformer_blood"))
    np.testing.assert_array_equal(written.obsm["X_blood_tuned"], blood.obsm["X_bioformer"])
    assert bf.get.params(written, key="bioformer_blood")["train"]["max_epochs"] == 1


@pytest.mark.parametrize("option", ["--label-key", "--batch-key"])
def test_unknown_column(option, file, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--data", file, option, "celltype", "--out", out) == 1
    message = capsys.readouterr().err
    assert f"Error: {option} 'celltype' is not a column of obs" in message
    assert "'cell_type', 'batch', 'perturbation'" in message
    assert not out.exists()


def constant(adata):
    adata.obs["label"] = "T cell"


def identifiers(adata):
    adata.obs["label"] = adata.obs_names


def log1p(adata):
    adata.obs["label"] = adata.obs["cell_type"]
    sc.pp.log1p(adata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(constant, "--label-key 'label' has 1 different values in 80 cells", id="one label"),
        pytest.param(identifiers, "--label-key 'label' has 80 different values in 80 cells", id="a label per cell"),
        pytest.param(log1p, "adata.X is on a log scale", id="no counts"),
    ],
)
def test_data_that_cannot_be_used(change, message, cells, tmp_path, capsys):
    adata = cells.copy()
    change(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert run("--data", tmp_path / "cells.h5ad", "--label-key", "label", "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_file_that_cannot_be_read(tmp_path, capsys):
    assert run("--data", tmp_path / "none.h5ad") == 1
    assert "There is no file" in capsys.readouterr().err
    (tmp_path / "text.h5ad").write_text("cells,genes")
    assert run("--data", tmp_path / "text.h5ad") == 1
    assert "cannot be read as h5ad" in capsys.readouterr().err


def test_output_that_cannot_be_written(file, capsys):
    assert run("--data", file, "--out", file) == 1
    assert "File exists" in capsys.readouterr().err


def test_numbers_are_names_of_groups(cells):
    adata = cells.copy()
    adata.obs["label"] = adata.obs["cell_type"].cat.codes.astype(float)
    adata.obs.loc[adata.obs_names[:5], "label"] = np.nan
    _demo.check_keys(adata, "label", None)
    assert list(adata.obs["label"].cat.categories) == ["0.0", "1.0", "2.0"]
    assert adata.obs["label"].isna().sum() == 5


def test_cells_without_label_are_not_scored(cells):
    adata = cells.copy()
    adata.obsm["X_bioformer"] = bf.metrics.pca_log1p(cells.X, 5)
    adata.obs.loc[adata.obs_names[::4], "cell_type"] = None
    labelled = adata.obs["cell_type"].notna().to_numpy()
    table = _demo.score(adata, {}, "cell_type", None)
    alone = bf.metrics.embedding_scores(adata.obsm["X_bioformer"][labelled], adata.obs["cell_type"][labelled])
    assert table.loc["BioFormer", "knn_f1"] == alone.knn_f1


def test_mixing_scores_need_an_extra(cells, monkeypatch, capsys):
    adata = cells.copy()
    adata.obsm["X_bioformer"] = bf.metrics.pca_log1p(cells.X, 5)
    monkeypatch.setattr(_demo, "find_spec", lambda name: None)
    table = _demo.score(adata, {"PCA": adata.obsm["X_bioformer"]}, "cell_type", "batch")
    assert table["ilisi"].isna().all()
    _demo.show(_demo.Console(), table)
    shown = capsys.readouterr().out
    assert "iLISI" not in shown
    assert f"{table.loc['PCA', 'avg_bio']:.3f}" in shown


def test_many_genes_are_reduced_to_the_highly_variable():
    adata = bf.datasets.simulate(60, 2100)
    adata.layers["counts"] = adata.X.copy()
    adata.X = None
    _demo.select_genes(adata, "counts")
    assert adata.var["highly_variable"].sum() == 2000


def test_missing_extra(monkeypatch, capsys):
    """Without rich the command says what to install, and exits with 1."""
    monkeypatch.setitem(sys.modules, "rich.box", None)
    monkeypatch.delitem(sys.modules, "scbioformers._demo")  # so that it is imported again
    assert run() == 1
    assert 'pip install "scbioformers[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_bad_number_of_epochs(value, capsys):
    with pytest.raises(SystemExit):
        run("--max-epochs", value)
    assert f"expected a whole number from 1, found '{value}'" in capsys.readouterr().err


def test_help_is_there_at_once():
    code = "import sys; from scbioformers.__main__ import main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
