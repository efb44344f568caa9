"""Inspection against a slow implementation, and one test for each fault it has to find."""

import hashlib
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scbioformers.core import BioformersWarning, DataError, MissingKeyError
from scbioformers.data import inspect, require_counts, require_valid


def make(n_obs: int = 30, n_vars: int = 8, seed: int = 0) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(1.5, (n_obs, n_vars)).astype(np.float32)
    counts[0] = 1
    return ad.AnnData(sp.csr_matrix(counts))


def changed(value: float, row: int = 4, column: int = 2) -> ad.AnnData:
    adata = make()
    dense = adata.X.toarray().astype(np.float64)
    dense[row, column] = dense[-1, -1] = value
    return ad.AnnData(sp.csr_matrix(dense), var=pd.DataFrame(index=[f"gene{i}" for i in range(8)]))


def assert_refused(adata, match, layer=None, check=require_counts, error=DataError, **options):
    with pytest.raises(error, match=match):
        check(adata, layer, **options)


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_inspection_equals_the_slow_one(chunk_size):
    rng = np.random.default_rng(1)
    dense = np.round(rng.normal(0, 2, (41, 13)) * (rng.random((41, 13)) < 0.4), 1)
    dense[3], dense[:, 5] = 0, 0
    dense[7, 2] = np.nan
    found = inspect(ad.AnnData(dense), chunk_size=chunk_size)
    first = {}
    counts = {"negative": 0, "non_finite": 0, "non_integer": 0}
    for i, j in np.ndindex(dense.shape):
        x = dense[i, j]
        kinds = (
            ["non_finite"] if not np.isfinite(x) else ["negative"] * int(x < 0) + ["non_integer"] * int(x != round(x))
        )
        for kind in kinds:
            counts[kind] += 1
            first.setdefault(kind, (str(i), str(j)))
    assert (found.n_negative, found.n_non_finite, found.n_non_integer) == tuple(counts.values())
    assert (found.first_negative, found.first_non_finite, found.first_non_integer) == tuple(first[k] for k in counts)
    np.testing.assert_array_equal(found.cell_nnz, (dense != 0).sum(1))
    np.testing.assert_array_equal(found.gene_nnz, (dense != 0).sum(0))
    np.testing.assert_allclose(found.depth, np.nansum(dense, 1), atol=1e-12)
    assert found.max_value == np.nanmax(dense) and found.kind == "centered"
    assert found.n_empty_cells == (dense == 0).all(1).sum() and found.n_empty_genes == (dense == 0).all(0).sum()
    assert found.density == pytest.approx((dense != 0).mean())


def normalized(adata: ad.AnnData, log: bool) -> ad.AnnData:
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    if log:
        sc.pp.log1p(adata)
    return adata


@pytest.mark.parametrize(
    ("adata", "kind"),
    [
        pytest.param(make(), "counts", id="counts"),
        pytest.param(ad.AnnData(make().X.astype(bool)), "bool", id="bool"),
        pytest.param(normalized(make(200, 60), False), "normalized", id="normalized"),
        pytest.param(normalized(make(200, 60), True), "log1p", id="log1p"),
        pytest.param(normalized(make(200, 60), True)[:, :20].copy(), "log1p", id="log1p_of_some_genes"),
        pytest.param(normalized(make(200, 60), False)[:, :20].copy(), "normalized", id="normalized_of_some_genes"),
        pytest.param(ad.AnnData(np.array([[0.4, 3.0, 2, 1], [1, 0, 7, 2.5]])), "estimated", id="estimated_counts"),
        pytest.param(ad.AnnData(np.array([[0.4, 0.6], [0.2, 0.8]])), "normalized", id="proportions"),
    ],
)
def test_kinds(adata, kind):
    assert inspect(adata).kind == kind


def test_real_log_and_scaled_data():
    adata = sc.datasets.pbmc68k_reduced()
    assert inspect(adata).kind == "centered"
    assert inspect(adata.raw.to_adata()).kind == "log1p"


@pytest.mark.fault(1)
def test_row1_negative():
    assert_refused(
        changed(-2.0), r"adata.X has 2 negative values, the first in cell '4', gene 'gene2'; expected raw counts"
    )
    assert_refused(changed(-2.0), "negative", allow_non_integer=True)
    require_valid(changed(-2.0))  # segment bins take it


@pytest.mark.fault(2)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("check", [require_counts, require_valid])
def test_row2_nan_and_inf(value, check):
    assert_refused(
        changed(value), "2 NaN or infinite values, the first in cell '4', gene 'gene2'.*nan_to_num", check=check
    )


