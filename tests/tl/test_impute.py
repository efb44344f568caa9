"""Imputation: masked values do not leak, measured values are kept, results, and errors."""

import logging
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, ConfigError, DataError, MissingKeyError, bin_normalized
from scbioformers.data import AnnDataSource
from scbioformers.tasks import folds

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


def impute(adata, **kwargs):
    """Return the imputed layer, by default predictions from the other genes."""
    layer = bf.tl.impute(adata, copy=True, **{"method": "held_out"} | kwargs).layers["imputed"]
    return layer.toarray() if sp.issparse(layer) else layer


def with_x(adata, x) -> ad.AnnData:
    changed = adata.copy()
    changed.X = sp.csr_matrix(x)
    return changed


def fold_of(gene: int) -> np.ndarray:
    """Genes that are masked together with this gene, including the gene itself."""
    block = AnnDataSource(ad.AnnData(np.ones((1, 40)))).read(0, 1)
    (fold,) = [mask.indices for mask in folds(40, 7)(block) if gene in mask.indices]
    return fold


# no leakage


@pytest.mark.parametrize("batch_size", [64, 7])
@pytest.mark.parametrize("tokens", ["expressed", "all"])
def test_a_value_is_not_used_for_its_own_prediction(simulated, model, tokens, batch_size):
    model = replace(model, config=replace(model.config, tokens=tokens))
    x = simulated.X.toarray()
    expressed, zeros = np.argwhere(x > 0), np.argwhere(x == 0)
    changes = [
        (*expressed[100], 0),  # the cell has fewer expressed genes and a smaller depth
        (*expressed[300], 500),
        (*zeros[50], 1),
        (*zeros[900], 200),
    ]
    kwargs = {"model": model, "batch_size": batch_size, "std": True}
    before = bf.tl.impute(simulated, copy=True, **kwargs)
    for cell, gene, value in changes:
        changed = x.copy()
        changed[cell, gene] = value
        after = bf.tl.impute(with_x(simulated, changed), copy=True, **kwargs)
        fold, others = fold_of(gene), np.setdiff1d(np.arange(40), fold_of(gene))
        assert gene in fold
        for layer in ("imputed", "imputed_std"):
            assert np.array_equal(after.layers[layer][:, fold], before.layers[layer][:, fold])
        found, expected = after.layers["imputed"], before.layers["imputed"]
        assert (found[cell, others] != expected[cell, others]).all()  # the predictions of other genes change
        others = np.arange(60) != cell
        np.testing.assert_allclose(found[others], expected[others], rtol=0, atol=1e-5)


def test_a_fold_is_not_used_for_its_own_prediction(simulated, model):
    x, fold = simulated.X.toarray(), fold_of(0)
    x[:, fold] = np.random.default_rng(1).poisson(4, size=(60, len(fold)))
    before, after = impute(simulated, model=model), impute(with_x(simulated, x), model=model)
    assert np.array_equal(after[:, fold], before[:, fold])
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("batch_size", [64, 7])
@pytest.mark.parametrize(("tokens", "output"), [("expressed", "counts"), ("all", "log1p"), ("expressed", "bins")])
def test_masked_values_are_not_used(simulated, model, mask, tokens, output, batch_size):
    """They change neither the predictions nor the depth of the kept values."""
    model = replace(model, config=replace(model.config, tokens=tokens))
    expected = impute(simulated, model=model, mask=mask, output=output, batch_size=batch_size)
    for values in (np.random.default_rng(1).poisson(4, size=mask.sum()), 0, 1000):
        x = simulated.X.toarray()
        x[mask] = values
        found = impute(with_x(simulated, x), model=model, mask=mask, output=output, batch_size=batch_size)
        assert np.array_equal(found, expected)


def test_masked_values_do_not_change_ranks(segment, mask):
    expected = impute(segment, mask=mask, output="bins", batch_size=7)
    x = segment.X.toarray()
    x[mask] = np.random.default_rng(1).random(mask.sum()) * 3
    assert np.array_equal(impute(with_x(segment, x), mask=mask, output="bins", batch_size=7), expected)


# predictions


@pytest.mark.parametrize("output", ["counts", "log1p", "bins"])
def test_measured_values_are_kept(simulated, model, mask, output, slow_depth):
    filled, denoised = impute(simulated, model=model, mask=mask, output=output), impute(simulated, model=model)
    x, binning = simulated.X.toarray().astype(float), model.binnings["rna"]
    # the depth of the whole cell, estimated from the values that are not masked
    depth = np.zeros(60)
    for cell, values in enumerate(x * ~mask):
        seen = {j: values[j] for j in np.flatnonzero(values)}
        depth[cell], _ = slow_depth(model.depth.natural, seen, values.sum(), np.flatnonzero(mask[cell]))
    normalized = x * binning.mean_depth / depth[:, None]
    bins = np.minimum(bin_normalized(normalized, binning.cutoff, binning.bins_per_doubling), binning.max_bin)
    expected = {"counts": x, "log1p": np.log1p(normalized), "bins": bins}[output]
    np.testing.assert_allclose(filled[~mask], expected[~mask], rtol=1e-6 if output == "log1p" else 0)
    assert np.isfinite(filled).all()
    assert (filled[mask] >= 0).all()
    assert (filled[mask] != expected[mask]).mean() > 0.99
    assert not np.array_equal(filled[mask], denoised[mask])


