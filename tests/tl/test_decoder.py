"""Decoder models: the same calls as with an encoder, and what they do not depend on."""

import anndata as ad
import numpy as np
import pytest

import scbioformers as bf
from scbioformers.core import ConfigError
from scbioformers.data import AnnDataSource
from scbioformers.model import run_network
from scbioformers.results import open_query

CONFIG = bf.ModelConfig(architecture="decoder", width=16, n_layers=2, n_heads=2, n_latent=8, n_components=8)


@pytest.fixture(scope="module")
def fitted_once() -> ad.AnnData:
    adata = bf.datasets.simulate(n_cells=80, n_genes=40, n_batches=2, n_conditions=2, rng=0)
    train = bf.TrainConfig(max_steps=4, batch_size=16)
    bf.tl.fit(adata, config=CONFIG, batch_key="batch", phenotype_keys="condition", n_models=2, train=train)
    return adata


@pytest.fixture
def adata(fitted_once) -> ad.AnnData:
    return fitted_once.copy()


def results(adata, **options):
    """Embedding, imputed and denoised values."""
    bf.tl.embed(adata, **options)
    bf.tl.impute(adata, **options)
    bf.tl.impute(adata, method="denoise", key_added="denoised", **options)
    return {"embedding": adata.obsm["X_bioformer"], **{name: adata.layers[name] for name in ("imputed", "denoised")}}


def test_a_decoder_is_fitted_stored_and_read_back(adata, tmp_path):
    model = bf.get.model(adata)
    assert model.config == CONFIG
    loaded = bf.BioFormer.load(model.save(tmp_path / "saved"))
    assert loaded.config == CONFIG
    assert loaded.hash == model.hash
    other = adata.copy()
    del other.uns["bioformer"]
    ours, theirs = results(adata), results(other, model=loaded)
    for name, value in ours.items():
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(theirs[name], value)
    assert adata.obsm["X_bioformer"].std(axis=0).min() > 0


def test_results_depend_neither_on_the_batch_size_nor_on_the_order_of_genes_and_cells(adata):
    whole = results(adata)
    for name, value in results(adata.copy(), batch_size=7).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-5, err_msg=name)
    genes = np.random.default_rng(0).permutation(adata.n_vars)
    permuted = adata[:, genes].copy()
    for name, value in results(permuted, model=bf.get.model(adata)).items():
        expected = whole[name] if name == "embedding" else whole[name][:, genes]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    cells = np.random.default_rng(0).permutation(adata.n_obs)[:30]
    some = adata[cells].copy()
    for name, value in results(some, model=bf.get.model(adata)).items():
        np.testing.assert_allclose(value, whole[name][cells], rtol=1e-5, atol=1e-5, err_msg=name)


def test_other_verbs_take_a_decoder(adata):
    bf.tl.annotate(adata, "cell_type")
    assert adata.obs["bioformer_cell_type"].notna().all()
    bf.tl.annotate(adata, "condition")
    assert set(adata.obs["bioformer_condition"].dropna()) <= {"condition_1", "condition_2"}
    bf.tl.counterfactual(adata, {"condition": "condition_2"})
    assert np.isfinite(adata.varm["counterfactual_effect"].to_numpy()).all()
    for method in ("attention", "embedding", "knockout"):
        bf.tl.grn(adata, method=method)
        assert bf.get.grn(adata)["weight"].notna().any()


def test_a_network_by_attention_counts_each_pair_in_every_cell_that_has_both(adata):
    """Each order is used from both ends, so no pair is left out, whichever comes first."""
    bf.tl.grn(adata, method="attention", min_count=1)
    expressed = (adata.X > 0).astype(int)
    together = np.asarray((expressed.T @ expressed).todense())
    np.fill_diagonal(together, 0)
    np.testing.assert_array_equal(adata.varp["grn_count"].toarray(), together)


def test_zero_steps_of_fine_tuning_leave_a_decoder_as_it_is(adata):
    before = results(adata)
    train = bf.TrainConfig(max_steps=0)
    named = {"batch_key": "batch", "phenotype_keys": "condition"}
    bf.tl.fit(adata, model=adata.copy(), train=train, mask_var=None, **named)
    for name, value in results(adata).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_new_genes_change_nothing_where_they_are_not_measured(adata):
    """Within 1e-5, as with an encoder. The depth of the cells is the total that it was."""
    model = bf.get.model(adata)
    more = bf.datasets.simulate(n_cells=80, n_genes=50, n_batches=2, n_conditions=2, rng=0)
    train = bf.TrainConfig(max_steps=0)
    bf.tl.fit(more, model=model, train=train, mask_var=None, batch_key="batch", phenotype_keys="condition")
    extended = bf.get.model(more)
    assert len(extended.vocabulary) == 50
    block = open_query(adata, model).source.read(0, adata.n_obs)
    columns = np.concatenate([np.arange(40), np.full(10, -1)])
    lacking = AnnDataSource(adata, columns=columns, fields=block.fields).read(0, adata.n_obs)
    for network, other in zip(model.members, extended.members, strict=True):
        (batch, found), (wider, after) = (
            next(run_network(who, member, [cells], 100))
            for who, member, cells in ((model, network, block), (extended, other, lacking))
        )
        np.testing.assert_array_equal(batch.rows, wider.rows)
        np.testing.assert_allclose(after.latent, found.latent, atol=1e-5)
        np.testing.assert_allclose(after.log_rate[:, :40], found.log_rate, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(adata):
    named = {"batch_key": "batch", "phenotype_keys": "condition", "n_models": 2}
    train = bf.TrainConfig(max_steps=4, batch_size=16)
    again = bf.tl.fit(adata, config=CONFIG, train=train, copy=True, **named)
    assert bf.get.model(again).hash == bf.get.model(adata).hash
    other = bf.tl.fit(adata, config=CONFIG, train=train, rng=1, copy=True, **named)
    assert bf.get.model(other).hash != bf.get.model(adata).hash


def test_an_encoder_is_stored_without_the_name_of_its_architecture():
    """So that former versions read it, and its hash stays."""
    assert "architecture" not in bf.ModelConfig().to_dict()
    assert bf.ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert bf.ModelConfig.preset("decoder") == bf.ModelConfig.decoder() == bf.ModelConfig(architecture="decoder")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param({"binning": "segment"}, "binning='segment'", id="segment-bins"),
        pytest.param({"task": bf.Perturbation("perturbation", control="control")}, "`task`, a Perturbation", id="task"),
    ],
)
def test_what_a_decoder_cannot_read_names_the_encoder(simulated, change, found):
    with pytest.raises(ConfigError, match="found " + found.replace(".", "[.]")) as error:
        bf.tl.fit(simulated, config="decoder", **change)
    assert "config=bf.ModelConfig(architecture='encoder')" in str(error.value)
    assert "bioformer" not in simulated.uns


def test_several_modalities_name_the_encoder():
    mdata = bf.datasets.simulate(n_cells=30, n_genes=20, n_regulators=5, n_proteins=5)
    with pytest.raises(ConfigError, match=r"found a MuData.*architecture='encoder'"):
        bf.tl.fit(mdata, config=CONFIG)


@pytest.mark.parametrize("change", [{"tokens": "all"}, {"attend_masked": True}], ids=["all-tokens", "attend-masked"])
def test_a_decoder_without_zeros_and_masked_keys(change):
    with pytest.raises(ConfigError, match="reads only expressed features, but"):
        bf.ModelConfig(architecture="decoder", **change)
