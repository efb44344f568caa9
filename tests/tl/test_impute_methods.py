"""Imputation: both methods, genes that are not imputed, nearly empty cells, values that are never looked at."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from matplotlib import pyplot as plt

import scbioformers as bf
from scbioformers.config import bin_rows
from scbioformers.core import ConfigError, DataError
from scbioformers.model import run_network
from scbioformers.results import open_query
from scbioformers.results._slots import params_from_json
from scbioformers.tasks import choose_evidence_cells
from scbioformers.training import find_validation

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


def impute(adata, **kwargs):
    """Return the imputed layer."""
    layer = bf.tl.impute(adata, copy=True, **kwargs).layers["imputed"]
    return layer.toarray() if sp.issparse(layer) else layer


def with_x(adata, x) -> ad.AnnData:
    changed = adata.copy()
    changed.X = sp.csr_matrix(x)
    return changed


# methods


@pytest.mark.parametrize("output", ["counts", "log1p"])
def test_denoise_equals_a_loop_over_cells(ensemble, output):
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_batches=2, rng=3)
    found = impute(adata, model=ensemble, method="denoise", output=output)
    query = open_query(adata, ensemble, layer=None, key="bioformer")
    source, columns = query.source, query.columns
    block, slow = source.read(0, 60), np.zeros((60, 30))
    for network in ensemble.members:
        for batch, read in run_network(ensemble, network, [block], batch_size=1):
            row, depth = int(batch.rows), float(batch.size_factor)
            for gene in range(30):
                shape = float(network.log_dispersion[gene].detach().exp())
                rate = float(read.log_rate[0, gene].exp()) * depth
                mean = (shape + block.counts[row, gene]) * rate / (shape + rate)
                slow[row, gene] += mean / len(ensemble.members)
                if network is ensemble.members[-1] and output == "log1p":
                    slow[row, gene] = np.log1p(slow[row, gene] / depth)
    np.testing.assert_allclose(found[:, columns], slow, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "denoise"),
        ({"output": "log1p"}, "denoise"),
        ({"method": "held_out"}, "held_out"),
        ({"mask": np.zeros((60, 40), bool)}, "held_out"),
        ({"std": True}, "held_out"),
        ({"quantiles": (0.5,)}, "held_out"),
        ({"output": "bins"}, "held_out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_the_arguments_choose_the_method(simulated, model, arguments, expected):
    result = bf.tl.impute(simulated, model=model, copy=True, **arguments)
    assert params_from_json(result.uns["imputed"]["params"])["method"] == expected
    assert np.array_equal(
        result.layers["imputed"], impute(simulated, model=model, **{"method": expected} | arguments), equal_nan=True
    )
    if expected == "held_out":
        continued = {"mask": "`mask=`", "std": "`std=True`", "quantiles": "`quantiles=`", "output": "`output='bins'`"}
        for name in set(arguments) & set(continued):
            with pytest.raises(ConfigError, match=f"cannot be combined with {continued[name]}.*method='held_out'"):
                impute(simulated, model=model, **{"method": "denoise"} | arguments)


def test_unknown_method(simulated, model):
    with pytest.raises(ConfigError, match=r"`method`.*'denoise'.*'held_out'.*found 'posterior'"):
        impute(simulated, model=model, method="posterior")


def test_segment_bins_of_counts(simulated, tiny_config):
    """The decoder models counts, whatever the bins: both methods have an answer."""
    bf.tl.fit(simulated, binning=bf.Binning("segment", n_bins=10), config=tiny_config, train=TRAIN)
    found = impute(simulated)
    x = simulated.X.toarray()
    assert np.corrcoef(found.sum(axis=1), x.sum(axis=1))[0, 1] > 0.9  # counts at the depth of the cell
    bins = impute(simulated, output="bins")
    assert ((bins >= 0) & (bins <= 10)).all()
    with pytest.raises(ConfigError, match=r"segment bins.*cannot predict 'counts'.*`output='bins'`"):
        impute(simulated, method="held_out")


def test_segment_bins_of_other_values(segment):
    with pytest.raises(ConfigError, match=r"not counts, so it cannot predict 'counts'.*Pass `output='bins'`"):
        impute(segment)
    assert impute(segment, output="bins").shape == (60, 40)


# evidence


def test_validation_cells_of_the_fit_are_found(fitted, simulated, model):
    found = find_validation(model, open_query(fitted, None).source)
    assert found.sum() == 6
    # the fit stores the hash of the cells that it was trained on: another choice has another hash
    shuffled = simulated[::-1].copy()
    assert not find_validation(model, open_query(shuffled, model).source).any()
    x = simulated.X.toarray()
    x[np.flatnonzero(~found)[0], 0] += 1
    assert not find_validation(model, open_query(with_x(simulated, x), model).source).any()


def test_validation_cells_come_first():
    validation = np.random.default_rng(0).random(10_000) < 0.1
    usable = np.random.default_rng(1).random(10_000) < 0.9
    for n_features, expected in ((100, 2000), (2000, 500), (200_000, 50)):
        every = choose_evidence_cells(usable, np.zeros(10_000, bool), n_features)
        assert len(every) == expected
        assert usable[every].all()
        assert np.array_equal(every, np.sort(every))
        chosen = choose_evidence_cells(usable, validation, n_features)
        assert (validation & usable)[chosen].all()
        assert len(chosen) == min(expected, (validation & usable).sum())
    few = np.arange(10_000) < 30
    chosen = choose_evidence_cells(np.ones(10_000, bool), few, 100)
    assert set(range(30)) <= set(chosen)
    assert len(chosen) == 2000


# genes that are not imputed


@pytest.fixture(scope="module")
def wide() -> ad.AnnData:
    """100 genes, of which 40 are modelled; nobody may change it."""
    adata = bf.datasets.simulate(60, 100, n_regulators=5, rng=4)
    adata.var["highly_variable"] = np.arange(100) % 5 < 2
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)
    bf.tl.fit(adata, config=config, train=TRAIN)
    return adata


@pytest.mark.parametrize("method", ["denoise", "held_out"])
@pytest.mark.parametrize("output", ["counts", "log1p", "bins"])
def test_genes_that_are_not_modelled_keep_their_values(wide, method, output):
    if method == "denoise" and output == "bins":
        return
    result = bf.tl.impute(wide, method=method, output=output, copy=True)
    modelled = wide.var["highly_variable"].to_numpy()
    assert result.var["imputed"].tolist() == modelled.tolist()
    x = wide.X.toarray().astype(np.float64)
    binning = bf.get.model(wide).binnings["rna"]
    scaled = x * binning.mean_depth / x.sum(axis=1, keepdims=True)
    flat = bin_rows(binning, x.ravel(), np.arange(61) * 100, x.sum(axis=1)).reshape(x.shape)
    expected = {"counts": x, "log1p": np.log1p(scaled), "bins": flat}[output]
    layer = result.layers["imputed"]
    assert sp.issparse(layer)
    assert layer.dtype == np.float32
    found = layer.toarray()
    np.testing.assert_allclose(found[:, ~modelled], expected[:, ~modelled], rtol=1e-6)
    assert np.isfinite(found).all()
    assert (found[:, modelled] != expected[:, modelled]).mean() > 0.9


def test_segment_bins_are_ranks_among_the_modelled_genes(segment, with_genes):
    wider = with_genes(segment, ["new1", "new2"])
    wider.uns = segment.uns
    x = wider.X.toarray()
    x[:, 0] = np.random.default_rng(0).random(60) * 3 * (np.arange(60) % 3 > 0)
    wider.X = sp.csr_matrix(x)
    found = impute(wider, output="bins")[:, 0]
    for i in range(60):
        ranked = x[i, 2:][x[i, 2:] > 0]
        expected = max(np.ceil(10 * (ranked <= x[i, 0]).mean()), 1) if x[i, 0] else 0
        assert found[i] == expected


def test_a_dotplot_shows_imputed_beside_other_genes(wide):
    """Columns of NaN made scanpy draw an empty figure."""
    adata = bf.tl.impute(wide, copy=True)
    adata.obs["group"] = pd.Categorical(np.where(np.arange(60) < 30, "a", "b"))
    genes = [*adata.var_names[adata.var["imputed"]][:2], *adata.var_names[~adata.var["imputed"]][:2]]
    drawn = sc.pl.dotplot(adata, genes, "group", layer="imputed", return_fig=True, show=False)
    means = pd.DataFrame(adata.layers["imputed"].toarray(), columns=adata.var_names)[genes]
    expected = means.groupby(adata.obs["group"].to_numpy()).mean()
    np.testing.assert_allclose(drawn.dot_color_df.to_numpy(), expected.to_numpy(), rtol=1e-5)
    plt.close("all")


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_sparse_layers_round_trip(wide, tmp_path, kind):
    result = bf.tl.impute(wide, std=True, copy=True)
    getattr(result, f"write_{kind}")(tmp_path / "x")
    found = getattr(ad, f"read_{kind}")(tmp_path / "x")
    for name in ("imputed", "imputed_std"):
        assert sp.issparse(found.layers[name])
        assert np.array_equal(found.layers[name].toarray(), result.layers[name].toarray())
    assert (found.layers["imputed_std"].toarray()[:, ~result.var["imputed"]] == 0).all()


# nearly empty cells


@pytest.mark.fault(59, 20, 21)
@pytest.mark.parametrize("method", ["denoise", "held_out"])
@pytest.mark.parametrize("output", ["counts", "log1p"])
def test_nearly_empty_cells_are_imputed_at_their_own_depth(simulated, model, method, output):
    x = simulated.X.toarray()
    mean = x.sum(axis=1).mean()
    x[:4] = 0
    x[1, 3] = 1
    x[2, 3], x[3, 3] = 2, 4  # all counts are hidden with their fold
    adata = with_x(simulated, x)
    result = bf.tl.impute(adata, model=model, method=method, output=output, copy=True)
    found = result.layers["imputed"]
    assert np.isfinite(found).all()
    assert (found[0] == 0).all()
    if output == "counts":
        totals = found.sum(axis=1)
        for cell, depth in ((1, 1), (2, 2), (3, 4)):
            assert 0.1 * depth < totals[cell] < 2 * depth  # a model of 3 steps
        assert np.corrcoef(totals[4:], x[4:].sum(axis=1))[0, 1] > 0.9
    else:
        assert (np.expm1(found[1:]).sum(axis=1) < 2 * mean).all()
    hidden = [False, True, True, True] if method == "held_out" else [False] * 4
    low = (x.sum(axis=1) < 0.05 * model.binnings["rna"].mean_depth) | np.pad(hidden, (0, 56))
    assert result.obs["imputed_low_depth"].tolist() == low.tolist()
    assert low[:3].all()
    assert not low[4:].any()


@pytest.mark.fault(59)
def test_a_cell_of_other_genes_alone_is_flagged(wide):
    x = wide.X.toarray()
    modelled = wide.var["highly_variable"].to_numpy()
    x[5, modelled] = 0
    changed = with_x(wide, x)
    result = bf.tl.impute(changed, copy=True)
    assert np.flatnonzero(result.obs["imputed_low_depth"]).tolist() == [5]
    found = result.layers["imputed"].toarray()
    assert np.array_equal(found[5, ~modelled], x[5, ~modelled])


# masked values


@pytest.mark.fault(64)
@pytest.mark.parametrize("value", [np.nan, -1.0, 1e6, 0.5, np.inf])
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("output", ["counts", "log1p", "bins"])
def test_masked_values_are_not_looked_at(wide, value, dense, output):
    mask = np.random.default_rng(0).random((60, 100)) < 0.3
    x = wide.X.toarray().astype(np.float64)
    x[mask] = value
    changed = wide.copy()
    changed.X = x if dense else sp.csr_matrix(x)
    kwargs = {"mask": mask, "output": output, "std": True}
    found, expected = (bf.tl.impute(adata, copy=True, **kwargs) for adata in (changed, wide))
    for name in ("imputed", "imputed_std"):
        a, b = (result.layers[name].toarray() for result in (found, expected))
        assert np.array_equal(a, b, equal_nan=True)
    unmodelled = ~wide.var["highly_variable"].to_numpy()
    assert np.array_equal(np.isnan(a), mask & unmodelled)
    first, second = (bf.get.imputation_evidence(result) for result in (found, expected))
    pd.testing.assert_frame_equal(first["bins"], second["bins"])
    if value != 1e6:
        with pytest.raises(DataError, match=r"negative values|NaN or infinite|not integers|log scale"):
            bf.tl.impute(changed)


@pytest.mark.fault(64)
def test_the_depth_is_estimated_from_what_is_visible(wide):
    """Masked genes that are not modelled have no share in the model; the visible values of the data have it."""
    x = wide.X.toarray()
    unmodelled = np.flatnonzero(~wide.var["highly_variable"])
    mask = np.random.default_rng(0).random((60, 100)) < 0.1
    mask[:, unmodelled[::2]] |= np.random.default_rng(1).random((60, 30)) < 0.7
    filled = impute(wide, mask=mask, output="log1p")
    shown = ~mask & (x > 0)
    # log1p of counts at the mean depth: the depth that each cell was read at follows from any visible value
    depth = x * bf.get.model(wide).binnings["rna"].mean_depth / np.expm1(np.where(shown, filled, 1))
    read = np.nanmedian(np.where(shown, depth, np.nan), axis=1)
    ratio = read / x.sum(axis=1)
    assert abs(np.median(ratio) - 1) < 0.05
    assert np.corrcoef(read, x.sum(axis=1))[0, 1] > 0.8


@pytest.mark.fault(64)
@pytest.mark.parametrize("kind", ["backed", "zarr", "layer"])
def test_masked_values_on_disk_and_in_layers(simulated, model, mask, tmp_path, kind):
    x = simulated.X.toarray().astype(np.float64)
    expected = impute(simulated, model=model, mask=mask)
    x[mask] = np.nan
    broken = with_x(simulated, x)
    kwargs = {"model": model, "mask": mask}
    if kind == "layer":
        broken.layers["raw"], broken.X = broken.X, np.ones((60, 40))
        kwargs["layer"] = "raw"
    elif kind == "zarr":
        broken.write_zarr(tmp_path / "x")
        broken = ad.read_zarr(tmp_path / "x")
    else:
        broken.write_h5ad(tmp_path / "x")
        broken = ad.read_h5ad(tmp_path / "x", backed="r")
    bf.tl.impute(broken, **kwargs)
    np.testing.assert_allclose(broken.layers["imputed"], expected, rtol=0, atol=1e-5)


@pytest.mark.fault(64)
def test_a_frame_in_another_order_is_refused(simulated, model, mask):
    frame = pd.DataFrame(mask, simulated.obs_names, simulated.var_names)
    for wrong, axis in ((frame.iloc[::-1], "rows"), (frame.iloc[:, ::-1], "columns")):
        with pytest.raises(DataError, match=rf"The {axis} of `mask`.*mask\.loc\[adata\.obs_names"):
            impute(simulated, model=model, mask=wrong)


@pytest.mark.fault(15)
def test_a_backed_view_is_refused(simulated, model, tmp_path):
    simulated.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    with pytest.raises(DataError, match=r"\.to_memory\(\)"):
        bf.tl.impute(backed[:5], model=model)
    backed.file.close()