def test_types_of_masks(simulated, model, mask):
    expected = impute(simulated, model=model, mask=mask)
    stored_false = sp.csr_matrix(np.ones((60, 40), bool))
    stored_false.data = mask.ravel()
    kinds = [sp.csr_matrix(mask), sp.csc_matrix(mask), sp.coo_matrix(mask), sp.csr_array(mask), stored_false]
    for each in (*kinds, pd.DataFrame(mask, simulated.obs_names, simulated.var_names), mask.tolist()):
        assert np.array_equal(impute(simulated, model=model, mask=each), expected)
    assert stored_false.nnz == 2400  # the mask is not changed


def test_empty_and_full_masks(simulated, model):
    nothing = impute(simulated, model=model, mask=np.zeros((60, 40), bool))
    assert np.array_equal(nothing, simulated.X.toarray())
    x = np.random.default_rng(0).poisson(1, size=(60, 40))
    everything = impute(simulated, model=model, mask=np.ones((60, 40), bool))
    assert np.array_equal(impute(with_x(simulated, x), model=model, mask=np.ones((60, 40), bool)), everything)
    np.testing.assert_allclose(everything, everything[[0] * 60], rtol=1e-5)  # the cells are equal without their values


def test_genes(simulated, model, mask, caplog):
    genes = list(simulated.var_names[[30, 2, 11]])
    requested = simulated.var_names.isin(genes)
    denoised, filled = impute(simulated, model=model), impute(simulated, model=model, mask=mask)
    found = impute(simulated, model=model, genes=genes)
    np.testing.assert_allclose(
        found[:, requested], impute_folds_separately(simulated, model, genes)[:, requested], rtol=1e-5
    )
    x = simulated.X.toarray()
    assert np.array_equal(found[:, ~requested], x[:, ~requested])
    assert not np.array_equal(found[:, requested], denoised[:, requested])  # fewer genes are masked with them
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        found = impute(simulated, model=model, genes=genes, mask=mask)
    assert f"{mask[:, ~requested].sum()} masked values" in caplog.text
    assert np.array_equal(np.isnan(found), mask & ~requested)
    assert np.array_equal(found[~mask], x[~mask])
    assert np.array_equal(found[:, requested], filled[:, requested])  # other masked values are not looked at either
    one = impute(simulated, model=model, genes=genes[0])
    assert np.isfinite(one[:, simulated.var_names == genes[0]]).all()


def impute_folds_separately(adata, model, genes):
    """Impute each requested gene with a mask of the requested genes of its fold."""
    result = np.full(adata.shape, np.nan, np.float32)
    indices = adata.var_names.get_indexer(genes)
    for gene in indices:
        mask = np.zeros(adata.shape, bool)
        mask[:, np.intersect1d(fold_of(gene), indices)] = True
        result[:, gene] = impute(adata, model=model, mask=mask)[:, gene]
    return result


