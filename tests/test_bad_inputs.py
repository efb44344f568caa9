"""Each verb refuses what it cannot use, and reads what it can, as the page of faults says."""

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scbioformers as bf
from scbioformers.core import DataError, MissingKeyError
from scbioformers.data._inspect import UNNAMED

TASK = bf.Perturbation(key="perturbation", control="control")
FIT = {
    "config": bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8),
    "train": bf.TrainConfig(max_steps=2, batch_size=16),
}
VERBS = {
    "bin_value": lambda adata, model, **kwargs: bf.pp.bin_value(adata, **kwargs),
    "bin_segment": lambda adata, model, **kwargs: bf.pp.bin_segment(adata, **kwargs),
    "fit": lambda adata, model, **kwargs: bf.tl.fit(adata, task=TASK, **FIT, **kwargs),
    "embed": lambda adata, model, **kwargs: bf.tl.embed(adata, model=model, **kwargs),
    "impute": lambda adata, model, **kwargs: bf.tl.impute(adata, model=model, **kwargs),
    "perturb": lambda adata, model, **kwargs: bf.tl.perturb(adata, "TF3", model=model, **kwargs),
    "grn": lambda adata, model, **kwargs: bf.tl.grn(adata, model=model, regulators=["TF1"], **kwargs),
    "gene_programs": lambda adata, model, **kwargs: bf.tl.gene_programs(adata, model=model, **kwargs),
}
COUNTS = [name for name in VERBS if name != "bin_segment"]


@pytest.fixture(scope="module")
def fitted() -> ad.AnnData:
    adata = bf.datasets.simulate(60, 30, n_regulators=5, perturbations=["TF1", "TF2"], rng=0)
    bf.tl.fit(adata, task=TASK, **FIT)
    return adata


@pytest.fixture
def cells(fitted) -> ad.AnnData:
    """The cells without the model."""
    adata = fitted.copy()
    del adata.uns["bioformer"]
    return adata


@pytest.fixture(scope="module")
def model(fitted) -> bf.BioFormer:
    return bf.get.model(fitted)


def changed(adata: ad.AnnData, value: float) -> ad.AnnData:
    x = adata.X.toarray().astype(np.float32)
    x[4, 2] = x[-1, -1] = value
    adata.X = sp.csr_matrix(x)
    return adata


def renamed(adata: ad.AnnData, name: object) -> ad.AnnData:
    adata.var = pd.DataFrame(index=[name, *adata.var_names[1:]])
    return adata


