"""How a query is read: depth, batch and scale are those of the training data."""

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scbioformers as bf
from scbioformers.core import BioformersWarning, DataError
from scbioformers.results import open_query

TRAIN = bf.TrainConfig(max_steps=2, batch_size=16)


def embedding(adata, model, **kwargs) -> np.ndarray:
    return bf.tl.embed(adata, model=model, copy=True, **kwargs).obsm["X_bioformer"]


# depth


@pytest.fixture(scope="module")
def blood(tiny_config) -> ad.AnnData:
    """Blood cells, of which 150 genes are modelled, with a model."""
    adata = bf.datasets.pbmc68k()[:400].copy()
    adata.X = sp.csr_matrix(adata.X)
    variance = np.asarray(adata.X.power(2).mean(axis=0) - np.square(adata.X.mean(axis=0))).ravel()
    adata.var["highly_variable"] = variance >= np.sort(variance)[-150]
    bf.tl.fit(adata, config=tiny_config, train=TRAIN)
    return adata


@pytest.fixture(scope="module")
def panel(blood) -> ad.AnnData:
    """The same cells with the modelled genes alone."""
    return blood[:, blood.var["highly_variable"]].copy()


def only_warning(query, model) -> str:
    with pytest.warns(BioformersWarning) as caught:
        open_query(query, model)
    assert len(caught) == 1
    return str(caught[0].message)


@pytest.mark.fault(54)
def test_row54_cells_that_lost_genes_keep_their_depth(blood, panel):
    assert "estimated from the genes of the model" in only_warning(panel, blood)
    with pytest.warns(BioformersWarning):
        source = open_query(panel, blood).source
    depth = source.read(0, 400).depth
    measured = blood.X.sum(axis=1).A1
    assert depth.sum() == pytest.approx(measured.sum(), rel=0.03)
    assert np.median(depth / measured) == pytest.approx(1.0, abs=0.1)


@pytest.mark.fault(54)
@pytest.mark.filterwarnings("ignore:The data have other genes")
def test_row54_imputed_totals_are_those_of_all_genes(blood, panel):
    genes = blood.var["highly_variable"].to_numpy()
    right = panel.X.sum()
    whole = bf.tl.impute(blood, copy=True).layers["imputed"][:, genes]
    part = bf.tl.impute(panel, model=blood, copy=True).layers["imputed"]
    assert part.sum() == pytest.approx(right, rel=0.05)
    assert part.sum() == pytest.approx(whole.sum(), rel=0.02)


@pytest.mark.fault(54)
@pytest.mark.filterwarnings("ignore:The data have other genes")
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_row54_masked_values_are_filled_at_the_right_depth(share, blood, panel):
    mask = np.random.default_rng(0).random(panel.shape) < share
    filled = bf.tl.impute(panel, model=blood, mask=mask, copy=True).layers["imputed"]
    assert filled[mask].mean() == pytest.approx(panel.X.toarray()[mask].mean(), rel=0.06)


@pytest.mark.fault(54)
def test_row54_cells_that_gained_genes_read_as_those_of_the_training_data(blood, panel, tiny_config):
    bf.tl.fit(panel, config=tiny_config, train=TRAIN)
    expected = embedding(panel, panel)
    with pytest.warns(BioformersWarning, match="times the depth expected from the genes of the model"):
        found = embedding(blood, panel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.fault(54)
def test_row54_cells_of_the_same_genes_do_not_depend_on_the_other_cells(blood):
    """T cells have 1.6 times the depth that their modelled genes let expect in the mean cell."""
    chosen = blood[blood.obs["bulk_labels"].astype(str).str.startswith("CD4")].copy()
    np.testing.assert_array_equal(
        open_query(chosen[:, ::-1].copy(), blood).source.read(0, chosen.n_obs).depth, chosen.X.sum(axis=1).A1
    )


@pytest.mark.fault(54)
def test_row54_totals_that_agree_are_corrected_for_absent_genes(blood):
    model = bf.get.model(blood)
    lost = model.vocabulary.feature_names()[int(np.argmax(model.depth_share))]
    query = blood[:, blood.var_names != lost].copy()
    assert "149 of the model's 150 genes" in only_warning(query, model)
    with pytest.warns(BioformersWarning):
        depth = open_query(query, model).source.read(0, 400).depth
    assert depth.sum() == pytest.approx(blood.X.sum(), rel=0.01)
    assert query.X.sum() < 0.98 * blood.X.sum()


@pytest.mark.fault(54, "memory-backed-zarr")
@pytest.mark.filterwarnings("ignore:The data have other genes")
def test_row54_backed_data_have_the_same_depth(blood, panel, tmp_path):
    panel.write_h5ad(tmp_path / "panel.h5ad")
    opened = ad.read_h5ad(tmp_path / "panel.h5ad", backed="r")
    sources = [open_query(each, blood).source for each in (panel, opened)]
    expected = sources[0].read(0, 400).depth
    for size in (37, 400):
        np.testing.assert_array_equal(np.concatenate([block.depth for block in sources[1].blocks(size)]), expected)
    opened.file.close()


@pytest.mark.fault(54)
def test_the_model_stores_the_share_of_the_depth(blood, panel):
    model = bf.get.model(blood)
    kept = np.isin(panel.var_names, model.vocabulary.feature_names())
    assert kept.all()
    # a tenth of the cells is for validation
    np.testing.assert_allclose(model.depth_share, panel.X.sum(axis=0).A1 / blood.X.sum(), rtol=0.5, atol=1e-3)
    assert model.depth_share.sum() == pytest.approx(panel.X.sum() / blood.X.sum(), rel=0.03)
    assert bf.BioFormer.from_bytes(model.to_bytes()).depth_share.tolist() == model.depth_share.tolist()


# batch


@pytest.fixture(scope="module")
def donors(tiny_config) -> ad.AnnData:
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_batches=2, rng=3)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    bf.tl.fit(adata, config=tiny_config, train=TRAIN, batch_key="batch")
    return adata


