"""Fit of a model to a source of cells."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scbioformers.config import Binning, Masking, ModelConfig, Reading, TrainConfig
from scbioformers.core import DataError, ReadError, Vocabulary
from scbioformers.data import Block, BlockSource, ExternalTokens, ObsField, Survey, survey
from scbioformers.model import BioFormer, Head, run_network, score_quantiles
from scbioformers.nn import Transformer
from scbioformers.training._checkpoint import Checkpoints, MemberIO
from scbioformers.training._data import TrainingData
from scbioformers.training._extend import extend_model
from scbioformers.training._initial_values import N_LEADING, modality_weights
from scbioformers.training._latent_shifts import fit_latent_shifts
from scbioformers.training._processes import warn_if_alone
from scbioformers.training._run import run_training
from scbioformers.training._start import new_model, thin
from scbioformers.training._temperature import fit_temperature

logger = logging.getLogger(__name__)

DRAWN_FROM = "generation"  # key of the head of a decoder in BioFormer.heads
MAX_DRAWN_FROM = 1000  # maximum number of cells whose depths and phenotypes generated cells have
MAX_AXES_SAMPLE = 10_000  # maximum number of cells for the axes of the embedding
MAX_SCORED = 500  # maximum number of validation cells whose scores are stored, for the comparison with other cells


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model with its training history."""

    model: BioFormer
    """The fitted model."""
    history: list[list[dict[str, float]]]
    """For each member, one dict of losses per epoch."""
    unread: ReadError | None = None
    """Why the training stopped, if cells could not be read any more. To be raised after the model is stored."""


def fit_model(
    source: BlockSource,
    vocabulary: Vocabulary,
    binning: Binning,
    config: ModelConfig,
    train: TrainConfig,
    *,
    start: BioFormer | None = None,
    batch: ObsField | None = None,
    phenotypes: Sequence[ObsField] = (),
    reading: Reading | None = None,
    others: Mapping[str, tuple[Binning, Reading]] = MappingProxyType({}),
    external: ExternalTokens | None = None,
    n_models: int = 1,
    seed: int = 0,
    surveyed: Survey | None = None,
    device: str = "cpu",
    progress_bar: bool = False,
    log_validations: bool = False,
    callbacks: Sequence[L.Callback] = (),
    lightning_logger: Logger | None = None,
) -> Fitted:
    """Fit ``n_models`` networks to the cells of ``source``, and the axes of their common embedding.

    With ``start`` the networks are those of a fitted model, with the features of ``vocabulary`` and the categories of
    the obs fields appended. Its binning, masking and configuration are used. Without ``surveyed``, the survey of these
    cells with this seed, they are read once before the first step.
    ``binning`` and ``reading`` are those of the first modality of the vocabulary, ``others`` those of the others.
    ``external`` are the external tokens of all features of the vocabulary.
    ``callbacks`` and ``lightning_logger`` are passed to the trainer of Lightning.

    Raises
    ------
    ConfigError
        If ``train.checkpoint_dir`` has the checkpoint of another fit, or quantile bins of another model are given.
    ModelFormatError
        If a checkpoint is damaged.
    DataError
        If no cell has a count in the modelled genes.
    TrainingDiverged
        If the loss became NaN or infinite before the first validation.
    """
    warn_if_alone(train)
    reading = reading or (Reading() if start is None else start.reading)
    cells = surveyed or survey(source, train.validation_fraction, seed)
    _check_filled(cells)
    statistics, parts = cells.statistics, cells.sample
    frozen = [binning, *(own for own, _ in others.values())] if start is None else start.binnings.values()
    # a frozen depth is that of the cells of another fit, at which rates and means are
    statistics = statistics.at_depths([own.mean_depth for own in frozen])
    _log_masked_shares(train.masking, parts)
    if start is None:
        model = new_model(
            parts,
            statistics,
            vocabulary,
            binning,
            config,
            train.masking,
            batch=batch,
            phenotypes=tuple(phenotypes),
            reading=reading,
            others=others,
            external=external,
            n_models=n_models,
            seed=seed,
        )
    else:
        readings = {start.modalities[0]: reading} | {name: own for name, (_, own) in others.items()}
        model = extend_model(
            start,
            vocabulary,
            batch,
            tuple(phenotypes),
            readings,
            parts,
            statistics,
            external=external,
            n_members=n_models,
            seed=seed,
        )
    model = replace(model, provenance=_provenance(train, seed, parts, source.n_obs, start))
    networks, histories, unread = _train_members(
        model,
        source,
        train,
        (cells.training, cells.validation),
        seed,
        device=device,
        checkpoints=Checkpoints.of(train, _description(model, binning, others, cells, seed)),
        progress_bar=progress_bar,
        log_validations=log_validations,
        callbacks=callbacks,
        lightning_logger=lightning_logger,
        n_trained=0 if start is None else len(start.members),
    )
    model = replace(model, members=networks)
    if start is None or any(histories):  # without a step, a model that was fitted before keeps its axes
        fit_latent_shifts(model, parts, seed)
        axes, mean = _fit_axes(model, thin(parts, MAX_AXES_SAMPLE), seed)
        model = replace(model, axes=axes, axes_mean=mean)
    if unread is None and (start is None or any(histories)):
        known = cells.validation if cells.validation.any() else cells.training
        nth = np.unique(np.linspace(0, known.sum() - 1, MAX_SCORED).astype(np.int64))
        quantiles = score_quantiles(model, source.parts(np.flatnonzero(known)[nth]))
        model = replace(model, score_quantiles=quantiles)
    if config.architecture == "decoder":
        model = replace(model, heads=model.heads | {DRAWN_FROM: _drawn_from(model, parts)})
    return Fitted(replace(model, provenance=model.provenance | {"history": histories}), histories, unread)


