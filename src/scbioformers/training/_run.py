"""One network through Lightning's trainer."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from scbioformers.config import TrainConfig
from scbioformers.nn import Transformer
from scbioformers.training._callbacks import BestWeights, History, StopOnInterrupt, StopOnNaN, TrainingDiverged
from scbioformers.training._data import TrainingData
from scbioformers.training._module import TrainingModule

logger = logging.getLogger(__name__)

_GLOBALS = threading.RLock()


def run_training(
    network: Transformer, data: TrainingData, config: TrainConfig, counts: bool, seed: int
) -> list[dict[str, float]]:
    """Train in place; leaves the best weights in the network."""
    n_cells = int(data.split.training.sum())
    epochs = config.epochs(n_cells)
    steps = epochs * max(1, data.sampler.n_batches())
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    if steps == 0:
        return []
    profile = "profile_counts" if counts else "profile_bins"
    objectives = {profile if name == "profile" else name: weight for name, weight in config.objectives.items()}
    module = TrainingModule(network, config, steps, objectives)
    validated = bool(data.split.validation.any())
    history, best, diverged, interrupt = History(), BestWeights("val_loss"), StopOnNaN(), StopOnInterrupt()
    callbacks: list[L.Callback] = [history, diverged, interrupt]
    if validated:
        # at validations alone: max_steps may end an epoch before its validation
        stop = EarlyStopping("val_loss", patience=config.patience, check_finite=False, check_on_train_epoch_end=False)
        callbacks += [best, stop]
    with isolated(seed), _quiet():
        trainer = L.Trainer(
            max_epochs=epochs,
            max_steps=steps,
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=_strategy(config),
            num_nodes=config.num_nodes,
            precision=config.precision,  # type: ignore[arg-type]
            gradient_clip_val=config.gradient_clip,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=config.progress_bar,
            check_val_every_n_epoch=max(1, epochs // 10),
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, datamodule=data)
        finally:
            interrupt.release()
    if diverged.step is not None:
        if best.weights is None:
            raise TrainingDiverged(f"The loss became NaN at step {diverged.step}; try a lower TrainConfig.lr.")
        logger.warning("The loss became NaN at step %d; the weights of step %d are kept.", diverged.step, best.step)
    best.restore(module)
    return history.rows


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generators: lend them a seed and give them back as they were.

    The generators are the process's, so of several threads one fits at a time.
    """
    with _GLOBALS, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks about our choices (few workers, no logger, hardware) are none of the user's business."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            for each in loggers:
                each.setLevel(logging.ERROR)
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _strategy(config: TrainConfig) -> str:
    """Lightning's strategy; several processes must expect weights that these data or objectives do not reach."""
    n_gpus = torch.cuda.device_count()
    several = config.num_nodes > 1 or (config.devices not in (1, "1") and (config.devices != "auto" or n_gpus > 1))
    if config.strategy == "ddp" or (config.strategy == "auto" and several):
        return "ddp_find_unused_parameters_true"
    return config.strategy