@pytest.mark.fault(33, 34, 77)
def test_row77_unseen_and_missing_batches_read_as_the_average_one(donors, caplog):
    absent, unseen = donors.copy(), donors.copy()
    del absent.obs["batch"]
    unseen.obs["batch"] = [None, "d9"] * 30
    with caplog.at_level(logging.INFO):
        found = embedding(absent, donors)
        assert "no column 'batch'" in caplog.text
        assert "All cells are read as cells of the average batch" in caplog.text
        caplog.clear()
        assert np.array_equal(embedding(unseen, donors), found)
        assert "60 of 60 cells are read as cells of the average batch" in caplog.text
        assert "30 of them have no value and 30 have one that the model has not seen: ['d9']" in caplog.text
    # one cell alone, and the cells of known batches, do not change
    assert np.abs(embedding(absent[7].copy(), donors) - found[7]).max() < 1e-5
    mixed = donors.copy()
    mixed.obs.loc[mixed.obs_names[:10], "batch"] = "d9"
    expected = np.concatenate([found[:10], embedding(donors, donors)[10:]])
    np.testing.assert_allclose(embedding(mixed, donors), expected, rtol=0, atol=1e-5)
    assert np.abs(found - embedding(donors, donors)).max() > 1e-3


@pytest.mark.fault(33, 34, 77)
def test_row77_impute_and_grn_of_an_unseen_donor(donors):
    query = donors.copy()
    query.obs["batch"] = pd.Categorical(["d9"] * 60)
    bf.tl.impute(query, model=donors)
    bf.tl.grn(query, model=donors, regulators=list(query.var_names[:5]))
    expected = donors.copy()
    del expected.obs["batch"]
    bf.tl.impute(expected, model=donors)
    bf.tl.grn(expected, model=donors, regulators=list(query.var_names[:5]))
    np.testing.assert_array_equal(query.layers["imputed"], expected.layers["imputed"])
    assert (query.varp["grn"] != expected.varp["grn"]).nnz == 0
    assert np.isfinite(query.layers["imputed"]).all()


@pytest.mark.fault(32, 33, 34)
def test_a_phenotype_that_is_missing_or_unseen_is_read_as_not_known(simulated, tiny_config, caplog):
    bf.tl.fit(simulated, config=tiny_config, train=TRAIN, phenotype_keys=["cell_type"])

    def embed(**changed):
        query = simulated.copy()
        query.obs = query.obs.drop(columns="cell_type").assign(**changed)
        caplog.clear()
        bf.tl.embed(query, model=simulated)
        return query.obsm["X_bioformer"], caplog.text

    without, said = embed()
    assert "adata.obs has no column 'cell_type', a phenotype of the model. It is read as not known." in said
    for values, numbers in ((["new"] * 60, "0 have no value and 60 have one"), ([None] * 60, "60 have no value and 0")):
        found, said = embed(cell_type=values)
        np.testing.assert_array_equal(found, without)
        assert "read as not known in 60 of 60 cells" in said and numbers in said
    known = simulated.obs["cell_type"].astype(object).copy()
    whole, said = embed(cell_type=known)
    assert "not known" not in said
    known.iloc[:3] = np.nan
    some, _ = embed(cell_type=known)
    np.testing.assert_allclose(some[:3], without[:3], atol=1e-5)
    np.testing.assert_allclose(some[3:], whole[3:], atol=1e-5)
    assert np.abs(whole - without).max() > 1e-3


