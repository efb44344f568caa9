"""Callbacks: best weights, history, a loss that is not a number, and Ctrl-C."""

from __future__ import annotations

import logging
import math
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from scbioformers.core import BioformersError

logger = logging.getLogger(__name__)


class TrainingDiverged(BioformersError, ArithmeticError):
    """The loss became NaN or infinite before there were any weights worth keeping."""


class History(Callback):
    """One row of mean losses per epoch; the held-out ones only in epochs that ended with a validation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation comes before the end of its epoch."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect what the module logged in this epoch; Lightning would repeat the last validation's values."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
        fresh = {name: value for name, value in metrics.items() if self._validated or not name.startswith("val_")}
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **fresh})
        self._validated = False


class BestWeights(Callback):
    """Keeps a copy of the weights with the lowest ``monitor`` and puts them back at the end."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best, self.step = math.inf, 0
        self.weights: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After each validation."""
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if not trainer.sanity_checking and value < self.best:
            self.best, self.step = value, trainer.global_step
            self.weights = {name: x.detach().cpu().clone() for name, x in pl_module.state_dict().items()}

    def restore(self, module: L.LightningModule) -> None:
        """Load the best weights, if any validation was finite."""
        if self.weights is not None:
            module.load_state_dict(self.weights)


def _anywhere(trainer: L.Trainer, decision: bool) -> bool:
    """Whether any process decided so: one that stopped by itself would leave the others waiting for its gradients."""
    return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


class StopOnNaN(Callback):
    """Stops at the first loss that is not finite; the best weights so far are kept."""

    step: int | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss that this step returned."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if _anywhere(trainer, loss is not None and not bool(torch.isfinite(loss))):
            self.step = trainer.global_step
            trainer.should_stop = True


class StopOnInterrupt(Callback):
    """The first Ctrl-C ends training after the current step and keeps the best model; a second one aborts."""

    interrupted = False
    _former: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGINT, in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here."""
        if _anywhere(trainer, self.interrupted):
            trainer.should_stop = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted: stopping after this step and keeping the best model so far.")
        self.interrupted = True
        signal.signal(signal.SIGINT, self._former)  # Lightning takes ours for the user's, so release does it again

    def release(self) -> None:
        """Give SIGINT back."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)
            self._former = None
