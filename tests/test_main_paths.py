"""From `check` to the figures, on inputs that users bring. What `check` suggests is run as it is written.

Each input is made of real cells (pbmc68k), so that the right values are known.
"""

import warnings

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning

SMALL = "config=bf.ModelConfig(width=16, n_heads=2), train=bf.TrainConfig(max_steps=2)"
N_CELLS, N_GENES = 120, 80


@pytest.fixture(scope="module")
def real() -> ad.AnnData:
    adata = bf.datasets.pbmc68k()[:N_CELLS]
    strongest = np.argsort(-adata.X.sum(axis=0).A1, kind="stable")[:N_GENES]
    return adata[:, np.sort(strongest)].copy()


def follow(adata: ad.AnnData, **others) -> tuple[ad.AnnData, list[str]]:
    """Run what `check` suggests, until a model is fitted. Returns the data with the model, and the calls."""
    scope, calls = {"adata": adata, "bf": bf, "sc": sc, "np": np} | others, []
    report = bf.pp.check(adata)
    for _ in range(5):
        call = report.next_calls[0].split("  #")[0]
        calls.append(call)
        if call.startswith("bf.tl.fit("):
            exec(f"{call.removesuffix(')')}, {SMALL})", scope)
            return scope["adata"], calls
        exec(call, scope)
        if not call.startswith("bf.pp.check("):
            calls.append(report.next_calls[1].split("  #")[0])
        report = eval(calls[-1], scope)
    raise AssertionError(f"the suggestions go in a circle: {calls}")


def rest_of_the_path(adata: ad.AnnData, genes: list[str]) -> None:
    """Embed, impute, network and figures; the names are those of the data."""
    bf.tl.embed(adata)
    assert np.isfinite(adata.obsm["X_bioformer"]).all()
    bf.tl.impute(adata)
    bf.tl.grn(adata, regulators=genes)
    assert set(bf.get.grn(adata)["source"]) == set(genes)
    assert set(bf.get.grn(adata)["target"]) <= set(adata.var_names)
    for draw in (bf.pl.training, bf.pl.imputation, bf.pl.calibration, bf.pl.grn_network):
        draw(adata, show=False)
    bf.pl.attention_heatmap(adata, genes[0], show=False)
    plt.close("all")


