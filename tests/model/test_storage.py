"""Stored models: complete, checked against their hashes, never a pickle, bounded in memory and time."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

import scbioformers as bf
from scbioformers.core import BioformersError, ConfigError, ModelFormatError, StorageError
from scbioformers.data import BlockSource
from scbioformers.model import _storage, check_directory

FILES = ("config.json", "vocabulary.json", "model.safetensors", "manifest.json")
WRITTEN = (*FILES, "README.md")  # the card is for people: it is not part of the model


def assert_same(first, second):
    assert first.hash == second.hash
    assert json.dumps(first._documents()) == json.dumps(second._documents())
    for name, tensor in first._tensors().items():
        assert torch.equal(tensor, second._tensors()[name]), name


# round trips


def test_round_trip_of_bytes(ensemble):
    data = ensemble.to_bytes()
    assert isinstance(data, bytes)
    assert all(ensemble.to_bytes() == data for _ in range(20))
    assert_same(bf.BioFormer.from_bytes(data), ensemble)
    assert bf.BioFormer.from_bytes(data).to_bytes() == data


def test_round_trip_of_a_directory(ensemble, directory):
    assert sorted(path.name for path in directory.iterdir()) == sorted(WRITTEN)
    assert_same(bf.BioFormer.load(directory), ensemble)
    assert_same(bf.BioFormer.load(str(directory)), ensemble)


def test_files_are_plain_safetensors_and_json(ensemble, directory):
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    assert set(tensors) == set(ensemble._tensors())
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["schema"] == json.loads((directory / "config.json").read_text())["schema"] == _storage.SCHEMA
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
    assert set(manifest["sha256"]) == set(FILES) - {"manifest.json"}


def test_the_manifest_is_written_last(ensemble, tmp_path, monkeypatch):
    written, write = [], _storage.write_synced
    monkeypatch.setattr(
        _storage, "write_synced", lambda path, content: (written.append(path.name), write(path, content))
    )
    ensemble.save(tmp_path / "saved")
    assert written[-1] == "manifest.json"
    assert sorted(written) == sorted(WRITTEN)


# damage


@pytest.mark.fault("truncation")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 4, "half", "all but one"])
def test_truncated_file(directory, name, keep):
    path = directory / name
    content = path.read_bytes()
    path.write_bytes(content[: {"half": len(content) // 2, "all but one": len(content) - 1}.get(keep, keep)])
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)


@pytest.mark.fault("truncation")
@pytest.mark.parametrize("keep", [0, 4, 32, 40, "half", "all but one"])
def test_truncated_bytes(ensemble, keep):
    data = ensemble.to_bytes()
    keep = {"half": len(data) // 2, "all but one": len(data) - 1}.get(keep, keep)
    with pytest.raises(ModelFormatError, match="truncated" if keep < 48 else "damaged"):
        bf.BioFormer.from_bytes(data[:keep])


@pytest.mark.fault("byte-flip")
@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0])
def test_flipped_byte(directory, name, where):
    path = directory / name
    content = bytearray(path.read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=rf"{name} is damaged"):
        bf.BioFormer.load(directory)


@pytest.mark.fault("byte-flip")
@pytest.mark.parametrize("bit", [1, 128])
def test_every_byte_of_the_manifest_counts(directory, bit):
    path = directory / "manifest.json"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        with pytest.raises(ModelFormatError):
            bf.BioFormer.load(directory)


@pytest.mark.fault("byte-flip")
@pytest.mark.parametrize("where", [0.0, 0.001, 0.01, 0.5, 1.0])
def test_flipped_byte_in_bytes(ensemble, where):
    data = bytearray(ensemble.to_bytes())
    data[round(where * (len(data) - 1))] ^= 1
    with pytest.raises(ModelFormatError, match="hash does not match"):
        bf.BioFormer.from_bytes(bytes(data))


@pytest.mark.parametrize("name", FILES)
def test_missing_file(directory, name):
    (directory / name).unlink()
    with pytest.raises(ModelFormatError, match=f"Did not find .*{name}"):
        bf.BioFormer.load(directory)


def test_missing_directory(tmp_path):
    with pytest.raises(ModelFormatError, match=r"Did not find the directory /.*nowhere\."):
        bf.BioFormer.load(tmp_path / "nowhere")


# saving


def other(model):
    data = model.to_bytes()
    changed = bf.BioFormer.from_bytes(data)
    with torch.no_grad():
        next(changed.members[0].parameters())[-1] += 1
    return changed


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saving_replaces_a_former_model(ensemble, directory, tmp_path):
    changed = other(ensemble)
    assert changed.hash != ensemble.hash
    changed.save(directory)
    assert_same(bf.BioFormer.load(directory), changed)
    assert entries(tmp_path) == ["saved"]


def test_saving_makes_parents_and_takes_an_empty_directory(ensemble, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert_same(bf.BioFormer.load(ensemble.save(place)), ensemble)
    assert entries(tmp_path / "a" / "b") == ["c"]


def test_saving_leaves_a_foreign_directory_alone(ensemble, tmp_path):
    foreign = tmp_path / "results"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("three years")
    with pytest.raises(ModelFormatError, match=r"results exists and holds .*; nothing was written"):
        ensemble.save(foreign)
    assert entries(foreign) == ["thesis.txt"]
    assert (foreign / "thesis.txt").read_text() == "three years"
    assert entries(tmp_path) == ["results"]


def test_saving_over_a_model_keeps_foreign_files(ensemble, directory):
    (directory / "notes.txt").write_text("which cells these were")
    with pytest.raises(ModelFormatError, match="nothing was written"):
        other(ensemble).save(directory)
    assert_same(bf.BioFormer.load(directory), ensemble)
    assert (directory / "notes.txt").read_text() == "which cells these were"


def test_saved_directory_has_ordinary_permissions(ensemble, tmp_path):
    (tmp_path / "ordinary").mkdir()
    saved = ensemble.save(tmp_path / "saved")
    assert saved.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.fault("disk-full")
@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("failing", WRITTEN)
def test_full_disk(ensemble, tmp_path, monkeypatch, former, failing):
    if former:
        ensemble.save(tmp_path / "saved")
    write = _storage.write_synced

    def fail(path, content):
        if path.name == failing:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(_storage, "write_synced", fail)
    with pytest.raises(StorageError, match=r"could not be written to .*saved: No space left") as caught:
        other(ensemble).save(tmp_path / "saved")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, BioformersError)
    assert entries(tmp_path) == (["saved"] if former else [])
    if former:
        assert_same(bf.BioFormer.load(tmp_path / "saved"), ensemble)


@pytest.mark.parametrize("failing", [1, 2])
def test_failing_rename(ensemble, directory, tmp_path, monkeypatch, failing):
    calls, replace = [], os.replace

    def fail(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        other(ensemble).save(directory)
    monkeypatch.undo()
    assert_same(bf.BioFormer.load(directory), ensemble)
    assert entries(tmp_path) == ["saved"]


@contextmanager
def nearly_full():
    """The system lets this process write files of at most 2 kB, as if the disk were full after that.

    Not a fixture: pytest would write its report under the limit.
    """
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.fault("disk-full")
def test_the_system_cannot_write(ensemble, directory, tmp_path):
    with pytest.raises(StorageError, match=r"of [0-9.]+ MB could not be written to .*Free space"), nearly_full():
        other(ensemble).save(directory)
    assert entries(tmp_path) == ["saved"]
    assert_same(bf.BioFormer.load(directory), ensemble)


@pytest.mark.fault("disk-full")
def test_a_fit_is_not_lost_if_its_directory_cannot_be_written(simulated, tiny_config, tmp_path):
    train = bf.TrainConfig(max_steps=1)
    advice = r"in adata.uns\['mine'\]: `bf.get.model\(adata, key='mine'\).save"
    with pytest.raises(StorageError, match=advice), nearly_full():
        bf.tl.fit(simulated, config=tiny_config, train=train, save_dir=tmp_path / "saved", key_added="mine")
    assert entries(tmp_path) == []
    expected = bf.tl.fit(simulated, config=tiny_config, train=train, copy=True)
    assert bf.get.model(simulated, key="mine").hash == bf.get.model(expected).hash


@pytest.mark.fault("disk-full")
def test_a_directory_that_cannot_be_written_is_an_error_before_a_fit(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(BlockSource, "read", lambda *args: pytest.fail("the data was read"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").write_text("three years")
    for place, error in (("file", ModelFormatError), ("results", ModelFormatError), ("file/saved", StorageError)):
        with pytest.raises(error):
            bf.tl.fit(simulated, save_dir=tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StorageError, match=r"model of 1000000000000.0 MB cannot .* and its disk has .* MB free"):
        check_directory(tmp_path / "new", 10**18)


CONCURRENT = """
import json, os, sys, threading
import scbioformers as bf
place, *models = sys.argv[1:]
models = [bf.BioFormer.load(model) for model in models]
hashes = {model.hash for model in models}
models[0].save(place)

