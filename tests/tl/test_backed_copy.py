"""`copy=True` of cells on disk: the result of cells in memory, and nothing changes in the data or in the file."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import scbioformers as bf

CONFIG = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)
TASK = bf.Perturbation(key="perturbation", control="control")
CALLS = {  # the call, and the slot and the key of what it writes
    "fit": (lambda a: bf.tl.fit(a, config=CONFIG, train=TRAIN, copy=True), "uns", "bioformer"),
    "fit further": (lambda a: bf.tl.fit(a, model=a, train=TRAIN, copy=True), "uns", "bioformer"),
    "embed": (lambda a: bf.tl.embed(a, copy=True), "obsm", "X_bioformer"),
    "impute": (lambda a: bf.tl.impute(a, copy=True), "layers", "imputed"),
    "impute held out": (lambda a: bf.tl.impute(a, method="held_out", copy=True), "layers", "imputed"),
    "annotate": (lambda a: bf.tl.annotate(a, "cell_type", copy=True), "obs", "bioformer_cell_type_probability"),
    "annotate a phenotype": (
        lambda a: bf.tl.annotate(a, "condition", probabilities=True, copy=True),
        "obsm",
        "bioformer_condition_probabilities",
    ),
    "grn": (lambda a: bf.tl.grn(a, copy=True), "varp", "grn"),
    "gene_programs": (lambda a: bf.tl.gene_programs(a, copy=True), "obsm", "gene_program_scores"),
    "counterfactual": (
        lambda a: bf.tl.counterfactual(a, {"condition": "condition_2"}, evidence=False, copy=True),
        "layers",
        "counterfactual",
    ),
    "perturb": (lambda a: bf.tl.perturb(a, "TF1", key="screen", copy=True), "layers", "perturbed"),
    "bin_value": (lambda a: bf.pp.bin_value(a, copy=True), "layers", "bin_value"),
    "bin_segment": (lambda a: bf.pp.bin_segment(a, copy=True), "layers", "bin_segment"),
    "bin_quantile": (lambda a: bf.pp.bin_quantile(a, copy=True), "layers", "bin_quantile"),
}


@pytest.fixture(scope="module")
def fitted():
    """90 cells with a model of phenotypes in uns["bioformer"] and one of knock-outs in uns["screen"]."""
    adata = bf.datasets.simulate(90, 30, n_regulators=4, n_types=2, n_conditions=2, perturbations=["TF1", "TF2"])
    bf.tl.fit(adata, config=CONFIG, train=TRAIN, phenotype_keys="condition")
    bf.tl.fit(adata, config=CONFIG, train=TRAIN, task=TASK, key_added="screen")
    adata.raw = adata.copy()
    return adata


def values(adata, slot, key):
    if slot == "uns":
        return bf.get.model(adata).members[0].feature.weight.detach().numpy()
    found = getattr(adata, slot)[key]
    return found.toarray() if sp.issparse(found) else np.asarray(found, float)


@pytest.mark.fault(14)
@pytest.mark.filterwarnings("ignore::scbioformers.core.BioformersWarning")
@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("name", CALLS)
def test_a_copy_of_cells_on_disk(fitted, name, kind, tmp_path):
    call, slot, key = CALLS[name]
    adata = fitted.copy()
    if kind == "dense":
        adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "x.h5ad")
    before = (tmp_path / "x.h5ad").read_bytes()
    opened = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    opened.obs["own"] = np.arange(90)  # in memory alone
    matrix, keys = opened.X, {each: list(getattr(opened, each)) for each in ("obs", "obsm", "layers", "varp", "uns")}
    copied = call(opened)
    assert not copied.isbacked
    assert copied.obs["own"].tolist() == list(range(90))
    np.testing.assert_allclose(values(copied, slot, key), values(call(adata), slot, key), rtol=1e-4, atol=1e-5)
    for found in (copied.X, copied.raw.X):
        np.testing.assert_array_equal(found.toarray() if sp.issparse(found) else found, fitted.X.toarray())
    assert {each: list(getattr(opened, each)) for each in keys} == keys
    row = matrix[:1]  # the file is still open, also for those who hold its matrix
    np.testing.assert_array_equal(row.toarray() if sp.issparse(row) else row, fitted.X[:1].toarray())
    opened.file.close()
    assert (tmp_path / "x.h5ad").read_bytes() == before
