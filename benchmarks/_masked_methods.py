"""Methods that predict masked expression: our model and its variants, scVI, and the baselines of the package."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

import scbioformers as bf
from benchmarks._common import fit_scvi, select_genes, warm_up
from benchmarks._masking import EvenMasking, masked_cells, training_cells
from scbioformers.baselines import MaskedCells, TrainingCells, bin_masses, estimate_depth, fit_depth, zero_odds
from scbioformers.core import SPECIALS, validation_rows
from scbioformers.data import AnnDataSource, Block
from scbioformers.model import predict_masked

LogProbabilities = NDArray[np.float32]

TEST_SHARE = 0.1  # share of held-out cells
EVALUATION_SEED = 99  # seed of the mask of the test cells
NATURAL_DRAWS = 2  # two of these draws mask more positions of a cell than eight draws of the default mask
NATURAL_SEEDS = 1  # number of seeds for baselines under the even mask, because it needs another fit
SCVI_SAMPLES = 14  # posterior samples of each test cell, two for each of its seven equally likely depths
# Variants of our model: changes of the configuration, and the number of training steps (None for the default).
OURS: dict[str, tuple[dict[str, Any], int | None]] = {
    "ours": ({}, None),
    "ours_zero_steps": ({}, 0),
    "ours_no_attention": ({"attention": False}, None),
    "ours_random_init": ({"svd_init": False}, None),
    "ours_ensemble": ({}, None),
}
N_MEMBERS = 3  # members of the ensemble


def read_cells(adata: AnnData) -> Block:
    """Read the counts of the highly variable genes, and the depth over all genes."""
    return AnnDataSource(adata, columns=np.flatnonzero(adata.var["highly_variable"])).read(0, adata.n_obs)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model, with the seconds and the training steps of the fit."""

    model: bf.BioFormer
    seconds: float
    steps: int


def fit_ours(
    adata: AnnData, variant: str, seed: int, train: bf.TrainConfig | None = None, binning: bf.Binning | None = None
) -> Fitted:
    """Fit our model with its default settings and the changes of the variant."""
    changes, max_steps = OURS[variant]
    config = replace(bf.ModelConfig.preset("small"), **changes)
    train = train or bf.TrainConfig()
    if max_steps is not None:
        train = replace(train, max_steps=max_steps)
    warm_up()
    start = time.perf_counter()
    n_models = N_MEMBERS if variant == "ours_ensemble" else 1
    binning = binning or bf.Binning()
    fitted = bf.tl.fit(
        adata,
        config=config,
        train=train,
        binning=binning,
        n_models=n_models,
        rng=seed,
        progress_bar=False,
        copy=True,
    )
    seconds = time.perf_counter() - start
    history = bf.get.history(fitted)
    return Fitted(bf.get.model(fitted), seconds, int(history["step"].max()) if len(history) else 0)


def predict_ours(model: bf.BioFormer, cells: Block, masked: MaskedCells, *, natural: bool = False) -> LogProbabilities:
    """Return log probabilities in the order of the masked entries, which are sorted by cell and gene."""
    n, n_features = cells.counts.shape
    starts = np.searchsorted(masked.cells, np.arange(n + 1))
    mask = csr_matrix((np.ones(masked.cells.size, bool), masked.genes, starts), shape=(n, n_features))
    p = np.full((masked.cells.size, model.binnings["rna"].n_values), np.nan, np.float32)
    for batch, probabilities in predict_masked(model, cells, mask, 64, natural=natural):
        ids = batch.masked_ids.numpy()
        cell, at = np.nonzero(ids)
        position = starts[batch.rows.numpy()[cell]] + at
        if not np.array_equal(masked.genes[position], ids[cell, at] - len(SPECIALS)):
            raise RuntimeError("The predictions of the model are not in the order of the masked entries.")
        p[position] = probabilities[cell, at]
    return np.log(np.maximum(p, np.finfo(np.float32).tiny))


