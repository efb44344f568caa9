"""Values of one modality: all hidden and predicted from the others, or denoised by all modalities of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scbioformers.config import bin_levels
from scbioformers.core import SPECIALS, Scale, deviation, expected, posterior_mean, quantile, tqdm
from scbioformers.data import Block, BlockSource
from scbioformers.model import BioFormer, predict_masked, run_network
from scbioformers.tasks._imputation import BLOCK_CELLS, N_FOLDS, folds
from scbioformers.tasks._imputation_evidence import Evidence


@dataclass(frozen=True)
class _Place:
    """Where a modality is among all: first feature, number of features, first bin, number of bins."""

    feature: int
    n_features: int
    value: int
    n_values: int

    @classmethod
    def of(cls, model: BioFormer, modality: str) -> _Place:
        at = model.modalities.index(modality)
        parts = model.members[0].sizes.modalities
        before, own = parts[:at], parts[at]
        return cls(sum(x.n_features for x in before), own.n_features, sum(x.n_values for x in before), own.n_values)


def modality_scale(state: BioFormer, output: Scale) -> Scale:
    """The unit in which a modality can be predicted: that which is asked for, if its bins have it.

    ``state`` is the model of this modality alone, see :meth:`BioFormer.of`.
    """
    if state.binning.kind == "segment" or output == "bins":
        return "bins"
    return output if state.reading.counts else "values"


def predict_modality(
    model: BioFormer,
    source: BlockSource,
    modality: str,
    *,
    scale: Scale,
    std: bool = False,
    quantiles: Sequence[float] = (),
    evidence: Evidence | None = None,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Predict all features of a modality from the other modalities of each sample.

    Nothing of the modality itself is read, not even its depth. So samples that were measured in it are predicted in the
    same way as samples that lack it, and their values are at the mean depth of the training cells.

    Parameters
    ----------
    source
        N samples with all modalities of the model.
    scale
        Unit of the values, see :func:`~scbioformers.config.bin_levels`.
    std, quantiles
        Whether the standard deviation, and which quantiles of the predicted distributions are returned as well.
    evidence
        To which the predictions of measured values are added.

    Returns
    -------
    Arrays (N, M) of the M features of the modality: ``"mean"``, ``"std"`` and each quantile, with the number as its
    name. NaN for samples without any other modality.
    """
    place, own = _Place.of(model, modality), model.of(modality)
    names = ["mean", *(["std"] if std else []), *(str(q) for q in quantiles)]
    values = {name: np.full((source.n_obs, place.n_features), np.nan, np.float32) for name in names}
    with tqdm(total=source.n_obs, desc=f"Predicting {modality}", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            for rows, probabilities, targets in _predictions(model, block, place, modality, batch_size):
                features = np.tile(np.arange(place.n_features), (len(rows), 1))
                levels = bin_levels(own.binning, own.bin_mean, np.ones(len(rows)), scale, features)
                for name, array in values.items():
                    array[rows] = _decode(name, probabilities, levels)
                if evidence is not None:
                    evidence.add_values(rows, targets, probabilities)
            bar.update(len(block.depth))
    return values


def denoise_modality(
    model: BioFormer,
    source: BlockSource,
    modality: str,
    *,
    scale: Scale,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> NDArray[np.float32]:
    """Posterior mean of the expression of a modality, given all that was measured of a sample: also the feature itself.

    The rate is predicted from ``<cls>``, which reads all modalities of the sample.

    Returns
    -------
    float32 (N, M), averaged over the members. NaN where nothing was measured: in samples without the modality, and for
    features that the data lack.
    """
    place, own = _Place.of(model, modality), model.of(modality)
    at, columns = model.modalities.index(modality), slice(place.feature, place.feature + place.n_features)
    mean_depth = float(own.binning.mean_depth or 1.0)
    values = np.full((source.n_obs, place.n_features), np.nan, np.float32)
    with tqdm(total=source.n_obs, desc=f"Denoising {modality}", unit="cell", disable=not progress_bar) as bar:
        for block in source.blocks(BLOCK_CELLS):
            part = block.modalities[at]
            counts, size = part.counts.toarray(), (part.depth / mean_depth)[:, None]
            mean = np.zeros(counts.shape)
            for network in model.members:
                dispersion = network.log_dispersion[columns].detach().exp().cpu().double().numpy()
                for batch, output in run_network(model, network, [block], batch_size):
                    rows = batch.rows.cpu().numpy() - block.start
                    rate = output.log_rate[:, columns].cpu().double().exp().numpy() * size[rows]
                    mean[rows] += posterior_mean(rate, dispersion, counts[rows]) / len(model.members)
            if scale == "log1p":
                mean = np.log1p(mean / np.where(size > 0, size, 1.0))
            known = part.measured[:, None] & part.present
            values[block.start : block.start + len(counts)] = np.where(known, mean, np.nan)
            bar.update(len(counts))
    return values


def masked_evidence(
    model: BioFormer, source: BlockSource, modality: str, cells: NDArray[np.int64], batch_size: int = 64
) -> Evidence:
    """Predict measured values of a modality in some of the samples that have it, a seventh of its features at a time.

    They are predicted from its other features and from the other modalities.
    """
    place, at = _Place.of(model, modality), model.modalities.index(modality)
    evidence = Evidence.empty(model.of(modality))
    bins = slice(place.value, place.value + place.n_values)
    for block in source.parts(cells):
        features = place.feature + np.flatnonzero(block.modalities[at].present)
        for mask in folds(len(model.vocabulary), N_FOLDS, features)(block):
            for batch, probabilities in predict_masked(model, block, mask, batch_size):
                own = probabilities[..., bins] / probabilities[..., bins].sum(axis=-1, keepdims=True)
                asked = batch.masked_ids.cpu().numpy() >= len(SPECIALS)  # the others are padding
                targets = np.where(asked, batch.target_bins.cpu().numpy() - place.value, -1)
                evidence.add_values(batch.rows.cpu().numpy(), targets, own)
    return evidence


def _predictions(
    model: BioFormer, block: Block, place: _Place, modality: str, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]]:
    """Rows (B,), probabilities (B, M, V) and measured bins (B, M), -1 where not measured, of batches of samples."""
    at = model.modalities.index(modality)
    others = [part.measured for i, part in enumerate(block.modalities) if i != at]
    kept = np.flatnonzero(np.any(others, axis=0))
    some = block.take(kept)
    features = np.tile(np.arange(place.feature, place.feature + place.n_features), len(kept))
    indptr = np.arange(len(kept) + 1) * place.n_features
    mask = csr_matrix((np.ones(features.size, bool), features, indptr), shape=(len(kept), len(model.vocabulary)))
    measured = some.modalities[at].measured[:, None] & some.modalities[at].present
    bins = slice(place.value, place.value + place.n_values)
    for batch, probabilities in predict_masked(model, some, mask, batch_size):
        local = batch.rows.cpu().numpy()
        # every feature is asked, so the tokens are the features in their order
        own = probabilities[..., bins] / probabilities[..., bins].sum(axis=-1, keepdims=True)
        targets = batch.target_bins.cpu().numpy() - place.value
        yield block.start + kept[local], own, np.where(measured[local], targets, -1)


def _decode(name: str, probabilities: NDArray[np.float32], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "mean":
        return expected(probabilities, levels)
    return deviation(probabilities, levels) if name == "std" else quantile(probabilities, levels, float(name))
