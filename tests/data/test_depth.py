"""The depth of the cells of a query whose genes are not those of the training data."""

import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset

from scbioformers.core import BioformersWarning
from scbioformers.data import AnnDataSource, DepthRule, choose_depth_rule, concatenate

pytestmark = [
    pytest.mark.fault(54),
    pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning"),
]


def choose(total, modelled, *shares) -> DepthRule:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return choose_depth_rule(np.array(total, float), np.array(modelled, float), *shares)


def test_totals_that_agree_are_the_depth():
    # the modelled features have 40 % of the depth, so the expected depths are 100, 50 and 200
    # the ratios are 1.1, 0.5 and 0.9, and their median is 0.9
    assert choose([110, 25, 180], [40, 20, 80], 0.4) == DepthRule(modelled_only=False, share=1.0)


@pytest.mark.parametrize(("ratio", "agrees"), [(0.79, False), (0.81, True), (1.24, True), (1.26, False)])
def test_limits_of_the_median_ratio(ratio, agrees):
    total, modelled = 100 * ratio * np.array([1, 2, 3]), 40 * np.array([1, 2, 3])
    if agrees:
        assert choose(total, modelled, 0.4) == DepthRule()
        return
    with pytest.warns(BioformersWarning, match=rf"median total of the cells is {ratio} times") as caught:
        rule = choose_depth_rule(total, modelled, 0.4)
    assert rule.modelled_only and rule.share == pytest.approx(0.4)
    assert len(caught) == 1


def test_totals_that_agree_are_corrected_for_the_features_that_are_not_measured():
    # 10 % of the depth is in absent features, so 90 % is in the totals, and 30 % in the features that are measured
    rule = choose([90], [30], 0.3, 0.1)
    assert not rule.modelled_only and rule.share == pytest.approx(0.9)


def test_cells_without_modelled_counts_are_not_compared():
    assert choose([1000, 100, 0], [0, 40, 0], 0.4) == DepthRule()
    assert choose([1000, 10], [0, 0], 0.4) == DepthRule()


def counts() -> ad.AnnData:
    x = np.random.default_rng(0).poisson(0.5, size=(50, 8)).astype(np.float32)
    x[3] = 0
    x[7, [5, 1, 0]] = 0  # no modelled count
    return ad.AnnData(sp.csr_matrix(x))


@pytest.mark.parametrize("modelled_only", [False, True])
@pytest.mark.parametrize("kind", ["memory", "dense", "backed", "zarr"])
def test_depths_are_the_same_in_memory_and_on_disk_whatever_the_chunks(kind, modelled_only, tmp_path):
    adata, columns = counts(), np.array([5, -1, 1, 0])
    x = adata.X.toarray().astype(float)
    expected = (x[:, [5, 1, 0]] if modelled_only else x).sum(axis=1) / 0.4
    if kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    elif kind == "zarr":
        adata.write_zarr(tmp_path / "a.zarr")
        stored = sparse_dataset(zarr.open(tmp_path / "a.zarr", mode="r")["X"])
        adata = ad.AnnData(stored, obs=adata.obs, var=adata.var)
    source = AnnDataSource(adata, columns=columns, rule=DepthRule(modelled_only, 0.4))
    for size in (1, 7, 50):
        blocks = list(source.blocks(size))
        np.testing.assert_array_equal(np.concatenate([block.depth for block in blocks]), expected)
        together = concatenate(blocks)
        np.testing.assert_array_equal(together.take(np.array([9, 2])).depth, expected[[9, 2]])
    np.testing.assert_array_equal(source.rows(np.array([1, 40])).depth, expected[[1, 40]])