@pytest.mark.fault(3)
def test_row3_non_integers_in_the_last_row_only():
    adata = changed(1.0)
    adata.X[-1, -1] = 2.5
    assert_refused(
        adata, r"1 values that are not integers .*the first in cell '29', gene 'gene7'.*allow_non_integer=True"
    )
    assert require_counts(adata, allow_non_integer=True).n_non_integer == 1
    require_valid(adata)


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    ("place", "match"),
    [
        pytest.param("umi", r"adata.layers\['umi'\] seems to hold the counts: pass `layer='umi'`", id="row4_layer"),
        pytest.param("raw", r"adata.raw\[:, adata.var_names\].X", id="row4_raw"),
        pytest.param("nowhere", "No other slot seems to hold the counts", id="row4_nowhere"),
    ],
)
def test_row4_log_data_names_a_likelier_layer(place, match):
    counts = make(200, 60)
    adata = normalized(counts, True)
    adata.layers["log"] = adata.X.copy()
    if place == "umi":
        adata.layers["umi"] = counts.X
    elif place == "raw":
        adata.raw = counts
    assert_refused(adata, f"adata.X is on a log scale.*{match}")
    require_valid(adata)


@pytest.mark.fault(4)
def test_row4_counts_in_x():
    adata = make(200, 60)
    adata.layers["log"] = normalized(adata, True).X
    assert_refused(
        adata,
        r"adata.layers\['log'\] is on a log scale.*adata.X seems to hold the counts: pass `layer='X'`",
        layer="log",
    )


@pytest.mark.fault(4)
def test_row4_opting_out_warns():
    with pytest.warns(BioformersWarning, match="looks as if it were on a log scale") as caught:
        require_counts(normalized(make(200, 60), True), allow_non_integer=True)
    assert [w.filename for w in caught if w.category is BioformersWarning] == [__file__]


@pytest.mark.fault(5, 6, 8, 9, 13, 17)
@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(lambda x: x.astype(np.float64), id="row5_float64"),
        pytest.param(lambda x: x.astype(np.int32), id="row6_integer"),
        pytest.param(lambda x: x.astype(bool), id="row6_bool"),
        pytest.param(lambda x: x.tocsc(), id="row8_csc"),
        pytest.param(lambda x: sp.csr_array(x), id="row9_csr_array"),
        pytest.param(lambda x: x.toarray(), id="row13_dense"),
    ],
)
def test_accepted_silently_and_not_written(matrix):
    adata = ad.AnnData(matrix(make().X))
    data = adata.X if isinstance(adata.X, np.ndarray) else adata.X.data
    before = hashlib.sha256(data.tobytes()).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = require_counts(adata)
        require_counts(adata[::2])  # row 17
    assert found.kind in ("counts", "bool")
    assert hashlib.sha256(data.tobytes()).hexdigest() == before


@pytest.mark.fault(10)
def test_row10_duplicate_entries_are_added_up_first():
    matrix = sp.csr_matrix((np.array([1.5, 1.5]), [0, 0], [0, 2]), shape=(1, 1))
    assert inspect(ad.AnnData(matrix)).kind == "counts"


@pytest.mark.fault(11)
def test_row11_stored_zeros_are_zeros():
    matrix = sp.csr_matrix((np.array([0.0, 2.0]), [0, 1], [0, 2]), shape=(1, 2))
    found = inspect(ad.AnnData(matrix))
    assert found.n_nonzero == 1 and found.n_empty_genes == 1


@pytest.mark.fault(7)
def test_row7_large_values():
    with pytest.warns(BioformersWarning, match=r"up to 1.678e\+07.*float32") as caught:
        require_counts(changed(2.0**24 + 1))
    assert [w.filename for w in caught if w.category is BioformersWarning] == [__file__]


@pytest.mark.fault(14, 16)
@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr", "memory"])
def test_row14_row16_stored(tmp_path, kind):
    adata = changed(3.0)
    adata.obs["x"] = 1
    if kind == "h5ad":
        adata.write_h5ad(tmp_path / "x")
        adata = ad.read_h5ad(tmp_path / "x", backed="r")
    elif kind == "zarr":
        adata.write_zarr(tmp_path / "x")
        adata = ad.read_zarr(tmp_path / "x")
    found = require_counts(adata)
    assert found.n_nonzero == inspect(changed(3.0)).n_nonzero and found.kind == "counts"


@pytest.mark.fault(15)
def test_row15_backed_view(tmp_path):
    make().write_h5ad(tmp_path / "x.h5ad")
    assert_refused(ad.read_h5ad(tmp_path / "x.h5ad", backed="r")[:3], r"\.to_memory\(\)")


def renamed(names) -> ad.AnnData:
    adata = make()
    adata.var = pd.DataFrame(index=names)
    return adata


