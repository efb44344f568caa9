"""Which slot holds the counts of a matrix (row 62), and which scale values have that are not integers (row 66)."""

import warnings
from dataclasses import replace

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, DataError
from scbioformers.data import get_matrix, inspect, require_counts

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def real() -> ad.AnnData:
    adata = bf.datasets.pbmc68k()[:150]
    return adata[:, adata.X.sum(axis=0).A1 > 0].copy()


@pytest.fixture
def counts(real) -> ad.AnnData:
    return real.copy()


def logged(adata: ad.AnnData, scaled: bool = False) -> ad.AnnData:
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if scaled:
        sc.pp.scale(adata, max_value=10)
    return adata


def velocity(adata: ad.AnnData) -> ad.AnnData:
    """Every count is spliced, unspliced or ambiguous: 70, 25 and 5 %."""
    adata = adata.copy()
    rest = adata.X.tocsr().copy()
    for key, share in (("ambiguous", 0.05), ("unspliced", 0.25 / 0.95)):
        part = rest.copy()
        part.data = RNG.binomial(rest.data.astype(int), share).astype(np.float32)
        adata.layers[key] = part
        rest = rest - part
    adata.layers["spliced"] = rest
    return adata


# --- row 62: the slot with the counts --------------------------------------------------------------------------------


@pytest.mark.fault(62)
@pytest.mark.parametrize("scaled", [False, True], ids=["log", "scaled"])
def test_the_layer_that_x_was_computed_from(counts, scaled):
    adata = velocity(counts)
    adata.layers["counts_of_another_run"] = adata.layers["ambiguous"].copy()
    adata.X = logged(ad.AnnData(adata.layers["spliced"]), scaled).X
    assert inspect(adata).counts.layer == "spliced"
    adata.X = logged(ad.AnnData(adata.layers["unspliced"]), scaled).X
    assert inspect(adata).counts.layer == "unspliced"


@pytest.mark.fault(62)
@pytest.mark.parametrize("parts", [["spliced", "unspliced"], ["spliced", "unspliced", "ambiguous"]])
def test_a_sum_of_layers_that_x_was_computed_from(counts, parts):
    adata = velocity(counts)
    total = sum(adata.layers[key] for key in parts)
    adata.X = logged(ad.AnnData(total)).X
    found = inspect(adata).counts
    exec(found.call, {"adata": adata})
    assert (adata.layers[found.layer] != total).nnz == 0
    del adata.layers["unspliced"], adata.layers[found.layer]
    assert inspect(adata).counts is None  # a part of the counts is not the counts


@pytest.mark.fault(62)
@pytest.mark.parametrize("uns", [True, False], ids=["listed", "names alone"])
def test_outputs_of_verbs_are_no_counts(real, counts, uns):
    adata = counts
    bf.pp.bin_segment(adata)
    bf.pp.bin_value(adata, key_added="bin_value" if not uns else "mine")
    adata.X = logged(adata).X
    if not uns:
        adata.uns.clear()  # as after ad.concat
    assert inspect(adata).counts is None
    adata.layers["z"] = counts.X.copy()
    assert inspect(adata).counts is None  # the values themselves, on a log scale
    adata.layers["z"] = real.X.copy()
    assert inspect(adata).counts.layer == "z"


@pytest.mark.fault(62)
def test_counts_in_raw_with_the_same_and_with_other_names(counts):
    adata = logged(counts)[:, ::2].copy()
    adata.raw = counts
    found = inspect(adata).counts
    exec(found.call, {"adata": adata})
    assert (adata.layers[found.layer] != counts[:, ::2].X).nnz == 0
    # Ensembl ids in X, symbols in raw
    adata = logged(counts)
    adata.raw = counts
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    report = bf.pp.check(adata)
    assert report.next_calls == ("adata = adata.raw.to_adata()", "bf.pp.check(adata)")
    scope = {"adata": adata}
    exec(report.next_calls[0], scope)
    assert not bf.pp.check(scope["adata"]).problems


@pytest.mark.fault(62)
def test_a_log_layer_named_counts_is_not_proposed_and_not_overwritten(counts):
    adata = logged(counts)
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(DataError) as caught:
        require_counts(adata, "counts")
    assert "layer='counts'`." not in str(caught.value)
    assert "No other slot seems to hold the counts" in str(caught.value)
    assert "`bf.tl.fit(adata, layer='counts', binning='segment')`" in str(caught.value)
    adata.raw = counts
    assert inspect(adata).counts.layer == "raw_counts"  # "counts" is taken