def work(start):
    for i in range(6):
        models[(start + i) % len(models)].save(place)
        assert bf.BioFormer.load(place).hash in hashes

children = []
for start in range(3):
    children.append(os.fork())
    if children[-1] == 0:
        code = 1
        try:
            errors = []
            threading.excepthook = errors.append
            threads = [threading.Thread(target=work, args=(start + i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for error in errors:
                print(error.exc_value, file=sys.stderr)
            code = len(errors)
        finally:
            os._exit(code)
print(json.dumps([os.waitpid(child, 0)[1] for child in children]))
"""


@pytest.mark.fault(78)
def test_threads_and_processes_that_save_to_one_place(ensemble, tmp_path):
    """36 saves of two models by three processes with two threads each: whoever loads finds one of them, whole."""
    models = [str(ensemble.save(tmp_path / "a")), str(other(ensemble).save(tmp_path / "b"))]
    place = tmp_path / "place" / "saved"
    command = [sys.executable, "-c", CONCURRENT, str(place), *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(done.stdout) == [0, 0, 0], done.stderr
    assert entries(place.parent) == ["saved"]
    assert bf.BioFormer.load(place).hash in {ensemble.hash, other(ensemble).hash}


KILLED = """
import json, os, signal, sys
from pathlib import Path
import scbioformers as bf
from scbioformers.data import BlockSource
from scbioformers.model import _storage, check_directory
former, new, place = sys.argv[1:]
new = bf.BioFormer.load(new)

def kill_at(step):
    def counted(function):
        def call(*args):
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)
        return call

    count = [0]
    _storage.write_synced, os.replace = counted(_storage.write_synced), counted(os.replace)
    new.save(place)
    os._exit(0)

for step in range(1, 100):
    bf.BioFormer.load(former).save(place)
    child = os.fork()
    if child == 0:
        kill_at(step)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(json.dumps([step, killed, bf.BioFormer.load(place).hash]), flush=True)
    if not killed:
        break
"""


@pytest.mark.fault("kill-9")
def test_killed_while_saving(ensemble, tmp_path):
    former, new = ensemble.save(tmp_path / "former"), other(ensemble).save(tmp_path / "new")
    command = [sys.executable, "-c", KILLED, str(former), str(new), str(tmp_path / "place" / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)  # ends a hang alone
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [killed for _, killed, _ in results] == [True] * (len(WRITTEN) + 2) + [False]
    assert {found for _, killed, found in results if killed} == {ensemble.hash}
    assert results[-1][2] == other(ensemble).hash
    assert not [path for path in entries(tmp_path / "place") if "former" in path]


@pytest.mark.fault(71)
@pytest.mark.parametrize("wrong", [None, 5, ["saved"]])
def test_a_directory_of_a_wrong_type(ensemble, wrong):
    for call in (ensemble.save, bf.BioFormer.load):
        with pytest.raises(ConfigError, match="`directory` must be a string or a Path, found"):
            call(wrong)
