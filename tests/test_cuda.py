"""The same fit and the same results on a GPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

import scbioformers as bf

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TRAIN = bf.TrainConfig(max_epochs=2, batch_size=16)
SMALL = bf.ModelConfig(width=32, n_layers=2, n_heads=2)
SCREEN = ["TF1", "TF2", "TF3", "TF4", "TF5", "TF1+TF2"]


def _cells():
    return bf.datasets.simulate(210, 40, n_regulators=8, n_batches=2, perturbations=SCREEN, rng=1)


def _fit(device):
    adata = _cells()
    task = bf.Perturbation(key="perturbation", control="control")
    bf.tl.fit(adata, task=task, batch_key="batch", config=SMALL, train=TRAIN, device=device)
    return adata


@pytest.fixture(scope="module")
def on_gpu():
    return _fit("cuda")


@pytest.fixture(scope="module")
def on_cpu():
    return _fit("cpu")


def _results(adata, device):
    """Results of all verbs on a copy."""
    adata, found = adata.copy(), {}
    factors = [f"TF{i}" for i in range(1, 9)]
    for use in ("profile", "cls", "latent", "mean"):
        bf.tl.embed(adata, use=use, device=device)
        found[use] = adata.obsm["X_bioformer"]
    bf.tl.impute(adata, device=device)
    found["imputed"] = np.asarray(adata.to_df("imputed"))
    for method in ("embedding", "knockout", "attention"):
        bf.tl.grn(adata, method=method, regulators=factors, device=device)
        found[method] = adata.varp["grn"].toarray()
    bf.tl.perturb(adata, ["TF6", "TF1+TF3"], device=device)
    found["effect"] = np.asarray(adata.varm["perturb_effect"])
    bf.tl.gene_programs(adata, device=device)
    return found


def test_a_model_gives_the_same_results_on_both_devices(on_cpu):
    expected, found = _results(on_cpu, "cpu"), _results(on_cpu, "cuda")
    for name, values in expected.items():
        scale = np.nanstd(values)
        np.testing.assert_allclose(found[name], values, atol=2e-3 * scale, rtol=2e-3, err_msg=name)


def test_a_seed_gives_the_same_bits_twice(on_gpu):
    again = _fit("cuda")
    assert bf.get.model(again).hash == bf.get.model(on_gpu).hash
    first, second = _results(on_gpu, "cuda"), _results(again, "cuda")
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=name)


def test_fits_of_both_devices_agree(on_cpu, on_gpu):
    """The random numbers are counter-based, so both devices see the same masks; only rounding differs."""
    losses = [bf.get.history(adata)["val_loss"].to_numpy() for adata in (on_cpu, on_gpu)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_a_model_of_a_gpu_is_stored_without_it(on_gpu, tmp_path):
    model = bf.get.model(on_gpu)
    assert {p.device.type for network in model.members for p in network.parameters()} == {"cpu"}
    assert bf.BioFormer.load(model.save(tmp_path / "model")).hash == model.hash


def test_an_embedding_does_not_depend_on_the_batch_size(on_cpu):
    found = [
        bf.tl.embed(on_cpu, device="cuda", batch_size=size, copy=True).obsm["X_bioformer"] for size in (7, 64, 128)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5 * np.abs(found[0]).max())


def test_half_precision_trains_as_well():
    losses = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        adata = _cells()
        train = bf.TrainConfig(max_epochs=2, batch_size=16, precision=precision)
        bf.tl.fit(adata, batch_key="batch", config=SMALL, train=train, device="cuda")
        losses[precision] = bf.get.history(adata)["val_loss"].to_numpy()[-1]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert losses["16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