def test_deviation_and_quantiles(simulated, model):
    result = bf.tl.impute(
        simulated, model=model, std=True, quantiles=(0.1, 0.5, 0.975), copy=True, progress_bar=False
    ).layers
    assert {"imputed", "imputed_std", "imputed_q10", "imputed_q50", "imputed_q97.5"} <= set(result)
    assert (result["imputed_std"] > 0).all()
    low, middle, high = (result[f"imputed_{name}"] for name in ("q10", "q50", "q97.5"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert (low < high).any()
    within = np.abs(result["imputed"] - middle) <= result["imputed_std"] * 1.0001  # true for any distribution
    assert within.all()


def test_deviation_and_quantiles_of_masked_values(simulated, model, mask):
    result = bf.tl.impute(
        simulated, model=model, mask=mask, std=True, quantiles=(0.5,), copy=True, progress_bar=False
    ).layers
    assert np.array_equal(result["imputed_std"] > 0, mask)  # kept values are known
    assert np.array_equal(result["imputed_q50"][~mask], simulated.X.toarray()[~mask])
    assert np.isfinite(result["imputed"]).all()


def test_variance_of_an_ensemble_includes_the_variance_between_members(ensemble):
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_batches=2, rng=3)

    def moments(model):
        found = bf.tl.impute(adata, model=model, std=True, copy=True).layers
        return found["imputed"].astype(float), found["imputed_std"].astype(float) ** 2

    mean, variance = moments(ensemble)
    means, variances = zip(*(moments(replace(ensemble, members=(member,))) for member in ensemble.members), strict=True)
    assert not np.allclose(means[0], means[1])
    np.testing.assert_allclose(mean, np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, np.mean(variances, axis=0) + np.var(means, axis=0), rtol=1e-3, atol=1e-4)
    assert variance.mean() > np.mean(variances)


def test_mean_of_the_predictions(simulated, model):
    """Training masks as many expressed genes as zeros. Without a correction, the predictions would be too high."""
    found, x = impute(simulated, model=model), simulated.X.toarray()
    assert found.mean() == pytest.approx(x.mean(), rel=0.2)
    assert np.corrcoef(np.log1p(found.mean(axis=0)), np.log1p(x.mean(axis=0)))[0, 1] > 0.9
    assert np.corrcoef(found.sum(axis=1), x.sum(axis=1))[0, 1] > 0.9  # counts are at the depth of the cell
    log1p = impute(simulated, model=model, output="log1p")
    assert abs(np.corrcoef(log1p.sum(axis=1), x.sum(axis=1))[0, 1]) < 0.9


# accepted data


@pytest.mark.fault(28)
def test_permuted_genes_give_the_same_result(simulated, model, mask):
    order = np.random.default_rng(0).permutation(40)
    permuted = simulated[:, order].copy()
    assert np.array_equal(impute(permuted, model=model), impute(simulated, model=model)[:, order])
    filled = impute(simulated, model=model, mask=mask)
    assert np.array_equal(impute(permuted, model=model, mask=mask[:, order]), filled[:, order])


def test_masked_genes_that_are_not_modelled_are_nan(simulated, model, mask, caplog, with_genes):
    wider = with_genes(simulated, ["new1", "new2"])
    wide_mask = np.hstack([np.ones((60, 2), bool), mask])
    with caplog.at_level(logging.INFO, logger="scbioformers"):
        found = impute(wider, model=model, mask=wide_mask)
    assert "120 masked values are in genes that are not modelled" in caplog.text
    assert np.isnan(found[:, :2]).all()
    assert np.array_equal(found[:, 2:][~mask], simulated.X.toarray()[~mask])


def test_missing_genes(simulated, model, mask):
    partial = simulated[:, 3:].copy()
    with pytest.warns(BioformersWarning, match=r"37 of the model's 40 genes") as caught:
        found = impute(partial, model=model)
    assert len(caught) == 1
    assert found.shape == (60, 37)
    assert np.isfinite(found).all()
    with pytest.warns(BioformersWarning, match="read as absent"):
        filled = impute(partial, model=model, mask=mask[:, 3:])
    assert np.array_equal(filled[~mask[:, 3:]], partial.X.toarray()[~mask[:, 3:]])
    with (
        pytest.warns(BioformersWarning, match="read as absent"),
        pytest.raises(DataError, match=r"1 modelled but not measured, such as \['TF1'\]: `bf\.get\.imputed"),
    ):
        impute(partial, model=model, genes=["TF1"])


@pytest.mark.fault(20)
@pytest.mark.parametrize("n_empty", [1, 60])
def test_empty_cells_are_finite(simulated, model, mask, n_empty):
    x = simulated.X.toarray()
    x[-n_empty:] = 0
    empty = with_x(simulated, x)
    for kwargs in ({}, {"mask": mask}, {"output": "log1p"}):
        assert np.isfinite(impute(empty, model=model, **kwargs)).all()


def test_a_model_of_one_gene(simulated, tiny_config):
    one = simulated[:, simulated.var_names == "TF1"].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bf.tl.fit(one, config=tiny_config, train=TRAIN)
    assert np.isfinite(impute(one)).all()


@pytest.mark.fault(14, 16, "memory-backed-zarr")
@pytest.mark.parametrize("kind", ["backed", "zarr"])
@pytest.mark.parametrize("masked", [False, True])
def test_on_disk(simulated, model, mask, tmp_path, kind, masked):
    if kind == "backed":
        simulated.write_h5ad(tmp_path / "x.h5ad")
        before = (tmp_path / "x.h5ad").read_bytes()
        opened = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    else:
        simulated.write_zarr(tmp_path / "x.zarr")
        opened = ad.read_zarr(tmp_path / "x.zarr")
    kwargs = {"model": model, "mask": mask if masked else None}
    bf.tl.impute(opened, **kwargs)
    expected = bf.tl.impute(simulated, copy=True, **kwargs).layers["imputed"]
    np.testing.assert_allclose(opened.layers["imputed"], expected, rtol=0, atol=1e-5)
    if kind == "backed":
        opened.file.close()
        assert (tmp_path / "x.h5ad").read_bytes() == before


@pytest.mark.fault(17)
def test_view(simulated, model):
    view = simulated[5:20]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        bf.tl.impute(view, model=model, method="held_out")
    assert "imputed" not in simulated.layers
    np.testing.assert_allclose(view.layers["imputed"], impute(simulated, model=model)[5:20], rtol=0, atol=1e-5)


def test_layers(simulated, model):
    expected = impute(simulated, model=model)
    simulated.layers["counts"] = simulated.X.copy()
    simulated.X = sp.csr_matrix(np.ones((60, 40), np.float32))
    assert np.array_equal(impute(simulated, model=model, layer="counts"), expected)
    of_layer = replace(model, reading=replace(model.reading, layer="counts"))
    assert np.array_equal(impute(simulated, model=of_layer), expected)
    assert not np.allclose(impute(simulated, model=model), expected)


def test_segment_bins(segment, mask):
    for kwargs in ({}, {"mask": mask}):
        found = impute(segment, output="bins", **kwargs)
        assert ((found >= 0) & (found <= 10)).all()
    assert (np.mod(found[~mask], 1) == 0).all()


# errors


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        pytest.param({"mask": np.ones((60, 39), bool)}, DataError, r"of the shape.*\(60, 40\).*\(60, 39\)", id="shape"),
        pytest.param({"mask": np.ones((60, 40))}, DataError, r"found float64 \(60, 40\)", id="dtype"),
        pytest.param({"mask": sp.csr_matrix((60, 40))}, DataError, "found float64", id="sparse-dtype"),
        pytest.param(
            {"mask": "masked"}, ConfigError, "`mask` must be an array of numbers, .* found 'masked'", id="name"
        ),
        pytest.param({"genes": ["G100"]}, DataError, r"1 absent from the data: 'G100' \(near 'G100': G10", id="gene"),
        pytest.param({"genes": ["tf2"]}, DataError, r"0 of 1 name can be used.*near 'tf2': TF2", id="case"),
        pytest.param({"genes": []}, ConfigError, "`genes` is empty", id="no-gene"),
        pytest.param(
            {"output": "tpm"}, ConfigError, "`output` must be 'counts', 'log1p', 'bins' or 'values'", id="output"
        ),
        pytest.param({"quantiles": (0.5, 95)}, ConfigError, r"strictly between 0 and 1, found \[95\]", id="quantile"),
        pytest.param({"batch_size": 0}, ConfigError, "`batch_size` must be at least 1", id="batch-size"),
        pytest.param({"device": "cuda:x"}, ConfigError, "'cuda:x' is not available", id="device"),
        pytest.param({"layer": "raw"}, MissingKeyError, r"layers\['raw'\]", id="layer"),
        pytest.param({"key": "other"}, MissingKeyError, r"uns\['other'\].*bf\.tl\.fit", id="model"),
        pytest.param({"model": 3}, ConfigError, "a BioFormer, an AnnData, .*found 3 .int.", id="not-a-model"),
    ],
)
def test_wrong_arguments_write_nothing(fitted, kwargs, error, message, tmp_path):
    before = fitted.copy()
    for more in ({}, {"out": tmp_path / "x.zarr"}):
        with pytest.raises(error, match=message):
            bf.tl.impute(fitted, **kwargs, **more)
    assert set(fitted.layers) == set(before.layers)
    assert set(fitted.uns) == set(before.uns)
    assert not list(tmp_path.iterdir())


