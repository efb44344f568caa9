"""The report of ``bf.pp.check``."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import scbioformers.pp as pp
from scbioformers.core import DataError, MissingKeyError


def make(n_obs: int = 60, n_vars: int = 20, seed: int = 0) -> ad.AnnData:
    return ad.AnnData(sp.csr_matrix(np.random.default_rng(seed).poisson(1.0, (n_obs, n_vars)).astype(np.float32)))


def test_counts():
    adata = make()
    adata.X.data[: adata.X.indptr[1]] = 0
    adata.var["highly_variable"] = np.arange(20) < 5
    report = pp.check(adata)
    assert report.modelled.sum() == 5 and not report.problems
    assert report.expressed == pytest.approx((adata.X.toarray()[:, :5] > 0).sum() / 60)
    assert report.next_calls == ("bf.tl.fit(adata)",)
    text = repr(report)
    for part in (
        "60 cells x 20 genes in adata.X: raw counts",
        "5 genes",
        "1 cells, 0 genes",
        "bf.tl.impute",
        "Empty cells: 1",
    ):
        assert part in text
    assert "highly_variable_genes" not in text


def test_estimates_grow_with_cells_and_genes():
    small, more_cells, more_genes = (pp.check(make(*shape)) for shape in ((60, 20), (600, 20), (60, 200)))
    for verb, cost in small.costs.items():
        for larger in (more_cells.costs[verb], more_genes.costs[verb]):
            assert cost.minutes < larger.minutes and cost.gigabytes < larger.gigabytes and cost.disk <= larger.disk


def test_gene_selection_is_suggested_for_many_genes_and_the_suggested_call_works():
    adata = make(40, 5100)
    adata.layers["my counts"] = adata.X.copy()
    report = pp.check(adata, layer="my counts")
    assert report.next_calls == (
        "sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor='seurat_v3', layer='my counts')",
        "bf.tl.fit(adata, layer='my counts')",
    )
    eval(report.next_calls[0], {"sc": sc, "adata": adata})
    assert pp.check(adata, layer="my counts").next_calls == ("bf.tl.fit(adata, layer='my counts')",)


def test_log_data():
    adata = make(200, 50)
    adata.layers["it's"] = adata.X.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    report = pp.check(adata)
    assert len(report.problems) == 1 and "log scale" in report.problems[0]
    assert report.next_calls == ("""bf.pp.check(adata, layer="it's")""",)
    assert "by one thread" not in repr(report) and "Problem: " in repr(report)
    del adata.layers["it's"]
    assert pp.check(adata).next_calls == ("bf.tl.fit(adata, binning='segment')  # ranks do not require counts",)


def test_counts_in_raw():
    adata = make(200, 50)
    adata.raw = adata
    adata = adata[:, ::2].copy()
    sc.pp.log1p(adata)
    report = pp.check(adata)
    exec(report.next_calls[0], {"adata": adata})
    assert report.next_calls[1] == "bf.pp.check(adata, layer='counts')"
    assert not pp.check(adata, layer="counts").problems


def test_unusable_data_does_not_raise_an_error():
    adata = make()
    adata.X.data[3] = np.nan
    report = pp.check(adata)
    assert "1 NaN or infinite" in report.problems[0] and "again" in report.next_calls[0]
    assert "0 cells" in pp.check(ad.AnnData(np.zeros((0, 3)))).problems[0]
    assert "0 cells" in repr(pp.check(ad.AnnData(np.zeros((0, 3)))))


@pytest.mark.fault(45)
def test_transposed():
    adata = ad.AnnData(make().X, obs={"i": range(60)})
    adata.obs_names = ["ACTB", "GAPDH", "B2M", *(f"g{i}" for i in range(57))]
    report = pp.check(adata)
    assert report.next_calls == ("adata = adata.T.copy()", "bf.pp.check(adata)")
    assert "transposed" in repr(report)


def test_mask_var_appears_in_the_call():
    adata = make()
    adata.var["mine"] = np.arange(20) < 3
    assert pp.check(adata, mask_var="mine").next_calls == ("bf.tl.fit(adata, mask_var='mine')",)
    assert pp.check(adata, mask_var=None).modelled.all()
    with pytest.raises(MissingKeyError, match=r"adata.var\['other'\].*\['mine'\]"):
        pp.check(adata, mask_var="other")


def test_wrong_type_and_missing_layer():
    with pytest.raises(DataError, match="Expected an AnnData"):
        pp.check(np.ones((2, 2)))
    with pytest.raises(MissingKeyError, match="layers"):
        pp.check(make(), layer="counts")


def test_backed_data_gives_the_same_report_and_is_not_changed(tmp_path):
    adata = make()
    adata.obs["x"] = "y"
    adata.write_h5ad(tmp_path / "x.h5ad")
    before = (tmp_path / "x.h5ad").read_bytes()
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert repr(pp.check(backed)) == repr(pp.check(adata))
    backed.file.close()
    assert (tmp_path / "x.h5ad").read_bytes() == before
