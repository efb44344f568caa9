"""Proteins of scvi's and of 10x's convention become a modality."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbioformers.core import BioformersWarning, DataError, MissingKeyError
from scbioformers.pp import to_mudata

PROTEINS = np.array([[9.0, 120], [85, 3], [7, 7], [1, 0]])


@pytest.fixture
def adata() -> ad.AnnData:
    x = sp.csr_matrix(np.arange(20.0).reshape(4, 5))
    obs = pd.DataFrame({"donor": list("aabb")}, index=["c1", "c2", "c3", "c4"])
    adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=["CD4", "CD8A", "MS4A1", "NKG7", "LYZ"]))
    adata.layers["counts"] = x.copy()
    return adata


def frame(adata: ad.AnnData) -> pd.DataFrame:
    return pd.DataFrame(PROTEINS, index=adata.obs_names, columns=["CD4", "CD19"])


@pytest.mark.parametrize("kind", ["frame", "array", "sparse"])
def test_proteins_in_obsm(adata, kind):
    adata.obsm["protein_expression"] = {
        "frame": frame(adata), "array": PROTEINS.copy(), "sparse": sp.csr_matrix(PROTEINS)
    }[kind]  # fmt: skip
    adata.uns["protein_names"] = np.array(["CD4", "CD19"])
    adata.obsm["X_pca"] = np.ones((4, 2))
    before = adata.copy()
    mdata = to_mudata(adata)
    assert list(mdata.mod) == ["rna", "prot"]
    assert list(mdata["prot"].var_names) == ["CD4", "CD19"]
    assert np.array_equal(mdata["prot"].X, PROTEINS)
    assert list(mdata["prot"].obs_names) == list(adata.obs_names)
    assert np.array_equal(mdata["rna"].X.toarray(), adata.X.toarray())
    assert set(mdata["rna"].obsm) == {"X_pca"}
    assert mdata.obs["donor"].tolist() == list("aabb")
    assert set(adata.obsm) == set(before.obsm)


def test_a_cell_without_proteins_is_not_a_cell_with_zeros(adata):
    proteins = frame(adata)
    proteins.loc["c2"] = np.nan
    adata.obsm["adt"] = proteins
    mdata = to_mudata(adata, protein_key="adt")
    assert list(mdata["prot"].obs_names) == ["c1", "c3", "c4"]
    assert mdata.n_obs == 4
    proteins.loc["c2"] = 0
    adata.obsm["adt"] = proteins
    with pytest.warns(BioformersWarning, match=r"All proteins of 1 cells are zero.*absent is not zero"):
        assert to_mudata(adata, protein_key="adt")["prot"].n_obs == 4


def test_feature_types(adata, tmp_path):
    adata.var_names = ["CD4", "CD8A", "CD4_TotalSeq", "guide1", "LYZ"]
    kinds = ["Gene Expression", "Gene Expression", "Antibody Capture", "CRISPR Guide Capture", "Gene Expression"]
    adata.var["feature_types"] = kinds
    adata.write_h5ad(tmp_path / "tenx.h5ad")
    for each in (adata, ad.read_h5ad(tmp_path / "tenx.h5ad", backed="r")):
        mdata = to_mudata(each)
        assert {name: list(part.var_names) for name, part in mdata.mod.items()} == {
            "rna": ["CD4", "CD8A", "LYZ"], "prot": ["CD4_TotalSeq"], "crispr_guide_capture": ["guide1"]
        }  # fmt: skip
        assert mdata["prot"].X.toarray().ravel().tolist() == [2, 7, 12, 17]
        assert mdata["rna"].layers["counts"].toarray()[1].tolist() == [5, 6, 9]


@pytest.mark.fault(67)
def test_one_type_is_not_several(adata):
    adata.var["feature_types"] = "Gene Expression"
    with pytest.raises(DataError, match=r"Found neither several types.*`protein_key=`; it has \[\]"):
        to_mudata(adata)
    adata.obsm["protein_expression"] = frame(adata) + 1
    assert list(to_mudata(adata).mod) == ["rna", "prot"]


def test_faulty_input(adata):
    with pytest.raises(MissingKeyError, match=r"adata\.obsm\['adt'\]"):
        to_mudata(adata, protein_key="adt")
    adata.obsm["protein_expression"] = PROTEINS.copy()
    with pytest.raises(DataError, match="2 proteins, found 0 names"):
        to_mudata(adata)
    adata.uns["protein_names"] = ["CD4", "CD4"]
    with pytest.raises(DataError, match="found 2 names for them, 1 of them different"):
        to_mudata(adata)
    adata.obs_names = ["c", "c", "d", "e"]
    with pytest.raises(DataError, match=r"adata\.obs_names_make_unique"):
        to_mudata(adata)