@dataclass(frozen=True, eq=False)
class Problem:
    """Training and test cells of one seed, and their masks."""

    train: AnnData
    """All genes. ``var["highly_variable"]`` marks the modelled genes."""
    test: AnnData
    train_rows: NDArray[np.int64]
    """Row number of each training cell in the data set. The masks depend on it."""
    test_rows: NDArray[np.int64]
    """Row number of each test cell in the data set."""
    seed: int
    masking: bf.Masking
    binning_rule: bf.Binning
    _models: dict[str, Fitted] = field(default_factory=dict)

    @classmethod
    def make(
        cls, adata: AnnData, seed: int, masking: bf.Masking | None = None, binning: bf.Binning | None = None
    ) -> Problem:
        """Hold out a tenth of the cells, and select the genes on the other cells."""
        held_out = validation_rows(adata.n_obs, TEST_SHARE, seed)
        train, test = adata[~held_out].copy(), adata[held_out].copy()
        select_genes(train)
        test.var["highly_variable"] = train.var["highly_variable"]
        rows = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        return cls(train, test, *rows, seed, masking or bf.Masking(), binning or bf.Binning())

    @property
    def genes(self) -> NDArray[np.int64]:
        """Column numbers of the modelled genes."""
        return np.flatnonzero(self.train.var["highly_variable"])

    @cached_property
    def train_cells(self) -> Block:
        """Counts and depth of the training cells."""
        return read_cells(self.train)

    @cached_property
    def test_cells(self) -> Block:
        """Counts and depth of the test cells."""
        return read_cells(self.test)

    def fitted(self, variant: str) -> Fitted:
        """Return our model. It is fitted once for each variant."""
        if variant not in self._models:
            config = bf.TrainConfig(masking=self.masking)
            self._models[variant] = fit_ours(self.train, variant, self.seed, config, self.binning_rule)
        return self._models[variant]

    @property
    def binning(self) -> bf.Binning:
        """The binning that all methods use. Our model fits it to the training cells without its validation cells."""
        return self.fitted("ours_zero_steps").model.binnings["rna"]

    def mask_test(
        self, masking: bf.Masking | EvenMasking | None = None, binning: bf.Binning | None = None
    ) -> MaskedCells:
        """Return the test cells with the fixed evaluation mask."""
        cells = self.test_cells.counts, self.test_cells.depth, self.test_rows
        return masked_cells(masking or self.masking, binning or self.binning, *cells, seed=EVALUATION_SEED, epoch=0)

    @cached_property
    def training(self) -> TrainingCells:
        """The training cells with masks drawn by the rule of the problem."""
        cells = self.train_cells.counts, self.train_cells.depth, self.train_rows
        return training_cells(self.masking, self.binning, *cells, seed=self.seed)

    @cached_property
    def natural_training(self) -> TrainingCells:
        """The training cells with masks that mask every position with the same probability."""
        cells = self.train_cells.counts, self.train_cells.depth, self.train_rows
        return training_cells(EvenMasking(), self.binning, *cells, seed=self.seed, n_draws=NATURAL_DRAWS)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted log probabilities of the bins at the masked entries of the test cells."""

    masked: LogProbabilities
    """With the mask of the problem."""
    natural: LogProbabilities | None
    """With a mask that masks every position with the same probability. Zeros then have their natural odds."""
    fit_seconds: float | None
    """Seconds of the fit. For a baseline, the prediction with the mask of the problem is included."""


def run_ours(problem: Problem, variant: str) -> Prediction:
    """Fit our model with the mask of the problem only. Natural probabilities are corrected by the odds of the mask."""
    fitted, cells = problem.fitted(variant), problem.test_cells
    if fitted.model.binnings["rna"] != problem.binning:
        raise RuntimeError(f"{fitted.model.binnings['rna']} is not the binning of the targets, {problem.binning}.")
    masked = predict_ours(fitted.model, cells, problem.mask_test())
    natural = predict_ours(fitted.model, cells, problem.mask_test(EvenMasking()), natural=True)
    return Prediction(masked, natural, fitted.seconds)


def run_baseline(problem: Problem, predict: Callable[[TrainingCells, MaskedCells], LogProbabilities]) -> Prediction:
    """Fit a baseline for each mask, so that its natural probabilities need no correction."""
    training, test = problem.training, problem.mask_test()
    start = time.perf_counter()
    masked = predict(training, test)
    seconds = time.perf_counter() - start
    natural = None
    if problem.seed < NATURAL_SEEDS:
        natural = predict(problem.natural_training, problem.mask_test(EvenMasking()))
    return Prediction(masked, natural, seconds)


def run_constant(problem: Problem, value: int) -> Prediction:
    """Predict a constant bin. It is not scored with the even mask."""
    return Prediction(bf.metrics.constant_bin(problem.training, problem.mask_test(), value), None, None)


def run_scvi(problem: Problem) -> Prediction:
    """Fit scVI, encode the visible counts, and sum the decoded negative binomial within each bin."""
    warm_up()
    start = time.perf_counter()
    model = fit_scvi(problem.train, problem.seed)
    seconds = time.perf_counter() - start
    var = problem.test.var.iloc[problem.genes]
    masked = predict_scvi(model, var, problem.training, problem.mask_test())
    natural = predict_scvi(model, var, problem.natural_training, problem.mask_test(EvenMasking()))
    return Prediction(masked, natural, seconds)


def predict_scvi(
    model: Any, var: pd.DataFrame, training: TrainingCells, masked: MaskedCells, **obs: str
) -> LogProbabilities:
    """Return the mean over posterior samples. Zeros are reweighted by their odds.

    ``var`` has the modelled genes, and ``obs`` columns with one value for all cells, such as the batch.
    """
    cells = pd.DataFrame(obs, index=np.arange(masked.depth.size).astype(str))
    visible = AnnData(masked.visible, obs=cells, var=var)
    drawn = model.get_normalized_expression(
        visible, library_size=1, n_samples=SCVI_SAMPLES, return_mean=False, return_numpy=True
    )
    dispersion = np.exp(-model.module.px_r.detach().numpy().astype(np.float64))
    _, depths = estimate_depth(fit_depth(training), masked)
    odds = zero_odds(training, masked)
    return sample_log_probabilities(training.binning, drawn, dispersion, depths, odds, masked)


def sample_log_probabilities(
    binning: bf.Binning,
    drawn: NDArray[np.floating],
    dispersion: NDArray[np.float64],
    depths: NDArray[np.float64],
    odds: NDArray[np.float64],
    masked: MaskedCells,
) -> LogProbabilities:
    """Return the (H, V) log probabilities of samples (S, N, M) of the share of each gene in the modelled counts.

    Each sample has one of the equally likely depths (N, D) of the cell, and each depth is used equally often. Zeros are
    multiplied by their odds (N,).
    """
    # The library size of scVI is computed from the modelled genes. All masked counts belong to these genes.
    visible_library = np.asarray(masked.visible.sum(axis=1)).reshape(-1, 1)
    library = visible_library + np.maximum(depths - masked.depth[:, None], 0.0)
    out = np.empty((masked.bins.size, binning.n_values), np.float32)
    for start in range(0, len(out), 4096):
        at = slice(start, start + 4096)
        cells, genes = masked.cells[at], masked.genes[at]
        p = np.zeros((cells.size, out.shape[1]))
        for sample, shares in enumerate(drawn):
            k = sample % depths.shape[1]
            rate = shares[cells, genes] * library[cells, k] / depths[cells, k]
            p += bin_masses(binning, rate, dispersion[genes], depths[cells, k, None])
        p[:, 0] *= odds[cells]
        out[at] = np.log(p / p.sum(axis=1, keepdims=True))
    return out


METHODS: dict[str, Callable[[Problem], Prediction]] = {
    "constant_0": partial(run_constant, value=0),
    "constant_1": partial(run_constant, value=1),
    "histogram": partial(run_baseline, predict=bf.metrics.bin_histogram),
    "negative_binomial": partial(run_baseline, predict=bf.metrics.negative_binomial),
    "knn": partial(run_baseline, predict=bf.metrics.knn_smoothing),
    "low_rank": partial(run_baseline, predict=bf.metrics.low_rank),
    "linear_regression": partial(run_baseline, predict=bf.metrics.linear_regression),
    "logistic": partial(run_baseline, predict=bf.metrics.softmax_regression),
    "scvi": run_scvi,
    **{name: partial(run_ours, variant=name) for name in OURS},
}