@pytest.mark.fault(18)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("check", [require_counts, require_valid])
def test_row18_duplicate_genes(check):
    assert_refused(
        renamed(list("abcdefaa")),
        r"1 gene names occur more than once, such as \['a'\].*var_names_make_unique",
        check=check,
    )


@pytest.mark.fault(19)
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_row19_duplicate_cells():
    adata = make()
    adata.obs_names = ["x"] * 30
    assert require_counts(adata).n_duplicate_obs == 29


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("adata", "match"),
    [
        (ad.AnnData(np.zeros((0, 3))), "0 cells and 3 genes"),
        (ad.AnnData(np.zeros((3, 0))), "3 cells and 0 genes"),
        (ad.AnnData(sp.csr_matrix((0, 3))), "0 cells and 3 genes"),
    ],
)
def test_row23_nothing_there(adata, match):
    assert_refused(adata, match, check=require_valid)


@pytest.mark.fault(24)
def test_row24_one_cell():
    assert require_counts(ad.AnnData(np.array([[1.0, 2]]))).n_obs == 1


@pytest.mark.fault(22)
def test_row22_all_zero_genes():
    adata = make()
    adata.X = sp.csr_matrix(adata.X.toarray() * np.array([1, 0, 1, 0, 1, 1, 1, 1]))
    with pytest.warns(BioformersWarning, match=r"All-zero genes: 2 of 8.*filter_genes"):
        require_counts(adata)
    modelled = np.arange(8) > 0
    with pytest.warns(BioformersWarning, match="All-zero genes: 2 of 7"):
        require_counts(adata, modelled=modelled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_counts(adata, modelled=np.arange(8) > 3)


@pytest.mark.fault(30)
@pytest.mark.parametrize("name", [np.nan, None, ""])
def test_row30_unnamed_genes(name):
    assert_refused(renamed([*"abcdefg", name]), "1 genes have no name", check=require_valid)


@pytest.mark.fault(30)
def test_row30_the_fly_gene_nan_has_a_name():
    assert require_valid(renamed(["nan", "CG1234", *"abcdef"])).n_unnamed_vars == 0
    assert_refused(renamed(["nan", *"abcdefg"]), "1 genes have no name", check=require_valid)


@pytest.mark.fault(31)
def test_row31_missing_layer():
    assert_refused(make(), r"Did not find adata.layers\['counts'\]", layer="counts", error=MissingKeyError)


@pytest.mark.fault(44)
def test_row44_no_x():
    assert_refused(ad.AnnData(shape=(3, 2)), "adata.X is None", check=require_valid)


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("obs_names", "var_names", "transposed"),
    [
        (["ACTB", "GAPDH", "B2M"], ["a", "b"], True),
        (["Actb", "Gapdh", "B2m"], ["a", "b"], True),
        (["x", "y", "z"], ["AAACATACAACCAC-1", "AAACATTGAGCTAC-1"], True),
        (["ENSG00000000001", "ENSG00000000002.3", "z"], ["a", "b"], True),
        (
            ["AAACATACAACCAC-1", "sample_AAACATTGAGCTAC", "AAACATTGAGCTAC"],
            ["ENSG00000000001", "ENSMUSG00000000002"],
            False,
        ),
        (["0", "1", "2"], ["0", "1"], False),
    ],
)
def test_row45_transposed(obs_names, var_names, transposed):
    adata = ad.AnnData(np.ones((3, 2)), obs=pd.DataFrame(index=obs_names), var=pd.DataFrame(index=var_names))
    assert inspect(adata).transposed == transposed
    if transposed:
        with pytest.warns(BioformersWarning, match=r"transposed.*adata = adata.T.copy\(\)"):
            require_counts(adata)


@pytest.mark.fault(46)
@pytest.mark.parametrize("wrong", [pd.DataFrame(np.ones((2, 2))), np.ones((2, 2)), None])
def test_row46_not_anndata(wrong):
    assert_refused(wrong, "Expected an AnnData, found", check=require_valid)


def test_text_is_not_a_matrix_of_numbers():
    adata = make()
    adata.layers["text"] = np.full((30, 8), "a", dtype=object)
    assert_refused(adata, "Expected a matrix of numbers, found dtype object", layer="text", check=require_valid)


def test_an_inspection_spares_the_second_pass():
    found = inspect(make())
    assert require_counts(make(), inspection=found) is found


@pytest.mark.parametrize(
    ("names", "id_type"),
    [
        (["ENSG00000000001.5", "ENSMUSG00000000002", "CD4"], "ensembl"),
        (["CD4", "ENSG00000000001", "1"], "symbol"),
        (["0", "1", "CD4"], "number"),
    ],
)
def test_id_type(names, id_type):
    assert inspect(ad.AnnData(np.ones((1, 3)), var=pd.DataFrame(index=names))).id_type == id_type
