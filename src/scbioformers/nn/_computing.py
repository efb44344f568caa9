"""What every function that runs a network does: it sets the threads of torch, and leaves torch as it was."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from scbioformers import settings
from scbioformers.core import OutOfMemoryError

NARROW = 256  # up to this width one thread is at most a third slower, and on a busy machine many times faster

P = ParamSpec("P")
R = TypeVar("R")
_LOCK = threading.Lock()


class _Calls(threading.local):
    """The calls of one thread that compute at present, one in another."""

    own_threads: tuple[int, ...] = ()  # number of threads of torch before each of them


_CALLS = _Calls()


def computes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function that runs a network.

    The settings of torch are afterwards as they were, also after an error or Ctrl-C: the number of threads, the mode of
    gradients and the default dtype. In the function itself, gradients are enabled and the default dtype is float32. A
    lack of memory becomes an error that suggests a smaller batch.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _torch_settings():
            try:
                return function(*args, **kwargs)
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, OutOfMemoryError) or not _lacks_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0]
        # raised out here, so that the traceback does not hold the arrays that take up the memory
        arguments = inspect.signature(function).bind(*args, **kwargs)
        arguments.apply_defaults()
        name = ".".join(["bf", *function.__module__.split(".")[1:2], function.__name__])
        raise OutOfMemoryError(
            f"Out of memory in `{name}`: {reason or 'no reason given'}. {_advice(arguments.arguments)}"
        )

    return call


def use_threads(width: int) -> None:
    """Set the number of threads of torch for networks of this width, until the end of the function that computes.

    It is ``bf.settings.n_threads``. If this is None: one thread up to a width of 256, else the number of torch. OpenMP
    threads that wait for each other take turns with the other processes of a busy machine, so the steps of a small
    network become many times slower.
    """
    if _CALLS.own_threads:
        _set_own_threads(settings.n_threads or (1 if width <= NARROW else _CALLS.own_threads[0]))


@contextmanager
def _torch_settings() -> Iterator[None]:
    """Restore the settings of torch after the block. Threads that compute at the same time do not meet in it."""
    with _LOCK:  # at its first use of torch, a thread takes over the number, which another may be setting
        _CALLS.own_threads = (*_CALLS.own_threads, torch.get_num_threads())
    try:
        with _float32(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _set_own_threads(_CALLS.own_threads[-1])
        _CALLS.own_threads = _CALLS.own_threads[:-1]


def _set_own_threads(number: int) -> None:
    """Set the number of threads of torch in this thread alone.

    ``torch.set_num_threads`` also changes the number with which other threads begin. Another thread puts that one back.
    """
    if number == torch.get_num_threads():
        return
    with _LOCK, ThreadPoolExecutor(1) as other:
        begin = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(number)
        other.submit(torch.set_num_threads, begin).result()


class _Dtype:
    """The default dtype of torch, which all threads share. The last call that computes restores it."""

    n_calls = 0
    former = torch.float32


@contextmanager
def _float32() -> Iterator[None]:
    with _LOCK:
        if not _Dtype.n_calls:
            _Dtype.former = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _Dtype.n_calls += 1
    try:
        yield
    finally:
        with _LOCK:
            _Dtype.n_calls -= 1
            if not _Dtype.n_calls:
                torch.set_default_dtype(_Dtype.former)


def _lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the CPU or of a device. torch has no class of its own for most of these errors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return any(sign in str(error).lower() for sign in signs)


def _advice(arguments: Mapping[str, Any]) -> str:
    """The next call, from the arguments of this one."""
    train = arguments.get("train")
    if "train" in arguments:
        paper = arguments.get("config") == "paper"
        size = 64 if train is None else train.batch_size
        given = "train" if train is not None else "bf.TrainConfig.paper()" if paper else "bf.TrainConfig()"
        smaller = f"train=dataclasses.replace({given}, batch_size={size // 2})"
    else:
        size = arguments.get("batch_size", 0)
        smaller = f"batch_size={size // 2}"
    if size > 1:
        return f"Pass a smaller batch, `{smaller}` (it was {size}), or fewer cells."
    if arguments.get("n_cells"):
        return f"Pass fewer cells, `n_cells={max(1, arguments['n_cells'] // 2)}` (it was {arguments['n_cells']})."
    return "Pass fewer cells or genes, or free memory."