def _drawn_from(model: BioFormer, parts: list[Block]) -> Head:
    """Depths and phenotypes (n, 1 + P) of some training cells, as those of generated cells."""
    first = int(model.batch is not None)
    some = thin(parts, MAX_DRAWN_FROM)
    cells = np.concatenate([np.column_stack([part.depth, part.fields[:, first:]]) for part in some])
    return Head({}, {"cells": cells.astype(np.float32)})


def _train_members(
    model: BioFormer,
    source: BlockSource,
    train: TrainConfig,
    split: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    seed: int,
    *,
    n_trained: int,
    device: str,
    checkpoints: Checkpoints | None,
    **options: Any,
) -> tuple[tuple[Transformer, ...], list[list[dict[str, float]]], ReadError | None]:
    """Train the networks in place. Returns them, or those before a stop, their histories, and why it stopped.

    ``split`` are bool masks (n_obs,) of the training and the validation cells. The first ``n_trained`` networks were
    trained before; the outputs of the others are new. Networks that a former process has finished are loaded from their
    checkpoints. ``options`` are those of :func:`run_training`.
    """
    histories: list[list[dict[str, float]]] = []
    for i, network in enumerate(model.members):
        member_seed, fresh = (seed + i) % 2**63, i >= n_trained
        if checkpoints is not None and (finished := checkpoints.finished(i)) is not None:
            network.load_state_dict(finished["weights"])
            network.eval()
            histories.append(finished["history"])
            continue
        io = None if checkpoints is None else MemberIO(checkpoints, i)
        data = TrainingData(source, model.tokenizer, train, *split, member_seed)
        history, interrupted = run_training(
            network,
            data,
            train,
            model.reading.counts,
            member_seed,
            modalities=model.modalities,
            device=device,
            fresh=fresh,
            io=io,
            **options,
        )
        histories.append(history)
        # without a step, a model that was fitted before stays as it is
        if data.unread is None and split[1].any() and (fresh or history):
            fit_temperature(network.to(device), data.validation_batches())
        network.cpu().eval()
        if data.unread is not None:
            return model.members[: len(histories)], histories, data.unread
        if checkpoints is not None and not interrupted:
            checkpoints.finish(i, {"weights": network.state_dict(), "history": history})
        if interrupted and i + 1 < len(model.members):
            logger.warning("Interrupted. The model has %d of %d members.", i + 1, len(model.members))
            break
    return model.members[: len(histories)], histories, None


def _description(
    model: BioFormer, binning: Binning, others: Mapping[str, tuple[Binning, Reading]], cells: Survey, seed: int
) -> dict[str, Any]:
    """What determines the result of a fit, besides the parameters of the training.

    The values of the sample are known, which are those of all training cells if these are at most 50,000. Of every
    cell, the depth, the number of expressed genes and the codes of obs are known.
    """
    modalities = {name: [part.to_dict() for part in how] for name, how in others.items()}
    start = model.provenance.get("started_from")
    columns = hashlib.sha256(b"".join(np.ascontiguousarray(part.fields).tobytes() for part in cells.sample))
    return {
        "ModelConfig": model.config.to_dict(),
        "Binning": binning.to_dict() if start is None else model.binning.to_dict(),
        "genes": {"number": len(model.vocabulary), "sha256": _text_hash(model.vocabulary.to_dict())},
        "obs": {"columns": [column.to_dict() for column in model.fields], "sha256": columns.hexdigest()},
        "reading": model.reading.to_dict(),
        "rng": seed,
        "n_models": len(model.members),
        "data": {
            "n_cells": len(cells.training),
            "sha256": model.provenance["data_sha256"],
            "cells_sha256": cells.cells_sha256,
        },
        "model": None if start is None else start["hash"],
        "scbioformers": model.provenance["versions"]["scbioformers"],
        **({"others": modalities} if modalities else {}),
        **_described(model.external),
    }


def _described(external: ExternalTokens | None) -> dict[str, Any]:
    """The external tokens, if there are any."""
    if external is None:
        return {}
    return {"external": {**external.to_dict(), "sha256": hashlib.sha256(external.codes.tobytes()).hexdigest()}}


