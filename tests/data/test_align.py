"""Features of a model in other data, and the choice of genes."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbioformers.core import BioformersWarning, DataError, MissingKeyError
from scbioformers.data import AnnDataSource, gene_mask, hash_genes, match_features

GENES = ["CD4", "CD8A", "MS4A1", "NKG7"]
ENSEMBL = [f"ENSG0000000000{i}" for i in range(4)]


@pytest.mark.fault(28)
def test_row28_permuted_genes_give_the_same_bits():
    rng = np.random.default_rng(0)
    names = np.array([f"g{i}" for i in range(30)])
    counts = sp.random(40, 30, 0.3, "csr", rng=rng, dtype=np.float32)
    order = rng.permutation(30)
    model = list(names[:20])
    blocks = []
    for columns in (np.arange(30), order):
        adata = ad.AnnData(counts[:, columns], var=pd.DataFrame(index=names[columns]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = match_features(model, adata.var_names)
        assert found.share == 1.0
        blocks.append(AnnDataSource(adata, columns=found.columns).read(0, 40))
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(blocks[0].counts, name), getattr(blocks[1].counts, name))


@pytest.mark.fault(26, 27)
@pytest.mark.parametrize(
    ("names", "match"),
    [
        pytest.param(
            ["Cd4", "Cd8a", "Ms4a1", "Nkg7"],
            r"Found 0 of the model's 4 genes \(0.0 %\).*4 names match if case is ignored \('Cd4' in the data, 'CD4' in "
            r"the model\).*`feature_map={name: name.upper\(\) for name in adata.var_names}`",
            id="row26_case",
        ),
        pytest.param(ENSEMBL, "Found 0 .*Ensembl ids", id="row26_ensembl"),
        pytest.param(
            ["CD8A", "MS4A1", "x"],
            r"Found 2 of the model's 4 genes \(50.0 %\).*have 15.0 % of the counts.*at least 20%.*"
            r"Only the model has \['NKG7', 'CD4'\]. Only the data has \['x'\]",
            id="row27_below",
            marks=pytest.mark.fault(72),
        ),
    ],
)
def test_too_little_overlap(names, match):
    with pytest.raises(DataError, match=match):
        match_features(GENES, names, np.array([0.3, 0.1, 0.05, 0.55]))


@pytest.mark.fault(72)
def test_row72_the_error_shows_names_that_differ():
    common = [f"g{i}" for i in range(5)]
    model = [*common, "a", "b", "c", "d"]
    with pytest.raises(DataError, match=r"Only the model has \['a', 'b', 'c'\]\. Only the data has \['x', 'y'\]\.$"):
        match_features(model, [*common, "x", "y"], np.array([0.01] * 5 + [0.2] * 4))
    with pytest.raises(DataError, match=r"Only the model has \['d', 'a', 'b'\]\.$"):
        match_features(model, common, np.array([0.01] * 5 + [0.2, 0.2, 0.1, 0.3]))


@pytest.mark.fault(27)
def test_row27_partial_overlap_warns_with_the_share():
    with pytest.warns(BioformersWarning, match=r"Found 3 of .* \(75.0 %\).* 90.0 % of .*'CD8A'") as caught:
        found = match_features(GENES, ["NKG7", "extra", "CD4", "MS4A1"], np.array([0.3, 0.05, 0.1, 0.05]))
    assert found.columns.tolist() == [2, -1, 3, 0]
    assert [w.filename for w in caught if w.category is BioformersWarning] == [__file__]


@pytest.mark.fault(27)
def test_row27_share_is_never_rounded_up_to_all():
    names = [f"g{i}" for i in range(3000)]
    with pytest.warns(BioformersWarning, match=r"99\.9 %"):
        match_features(names, names[1:])


@pytest.mark.fault(27)
def test_row27_threshold_is_inclusive():
    with pytest.warns(BioformersWarning, match=r"have 20\.0 % of the counts"):
        match_features(GENES, GENES[:1], np.array([0.25, 0.5, 0.25, 0.25]))
    with pytest.raises(DataError, match=r"have 19\.9 % of the counts"):
        match_features(GENES, GENES[:1], np.array([0.249, 0.5, 0.25, 0.25]))


@pytest.mark.fault(54)
def test_row54_the_hash_of_the_genes_is_that_of_a_set():
    assert hash_genes(GENES) == hash_genes(pd.Index(GENES[::-1]))
    assert len({hash_genes(names) for names in (GENES, GENES[:3], [*GENES, "x"], ["CD4CD8A", "MS4A1", "NKG7"])}) == 4


@pytest.mark.fault(29)
def test_row29_ensembl_versions():
    with pytest.warns(BioformersWarning, match="different versions"):
        found = match_features(ENSEMBL, [f"{name}.{i}" for i, name in enumerate(ENSEMBL[::-1])])
    assert found.columns.tolist() == [3, 2, 1, 0]


@pytest.mark.fault(18)
def test_row18_duplicate_names():
    with pytest.raises(DataError, match="var_names_make_unique"):
        match_features(GENES, ["CD4", "CD4", "CD8A"])


def make(**columns) -> ad.AnnData:
    return ad.AnnData(np.ones((2, 3)), var=pd.DataFrame(columns, index=list("abc")))


def test_gene_mask():
    adata = make(highly_variable=[True, False, True], mine=pd.array([False, True, False], dtype="boolean"))
    assert gene_mask(adata).tolist() == [True, False, True]
    assert gene_mask(adata, "mine").tolist() == [False, True, False]
    assert gene_mask(adata, np.array([True, True, False])).tolist() == [True, True, False]
    assert gene_mask(adata, None).all() and gene_mask(make()).all()


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("mask_var", "error", "match"),
    [
        pytest.param("hvg", MissingKeyError, r"var\['hvg'\].*Bool columns: \['hvgs', 'none'\]", id="row31_missing"),
        pytest.param("hvq_s", MissingKeyError, "Did you mean 'hvgs'", id="row31_near"),
        pytest.param("none", DataError, "selects no gene.*highly_variable_genes", id="none"),
        pytest.param("rank", DataError, "Expected 3 bools .*int64", id="not_bool"),
        pytest.param(np.array([True]), DataError, "Expected 3 bools in mask_var, found 1", id="short"),
        pytest.param(pd.array([True, None, False], dtype="boolean"), DataError, "missing values", id="missing_value"),
    ],
)
def test_wrong_mask(mask_var, error, match):
    adata = make(hvgs=[True, False, True], none=[False] * 3, rank=[1, 2, 3])
    with pytest.raises(error, match=match):
        gene_mask(adata, mask_var)