def test_other_scales_raise_an_error(simulated, model):
    logged, centred, broken = simulated.copy(), simulated.copy(), simulated.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    centred.X = centred.X.toarray() - 1
    broken.X.data[5] = np.nan
    for adata, message in (
        (logged, r"log scale.*expected raw counts"),
        (centred, "negative values"),
        (broken, "1 NaN or infinite"),
    ):
        with pytest.raises(DataError, match=message):
            bf.tl.impute(adata, model=model)
        assert "imputed" not in adata.layers
        assert "imputed" not in adata.uns


@pytest.mark.parametrize("output", ["counts", "log1p"])
def test_segment_bins_require_output_bins(segment, output):
    with pytest.raises(ConfigError, match=rf"not counts, so it cannot predict '{output}'.*Pass `output='bins'`"):
        bf.tl.impute(segment, output=output)
    with pytest.raises(ConfigError, match=rf"segment bins.*cannot predict '{output}'. Pass `output='bins'`"):
        bf.tl.impute(segment, output=output, method="held_out")
    assert "imputed" not in segment.layers
    assert "imputed" not in segment.uns


def test_too_few_genes_of_the_model(simulated, model):
    few = simulated[:, np.argsort(model.depth_share)[:12]].copy()
    with pytest.raises(DataError, match="12 of the model's 40 genes"):
        bf.tl.impute(few, model=model)
    assert "imputed" not in few.layers
