"""Predictions of genes that were not measured, and the accuracy of imputed values."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError

ABSENT = ["TF2", "G7", "G30"]


@pytest.fixture
def model(fitted):
    return bf.get.model(fitted)


@pytest.fixture
def query(simulated):
    """Cells in which three genes of the model are not measured."""
    return simulated[:, ~simulated.var_names.isin(ABSENT)].copy()


def imputed(adata, **kwargs):
    with pytest.warns(BioformersWarning, match="37 of the model's 40 genes"):
        return bf.get.imputed(adata, **kwargs)


# genes that were not measured


@pytest.mark.parametrize("output", ["counts", "log1p", "bins"])
def test_genes_that_were_not_measured(query, model, output):
    before = query.copy()
    found = imputed(query, model=model, output=output)
    assert found.shape == (60, 3)
    assert list(found.var_names) == ABSENT
    assert found.X.dtype == np.float32
    assert np.isfinite(found.X).all()
    assert (found.X >= 0).all()
    assert (found.X.std(axis=0) > 0).all()
    pd.testing.assert_frame_equal(found.obs, query.obs)
    assert (query.X != before.X).nnz == 0
    assert set(query.layers) == set(before.layers)
    assert set(query.uns) == set(before.uns)


def test_units(query, model):
    counts, log1p, bins = (imputed(query, model=model, output=output).X for output in ("counts", "log1p", "bins"))
    depth = np.asarray(query.X.sum(axis=1)).ravel()
    assert np.corrcoef(counts.sum(axis=1), depth)[0, 1] > 0.9
    assert (log1p <= np.log1p(bins) + 0.5).all()
    assert (log1p < counts + 1).all()
    assert bins.max() <= model.binnings["rna"].max_bin


def test_missing_genes_are_predicted_like_masked_genes(simulated, query, model):
    """The predictions are similar, but not equal: without the genes, the depth of the cells is smaller."""
    of_measured = bf.get.imputed(simulated, genes=ABSENT, model=model).X
    of_absent = imputed(query, model=model).X
    assert not np.array_equal(of_absent, of_measured)
    for gene in range(3):
        assert np.corrcoef(of_absent[:, gene], of_measured[:, gene])[0, 1] > 0.8


def test_measured_genes_can_be_requested(simulated, query, model):
    genes = ["G3", "G7", "TF1"]
    found = imputed(query, genes=genes, model=model)
    assert list(found.var_names) == genes
    assert np.isfinite(found.X).all()
    alone = bf.get.imputed(simulated, genes="G3", model=model)
    assert alone.shape == (60, 1)
    layer = bf.tl.impute(simulated, genes=["G3"], model=model, method="held_out", copy=True).layers["imputed"]
    assert np.array_equal(alone.X, layer[:, simulated.var_names == "G3"].toarray())


def test_a_measured_gene_is_predicted_without_itself(simulated, model):
    before = bf.get.imputed(simulated, genes=["G3"], model=model).X
    x = simulated.X.toarray()
    x[:, simulated.var_names == "G3"] = np.random.default_rng(0).poisson(5, size=(60, 1))
    simulated.X = sp.csr_matrix(x)
    assert np.array_equal(bf.get.imputed(simulated, genes=["G3"], model=model).X, before)


def test_batches_and_order_do_not_matter(query, model):
    expected = imputed(query, model=model).X
    np.testing.assert_allclose(imputed(query, model=model, batch_size=7).X, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(imputed(query[::-1].copy(), model=model).X, expected[::-1], rtol=1e-5, atol=1e-5)


def test_layer(query, model):
    expected = imputed(query, model=model).X
    query.layers["counts"] = query.X.copy()
    query.X = query.X * 2
    assert np.array_equal(imputed(query, model=model, layer="counts").X, expected)


def test_errors(simulated, query, fitted, model):
    with pytest.raises(DataError, match=r"All genes of the model are measured.*`genes=`.*bf\.tl\.impute"):
        bf.get.imputed(fitted)
    with pytest.raises(DataError, match=r"0 of 1 name can be used. 1 absent from the data: 'G300' \(near 'G300': G30"):
        bf.get.imputed(fitted, genes=["G300"])
    with pytest.raises(ConfigError, match="`genes` is empty"):
        bf.get.imputed(fitted, genes=[])
    with pytest.raises(ConfigError, match="`output` must be 'counts', 'log1p', 'bins' or 'values', found"):
        bf.get.imputed(fitted, output="tpm")
    with pytest.raises(ConfigError, match="`batch_size`"):
        bf.get.imputed(fitted, batch_size=0)
    with pytest.raises(ConfigError, match="'cuda:x' is not available"):
        bf.get.imputed(fitted, device="cuda:x")
    with pytest.raises(MissingKeyError, match=r"Run `bf\.tl\.fit"):
        bf.get.imputed(simulated)
    with pytest.raises(DataError, match="5 of the model's 40 genes"):
        bf.get.imputed(query[:, :5].copy(), model=model)


def test_a_marker_gene_is_predicted_in_cells_without_it():
    """The model is fitted to some cells. The marker is predicted in other cells, in which it was not measured."""
    adata = bf.datasets.simulate(360, 50, n_types=3, n_regulators=8, rng=1)
    train, query = adata[:240].copy(), adata[240:].copy()
    log1p = np.log1p(train.X.toarray() / train.X.sum(axis=1) * 100)
    by_type = np.array(
        [
            np.asarray(log1p[(train.obs["cell_type"] == cell_type)].mean(axis=0)).ravel()
            for cell_type in train.obs["cell_type"].cat.categories
        ]
    )
    marker = train.var_names[int(by_type.std(axis=0).argmax())]
    config = bf.ModelConfig(width=32, n_heads=2, n_components=8)
    bf.tl.fit(train, config=config, train=bf.TrainConfig(max_steps=300))
    truth = query[:, marker].X.toarray().ravel()
    with pytest.warns(BioformersWarning, match="49 of the model's 50"):
        found = bf.get.imputed(query[:, query.var_names != marker].copy(), model=train)
    assert list(found.var_names) == [marker]
    assert np.corrcoef(found.X.ravel(), truth)[0, 1] > 0.45  # the means of the cell types reach 0.58
    order = pd.Series(found.X.ravel()).groupby(query.obs["cell_type"].to_numpy()).mean().sort_values().index
    of_truth = pd.Series(truth).groupby(query.obs["cell_type"].to_numpy()).mean()
    assert of_truth.idxmax() == order[-1]
    # the mean is that of the counts, although training masks expressed genes more often than zeros
    assert found.X.mean() == pytest.approx(truth.mean(), rel=0.4)


# evidence


def test_evidence(fitted, simulated, model):
    bf.tl.impute(fitted)
    evidence = bf.get.imputation_evidence(fitted)
    bins, calibration = evidence["bins"], evidence["calibration"]
    n_values = model.binnings["rna"].n_values
    assert bins.shape == (n_values, n_values + 1)
    assert bins["n"].sum() == pytest.approx(60 * 40, rel=1e-4)
    assert bins["n"].iloc[1:].sum() == pytest.approx(simulated.X.nnz, rel=1e-4)
    shares = bins.drop(columns="n").to_numpy()
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), (bins["n"] > 0).astype(float), atol=1e-6)
    assert calibration["n"].sum() == 60 * 40
    assert (calibration["n"] > 0).all()
    assert calibration["predicted"].is_monotonic_increasing
    assert ((calibration[["predicted", "observed"]] >= 0) & (calibration[["predicted", "observed"]] <= 1)).all().all()
    assert (calibration["observed"] * calibration["n"]).sum() == pytest.approx(simulated.X.nnz)
    assert isinstance(evidence["nll_bits"], float)
    assert 0 < evidence["nll_bits"] < np.log2(n_values)


def test_evidence_of_requested_genes(fitted):
    bf.tl.impute(fitted, genes=["TF1", "G2"])
    assert bf.get.imputation_evidence(fitted)["calibration"]["n"].sum() == 120


def test_no_evidence(fitted):
    with pytest.raises(MissingKeyError, match=r"Run `bf\.tl\.impute\(adata\)` first"):
        bf.get.imputation_evidence(fitted)
    bf.tl.embed(fitted, key_added="imputed")
    with pytest.raises(MissingKeyError, match=r"uns\['imputed'\] holds no evidence.*Run `bf\.tl\.impute"):
        bf.get.imputation_evidence(fitted)
    bf.tl.impute(fitted, key_added="all")
    assert bf.get.imputation_evidence(fitted, key="all")["nll_bits"] > 0


def test_evidence_of_a_mask_compares_the_other_values(fitted, simulated):
    mask = np.random.default_rng(0).random((60, 40)) < 0.3
    bf.tl.impute(fitted, mask=mask)
    calibration = bf.get.imputation_evidence(fitted)["calibration"]
    assert calibration["n"].sum() == (~mask).sum()
    assert (calibration["observed"] * calibration["n"]).sum() == pytest.approx((simulated.X.toarray()[~mask] > 0).sum())


def test_both_methods_store_the_same_evidence(fitted):
    bf.tl.impute(fitted)
    bf.tl.impute(fitted, method="held_out", key_added="other")
    first, second = bf.get.imputation_evidence(fitted), bf.get.imputation_evidence(fitted, key="other")
    pd.testing.assert_frame_equal(first["bins"], second["bins"], rtol=1e-4)
    pd.testing.assert_frame_equal(first["calibration"], second["calibration"], rtol=1e-4)
    assert first["nll_bits"] == pytest.approx(second["nll_bits"], rel=1e-5)
    assert (first["n_cells"], first["n_validation_cells"]) == (60, 6)
    binning = bf.get.model(fitted).binnings["rna"]
    counts = first["counts"]
    assert counts[: binning.cutoff].tolist() == list(range(binning.cutoff))  # at the mean depth a low bin is its count
    lower, upper = binning.edges()
    assert ((lower <= counts) & (counts <= upper)).all()
