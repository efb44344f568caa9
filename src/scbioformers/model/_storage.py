"""Storage of models as safetensors and JSON, in one array of bytes or in a directory with a manifest.

Pickle is not used, so loading a model never runs code from its file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from scbioformers.core import ModelFormatError, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA = 5
# also of quantile bins, external tokens and decoders: others keep their schema, so that former versions read them
SCHEMA_OF_MODALITIES = 6
READABLE = (4, SCHEMA, SCHEMA_OF_MODALITIES)  # schema 4 has no score quantiles
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"  # for people: it may be edited or deleted, so it is neither in the manifest nor read
_DOCUMENTS = ("config", "vocabulary")
_METADATA = "scbioformers"  # a single key, because safetensors writes several keys in random order
_FILES = {f"{name}.json" for name in _DOCUMENTS} | {WEIGHTS}
MAX_HEADER = 64 * 2**20  # bytes, enough for a vocabulary of a million names

Tensors = dict[str, torch.Tensor]


def pack(tensors: Tensors, documents: dict[str, Any]) -> bytes:
    """Tensors and JSON documents as one safetensors file, with the documents in its header and a hash in front."""
    return seal(tensors, {name: documents[name] for name in _DOCUMENTS})


def unpack(data: bytes) -> tuple[Tensors, dict[str, Any]]:
    """Inverse of :func:`pack`."""
    documents, body = unseal(data, "The stored model", "Fit again, or load another copy.")
    if missing := [name for name in _DOCUMENTS if not isinstance(documents.get(name), dict)]:
        raise ModelFormatError(f"The stored model lacks {missing}. Fit again, or load another copy.")
    _check_schema(documents["config"])
    return read_tensors(body), documents


def seal(tensors: Tensors, header: dict[str, Any]) -> bytes:
    """A safetensors file with JSON in its header, and its SHA-256 in front."""
    body = safetensors.torch.save(tensors, metadata={_METADATA: _to_json(header)})
    return hashlib.sha256(body).digest() + body


def unseal(data: bytes, what: str, advice: str) -> tuple[dict[str, Any], bytes]:
    """The JSON and the safetensors file of :func:`seal`. The hash is checked first, so any changed byte is detected.

    ``what`` and ``advice`` are the subject and the next call of the messages.

    Raises
    ------
    ModelFormatError
        If the bytes are damaged or of another kind.
    """
    digest, body = data[:32], data[32:]
    if len(data) < 48:
        raise ModelFormatError(f"{what} is truncated: {len(data)} bytes. {advice}")
    if hashlib.sha256(body).digest() != digest:
        raise ModelFormatError(f"{what} is damaged, or not written by scbioformers: its hash does not match. {advice}")
    length = int.from_bytes(body[:8], "little")
    if not 0 < length <= min(MAX_HEADER, len(body) - 8):
        raise ModelFormatError(f"{what} has a header of {length} bytes in a file of {len(body)} bytes. {advice}")
    metadata = _from_json(body[8 : 8 + length], "header").get("__metadata__")
    if not isinstance(metadata, dict) or _METADATA not in metadata:
        raise ModelFormatError(f"{what} contains tensors, but was not written by scbioformers. {advice}")
    return _from_json(metadata[_METADATA], "metadata"), body


def check_directory(directory: Path, n_bytes: int = 0) -> None:
    """Check that a model of ``n_bytes`` can be written to ``directory``: before a fit, which would be lost otherwise.

    Raises
    ------
    ModelFormatError
        If the directory holds files that are not part of a model.
    StorageError
        If there is no such place, it is not writable, or its disk is too full.
    """
    with _locked(directory.resolve().parent, exclusive=False):
        _refuse_foreign(directory)
    parent = next(place for place in directory.resolve().parents if place.exists())
    free = shutil.disk_usage(parent).free
    if not parent.is_dir() or not os.access(parent, os.W_OK) or free < n_bytes:
        raise StorageError(
            f"The model of {n_bytes / 1e6:.1f} MB cannot be written to {directory}: {parent} must be a writable "
            f"directory, and its disk has {free / 1e6:.1f} MB free. Use another directory, or free space."
        )


def _refuse_foreign(directory: Path) -> None:
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if directory.is_file() or (present and (MANIFEST not in present or present - _FILES - {MANIFEST, CARD})):
        raise ModelFormatError(
            f"{directory} exists and holds files that are not part of a model; nothing was written. "
            "Use another directory."
        )


def save(directory: Path, tensors: Tensors, documents: dict[str, Any], card: str) -> Path:
    """Write to a temporary directory beside ``directory`` and rename it, so that a model is never incomplete.

    ``card`` is the text of ``README.md``.

    Raises
    ------
    ModelFormatError
        If the directory holds files that are not part of a model.
    StorageError
        If the system cannot write, for instance to a full disk. The former model is still there.
    """
    directory = directory.resolve()
    check_directory(directory)
    files = {f"{name}.json": _to_json(documents[name]).encode() for name in _DOCUMENTS}
    files[WEIGHTS] = safetensors.torch.save(tensors)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[CARD] = card.encode()
    manifest = {"schema": documents["config"]["schema"], "sha256": hashes}
    files[MANIFEST] = _to_json(manifest).encode()  # written last
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_synced(temporary / name, content)
        with _locked(directory.parent, exclusive=True):
            _refuse_foreign(directory)
            _replace(temporary, directory)
    except OSError as error:
        size = sum(map(len, files.values())) / 1e6
        raise StorageError(
            f"The model of {size:.1f} MB could not be written to {directory}: {error.strerror or error}. Nothing there "
            "was changed. Free space, or save to another directory."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


@contextmanager
def _locked(parent: Path, *, exclusive: bool) -> Iterator[None]:
    """Only one thread or process at a time replaces a model in this directory, and no other reads one meanwhile.

    The lock is on the directory itself, so no file is left over. It ends with the process. Without it (Windows, some
    network file systems) a model is still never mixed with another, because the manifest names all hashes. But two
    processes that save to the same place at the same time may disturb each other.
    """
    handle = None
    if fcntl is not None and parent.is_dir():
        try:
            handle = os.open(parent, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError:  # not readable, or a file system without locks
            pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _replace(new: Path, directory: Path) -> None:
    """Rename ``new`` to ``directory``. A previous model is renamed first, and restored if this fails."""
    former = _former(directory)
    if directory.exists():
        shutil.rmtree(former, ignore_errors=True)  # may remain from a process that was killed
        os.replace(directory, former)
    try:
        os.replace(new, directory)
    except OSError:
        if former.exists():
            os.replace(former, directory)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _former(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.former")


def load(directory: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a directory that :func:`save` wrote. Every file is first checked against the manifest."""
    directory = directory.resolve()
    with _locked(directory.parent, exclusive=False):
        return _load(directory)


