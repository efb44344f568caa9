"""Checkpoints of a fit: one file of safetensors and JSON for each member of the ensemble. Pickle is not used.

A file is replaced as a whole, so that a process that is killed while it writes leaves the former one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import reprlib
import signal
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from scbioformers.config import TrainConfig
from scbioformers.core import ConfigError, ModelFormatError, StorageError
from scbioformers.model import MAX_HEADER, Tensors, read_tensors, seal, unseal, write_synced

logger = logging.getLogger(__name__)

SCHEMA = 1
# fields of TrainConfig that say where a fit runs: another number of processes goes on with the same batches
_PLACES = ("devices", "strategy", "num_nodes", "num_workers")
_NEVER = "`TrainConfig(resume='never')` to start anew and replace it"
_MAX_SHOWN = 4


def check_checkpoint_dir(train: TrainConfig, save_dir: str | Path | None = None) -> None:
    """Check, before any work, that checkpoints can be written. Makes the directory.

    Raises
    ------
    StorageError
        If the directory is not writable.
    ConfigError
        If it is the directory of the model, or in it: a model is only saved to a directory without other files.
    """
    if train.checkpoint_dir is None:
        return
    directory = Path(train.checkpoint_dir)
    if save_dir is not None and directory.resolve().is_relative_to(Path(save_dir).resolve()):
        raise ConfigError(
            f"`TrainConfig.checkpoint_dir` must not be in the directory of the model, `save_dir`, found {directory} in "
            f"{save_dir}. Pass another one, such as '{save_dir}-checkpoints'."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise StorageError(
            f"Checkpoints cannot be written to `TrainConfig.checkpoint_dir`, {directory}: {error.strerror or error}. "
            "Pass a directory that is writable."
        ) from error


@dataclass
class Checkpoints:
    """The checkpoints of one fit in a directory."""

    directory: Path
    """Where the files are."""
    fit: dict[str, Any]
    """What determines the result of the fit, in plain JSON types. Only a checkpoint of the same fit is read."""
    minutes: float
    """Time between two checkpoints of a member."""
    writes: bool = True
    """Whether this process writes. Of several processes, only the first one does."""
    terminated: bool = False
    """Whether the process was asked to end (SIGTERM)."""
    _warned: bool = field(default=False, init=False)

    @classmethod
    def of(cls, train: TrainConfig, fit: Mapping[str, Any]) -> Checkpoints | None:
        """The checkpoints of a fit, without those that it must not go on from. None if it has no ``checkpoint_dir``."""
        if train.checkpoint_dir is None:
            return None
        settings = {name: value for name, value in train.to_dict().items() if name not in _PLACES}
        plain = json.loads(json.dumps({"TrainConfig": settings, **fit}))
        found = cls(Path(train.checkpoint_dir), plain, train.checkpoint_minutes)
        former = () if train.resume == "auto" else found.directory.glob("member-*.checkpoint")
        for path in (*former, *found.directory.glob(".member-*.new")):  # of a process that was killed while it wrote
            path.unlink(missing_ok=True)
        return found

    def exit(self) -> NoReturn:
        """End the process after SIGTERM, with the status that a process has which it ends at once."""
        raise SIGTERMException(128 + signal.SIGTERM)

    def path(self, member: int) -> Path:
        """File of a member."""
        return self.directory / f"member-{member}.checkpoint"

    def finished(self, member: int) -> dict[str, Any] | None:
        """What :meth:`finish` has written, if it was called. The errors are those of :meth:`read`."""
        found = self.read(self.path(member))
        return found[0] if found is not None and found[1] else None

    def finish(self, member: int, state: dict[str, Any]) -> None:
        """Replace the checkpoint of a member by its result. After SIGTERM, end the process."""
        if self.writes:
            self.write(self.path(member), state, finished=True)
        if self.terminated:
            self.exit()

    def write(self, path: Path, state: dict[str, Any], *, finished: bool = False) -> bool:
        """Replace the file. If the system cannot write, warn once: the former file stays, and training goes on.

        ``state`` is a tree of dicts, lists and tuples with tensors and plain values. Returns whether it was written.
        """
        tensors: Tensors = {}
        header = {"checkpoint": SCHEMA, "fit": self.fit, "finished": finished, "state": _split(state, tensors)}
        new = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(new, seal(tensors, header))
            os.replace(new, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            if not self._warned:
                logger.warning(
                    "A checkpoint could not be written to %s: %s. The former one stays, if there is one, and training "
                    "goes on. Free space: the next checkpoint is tried as usual.",
                    path, error.strerror or error,
                )  # fmt: skip
            self._warned = True
            return False
        return True

    def read(self, path: Path) -> tuple[dict[str, Any], bool] | None:
        """The state, and whether the member is finished. None if there is no file.

        Raises
        ------
        ModelFormatError
            If the file is damaged, of another kind, or of another schema.
        ConfigError
            If it is of another fit. The message says what differs.
        """
        if not path.is_file():
            return None
        header, body = unseal(_read(path), str(path), _advice(path))
        if (schema := header.get("checkpoint")) != SCHEMA:
            raise ModelFormatError(
                f"{path} has schema {schema!r} of a checkpoint; this version of scbioformers reads {SCHEMA}. Install "
                f"the version that wrote it, or {_advice(path)[0].lower()}{_advice(path)[1:]}"
            )
        if differences := list(_differences(header.get("fit"), self.fit)):
            more = f", and {len(differences) - _MAX_SHOWN} more" if len(differences) > _MAX_SHOWN else ""
            raise ConfigError(
                f"{path} is the checkpoint of another fit. What differs: {'; '.join(differences[:_MAX_SHOWN])}{more}. "
                f"Pass another `TrainConfig(checkpoint_dir=…)`, or {_NEVER}."
            )
        try:
            return _join(header["state"], read_tensors(body)), bool(header["finished"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelFormatError(f"{path} is incomplete: {error}. {_advice(path)}") from error


class MemberIO(CheckpointIO):
    """Writes and reads the checkpoints of Lightning as those of :class:`Checkpoints`, not as pickles."""

    def __init__(self, checkpoints: Checkpoints, member: int) -> None:
        self.checkpoints, self.path = checkpoints, checkpoints.path(member)
        self._left_out: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint. What a callback of the user keeps is left out if JSON and tensors cannot hold it."""
        callbacks = checkpoint.get("callbacks", {})
        for name in list(callbacks):
            try:
                _split(callbacks[name], {})
            except TypeError as error:
                if name not in self._left_out:
                    logger.warning("The state of the callback %s is not part of the checkpoint: %s.", name, error)
                self._left_out.add(name)
                del callbacks[name]
        self.checkpoints.write(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint."""
        found = self.checkpoints.read(Path(path))
        if found is None:
            raise ModelFormatError(f"Did not find the checkpoint {path}. {_advice(Path(path))}")
        return found[0]

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _advice(path: Path) -> str:
    return f"Delete {path.name}, so that this member is trained from its start, or pass {_NEVER}."


def _read(path: Path) -> bytes:
    """The content of a file. Of a large file of another kind, only the first bytes are read."""
    with path.open("rb") as file:
        start = file.read(40)
        if not 0 < int.from_bytes(start[32:], "little") <= MAX_HEADER and len(start) == 40:
            raise ModelFormatError(f"{path} is damaged, or not written by scbioformers. {_advice(path)}")
        return start + file.read()


def _differences(found: Any, expected: Any, name: str = "") -> Iterator[str]:
    """In words, the values that differ between two descriptions of a fit."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in dict.fromkeys((*expected, *found)):
            yield from _differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif found != expected:
        yield f"{name} was {reprlib.repr(found)} and is {reprlib.repr(expected)}"


def _split(value: Any, tensors: Tensors) -> Any:
    """A JSON tree in the place of ``value``. The tensors of it are added to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors[name := str(len(tensors))] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs, because keys may be integers
        return {"dict": [[_split(key, tensors), _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_split(item, tensors) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"it has a {type(value).__name__}")


def _join(tree: Any, tensors: Tensors) -> Any:
    """Inverse of :func:`_split`."""
    if isinstance(tree, list):
        return [_join(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_join(item, tensors) for item in content)
    if kind == "dict":
        return {_join(key, tensors): _join(item, tensors) for key, item in content}
    raise ValueError(f"unknown kind {kind!r}")
