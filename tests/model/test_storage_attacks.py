"""Stored models that somebody altered on purpose: refused, without running anything, in bounded memory and time."""

import hashlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import scbioformers as bf
from scbioformers.core import ModelFormatError
from scbioformers.model import _storage

FILES = ("config.json", "vocabulary.json", "model.safetensors", "manifest.json")
NESTED = "[" * 100_000 + "]" * 100_000


def resign(directory: Path) -> None:
    """Make the manifest fit the files, as somebody who alters a model on purpose would."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in manifest["sha256"]:
        manifest["sha256"][name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))


def signed(body: bytes) -> bytes:
    return hashlib.sha256(body).digest() + body


def edit_config(directory: Path, change) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    resign(directory)


class Payload:
    """Leaves a mark wherever it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def pickles(tmp_path):
    """Two real malicious pickles, and the file that appears if one of them runs."""
    mark = tmp_path / "it ran"
    torch.save({"weights": Payload(mark)}, tmp_path / "evil.pt")
    contents = {"torch": (tmp_path / "evil.pt").read_bytes(), "pickle": pickle.dumps(Payload(mark))}
    pickle.loads(contents["pickle"])
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert mark.exists(), "the payload must work, or the tests below say nothing"
    mark.unlink()
    return contents, mark


@pytest.mark.fault("pickle")
@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_pickle_in_a_directory_is_refused(directory, pickles, kind, name):
    contents, mark = pickles
    (directory / name).write_bytes(contents[kind])
    if name != "manifest.json":
        resign(directory)
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)
    assert not mark.exists()


@pytest.mark.fault("pickle")
@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("sign", [bytes, signed])
def test_pickle_as_bytes_is_refused(pickles, kind, sign):
    contents, mark = pickles
    with pytest.raises(ModelFormatError):
        bf.BioFormer.from_bytes(sign(contents[kind]))
    assert not mark.exists()


@pytest.mark.fault("pickle")
def test_pickle_as_a_path_is_refused(pickles, tmp_path):
    _, mark = pickles
    for name in ("evil.pt", "evil.ckpt", "model.safetensors"):
        (tmp_path / "evil.pt").rename(tmp_path / name)
        with pytest.raises(ModelFormatError):
            bf.BioFormer.load(tmp_path / name)
        (tmp_path / name).rename(tmp_path / "evil.pt")
    assert not mark.exists()


@pytest.mark.fault("header")
@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63, 2**64 - 1])
def test_absurd_header_length(ensemble, directory, length):
    body = ensemble.to_bytes()[32:]
    body = length.to_bytes(8, "little") + body[8:]
    start = time.process_time()
    with pytest.raises(ModelFormatError, match="header"):
        bf.BioFormer.from_bytes(signed(body))
    (directory / "model.safetensors").write_bytes(body)
    resign(directory)
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b"\xff\xfe", NESTED.encode(), b"9" * 10_000])
@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "manifest.json"])
def test_json_that_is_no_document(directory, name, content):
    (directory / name).write_bytes(content)
    if name != "manifest.json":
        resign(directory)
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)


def test_bytes_of_another_program_are_refused():
    foreign = safetensors.torch.save({"x": torch.zeros(3)}, metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match="tensors, but was not written by scbioformers"):
        bf.BioFormer.from_bytes(signed(foreign))
    with pytest.raises(ModelFormatError, match="not written by scbioformers"):
        bf.BioFormer.from_bytes(foreign)