def logged(adata: ad.AnnData) -> ad.AnnData:
    adata.layers["umi"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    return adata


def without_x(adata: ad.AnnData) -> ad.AnnData:
    adata.layers["counts"] = adata.X
    adata.X = None
    return adata


REFUSED = {
    "nan": pytest.param(
        lambda a: changed(a, np.nan), "2 NaN or infinite values, the first in cell", marks=pytest.mark.fault(2)
    ),
    "infinite": pytest.param(lambda a: changed(a, np.inf), "2 NaN or infinite values", marks=pytest.mark.fault(2)),
    "twice": pytest.param(lambda a: renamed(a, a.var_names[1]), "occur more than once", marks=pytest.mark.fault(18)),
    "no cells": pytest.param(lambda a: a[:0].copy(), "0 cells", marks=pytest.mark.fault(23)),
    "no genes": pytest.param(lambda a: a[:, :0].copy(), "0 genes", marks=pytest.mark.fault(23)),
    "unnamed": pytest.param(lambda a: renamed(a, np.nan), "have no name", marks=pytest.mark.fault(30)),
    "empty name": pytest.param(lambda a: renamed(a, ""), "have no name", marks=pytest.mark.fault(30)),
    "no X": pytest.param(without_x, r"X is None.*counts", marks=pytest.mark.fault(44)),
}
NO_COUNTS = {
    "negative": pytest.param(
        lambda a: changed(a, -2.0), "2 negative values, the first in cell", marks=pytest.mark.fault(1)
    ),
    "not integers": pytest.param(
        lambda a: changed(a, 0.5), "2 values that are not integers", marks=pytest.mark.fault(3)
    ),
    "log scale": pytest.param(logged, r"log scale.*adata.layers\['umi'\]", marks=pytest.mark.fault(4)),
}


def assert_refused(verb, change, message, cells, model) -> None:
    adata = change(cells)
    before = (set(adata.layers), set(adata.obsm), set(adata.varm), set(adata.varp), set(adata.uns), list(adata.obs))
    with pytest.raises(DataError, match=message):
        VERBS[verb](adata, model)
    after = (set(adata.layers), set(adata.obsm), set(adata.varm), set(adata.varp), set(adata.uns), list(adata.obs))
    assert after == before


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(verb, change, message, cells, model):
    assert_refused(verb, change, message, cells, model)


@pytest.mark.parametrize("verb", COUNTS)
@pytest.mark.parametrize(("change", "message"), NO_COUNTS.values(), ids=NO_COUNTS)
def test_no_counts(verb, change, message, cells, model):
    assert_refused(verb, change, message, cells, model)


@pytest.mark.fault(15)
@pytest.mark.parametrize("verb", VERBS)
def test_backed_view(verb, cells, model, tmp_path):
    cells.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(DataError, match=r"\.to_memory\(\)"):
        VERBS[verb](ad.read_h5ad(tmp_path / "x.h5ad", backed="r")[:30], model)


@pytest.mark.fault(31)
@pytest.mark.parametrize("verb", VERBS)
def test_missing_layer(verb, cells, model):
    cells.layers["umi"] = cells.X
    with pytest.raises(MissingKeyError, match=r"layers\['umis'\].*'umi'"):
        VERBS[verb](cells, model, layer="umis")


@pytest.mark.fault(17)
@pytest.mark.parametrize("verb", VERBS)
def test_view(verb, cells, model):
    view = cells[:50]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        VERBS[verb](view, model)
    assert not {"bioformer", "X_bioformer", "grn"} & set(cells.uns)
    assert cells.n_obs == 60


@pytest.mark.fault(47)
@pytest.mark.parametrize("verb", VERBS)
def test_overwriting_is_logged(verb, cells, model, caplog):
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        VERBS[verb](cells, model)
        assert "Overwriting" not in caplog.text
        VERBS[verb](cells, model)
    assert "Overwriting adata." in caplog.text


DTYPES = [bool, np.int8, np.uint16, np.int64, np.float32, np.float64]
FORMATS = [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asarray]


@pytest.mark.fault("fuzzing")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    make=st.sampled_from(FORMATS),
    kept=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    names=st.lists(st.text(min_size=1, max_size=8), max_size=4, unique=True),
    seed=st.integers(0, 9),
)
def test_no_dtype_format_density_or_name_changes_an_embedding(fitted, model, dtype, make, kept, names, seed):
    """Cells in any form, with their genes in another order among others without a count, embed as the plain ones do."""
    random = np.random.default_rng(seed)
    counts = np.minimum(fitted.X.toarray()[:8], 1 if dtype is bool else 100) * (random.random((8, 30)) < kept)
    plain = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), var=pd.DataFrame(index=fitted.var_names))
    others = [name for name in names if name.strip() not in UNNAMED and name not in plain.var_names]
    wide = np.column_stack([counts, np.zeros((8, len(others)))])
    order = random.permutation(wide.shape[1])
    index = np.array([*plain.var_names, *others], dtype=object)[order]
    query = ad.AnnData(make(wide[:, order].astype(dtype)), var=pd.DataFrame(index=index))
    before = query.X.copy()
    for adata in (plain, query):
        bf.tl.embed(adata, model=model)
    np.testing.assert_allclose(query.obsm["X_bioformer"], plain.obsm["X_bioformer"], rtol=0, atol=1e-5)
    assert query.X.dtype == before.dtype
    assert type(query.X) is type(before)
    assert (before != query.X).sum() == 0
