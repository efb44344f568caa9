"""Context managers that restore global state after training: random generators, log levels, the handler of Ctrl-C."""

from __future__ import annotations

import logging
import signal
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
    """Seed the global random generators of torch, which dropout uses, and restore their state afterwards.

    All threads share these generators, so only one thread at a time can run inside this context.
    """
    with _GLOBALS, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages of Lightning on settings that the user did not choose, such as the number of workers."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.fabric.strategies.launchers")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            loggers[-1].setLevel(logging.INFO)  # which process has ended, and that the others are ended therefore
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is a :class:`KeyboardInterrupt`, and its handler is as before after the block.

    Lightning ends Python instead, which would also end a notebook or a session, and it has the next Ctrl-C ignored.
    """
    former = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():  # Python allows this only there
            signal.signal(signal.SIGINT, former)


def train_steps(module: L.LightningModule, batches: Sequence[Any], seed: int) -> None:
    """Train a small module on the CPU, one step per batch, without a progress bar, logs or files."""
    with isolated(seed), quiet(), interruptible():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        generator = torch.Generator().manual_seed(0)  # otherwise a DataLoader draws from the global one
        trainer.fit(module, DataLoader(batches, batch_size=None, generator=generator))  # type: ignore[arg-type]
