"""The estimates of time, memory and disk, computed by hand. That they are right is measured by benchmarks/scale.py."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scbioformers import pp
from scbioformers.pp._costs import Size, embed_cost, fit_cost, impute_cost

SMALL = Size(2000, 1000, 1000, 60.0, 120_000, on_disk=False)
LARGE = Size(100_000, 2000, 2000, 200.0, 30_000_000, on_disk=True)


def test_a_fit():
    cost = fit_cost(SMALL)
    # 24 epochs of 2,000 cells; 58 visible tokens, 16 masked ones and <cls>
    steps = 48_000 * (0.00025 + 75 * 0.0000065 + 1000 * 0.000000062)
    assert steps == pytest.approx(38.376)
    assert cost.minutes == pytest.approx((5.5 + 1.4 + 0.56 + steps + 0.0192) / 60)
    # the process, activations, the sample, and the values of the data and of the modelled genes
    assert cost.gigabytes == pytest.approx(0.680 + 0.140 + 0.016 + 0.00192)
    assert cost.disk == pytest.approx(0.003)


def test_a_fit_from_disk_reads_the_file_in_every_epoch_and_holds_a_sample():
    cost = fit_cost(LARGE)
    assert cost.minutes == pytest.approx((5.5 + 2.8 + 28 + 200_000 * 8.615e-4 + 6 * 1.2) / 60)  # 2 epochs
    assert cost.gigabytes == pytest.approx(0.680 + 0.280 + 0.8)


def test_an_embedding():
    cost = embed_cost(LARGE)
    assert cost.minutes == pytest.approx((5.5 + 17.937 + 2.4) / 60)
    assert (cost.gigabytes, cost.disk) == pytest.approx((0.6928, 0.0128))


def test_imputed_values():
    cost = impute_cost(LARGE)
    assert cost.minutes == pytest.approx((5.5 + 17.937 + 2.4 + 12 + 3.6 + 8.4) / 60)  # the evidence is of 500 cells
    assert (cost.gigabytes, cost.disk) == pytest.approx((1.68, 0.8))
    few_of_many = impute_cost(Size(100_000, 20_000, 2000, 200.0, 30_000_000, on_disk=True))
    assert (few_of_many.gigabytes, few_of_many.disk) == pytest.approx((4.08, 1.6))  # sparse, in parts and joined
    of_others = impute_cost(Size(2000, 1000, 1000, 60.0, 120_000, on_disk=False, fitted=False))
    assert of_others.minutes - impute_cost(SMALL).minutes == pytest.approx(7 * 800 * 1000 * 1.2e-6 / 60)


def test_the_report(fitted):
    report = pp.check(fitted)
    lines = [line.split() for line in repr(report).splitlines()]
    assert ["bf.tl.fit", "10", "seconds", "686", "MB", "1", "MB"] in lines
    assert set(report.costs) == {"fit", "embed", "impute"}
    with_model = pp.check(fitted, model=fitted)
    assert set(with_model.costs) == {"embed", "impute"}
    assert with_model.costs["embed"] == report.costs["embed"]


def test_a_file_by_columns_should_be_stored_by_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = np.random.default_rng(0).poisson(1.0, (60, 20)).astype(np.float32)
    ad.AnnData(sp.csc_matrix(counts)).write_h5ad("x.h5ad")
    adata = ad.read_h5ad("x.h5ad", backed="r")
    (note,) = (text for text in pp.check(adata).cautions if "by columns (CSC)" in text)
    scope = {"adata": adata, "ad": ad}
    exec(note.split("`")[1], scope)
    assert scope["adata"].isbacked
    assert not pp.check(scope["adata"]).cautions
    assert np.array_equal(scope["adata"].X[:].toarray(), counts)