@pytest.mark.fault(62)
def test_first_cells_without_counts_do_not_hide_a_layer(counts):
    empty = ad.AnnData(sp.csr_matrix((300, counts.n_vars), dtype=np.float32), var=counts.var[[]])
    adata = ad.concat([empty, counts], index_unique="-")
    adata.layers["umi"] = adata.X.copy()
    adata.X = logged(adata).X
    assert inspect(adata).counts.layer == "umi"


@pytest.mark.fault(62)
def test_the_argument_that_means_x(counts):
    adata = counts
    adata.layers["log"] = logged(adata).X
    with pytest.raises(DataError, match=r"adata.X seems to hold the counts: pass `layer='X'`"):
        require_counts(adata, "log")
    assert get_matrix(adata, "X") is adata.X
    assert inspect(adata, "X").layer is None and bf.pp.check(adata, layer="X").next_calls == ("bf.tl.fit(adata)",)
    adata.layers["X"] = adata.layers["log"]
    assert get_matrix(adata, "X") is adata.layers["X"]  # a layer of that name comes first


@pytest.mark.fault(62)
def test_a_query_reads_x_although_the_model_has_a_layer(fitted):
    model = bf.get.model(fitted)
    adata = bf.datasets.simulate(n_cells=60, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)
    adata.layers["log"] = logged(adata).X
    expected = bf.tl.embed(adata, model=model, copy=True).obsm["X_bioformer"]
    of_layer = replace(model, reading=replace(model.reading, layer="log"))
    with pytest.raises(DataError, match="pass `layer='X'`"):
        bf.tl.embed(adata, model=of_layer)
    bf.tl.embed(adata, model=of_layer, layer="X")
    np.testing.assert_array_equal(adata.obsm["X_bioformer"], expected)


# --- row 66: estimated counts ----------------------------------------------------------------------------------------


def soupx(adata: ad.AnnData, share: float = 0.1) -> sp.csr_matrix:
    """Subtract a share of the depth, in proportion to the mean expression, as SoupX does."""
    x = adata.X.toarray().astype(np.float64)
    ambient = share * x.sum(1, keepdims=True) * x.sum(0) / x.sum()
    return sp.csr_matrix(np.maximum(x - ambient, 0) * (x > 0))


def thinned(adata: ad.AnnData) -> ad.AnnData:
    x = adata.X.copy()
    x.data = RNG.binomial(x.data.astype(int), 0.05).astype(np.float64)
    x.eliminate_zeros()
    return ad.AnnData(x, var=adata.var[[]])


def changed(x: sp.csr_matrix, function) -> sp.csr_matrix:
    x = x.copy()
    x.data = function(x.data)
    return x


ESTIMATES = {
    "soupx": soupx,
    "much ambient": lambda adata: soupx(adata, 0.3),
    "alevin": lambda adata: changed(adata.X, lambda x: np.where(RNG.random(x.size) < 0.3, x / 2 + 1 / 3, x)),
    "weights": lambda adata: changed(adata.X, lambda x: x * RNG.uniform(0.5, 1, x.size)),
    "gamma": lambda adata: changed(adata.X, lambda x: RNG.gamma(3 * x, 1 / 3)),
    "scaled": lambda adata: 0.93 * adata.X,
}
LOGS = {
    "natural": lambda x: np.log1p(x),
    "base 2": lambda x: np.log2(1 + x),
    "base 10": lambda x: np.log10(1 + x),
}


@pytest.mark.fault(66)
@pytest.mark.parametrize("shallow", [False, True], ids=["deep", "shallow"])
@pytest.mark.parametrize("name", ESTIMATES)
def test_estimated_counts_and_the_call_for_them(real, name, shallow):
    adata = ad.AnnData(ESTIMATES[name](thinned(real) if shallow else real), var=real.var[[]])
    found = inspect(adata)
    assert found.kind == "estimated"
    assert (found.max_value < 20) == shallow
    with pytest.raises(DataError) as caught:
        require_counts(adata)
    assert "log scale" not in str(caught.value)
    assert "`bf.tl.fit(adata, allow_non_integer=True)`" in str(caught.value)
    assert "`bf.tl.fit(adata, binning='segment')`" in str(caught.value)
    none = np.zeros(adata.n_vars, bool)
    assert require_counts(adata, allow_non_integer=True, modelled=none).kind == "estimated"  # and no warning
    calls = bf.pp.check(adata, mask_var=None).next_calls
    assert [call.split("  #")[0] for call in calls] == [
        "bf.tl.fit(adata, allow_non_integer=True)",
        "bf.tl.fit(adata, binning='segment')",
    ]


