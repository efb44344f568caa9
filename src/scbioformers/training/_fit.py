"""Fit of a model to a source of cells."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scbioformers.config import Binning, Masking, ModelConfig, Reading, TrainConfig
from scbioformers.core import DataError, DepthModels, Vocabulary, bin_normalized, uniform, validation_rows
from scbioformers.data import Block, BlockSource, ObsField, Statistics, scan
from scbioformers.model import BioFormer, network_sizes, run_network
from scbioformers.nn import Transformer, initialise
from scbioformers.tokens import Tokenizer
from scbioformers.training._data import TrainingData
from scbioformers.training._depth import fit_depth_models
from scbioformers.training._initial_values import bin_means, compute_initial_values
from scbioformers.training._isolation import isolated
from scbioformers.training._run import run_training
from scbioformers.training._temperature import fit_temperature

logger = logging.getLogger(__name__)

MAX_SAMPLE = 50_000  # maximum number of cells for components and histograms
MAX_DEPTH_COUNTS = 1_500_000  # maximum number of non-zero counts for the estimates of the depth
MAX_AXES_SAMPLE = 10_000  # maximum number of cells for the axes of the embedding
_SPLIT_STREAM, _SAMPLE_STREAM = 0x5B117, 0x5A3B1E
_MAX_EXACT_BIN = 2**15 - 2


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model with its training history."""

    model: BioFormer
    """The fitted model."""
    history: list[list[dict[str, float]]]
    """For each member, one dict of losses per epoch."""


def fit_model(
    source: BlockSource,
    vocabulary: Vocabulary,
    binning: Binning,
    config: ModelConfig,
    train: TrainConfig,
    *,
    batch: ObsField | None = None,
    phenotypes: Sequence[ObsField] = (),
    reading: Reading | None = None,
    n_models: int = 1,
    seed: int = 0,
    device: str = "cpu",
    progress_bar: bool = False,
) -> Fitted:
    """Fit ``n_models`` networks to the cells of ``source``, and the axes of their common embedding.

    Raises
    ------
    DataError
        If no cell has a count in the modelled genes.
    TrainingDiverged
        If the loss became NaN or infinite before the first validation.
    """
    reading = reading or Reading()
    filled = _filled(source)
    if not filled.any():
        raise DataError("No cell has a count in the modelled genes. Check `layer=` and `mask_var=`.")
    validation = _validation(filled, train.validation_fraction, seed)
    statistics = scan(source, filled & ~validation)
    sample = _sample(source, filled & ~validation, MAX_SAMPLE, seed)
    frozen = _freeze(binning, statistics)
    _log_masked_shares(train.masking, sample)
    tokenizer = Tokenizer(
        binning=frozen,
        n_features=len(vocabulary),
        masking=train.masking,
        depth=_depth_models(sample, train.masking, frozen, seed) if reading.counts else None,
        tokens=config.tokens,
        max_tokens=config.max_tokens,
        counts=reading.counts,
        has_batches=batch is not None,
        n_noise=config.noise_width(batch is not None),
    )
    config = replace(config, n_components=max(1, min(config.n_components, len(vocabulary), len(sample.depth) - 1)))
    sizes = network_sizes(len(vocabulary), tokenizer.binning, batch, phenotypes, counts=reading.counts)
    members, histories = [], []
    for member in range(n_models):
        member_seed = (seed + member) % 2**63
        with isolated(member_seed):  # torch layers draw random weights, which `initialise` replaces
            network = Transformer(config, sizes)
        initialise(
            network, compute_initial_values(sample, statistics, tokenizer, sizes.n_batches, member_seed), member_seed
        )
        data = TrainingData(source, tokenizer, train, filled & ~validation, validation, member_seed)
        history, interrupted = run_training(
            network, data, train, reading.counts, member_seed, device=device, progress_bar=progress_bar
        )
        histories.append(history)
        if validation.any():
            fit_temperature(network.to(device), data.validation_batches())
        members.append(network.cpu().eval())
        if interrupted and len(members) < n_models:
            logger.warning("Interrupted. The model has %d of %d members.", len(members), n_models)
            break
    n_features = len(vocabulary)
    model = BioFormer(
        config=config,
        vocabulary=vocabulary,
        binnings={"rna": tokenizer.binning},
        masking=train.masking,
        depth=tokenizer.depth,
        batch=batch,
        phenotypes=tuple(phenotypes),
        reading=reading,
        gene_mean=statistics.gene_mean.astype(np.float32),
        gene_share=(statistics.gene_nnz / max(statistics.n_cells - statistics.n_empty, 1)).astype(np.float32),
        depth_share=_depth_share(statistics, reading),
        bin_mean=bin_means(sample, tokenizer).astype(np.float32),
        members=tuple(members),
        axes=np.zeros((n_features, config.n_components), np.float32),
        axes_mean=np.zeros(n_features, np.float32),
        provenance=_provenance(train, seed, sample),
    )
    axes, mean = _fit_axes(model, _part(sample, MAX_AXES_SAMPLE), seed)
    return Fitted(replace(model, axes=axes, axes_mean=mean), histories)


