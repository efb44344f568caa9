"""Each kind of data and bins: fitted, stored and loaded, embedded and imputed."""

import numpy as np
import pytest
import scanpy as sc

import scbioformers as bf


def counts(adata):
    return adata


def log1p(adata):
    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    return adata


def centred(adata):
    log1p(adata)
    adata.X = adata.X.toarray()
    sc.pp.scale(adata)
    return adata


@pytest.mark.parametrize(
    ("prepare", "binning", "has_depth", "n_small"),
    [
        pytest.param(counts, "value", True, 8, id="counts"),
        pytest.param(counts, bf.Binning(normalize=False), True, 8, id="counts-not-normalised"),
        pytest.param(counts, "segment", True, 0, id="segments-of-counts"),
        pytest.param(log1p, "segment", False, 0, id="segments-of-log-values"),
        pytest.param(centred, "segment", False, 0, id="segments-of-centred-values"),
    ],
)
def test_a_model_is_stored_and_applied(prepare, binning, has_depth, n_small, simulated, tiny_config, tmp_path):
    adata = prepare(simulated)
    bf.tl.fit(adata, config=tiny_config, train=bf.TrainConfig(max_steps=3, batch_size=16), binning=binning)
    model = bf.get.model(adata)
    assert (model.depth is not None) == has_depth == model.reading.counts
    assert model.members[0].sizes.n_small_counts == n_small
    loaded = bf.BioFormer.load(model.save(tmp_path / "model"))
    assert loaded.hash == model.hash
    assert (loaded.depth is not None) == has_depth
    mask = np.random.default_rng(0).random(adata.shape) < 0.2
    output = "log1p" if n_small else "bins"
    results = []
    for each in (model, loaded):
        embedding = bf.tl.embed(adata, model=each, copy=True).obsm["X_bioformer"]
        imputed = bf.tl.impute(adata, model=each, mask=mask, output=output, copy=True).layers["imputed"]
        assert np.isfinite(embedding).all()
        assert np.isfinite(imputed).all()
        assert len(np.unique(embedding.round(5), axis=0)) == 60
        assert np.ptp(imputed[mask]) > 0
        results.append((embedding.tobytes(), imputed.tobytes()))
    assert results[0] == results[1]
    # what is masked does not change the results
    other = adata.copy()
    x = other.X.toarray() if hasattr(other.X, "toarray") else other.X.copy()
    x[mask] = np.roll(x[mask], 1)
    other.X = x
    assert (x != (adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X)).any()
    found = bf.tl.impute(other, model=model, mask=mask, output=output, copy=True).layers["imputed"]
    assert found.tobytes() == results[0][1]