def find_validation(model: BioFormer, source: BlockSource) -> NDArray[np.bool_]:
    """(N,) which cells the fit of a model held out for validation. All are False if these are not the cells of the fit.

    The choice is a function of the seed and of the cells that have counts. The hash of the training cells, which the
    model stores, says whether it was made of these cells.
    """
    stored = model.provenance
    if "data_sha256" not in stored:
        return np.zeros(source.n_obs, bool)
    cells = survey(source, float(stored["train"]["validation_fraction"]), int(stored["seed"]))
    same = _data_hash(cells.sample) == stored["data_sha256"]
    return cells.validation if same else np.zeros_like(cells.validation)


def _check_filled(cells: Survey) -> None:
    if not cells.training.any():
        raise DataError("No cell has a count in the modelled genes. Check `layer=`, and which genes are modelled.")
    if n := int((~(cells.training | cells.validation)).sum()):
        logger.warning(
            "%d of %d cells have no count in the modelled genes and are not used in training.", n, len(cells.training)
        )


def _log_masked_shares(masking: Masking, parts: list[Block]) -> None:
    """Log the shares of the expressed features and of the zeros that are masked, over these cells.

    If there are several modalities, they are those of the first one.
    """
    n_expressed = np.concatenate([np.diff(part.counts.indptr) for part in parts])
    n_measured = np.repeat([part.present.sum() for part in parts], [len(part.depth) for part in parts])
    expressed, zeros = masking.shares(n_expressed, round(n_measured.mean()))
    n_masked = expressed * n_expressed.sum(), zeros * (n_measured - n_expressed).sum()
    logger.info(
        "Masking %.1f %% of the expressed genes and %.1f %% of the other genes. "
        "%.1f %% of the masked genes are expressed.",
        *(100 * expressed, 100 * zeros, 100 * n_masked[0] / max(sum(n_masked), 1.0)),
    )


@torch.no_grad()
def _fit_axes(model: BioFormer, parts: list[Block], seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Principal axes and mean of the decoded profiles of training cells, which are averaged over the members."""
    profiles = np.concatenate([_profiles(model, part) for part in parts])
    if len(profiles) < 2 or not np.ptp(profiles, axis=0).any():  # components of equal cells are rounding errors
        return np.eye(profiles.shape[1], model.config.n_components, dtype=np.float32), profiles.mean(axis=0)
    columns = model.members[0].sizes.columns
    parts_of = np.split(profiles, np.cumsum(columns)[:-1], axis=1)
    leading = [_leading_variance(own, seed) for own in parts_of] if len(columns) > 1 else [1.0]
    weight = modality_weights(leading, columns).astype(np.float32)
    n_components = min(model.config.n_components, *profiles.shape)
    with np.errstate(invalid="ignore", divide="ignore"):  # division by 0 if all cells are equal
        pca = PCA(n_components, svd_solver="randomized", random_state=seed % 2**32).fit(profiles * weight)
    axes = np.zeros((profiles.shape[1], model.config.n_components), np.float32)  # few cells have fewer components
    axes[:, :n_components] = pca.components_.T
    return axes * weight[:, None], (pca.mean_ / weight).astype(np.float32)  # for profiles without weights


def _leading_variance(profiles: NDArray[np.float32], seed: int) -> float:
    n_components = min(N_LEADING, *profiles.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        pca = PCA(n_components, svd_solver="randomized", random_state=seed % 2**32).fit(profiles)
    return float(pca.explained_variance_.sum())


def _profiles(model: BioFormer, part: Block) -> NDArray[np.float32]:
    """(n, M), decoded profiles, averaged over the members."""
    profiles = np.zeros((len(part.depth), len(model.vocabulary)), np.float32)
    for network in model.members:
        for batch, output in run_network(model, network, [part], batch_size=128):
            profiles[batch.rows.numpy()] += network.profile(output.latent, batch.phenotypes).numpy() / len(
                model.members
            )
    return profiles


_version = cache(version)  # it reads and parses a file


def _provenance(
    train: TrainConfig, seed: int, parts: list[Block], n_cells: int, start: BioFormer | None
) -> dict[str, Any]:
    n_features = sum(int(each.present.sum()) for each in parts[0].modalities)
    packages = ("scbioformers", "torch", "lightning", "anndata", "scanpy", "numpy")
    return {
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "train": train.to_dict(),
        "seed": seed,
        "data_sha256": _data_hash(parts),
        "sources": [{"name": "the fitted data", "n_cells": n_cells, "n_features": n_features}],
        **({} if start is None else {"started_from": {"hash": start.hash, **start.provenance}}),
    }


def _text_hash(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _data_hash(parts: list[Block]) -> str:
    digest = hashlib.sha256()
    for part in (block for each in parts for block in each.modalities):
        for array in (part.counts.data, part.counts.indices, part.counts.indptr, part.depth):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
