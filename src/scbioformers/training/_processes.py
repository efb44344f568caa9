"""Several processes that train one network: the strategy of Lightning, what a lost process means, who writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from scbioformers.config import TrainConfig
from scbioformers.core import BioformersError, ProcessLostError, warn

JOIN_TIMEOUT = timedelta(hours=2)  # a process may have to read all data before it joins the others
TIMEOUT = timedelta(minutes=10)  # for the longest step: reading a buffer, a checkpoint
_SIGNS = ("gloo", "nccl", "connection", "socket", "timed out")

T = TypeVar("T")


class _Strategy(DDPStrategy):
    """DDP. Weights that no objective uses are allowed. A process that hangs is noticed after ``TIMEOUT``."""

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True, timeout=JOIN_TIMEOUT)

    def setup_distributed(self) -> None:
        super().setup_distributed()
        torch.distributed.distributed_c10d._set_pg_timeout(TIMEOUT)


def choose_strategy(config: TrainConfig) -> str | DDPStrategy:
    """Strategy of Lightning: that of the configuration, or DDP if this asks for several processes."""
    n_gpus = torch.cuda.device_count()
    several = config.num_nodes > 1 or (config.devices not in (1, "1") and (config.devices != "auto" or n_gpus > 1))
    if config.strategy == "ddp" or (config.strategy == "auto" and several):
        return _Strategy()
    return config.strategy


def warn_if_alone(config: TrainConfig) -> None:
    """Warn if ``torchrun`` started several processes, each of which would fit a model of its own."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and n > 1 and choose_strategy(config) == "auto":
        on_each = int(os.environ.get("LOCAL_WORLD_SIZE", n))
        warn(
            f"torchrun started {n} processes, but `TrainConfig` asks for one device, so each of them fits a model of "
            f"its own. For one fit in all of them, pass `bf.TrainConfig(devices={on_each}, num_nodes={n // on_each}, "
            "strategy='ddp')`."
        )


@contextmanager
def names_lost_process(trainer: L.Trainer | None = None) -> Iterator[None]:
    """An error of the connection to the other processes says that one was lost."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, BioformersError) or not _distributed() or not _is_of_connection(error):
            raise
        step = "" if trainer is None else f" at step {trainer.global_step}"
        children = getattr(getattr(trainer, "strategy", None), "launcher", None)
        codes = {rank: child.poll() for rank, child in enumerate(getattr(children, "procs", ()), 1)}
        ended = "".join(f" Process {rank} has ended with code {code}." for rank, code in codes.items() if code)
        rank, n = torch.distributed.get_rank(), torch.distributed.get_world_size()
        raise ProcessLostError(
            f"Process {rank} of 0 to {n - 1} has lost another one{step}: {str(error).strip().splitlines()[-1]}.{ended} "
            "See the output of the other processes: one stopped at an error, or was killed, which happens where memory "
            "is short. Then run the same program again. With `TrainConfig(checkpoint_dir=…)` it goes on where it was."
        ) from error


def _is_of_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in text for sign in _SIGNS)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def in_one_process(config: TrainConfig, write: Callable[[], T]) -> T:
    """Call ``write`` in one of the processes that have trained. The others wait, and get what it returns or raises."""
    if not _distributed() or choose_strategy(config) == "auto":
        return write()
    outcome: list[T | BioformersError | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome = [write()]
        except BioformersError as error:
            outcome = [error]
    with names_lost_process():
        torch.distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], BioformersError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]
