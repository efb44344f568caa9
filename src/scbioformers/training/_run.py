"""Training of one network with the Lightning trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import DoublePrecision

from scbioformers.config import TrainConfig
from scbioformers.core import ReadError, TrainingDiverged
from scbioformers.nn import Transformer
from scbioformers.training._callbacks import (
    BestWeights,
    CheckpointWriter,
    EpochBar,
    History,
    StopOnInterrupt,
    StopOnNaN,
    ValidationLog,
)
from scbioformers.training._checkpoint import MemberIO
from scbioformers.training._data import TrainingData
from scbioformers.training._isolation import interruptible, isolated, quiet
from scbioformers.training._module import TrainingModule
from scbioformers.training._processes import choose_strategy, names_lost_process

logger = logging.getLogger(__name__)

N_VALIDATIONS = 10


def run_training(
    network: Transformer,
    data: TrainingData,
    config: TrainConfig,
    counts: bool,
    seed: int,
    *,
    modalities: Sequence[str] = (),
    device: str = "cpu",
    fresh: bool = True,
    progress_bar: bool = False,
    log_validations: bool = False,
    io: MemberIO | None = None,
    callbacks: Sequence[L.Callback] = (),
    lightning_logger: Logger | None = None,
) -> tuple[list[dict[str, float]], bool]:
    """Train the network in place and load the weights with the lowest validation loss.

    A network that was trained before, which is not ``fresh``, is validated before the first step. If no step improves
    it, its weights stay as they were.

    With ``io``, checkpoints are written, and training goes on from the one that is there. ``callbacks`` and
    ``lightning_logger`` are passed to the trainer.

    ``modalities`` are their names, if there are several.

    Returns the history, and whether Ctrl-C stopped the training. ``log_validations`` logs a line for each validation.
    """
    n_cells = int(data.split.training.sum())
    epochs = config.epochs(n_cells)
    # epochs of many cells have different numbers of batches, because their chunks are combined anew
    n_batches = [max(1, data.sampler.n_batches(epoch)) for epoch in range(epochs)]
    steps = sum(math.ceil(n / config.accumulate_grad_batches) for n in n_batches)
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    if steps == 0:
        return [], False
    profile = "profile_counts" if counts else "profile_bins"
    profile = "profile_modalities" if network.sizes.parts else profile
    objectives = {profile if name == "profile" else name: weight for name, weight in config.objectives.items()}
    if len(network.phenotypes):
        objectives["masked_phenotypes"] = 1.0
    network.freeze(config.freeze)
    module = TrainingModule(network, config, steps, objectives, modalities)
    validated = bool(data.split.validation.any())
    history, best, diverged, interrupt = History(), BestWeights("val_loss"), StopOnNaN(), StopOnInterrupt()
    own: list[L.Callback] = [history, diverged, interrupt]
    if validated:
        # check only at validations, because max_steps may end an epoch before its validation
        stop = EarlyStopping("val_loss", patience=config.patience, check_finite=False, check_on_train_epoch_end=False)
        own += [best, stop]
    if log_validations:
        own.append(ValidationLog())
    if progress_bar:
        own.append(EpochBar())
    writer = [] if io is None else [CheckpointWriter(io, history, best, diverged, interrupt)]
    resumed = None if io is None or not io.path.is_file() else str(io.path)
    precision = [_Float64()] if "64" in config.precision else []
    if precision:
        network.double()  # Lightning would do it after it has loaded a checkpoint
    options = {
        "max_epochs": epochs,
        "max_steps": steps,
        "callbacks": [*own, *callbacks, *writer],
        "plugins": [*precision, *([] if io is None else [io])],
        "logger": lightning_logger or False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": progress_bar,
        **_validation_times(data, epochs, min(sum(n_batches), steps * config.accumulate_grad_batches)),
    }
    with isolated(seed), quiet(), interruptible():
        trainer = _make_trainer(config, device, **options)
        try:
            with names_lost_process(trainer):
                if validated and not fresh and resumed is None:
                    trainer.validate(module, datamodule=data, verbose=False)
                trainer.fit(module, datamodule=data, ckpt_path=resumed)
        except ReadError as error:
            if best.weights is None or trainer.world_size > 1:  # the other processes wait for this one
                raise
            data.unread = ReadError(f"{error} The model has the weights of step {best.step}.")
    if diverged.step is not None:
        if best.weights is None:
            raise TrainingDiverged(f"The loss became NaN at step {diverged.step}; try a lower TrainConfig.lr.")
        logger.warning("The loss became NaN at step %d. The weights of step %d are kept.", diverged.step, best.step)
    if validated and not fresh and best.step == 0:
        logger.info("No step lowered the loss of the validation cells, so the weights are those of the given model.")
    best.restore(module)
    network.float().freeze(())  # whatever the precision of the training
    return history.rows, interrupt.interrupted


def _make_trainer(config: TrainConfig, device: str, **options: Any) -> L.Trainer:
    """The trainer of Lightning, with what the configuration says and what is the same in every fit."""
    kind, _, index = device.partition(":")
    return L.Trainer(
        accelerator=kind,
        devices=[int(index)] if index else config.devices,
        strategy=choose_strategy(config),
        num_nodes=config.num_nodes,
        precision=None if "64" in config.precision else config.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=config.gradient_clip,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        **options,
    )


class _Float64(DoublePrecision):
    """Precision "64-true". Lightning would convert the batch first and cannot; the module does it."""

    def convert_input(self, data: Any) -> Any:
        return data


def _validation_times(data: TrainingData, epochs: int, n_batches: int) -> dict[str, Any]:
    """About ten validations in a fit, for the trainer. An epoch of many cells has several of them."""
    if data.sampler.is_large:
        return {"check_val_every_n_epoch": None, "val_check_interval": max(1, n_batches // N_VALIDATIONS)}
    return {"check_val_every_n_epoch": max(1, epochs // N_VALIDATIONS)}
