"""Lightning callbacks: history, best weights, progress bar, checkpoints, and a stop at a non-finite loss or Ctrl-C."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from scbioformers.training._checkpoint import MemberIO

logger = logging.getLogger(__name__)


class History(Callback):
    """One row of mean losses per epoch. Validation losses are only in rows of epochs with a validation.

    A validation within an epoch has a row of its own, and so has one before the first step, with step 0.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row, or record that this epoch had a validation, which runs before the end of the epoch."""
        losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.rows.append({"epoch": 0, "step": 0, **losses})
        elif trainer.is_last_batch:
            self._validated = True
        else:
            done = (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
            self.rows.append({"epoch": trainer.current_epoch + done, "step": trainer.global_step, **losses})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect the losses of this epoch. Without a validation, Lightning would repeat the last validation losses."""
        if self.rows and self.rows[-1]["step"] == trainer.global_step:  # training ends with this validation
            self.rows.pop()
            self._validated = True
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

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Make the bar. Training that goes on within an epoch does not start that epoch again."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Start the bar of this epoch. The method of Lightning would show its own number first."""
        self.train_progress_bar.reset(int(self.total_train_batches))
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")


def _any_process(trainer: L.Trainer, decision: bool) -> bool:
    """Whether ``decision`` is True in any process. All processes must stop together, or they wait for each other."""
    return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


def _ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the weights change after this batch: of several batches whose gradients are added, after the last one."""
    n_done = batch_idx + 1
    return n_done % trainer.accumulate_grad_batches == 0 or n_done == trainer.num_training_batches


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
        if _ends_step(trainer, batch_idx):
            self.interrupted = _any_process(trainer, self.interrupted)
            trainer.should_stop = trainer.should_stop or self.interrupted

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        logger.warning("Interrupted. Training stops after this step and the best model is kept.")
        self.interrupted = True
        signal.signal(signal.SIGINT, self._former)


class CheckpointWriter(Callback):
    """Writes a checkpoint between two steps: when it is time, at the first Ctrl-C, and before SIGTERM ends the process.

    It must be the last callback. Besides what Lightning saves, a checkpoint has the history, the best weights, the sums
    of the losses of the current epoch, and the state of the random generators, which dropout uses.
    """

    def __init__(
        self, io: MemberIO, history: History, best: BestWeights, diverged: StopOnNaN, interrupt: StopOnInterrupt
    ) -> None:
        self.checkpoints, self.path = io.checkpoints, io.path
        self.history, self.best, self.diverged, self.interrupt = history, best, diverged, interrupt
        self._last = 0.0
        self._within_step = False
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handler of SIGTERM, in the place of that of Lightning, which restores the former one.

        With several processes, the handler of Lightning communicates in the middle of a step.
        """
        self.checkpoints.writes, self._last = trainer.is_global_zero, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if it is time, or if the process was asked to end."""
        if self._restored is not None:
            _set_generators(self._restored["generators"], pl_module.device)
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._restored["n_logged"]
        late = time.monotonic() - self._last >= 60 * self.checkpoints.minutes
        # gradients that are not applied yet are not part of a checkpoint
        between = batch_idx % trainer.accumulate_grad_batches == 0
        if not (between and _any_process(trainer, late or self.checkpoints.terminated)):
            return
        self.checkpoints.terminated = _any_process(trainer, self.checkpoints.terminated)
        self._save(trainer)
        if self.checkpoints.terminated:
            self.checkpoints.exit()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint at Ctrl-C, before the last validation. After an epoch, the former checkpoint stays."""
        if self._restored is not None:
            _add_sums(trainer, self._restored["sums"])
            self._restored = None
        ended = self.diverged.step is not None or batch_idx + 1 == trainer.num_training_batches
        if self.interrupt.interrupted and _ends_step(trainer, batch_idx) and not ended:
            self._within_step = True
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Agree on whether to end after this member."""
        self.checkpoints.terminated = _any_process(trainer, self.checkpoints.terminated)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to the checkpoint what Lightning does not save."""
        loop = checkpoint["loops"]["fit_loop"]
        if not self._within_step:  # the batch that was just read will be read again
            progress = loop["epoch_loop.batch_progress"]
            progress["is_last_batch"] = False
            for of in ("total", "current"):
                progress[of]["ready"] = progress[of]["started"]
        best = self.best
        checkpoint["scbioformers"] = {
            "history": self.history.rows,
            "best": {"value": best.best, "step": best.step, "weights": best.weights},
            "sums": _sums(trainer) if self._restored is None else self._restored["sums"],
            "generators": _generators(pl_module.device),
            "n_logged": loop["epoch_loop.state_dict"]["_batches_that_stepped"] + self._within_step,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore what Lightning does not. Sums and generators must wait for the first step."""
        own = checkpoint["scbioformers"]
        self.history.rows = own["history"]
        self.best.best, self.best.step = own["best"]["value"], own["best"]["step"]
        self.best.weights = own["best"]["weights"]
        self._restored = own

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        logger.warning(
            "Terminated (SIGTERM). This step is completed and a checkpoint is written to %s. The same command then "
            "continues the training.",
            self.checkpoints.directory,
        )
        self.checkpoints.terminated = True


def _sums(trainer: L.Trainer) -> dict[str, list[torch.Tensor]]:
    """The sum of each loss over the cells of this epoch so far, and the number of cells, over all processes."""
    found = {}
    for name, loss in trainer.fit_loop.epoch_loop._results.items():
        if loss.meta.on_epoch and not loss.has_reset:
            pair = (loss.value, loss.cumulated_batch_size)
            found[name] = [trainer.strategy.reduce(x.clone(), reduce_op="sum") for x in pair]
    return found


def _add_sums(trainer: L.Trainer, sums: dict[str, list[torch.Tensor]]) -> None:
    """Add stored sums to those of the first step. One process has those of all."""
    if not trainer.is_global_zero:
        return
    for name, (value, size) in sums.items():
        loss = trainer.fit_loop.epoch_loop._results[name]
        loss.value = value.to(loss.value.device) + loss.value
        loss.cumulated_batch_size = size.to(loss.value.device) + loss.cumulated_batch_size


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the random generators of torch."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
