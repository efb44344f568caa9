"""What a training leaves as it was: global generators, log levels, warnings filters."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

_GLOBALS = threading.RLock()


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Dropout draws from torch's global generators: lend them a seed and give them back as they were.

    The generators are the process's, so of several threads one fits at a time.
    """
    with _GLOBALS, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
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


def train_steps(module: L.LightningModule, batches: Sequence[Any], seed: int) -> None:
    """Train a small module on the CPU, one step for each of ``batches``, without a progress bar, logs or files."""
    with isolated(seed), quiet():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        generator = torch.Generator().manual_seed(0)  # a DataLoader would otherwise draw from the global one
        trainer.fit(module, DataLoader(batches, batch_size=None, generator=generator))  # type: ignore[arg-type]
