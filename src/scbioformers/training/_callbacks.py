"""Lightning callbacks: history, best weights, the progress bar, and stopping at a non-finite loss or at Ctrl-C."""

from __future__ import annotations

import logging
import math
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

logger = logging.getLogger(__name__)


class History(Callback):
    """One row of mean losses per epoch. Validation losses are only in rows of epochs with a validation.

    A validation before the first step has a row of its own, with step 0.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that this epoch had a validation, which runs before the end of the epoch."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.rows.append({"epoch": 0, "step": 0, **losses})
        else:
            self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect the losses of this epoch. Without a validation, Lightning would repeat the last validation losses."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
        fresh = {name: value for name, value in metrics.items() if self._validated or not name.startswith("val_")}
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **fresh})
        self._validated = False


class BestWeights(Callback):
    """Keeps a copy of the weights with the lowest value of the metric ``monitor``, to restore them at the end."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best, self.step = math.inf, 0
        self.weights: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the weights if the metric has improved."""
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if not trainer.sanity_checking and value < self.best:
            self.best, self.step = value, trainer.global_step
            self.weights = {name: x.detach().cpu().clone() for name, x in pl_module.state_dict().items()}

    def restore(self, module: L.LightningModule) -> None:
        """Load the best weights. Without a finite validation loss, the weights are not changed."""
        if self.weights is not None:
            module.load_state_dict(self.weights)


class ValidationLog(Callback):
    """Logs one line for each validation, for long trainings."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the losses of the validation cells."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
            logger.info(
                "Epoch %d of %d, step %d: validation loss %.3f nats (masked bins %.3f).",
                trainer.current_epoch + 1,
                trainer.max_epochs,
                trainer.global_step,
                losses["val_loss"],
                losses.get("val_masked_bins", math.nan),
            )


class EpochBar(TQDMProgressBar):
    """The progress bar of Lightning, which counts epochs from 0 and names no last one, with "Epoch 1/8"."""

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Start the bar of this epoch. The method of Lightning would show its own number first."""
        self.train_progress_bar.reset(int(self.total_train_batches))
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")


def _any_process(trainer: L.Trainer, decision: bool) -> bool:
    """Whether ``decision`` is True in any process. All processes must stop together, or they wait for each other."""
    return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


class StopOnNaN(Callback):
    """Stops training at the first loss that is not finite."""

    step: int | None = None  # step with the non-finite loss

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss of this step."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if _any_process(trainer, loss is not None and not bool(torch.isfinite(loss))):
            self.step = trainer.global_step
            trainer.should_stop = True


class StopOnInterrupt(Callback):
    """The first Ctrl-C stops training after the current step, and the best model is kept. A second Ctrl-C aborts.

    Use it inside of :func:`interruptible`, which restores the handler.
    """

    interrupted = False
    _former: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handler of SIGINT. Python allows this only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop training if Ctrl-C was pressed."""
        if _any_process(trainer, self.interrupted):
            trainer.should_stop = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted. Training stops after this step and the best model is kept.")
        self.interrupted = True
        signal.signal(signal.SIGINT, self._former)