def _load(directory: Path) -> tuple[Tensors, dict[str, Any]]:
    if not directory.exists() and _former(directory).exists():
        directory = _former(directory)  # save was killed between its two renames
    manifest = _from_json(_read(directory, MANIFEST), MANIFEST)
    _check_schema(manifest)
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or set(hashes) != _FILES:
        # file names are never taken from the manifest, so no path outside the directory can be read
        raise ModelFormatError(f"{directory / MANIFEST} must list exactly {sorted(_FILES)}.")
    contents = {name: _read(directory, name) for name in sorted(_FILES)}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise ModelFormatError(f"{directory / name} is damaged: its SHA-256 is not the one in {MANIFEST}.")
    documents = {name: _from_json(contents[f"{name}.json"], name) for name in _DOCUMENTS}
    _check_schema(documents["config"])
    if documents["config"]["schema"] != manifest["schema"]:
        raise ModelFormatError(f"{directory / MANIFEST} is damaged: its schema is not the one in config.json.")
    return read_tensors(contents[WEIGHTS]), documents


def read_tensors(body: bytes) -> Tensors:
    """The tensors of a safetensors file."""
    try:
        return safetensors.torch.load(body)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelFormatError(f"The weights cannot be read as safetensors: {error}") from error


def _check_schema(document: dict[str, Any]) -> None:
    schema = document.get("schema")
    if type(schema) is not int or schema not in READABLE:
        raise ModelFormatError(
            f"The stored model has schema {schema!r}; this version of scbioformers reads {SCHEMA} and {READABLE[0]}. "
            "Fit the model again, or install the version that wrote it."
        )


def _read(directory: Path, name: str) -> bytes:
    path = directory / name
    if not path.is_file() or path.is_symlink():
        missing = path if directory.is_dir() else f"the directory {directory}"
        raise ModelFormatError(f"Did not find {missing}. Pass a directory that `BioFormer.save(directory)` wrote.")
    return path.read_bytes()


def write_synced(path: Path, content: bytes) -> None:
    """Write a file whose content is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _to_json(document: Any) -> str:
    return json.dumps(document, sort_keys=True, ensure_ascii=True)


def _from_json(content: bytes | str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{name} of the stored model is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelFormatError(f"{name} of the stored model must be a JSON object, found {type(document).__name__}.")
    return document