@pytest.mark.fault(73)
def test_row73_a_batch_column_with_one_category_changes_nothing(simulated, fitted, tiny_config):
    simulated.obs["one"] = pd.Categorical(["x"] * 60, ["x", "unused"])
    bf.tl.fit(simulated, config=tiny_config, train=bf.TrainConfig(max_steps=3, batch_size=16), batch_key="one")
    assert bf.get.model(simulated).hash == bf.get.model(fitted).hash
    bf.tl.embed(simulated[:, ::-1].copy(), model=simulated)


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([f"c{i}" for i in range(60)], r"60 of the 60 categories .*'lane'\] have one cell", id="each_cell"),
        pytest.param(["a"] * 30 + ["b"] * 29 + ["c"], r"1 of the 3 categories .* such as \['c'\]", id="one_cell"),
    ],
)
@pytest.mark.parametrize("role", ["batch_key", "phenotype_keys"])
def test_row73_categories_of_one_cell(labels, message, role, simulated, tiny_config):
    simulated.obs["lane"] = labels
    with pytest.warns(BioformersWarning, match=message) as caught:
        bf.tl.fit(simulated, config=tiny_config, train=TRAIN, **{role: "lane"})
    assert len(caught) == 1


# scale


@pytest.fixture(scope="module")
def scales(tiny_config) -> ad.AnnData:
    """Counts in X, and layers on other scales."""
    adata = bf.datasets.simulate(60, 40, n_regulators=5, n_types=3, rng=0)
    x = np.asarray(adata.X.todense()) if sp.issparse(adata.X) else adata.X
    scaled = 1000 * x / x.sum(axis=1, keepdims=True)
    log = np.log1p(scaled)
    layers = {"log1p": log, "normalized": scaled, "centered": (log - log.mean(axis=0)) / (log.std(axis=0) + 0.1)}
    adata.layers.update({key: value.astype(np.float32) for key, value in layers.items()})
    for key in layers:
        bf.tl.fit(adata, layer=key, binning="segment", config=tiny_config, train=TRAIN, key_added=f"of_{key}")
    return adata


WORDS = {"counts": "has counts", "log1p": "values on a log scale", "centered": r"centred values \(some are negative\)"}


@pytest.mark.fault(63)
@pytest.mark.parametrize(
    ("fitted_to", "read"), [("log1p", "centered"), ("centered", "log1p"), ("log1p", "counts"), ("centered", "counts")]
)
def test_row63_the_scale_of_a_segment_model_is_part_of_the_model(fitted_to, read, scales):
    model = bf.get.model(scales, key=f"of_{fitted_to}")
    assert model.reading.scale == fitted_to
    query = ad.AnnData(scales.X.copy() if read == "counts" else scales.layers[read].copy(), var=scales.var)
    with pytest.raises(DataError, match=f"adata.X (has )?{WORDS[read]}.* fitted to {WORDS[fitted_to]}.*fit a model"):
        bf.tl.embed(query, model=model)
    # a layer with the right scale is named, and reading it works
    query.layers["other"] = scales.layers[fitted_to]
    with pytest.raises(DataError, match="pass `layer='other'`"):
        bf.tl.embed(query, model=model)
    assert np.array_equal(embedding(query, model, layer="other"), embedding(scales, model))


@pytest.mark.fault(63)
def test_row63_normalised_values_with_and_without_log_have_the_same_ranks(scales):
    model = bf.get.model(scales, key="of_log1p")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = embedding(scales, model, layer="log1p")
    with pytest.warns(BioformersWarning, match="only uses the ranks"):
        found = embedding(scales, model, layer="normalized")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.fault(63, 54)
def test_row63_values_that_are_not_counts_have_no_depth(scales):
    """So genes that are lost or gained cannot change it."""
    model = bf.get.model(scales, key="of_log1p")
    extra = ad.AnnData(np.full((60, 1), 9.5, np.float32), obs=scales.obs[[]], var=pd.DataFrame(index=["extra"]))
    query = ad.concat([ad.AnnData(scales.layers["log1p"], scales.obs[[]], scales.var[[]]), extra], axis=1)
    assert np.array_equal(embedding(query, model), embedding(scales, model))
    assert bf.get.model(scales, key="of_centered").depth_share.tolist() == pytest.approx([1 / 40] * 40)


@pytest.mark.fault(62, 63)
def test_row63_advice_names_x_and_no_result_of_ours(scales):
    model = bf.get.model(scales, key="of_log1p")
    query = ad.AnnData(scales.layers["log1p"], layers={"z": scales.layers["centered"]}, var=scales.var)
    with pytest.raises(DataError, match=r"pass `layer='X'`"):
        bf.tl.embed(query, model=model, layer="z")
    assert np.array_equal(embedding(query, model, layer="X"), embedding(scales, model))
    query = ad.AnnData(scales.X, layers={"imputed": scales.layers["log1p"]}, var=scales.var)
    with pytest.raises(DataError, match=r"has counts, .* Pass a layer with the same kind of values"):
        bf.tl.embed(query, model=model)