def find_validation(model: BioFormer, source: BlockSource) -> NDArray[np.bool_]:
    """(N,) which cells the fit of a model held out for validation. All are False if these are not the cells of the fit.

    The choice is a function of the seed and of the cells that have counts. The hash of the training cells, which the
    model stores, says whether it was made of these cells.
    """
    stored = model.provenance
    filled = np.concatenate([np.diff(block.counts.indptr) > 0 for block in source.blocks()])
    if "data_sha256" not in stored or not filled.any():
        return np.zeros_like(filled)
    seed = int(stored["seed"])
    validation = _validation(filled, float(stored["train"]["validation_fraction"]), seed)
    sample = _sample(source, filled & ~validation, MAX_SAMPLE, seed)
    return validation if _data_hash(sample) == stored["data_sha256"] else np.zeros_like(filled)


def _filled(source: BlockSource) -> NDArray[np.bool_]:
    filled = np.concatenate([np.diff(block.counts.indptr) > 0 for block in source.blocks()])
    if n := int((~filled).sum()):
        logger.warning(
            "%d of %d cells have no count in the modelled genes and are not used in training.", n, len(filled)
        )
    return filled


def _validation(filled: NDArray[np.bool_], fraction: float, seed: int) -> NDArray[np.bool_]:
    rows = np.flatnonzero(filled)
    validation = np.zeros(filled.size, dtype=bool)
    if fraction > 0 and rows.size > 1:
        validation[rows] = validation_rows(rows.size, fraction, seed ^ _SPLIT_STREAM)
    return validation


def _freeze(binning: Binning, statistics: Statistics) -> Binning:
    if binning.kind == "segment":
        # centred data may have no positive depth, and segment bins do not need it
        depth = statistics.mean_depth if statistics.mean_depth > 0 else 1.0
        return binning.freeze(mean_depth=depth, max_bin=binning.n_bins)
    highest = statistics.max_normalized if binning.normalize else statistics.max_count
    max_bin = int(bin_normalized([highest], binning.cutoff, binning.bins_per_doubling)[0])
    return binning.freeze(mean_depth=statistics.mean_depth, max_bin=min(max_bin, _MAX_EXACT_BIN))


def _depth_share(statistics: Statistics, reading: Reading) -> NDArray[np.float32]:
    if reading.scale == "centered" or not statistics.depth_share.any():
        return np.full(len(statistics.depth_share), 1 / len(statistics.depth_share), np.float32)
    return statistics.depth_share.astype(np.float32)


def _sample(source: BlockSource, rows: NDArray[np.bool_], size: int, seed: int) -> Block:
    """Read at most ``size`` of the rows, chosen at random, in one pass."""
    keys = uniform(seed ^ _SAMPLE_STREAM, np.arange(rows.size))
    keys[~rows] = 2.0
    chosen = rows if rows.sum() <= size else keys <= np.partition(keys, size - 1)[size - 1]
    return source.rows(np.flatnonzero(chosen))


def _part(sample: Block, size: int) -> Block:
    """At most ``size`` cells in equal distances, because the data may be sorted by batch."""
    n = len(sample.depth)
    return sample if n <= size else sample.take(np.linspace(0, n - 1, size).astype(np.int64))


def _depth_models(sample: Block, masking: Masking, binning: Binning, seed: int) -> DepthModels:
    part = _part(sample, max(100, len(sample.depth) * MAX_DEPTH_COUNTS // max(sample.counts.nnz, 1)))
    return fit_depth_models(part, masking, float(binning.mean_depth or 1.0), seed)


def _log_masked_shares(masking: Masking, sample: Block) -> None:
    """Log the shares of the expressed features and of the zeros that are masked, over these cells."""
    n_expressed, n_features = np.diff(sample.counts.indptr), sample.counts.shape[1]
    expressed, zeros = masking.shares(n_expressed, n_features)
    n_masked = expressed * n_expressed.sum(), zeros * (n_expressed.size * n_features - n_expressed.sum())
    logger.info(
        "Masking %.1f %% of the expressed genes and %.1f %% of the other genes. "
        "%.1f %% of the masked genes are expressed.",
        *(100 * expressed, 100 * zeros, 100 * n_masked[0] / max(sum(n_masked), 1.0)),
    )


@torch.no_grad()
def _fit_axes(model: BioFormer, sample: Block, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Principal axes and mean of the decoded profiles of training cells, which are averaged over the members."""
    profiles = np.zeros((len(sample.depth), len(model.vocabulary)), np.float32)
    for network in model.members:
        for batch, output in run_network(model, network, [sample], batch_size=128):
            profiles[batch.rows.numpy()] += network.profile(output.latent).numpy() / len(model.members)
    if len(profiles) < 2 or not np.ptp(profiles, axis=0).any():  # components of equal cells are rounding errors
        return np.eye(profiles.shape[1], model.config.n_components, dtype=np.float32), profiles.mean(axis=0)
    n_components = min(model.config.n_components, *profiles.shape)
    with np.errstate(invalid="ignore", divide="ignore"):  # division by 0 if all cells are equal
        pca = PCA(n_components, svd_solver="randomized", random_state=seed % 2**32).fit(profiles)
    return np.ascontiguousarray(pca.components_.T, np.float32), pca.mean_.astype(np.float32)


def _provenance(train: TrainConfig, seed: int, sample: Block) -> dict[str, Any]:
    packages = ("scbioformers", "torch", "lightning", "anndata", "scanpy", "numpy")
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "train": train.to_dict(),
        "seed": seed,
        "data_sha256": _data_hash(sample),
    }


def _data_hash(sample: Block) -> str:
    digest = hashlib.sha256()
    for array in (sample.counts.data, sample.counts.indices, sample.counts.indptr, sample.depth):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