def counts_of(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray()


def assert_total_is_right(adata: ad.AnnData, expected: np.ndarray) -> None:
    """Imputed counts of a barely trained model are at the depth of each cell: correlated, and the same in total."""
    imputed = np.nansum(adata.layers["imputed"], axis=1)
    assert np.corrcoef(imputed, expected)[0, 1] > 0.95
    assert np.median(imputed / expected) == pytest.approx(1, abs=0.1)


def test_soupx_floats(real):
    x = counts_of(real).astype(np.float64)
    ambient = 0.1 * x.sum(1, keepdims=True) * x.sum(0) / x.sum()
    adata = ad.AnnData(sp.csr_matrix(np.maximum(x - ambient, 0) * (x > 0)), obs=real.obs, var=real.var[[]])
    expected = adata.X.sum(axis=1).A1
    fitted, calls = follow(adata)
    assert calls == ["bf.tl.fit(adata, allow_non_integer=True)"]
    assert bf.get.model(fitted).reading.counts
    rest_of_the_path(fitted, list(real.var_names[:3]))
    assert_total_is_right(fitted, expected)


def test_spliced_unspliced_and_ambiguous(real):
    rng = np.random.default_rng(0)
    adata = ad.AnnData(real.X.copy(), obs=real.obs, var=real.var[[]])
    rest = counts_of(real).astype(int)
    for key, share in (("ambiguous", 0.05), ("unspliced", 0.25)):
        part = rng.binomial(rest, share)
        adata.layers[key], rest = sp.csr_matrix(part.astype(np.float32)), rest - part
    adata.layers["spliced"] = sp.csr_matrix(rest.astype(np.float32))
    adata.X = adata.layers["spliced"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    fitted, calls = follow(adata)
    assert calls == ["bf.pp.check(adata, layer='spliced')", "bf.tl.fit(adata, layer='spliced')"]
    rest_of_the_path(fitted, list(real.var_names[:3]))
    assert_total_is_right(fitted, rest.sum(axis=1))


def test_ensembl_ids_with_versions(real):
    adata = ad.AnnData(real.X.copy(), obs=real.obs, var=real.var[[]])
    adata.var["symbol"] = real.var_names
    adata.var_names = [f"ENSG{i:011d}.{1 + i % 7}" for i in range(adata.n_vars)]
    fitted, calls = follow(adata)
    assert calls == ["bf.tl.fit(adata)"]
    # the query has no versions; results have its names
    query = ad.AnnData(real.X.copy(), obs=real.obs, var=pd.DataFrame(index=[n.split(".")[0] for n in adata.var_names]))
    query.uns["bioformer"] = fitted.uns["bioformer"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BioformersWarning)  # that the versions differ, once for each verb
        rest_of_the_path(query, list(query.var_names[:3]))
    rest_of_the_path(fitted, list(fitted.var_names[:3]))
    np.testing.assert_array_equal(query.obsm["X_bioformer"], fitted.obsm["X_bioformer"])
    np.testing.assert_array_equal(query.layers["imputed"], fitted.layers["imputed"])
    assert_total_is_right(fitted, counts_of(real).sum(axis=1))


def test_proteins_among_the_genes(real):
    rng = np.random.default_rng(0)
    proteins = rng.poisson(400, (N_CELLS, 10)).astype(np.float32)
    adata = ad.AnnData(sp.csr_matrix(np.hstack([counts_of(real), proteins])), obs=real.obs)
    adata.var_names = [*real.var_names, *(f"CD{i}_TotalSeq" for i in range(10))]
    adata.var["feature_types"] = ["Gene Expression"] * N_GENES + ["Antibody Capture"] * 10
    fitted, calls = follow(adata)
    assert calls[1:] == ["bf.pp.check(adata)", "bf.tl.fit(adata)"]
    assert fitted.n_vars == N_GENES
    mean_depth = bf.get.model(fitted).binnings["rna"].mean_depth
    assert mean_depth == pytest.approx(
        counts_of(real).sum(axis=1).mean(), rel=0.1
    )  # of the training cells; 4,379 with the proteins
    rest_of_the_path(fitted, list(real.var_names[:3]))
    assert_total_is_right(fitted, counts_of(real).sum(axis=1))


@pytest.mark.fault(65)
@pytest.mark.filterwarnings("ignore:Transforming to str index")
def test_integer_names(real):
    var = pd.DataFrame(index=pd.RangeIndex(N_GENES))
    adata = ad.AnnData(real.X.copy(), obs=real.obs, var=var)
    adata.var.index = pd.RangeIndex(N_GENES)
    fitted, calls = follow(adata)
    assert calls == ["bf.tl.fit(adata)"]
    fitted.var_names = fitted.var_names.astype(str) if fitted.var_names.dtype == object else fitted.var_names
    bf.tl.embed(fitted)
    bf.tl.impute(fitted)
    named = ad.AnnData(real.X.copy(), obs=real.obs, var=pd.DataFrame(index=[str(i) for i in range(N_GENES)]))
    bf.tl.embed(named, model=bf.get.model(fitted))
    np.testing.assert_array_equal(named.obsm["X_bioformer"], fitted.obsm["X_bioformer"])
    bf.tl.grn(fitted, regulators=["0", "1", "2"])
    assert set(bf.get.grn(fitted)["source"]) == {"0", "1", "2"}
    bf.pl.grn_network(fitted, show=False)
    plt.close("all")
    assert_total_is_right(fitted, counts_of(real).sum(axis=1))


@pytest.mark.fault(20, 59)
@pytest.mark.filterwarnings("ignore::scbioformers.core.BioformersWarning")
def test_a_visium_section_of_mostly_empty_spots(real):
    tissue, empty, nearly = counts_of(real), np.zeros((600, N_GENES)), np.zeros((100, N_GENES))
    nearly[np.arange(100), np.arange(100) % N_GENES] = 1
    adata = ad.AnnData(sp.csr_matrix(np.vstack([empty, tissue, nearly]).astype(np.float32)), var=real.var[[]])
    adata.obsm["spatial"] = np.arange(2 * adata.n_obs).reshape(-1, 2)
    report = bf.pp.check(adata)
    assert any("Empty cells: 600" in text for text in report.cautions)
    fitted, calls = follow(adata)
    assert calls == ["bf.tl.fit(adata)"]
    rest_of_the_path(fitted, list(real.var_names[:3]))
    imputed = np.nansum(fitted.layers["imputed"], axis=1)
    assert not imputed[:600].any()
    assert np.median(imputed[720:]) == pytest.approx(1, abs=0.5)  # one count
    assert np.corrcoef(imputed[600:720], tissue.sum(axis=1))[0, 1] > 0.9
    assert np.median(imputed[600:720] / tissue.sum(axis=1)) == pytest.approx(1, abs=0.15)
    assert fitted.obs["imputed_low_depth"].to_numpy().nonzero()[0].tolist() == [*range(600), *range(720, 820)]
    assert fitted.obs["bioformer_empty"].to_numpy().nonzero()[0].tolist() == list(range(600))