@pytest.mark.fault(66)
@pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "not normalised"])
@pytest.mark.parametrize("genes", [slice(None), slice(0, 200)], ids=["all genes", "some genes"])
@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("shallow", [False, True], ids=["deep", "shallow"])
def test_log_scales_are_not_called_estimated_counts(real, log, genes, normalised, shallow):
    adata = thinned(real) if shallow else real.copy()
    if normalised:
        sc.pp.normalize_total(adata, target_sum=1e4)
    adata = ad.AnnData(changed(adata.X, LOGS[log])[:, genes].astype(np.float32))
    assert inspect(adata).kind == "log1p"
    with pytest.warns(BioformersWarning, match="log scale"):
        require_counts(adata, allow_non_integer=True, modelled=np.zeros(adata.n_vars, bool))


@pytest.mark.fault(66)
@pytest.mark.parametrize("genes", [slice(None), slice(0, 200)], ids=["all genes", "some genes"])
def test_normalised_values_are_not_called_estimated_counts(counts, genes):
    sc.pp.normalize_total(counts, target_sum=1e4)
    adata = ad.AnnData(counts.X[:, genes])
    assert inspect(adata).kind == "normalized"
    with pytest.raises(DataError) as caught:
        require_counts(adata)
    assert "allow_non_integer" not in str(caught.value)


# --- row 67: features that are not genes -----------------------------------------------------------------------------


@pytest.mark.fault(67)
@pytest.mark.parametrize("kind", ["Antibody Capture", "CRISPR Guide Capture", "Multiplexing Capture", "Peaks"])
@pytest.mark.parametrize("verb", ["check", "fit", "embed"])
def test_features_that_are_not_genes_are_named_with_the_split(simulated, fitted, kind, verb):
    adata = simulated
    tags = ad.AnnData(np.full((60, 3), 100.0, np.float32), obs=adata.obs, var=pd.DataFrame(index=["a", "b", "c"]))
    both = ad.concat([adata, tags], axis=1, merge="same")
    both.var["feature_types"] = pd.Categorical(["Gene Expression"] * 40 + [kind] * 3)
    if verb == "check":
        report = bf.pp.check(both)
        text, calls = " ".join(report.cautions), report.next_calls
        assert calls[1] == "bf.pp.check(adata)" and f"40 Gene Expression, 3 {kind}" in repr(report)
    else:
        train = bf.TrainConfig(max_steps=1)
        with warnings.catch_warnings(record=True) as caught:  # and another one, of the depth that they change
            warnings.simplefilter("always", BioformersWarning)
            bf.tl.fit(both, train=train) if verb == "fit" else bf.tl.embed(both, model=fitted)
        text = next(str(each.message) for each in caught if "not genes" in str(each.message))
    assert f"{{'{kind}': 3}}" in text
    assert "adata = adata[:, adata.var['feature_types'] == 'Gene Expression'].copy()`." in text
    scope = {"adata": both}
    for call in text.split("`")[1::2]:
        exec(call, scope)
    assert scope["adata"].shape == (60, 40) and scope["other"].shape == (60, 3)
    assert inspect(scope["adata"]).depth.tolist() == inspect(adata).depth.tolist()
    assert not bf.pp.check(scope["adata"]).cautions


@pytest.mark.fault(67)
@pytest.mark.parametrize("types", [["Gene Expression"] * 40, ["Antibody Capture"] * 40])
def test_one_type_of_features_needs_no_split(simulated, types):
    simulated.var["feature_types"] = types
    assert not bf.pp.check(simulated).cautions


def test_mudata_has_no_matrix():
    with pytest.raises(DataError, match=r"Pass one of its modalities"):
        get_matrix(mudata.MuData({"rna": ad.AnnData(np.ones((2, 2)))}))
