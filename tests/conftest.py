"""Settings of the session, and small inputs that several test files share."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import settings
from lightning.fabric.utilities import registry

import scbioformers as bf
from scbioformers.config import Binning, Masking, ModelConfig
from scbioformers.core import N_DEPTHS, SPECIALS, DepthModel, DepthModels, LowRankProfile
from scbioformers.data import Block
from scbioformers.nn import N_SMALL_COUNTS, Batch, InitialValues, Sizes, Transformer, initialise
from scbioformers.nn import make_network as network_of
from scbioformers.tasks.perturbation import _token
from scbioformers.tokens import Tokenizer
from scbioformers.training._depth import fit_depth_models

settings.register_profile("same examples in every run", derandomize=True)  # a failure is never bad luck
settings.load_profile("same examples in every run")
bf.settings.progress_bar = False
# 11 trainings of 60 steps take most of the time of a fit with perturbations; one test asks what they learn
N_TOKEN_STEPS, _token.STEPS = _token.STEPS, 3
registry.entry_points = cache(registry.entry_points)  # each trainer would read the metadata of all packages again
bf.settings.autoshow = False  # figures return their axes
FIRST = len(SPECIALS)  # vocabulary id of the first feature
TINY = ModelConfig(width=16, n_layers=1, n_heads=2, n_latent=8, n_components=8)


@pytest.fixture(autouse=True)
def _one_thread():
    """Before each test: numba, which scanpy calls, changes the number that torch shares with it."""
    torch.set_num_threads(1)


@pytest.fixture
def all_token_steps(monkeypatch):
    """Train the external token with as many steps as users do."""
    monkeypatch.setattr(_token, "STEPS", N_TOKEN_STEPS)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return TINY


@pytest.fixture(scope="session")
def _simulated_once() -> ad.AnnData:
    return bf.datasets.simulate(n_cells=60, n_genes=40, n_regulators=5, n_types=3, n_batches=2, rng=0)


@pytest.fixture(scope="session")
def _fitted_once(_simulated_once) -> ad.AnnData:
    train = bf.TrainConfig(max_steps=3, batch_size=16)
    return bf.tl.fit(_simulated_once, config=TINY, train=train, copy=True)


@pytest.fixture
def simulated(_simulated_once) -> ad.AnnData:
    """60 cells x 40 genes of counts, with obs["cell_type"] and obs["batch"]; a copy that the test may change."""
    return _simulated_once.copy()


@pytest.fixture
def fitted(_fitted_once) -> ad.AnnData:
    """`simulated` with a tiny model of 3 steps in uns["bioformer"], fitted once in the session; a copy."""
    return _fitted_once.copy()


@pytest.fixture(scope="session")
def ensemble() -> bf.BioFormer:
    """Two tiny networks that were told the batch, fitted once in the session; nobody may change them."""
    adata = bf.datasets.simulate(60, 30, n_regulators=5, n_batches=2, rng=3)
    config = bf.ModelConfig(width=16, n_layers=1, n_heads=2)
    train = bf.TrainConfig(max_steps=2)
    bf.tl.fit(adata, config=config, batch_key="batch", n_models=2, train=train)
    return bf.get.model(adata)


@pytest.fixture
def directory(ensemble, tmp_path) -> Path:
    """`ensemble`, saved for this test alone."""
    return ensemble.save(tmp_path / "saved")


@pytest.fixture(scope="session")
def make_block() -> Callable[..., Block]:
    """Random counts of cells that differ in depth and number of expressed genes."""

    def make(n_cells=12, n_features=60, *, unmodelled=0.3, log=False, empty=(), n_fields=0, seed=0) -> Block:
        random = np.random.default_rng(seed)
        rate = random.gamma(0.4, 3.0, size=n_features) * random.uniform(0.5, 3.0, size=(n_cells, 1))
        x = random.poisson(rate).astype(np.float32)
        x[list(empty)] = 0
        if log:
            x = np.round(64 * np.log1p(x)) / 64  # sums of such values are exact, whatever their order
        total = x.sum(axis=1, dtype=np.float64)
        depth = total + (0 if log else np.round(unmodelled * total))
        fields = random.integers(0, 2, size=(n_cells, n_fields)).astype(np.int32)
        return Block(0, sp.csr_matrix(x), depth, fields)

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Tokenizer]:
    """A tokenizer frozen on a block. `depth` replaces the estimates of the depth that are fitted to its cells."""

    def make(block: Block, *, kind="value", masking=None, counts=True, depth=None, **kwargs) -> Tokenizer:
        filled = block.take(np.flatnonzero(np.diff(block.counts.indptr)))
        mean_depth, masking = float(filled.depth.mean()), masking or Masking()
        binning = Binning(kind=kind, n_bins=10).freeze(mean_depth=mean_depth, max_bin=18)
        if counts and depth is None:
            depth = fit_depth_models([filled], masking, mean_depth, seed=0)
        return Tokenizer(binning, block.counts.shape[1], masking, depth, counts=counts, **kwargs)

    return make


@pytest.fixture(scope="session")
def make_depth_models() -> Callable[..., DepthModels]:
    """Estimates of the depth that are known by hand: every cell is expected to be the mean cell, without spread."""

    def make(shares, drawn=(0, 1, 0, 0, 0, 0), natural=(1, 0)) -> DepthModels:
        shares = np.array(shares, np.float32)
        profile = LowRankProfile(10.0, np.ones_like(shares), np.zeros((len(shares), 0), np.float32), 1.0)
        models = [
            DepthModel(
                profile,
                share=shares.copy(),
                variance=np.ones_like(shares),
                weights=np.array(weights, np.float32),
                spread=np.zeros(2, np.float32),
                quantiles=np.zeros(N_DEPTHS, np.float32),
            )
            for weights in (drawn, natural)
        ]
        return DepthModels(*models)

    return make


@pytest.fixture(scope="session")
def slow_depth() -> Callable[..., tuple[float, list[float]]]:
    """One cell: its estimated depth and the equally likely ones, from the definition with plain sums and matrices."""

    def expected_ratios(profile: LowRankProfile, counts, depth, masked, absent) -> list[float]:
        """The posterior of probabilistic PCA given the visible features, in the form with one row per feature."""
        mean, loadings = profile.mean.astype(float), profile.loadings.astype(float)
        seen = [j for j in range(len(mean)) if j not in masked and j not in absent]
        scale = profile.mean_depth / depth if depth > 0 else 0.0
        y = np.array([math.log1p(counts.get(j, 0.0) * scale) - mean[j] for j in seen])
        covariance = loadings[seen] @ loadings[seen].T + profile.noise * np.eye(len(seen))
        scores = loadings[seen].T @ np.linalg.solve(covariance, y)
        ratios = []
        for j in masked:
            usual, level = math.expm1(mean[j]), math.expm1(min(mean[j] + loadings[j] @ scores, 20.0))
            ratios.append(min(max((level + 0.3 * usual) / max(1.3 * usual, 1e-12), 0.1), 5.0))
        return ratios

    def estimate(model: DepthModel, counts, depth, masked, absent=()) -> tuple[float, list[float]]:
        """`counts` {feature: count} of what is visible, `depth` its part of the depth."""
        masked = sorted(set(masked) - set(absent))
        share, variance = ([float(x[j]) for j in masked] for x in (model.share, model.variance))
        weights, (intercept, slope) = model.weights.astype(float), model.spread.astype(float)
        rough = depth / (1.0 - min(sum(share), 0.9))
        ratios = expected_ratios(model.profile, counts, rough, masked, absent)
        terms = [sum(share), sum(s * r for s, r in zip(share, ratios, strict=True))]
        if len(weights) == 2:
            log_ratio = -math.log(1.0 - min(max(weights @ terms, 0.0), 0.999))
        else:
            log_ratio = weights @ [1.0, *terms, *(math.log1p(n) for n in (len(masked), depth, len(counts)))]
            log_ratio = min(max(log_ratio, 0.0), 7.0)
        size = min(math.exp(intercept + slope * math.log(math.sqrt(max(sum(variance), 1e-30)))), 1.0) if masked else 0.0
        errors = [log_ratio + size * q for q in model.quantiles.astype(float)]
        return depth * math.exp(log_ratio), [depth * math.exp(min(max(error, 0.0), 7.0)) for error in errors]

    return estimate


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Transformer]:
    """An initialised network of `sizes`, in evaluation mode, on made-up data statistics."""

    def make(config: ModelConfig = TINY, sizes: Sizes | None = None, *, seed=0) -> Transformer:
        sizes = sizes or Sizes(n_features=30, n_values=12)
        with torch.random.fork_rng():
            network = network_of(config, sizes)
        initialise(network, _initial_values(sizes), seed)
        return network.eval()

    return make


def _initial_values(sizes: Sizes, n_components: int = 5) -> InitialValues:
    random = np.random.default_rng(3)
    n_features = sizes.n_features
    components = np.linalg.qr(random.normal(size=(n_features, n_components)))[0]
    bins = random.dirichlet(np.ones(sizes.n_values + sizes.n_small_counts), size=n_features)
    batch_rate = np.random.default_rng(4).normal(scale=0.3, size=(sizes.n_batches, n_features))
    arrays = {
        "components": components,
        "profile_mean": random.uniform(0.1, 1.0, size=n_features),
        "component_scale": np.linspace(3.0, 1.0, n_components),
        "rate": random.normal(size=n_features),
        "log_dispersion": random.normal(size=n_features),
        "batch_shift": random.normal(scale=0.3, size=(sizes.n_batches, n_features)),
        "batch_rate": batch_rate - batch_rate.mean(axis=0, keepdims=True) if sizes.n_batches else batch_rate,
        "log_bins": np.log(np.maximum(bins, 1e-3)),
    }
    return InitialValues(**{name: array.astype(np.float32) for name, array in arrays.items()})


@pytest.fixture(scope="session")
def make_start() -> Callable[..., InitialValues]:
    """The made-up statistics that `make_network` starts from."""
    return _initial_values


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """A random token batch of cells of unequal length, padded, for a network of `sizes`."""

    def make(n_cells=5, n_context=9, n_masked=4, sizes: Sizes | None = None, *, full=False, seed=0) -> Batch:
        sizes = sizes or Sizes(n_features=30, n_values=12)
        random = np.random.default_rng(seed)
        ids = FIRST + random.permuted(np.tile(np.arange(sizes.n_features), (n_cells, 1)), axis=1)
        context, masked = ids[:, :n_context], ids[:, n_context : n_context + n_masked]
        bins = random.integers(1, sizes.n_values, size=context.shape)
        target = random.integers(0, sizes.n_values, size=masked.shape)
        if not full:
            # cell 0 keeps its full length, so that no column is padding alone
            short = np.arange(n_context) >= random.integers(1, n_context + 1, size=(n_cells, 1))
            short[0] = False
            context, bins = np.where(short, 0, context), np.where(short, 0, bins)
            short = np.arange(n_masked) >= random.integers(1, n_masked + 1, size=(n_cells, 1))
            short[0] = False
            masked, target = np.where(short, 0, masked), np.where(short, -1, target)
        visible = np.zeros((n_cells, FIRST + sizes.n_features), np.float32)
        np.put_along_axis(visible, context, np.log1p(bins).astype(np.float32), axis=1)
        known = np.ones(visible.shape, bool)
        np.put_along_axis(known, masked, False, axis=1)
        counts = random.poisson(random.gamma(0.5, 2.0, size=(n_cells, sizes.n_features))).astype(np.float32)
        size_factor = random.uniform(0.5, 2.0, size=n_cells).astype(np.float32)
        batch = random.integers(0, max(sizes.n_batches, 1), size=n_cells)
        phenotypes = random.integers(0, sizes.phenotype_sizes, size=(n_cells, len(sizes.phenotype_sizes)))
        arrays = {
            "rows": np.arange(n_cells),
            "context_ids": context,
            "context_bins": bins,
            "masked_ids": masked,
            "visible": visible[:, FIRST:],
            "known": known[:, FIRST:],
            "present": np.ones(counts.shape, bool),
            "log_depth": np.log(size_factor),
            "small_count_bins": random.dirichlet(np.full(sizes.n_values, 0.2), (n_cells, N_SMALL_COUNTS)).astype("f4"),
            "batch_codes": batch.astype(np.int64),
            "phenotypes": phenotypes.astype(np.float32),
            "target_phenotypes": np.full(phenotypes.shape, np.nan, np.float32),
            "target_bins": target,
            "target_counts": counts,
            "size_factor": size_factor,
        }
        return Batch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    return make