@pytest.mark.fault(52)
def test_path_traversal(directory, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("../secret", str(secret), "./config.json", "..\\secret"):
        for hashes in (manifest["sha256"] | {name: digest}, {name: digest}):
            (directory / "manifest.json").write_text(json.dumps(manifest | {"sha256": hashes}))
            with pytest.raises(ModelFormatError, match="must list exactly"):
                bf.BioFormer.load(directory)
    assert secret.read_text() == "mine"


@pytest.mark.fault(52)
@pytest.mark.parametrize("name", FILES)
def test_symlinked_file(directory, tmp_path, name):
    (directory / name).rename(tmp_path / "elsewhere")
    (directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFormatError, match=name):
        bf.BioFormer.load(directory)


@pytest.mark.fault(51)
@pytest.mark.parametrize("schema", [0, 1, 99, "2", None])
@pytest.mark.parametrize("where", ["manifest.json", "config.json"])
def test_other_schema_names_both(directory, where, schema):
    if where == "config.json":
        edit_config(directory, lambda config: config.update(schema=schema))
    else:
        manifest = json.loads((directory / where).read_text())
        (directory / where).write_text(json.dumps(manifest | {"schema": schema}))
    with pytest.raises(ModelFormatError, match=rf"schema {schema!r}; .* reads {_storage.SCHEMA}"):
        bf.BioFormer.load(directory)


@pytest.mark.fault(51)
def test_other_schema_in_bytes(ensemble, monkeypatch):
    monkeypatch.setattr(_storage, "SCHEMA", 7)
    data = ensemble.to_bytes()
    monkeypatch.undo()
    with pytest.raises(ModelFormatError, match=rf"schema 7; .* reads {_storage.SCHEMA}"):
        bf.BioFormer.from_bytes(data)


ABSURD = {
    "width": {"model": {"width": 10**9}},
    "width past int64": {"model": {"width": 10**30}},
    "no layer": {"model": {"n_layers": 0}},
    "negative latent": {"model": {"n_latent": -1}},
    "latent": {"model": {"n_latent": 10**9}},
    "feedforward": {"model": {"feedforward": 10**12}},
    "text for a number": {"model": {"width": "16"}},
    "fraction for a number": {"model": {"width": 16.5}},
    "unknown option": {"model": {"pickle": True}},
    "members": {"n_members": 10**12},
    "no member": {"n_members": 0},
    "negative members": {"n_members": -1},
    "text for members": {"n_members": "two"},
    "bin": {"binnings": {"rna": {"max_bin": 10**12}}},
    "no batch": {"batch": None},
    "more batches": {"batch": {"name": "x", "categories": [str(i) for i in range(1000)]}},
    "more phenotypes": {"phenotypes": [{"name": "x", "categories": [str(i) for i in range(1000)]}]},
    "phenotypes of another type": {"phenotypes": 3},
    "masking": {"masking": {"ratio": 5.0}},
    "unknown masking": {"masking": {"extra": 1}},
    "unknown reading": {"reading": {"extra": 1}},
    "a million layers": {"model": {"n_layers": 10**6}},  # last: the peak of memory is that of all cases so far
}
BOUNDED = """
import json, resource, signal, sys, time
from pathlib import Path
import scbioformers as bf

def stop(number, frame):
    raise TimeoutError

signal.signal(signal.SIGPROF, stop)
bf.BioFormer.load(sys.argv[1])  # what torch imports at first use is not the model's fault
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for directory in map(Path, sys.argv[2:]):
    start, error = time.process_time(), None
    signal.setitimer(signal.ITIMER_PROF, 5)  # of processor time, which other processes do not take
    try:
        bf.BioFormer.load(directory)
    except Exception as raised:
        error = type(raised).__name__
    signal.setitimer(signal.ITIMER_PROF, 0)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([directory.name, error, time.process_time() - start, megabytes]), flush=True)
"""


def merge(config: dict, change: dict) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            merge(config[key], value)
        else:
            config[key] = value


@pytest.fixture(scope="module")
def absurd_loads(ensemble, tmp_path_factory):
    """What loading each absurd configuration came to, in a process of its own, which a hang or flood ends with."""
    directories = [str(ensemble.save(tmp_path_factory.mktemp("absurd") / "sound"))]
    for name, change in ABSURD.items():
        directories.append(str(ensemble.save(tmp_path_factory.mktemp("absurd") / name)))
        edit_config(Path(directories[-1]), lambda config, change=change: merge(config, change))
    command = [sys.executable, "-c", BOUNDED, *directories]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return {name: result for name, *result in map(json.loads, done.stdout.splitlines())}


@pytest.mark.fault("header")
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_configuration(absurd_loads, name):
    error, seconds, megabytes = absurd_loads[name]
    assert error == "ModelFormatError"
    assert seconds < 2
    assert megabytes < 300


@pytest.mark.parametrize("change", [lambda names: [*names, "rna:EXTRA"], lambda names: names[:-1], lambda names: [3]])
def test_vocabulary_that_does_not_fit_the_weights(directory, change):
    path = directory / "vocabulary.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: change(value) if key == "names" else value for key, value in stored.items()}))
    resign(directory)
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)


@pytest.mark.parametrize(
    "name",
    [
        *("axes", "axes_mean", "gene_mean", "gene_share", "bin_mean", "members.0", "members.1"),
        *("depth.profile.mean", "depth.profile.loadings", "depth.profile.scale"),
        *(f"depth.drawn.{name}" for name in ("share", "variance", "weights", "spread", "quantiles")),
        *(f"depth.natural.{name}" for name in ("share", "variance", "weights", "spread", "quantiles")),
    ],
)
@pytest.mark.parametrize("change", ["missing", "shape", "int32", "float64", "bfloat16"])
def test_tensors_that_do_not_fit_the_configuration(ensemble, directory, name, change):
    tensors = ensemble._tensors()
    name = max(full for full in tensors if full == name or full.startswith(f"{name}."))
    tensor = tensors.pop(name)
    if change != "missing":
        tensors[name] = torch.zeros(3, 5, 7) if change == "shape" else tensor.to(getattr(torch, change))
    (directory / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    resign(directory)
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["profile.scale", "drawn.share", "natural.variance"])
def test_depths_that_no_fit_gives(ensemble, directory, name, value):
    tensors = ensemble._tensors()
    tensors[f"depth.{name}"] = tensors[f"depth.{name}"].clone()  # the tensors share the memory of the model
    tensors[f"depth.{name}"][1] = value
    (directory / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    resign(directory)
    with pytest.raises(ModelFormatError, match="depth arrays"):
        bf.BioFormer.load(directory)


def test_a_model_of_counts_without_depth(ensemble, directory):
    tensors = {name: x for name, x in ensemble._tensors().items() if not name.startswith("depth.")}
    (directory / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    resign(directory)
    with pytest.raises(ModelFormatError):
        bf.BioFormer.load(directory)
